from __future__ import annotations

import socket
import traceback
from email.utils import formatdate
from pathlib import Path

import pytest

from gpuyard import __version__
from gpuyard.errors import (
    AmbiguousError,
    AuthenticationError,
    InvalidRequestError,
    ProviderDownError,
    ProviderError,
    ThrottledError,
    UsageError,
)
from gpuyard.providers.credentials import BearerKey
from gpuyard.providers.http import Answer, Client, Patience, fetch_text
from gpuyard.providers.vast import classify

from .conftest import VAST_KEY, FakeTime
from .standin import LOST, Reply, Request, Standin


@pytest.fixture
def client(service: Standin, fake_time: FakeTime) -> Client:
    return Client(
        "vast",
        "Vast.ai",
        service.url + "/",
        BearerKey(VAST_KEY),
        classify,
        Patience(tries=4, first_delay=0.5, read_timeout=60),
        sleep=fake_time.sleep,
        now=fake_time.clock,
    )


def test_what_goes_over_the_wire(client: Client, service: Standin) -> None:
    service.on("GET", "/x", Reply({"a": 1}))
    service.on("PUT", "/x", Reply({"b": 2}))
    assert client.call("GET", "/x", params={"limit": 25}) == {"a": 1}
    assert client.call("PUT", "/x", body={"k": None}) == {"b": 2}
    get, put = service.seen
    assert get.params == {"limit": "25"}
    assert get.headers["authorization"] == f"Bearer {VAST_KEY}"
    assert get.headers["user-agent"] == f"gpuyard/{__version__}"
    assert "content-type" not in get.headers
    assert put.headers["content-type"] == "application/json"
    assert put.body == {"k": None}


def test_a_netrc_entry_does_not_replace_the_key(
    service: Standin, own_home: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`127.1` is this machine under a name that is not treated as loopback, so that the environment counts."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    netrc = own_home / ".netrc"
    netrc.write_text("machine 127.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    service.on("GET", "/x", Reply({}))
    client = Client(
        "vast", "Vast.ai", service.url.replace("127.0.0.1", "127.1"), BearerKey(VAST_KEY), classify, patience
    )
    client.call("GET", "/x")
    assert service.seen[0].headers["authorization"] == f"Bearer {VAST_KEY}"


def test_a_proxy_of_the_environment_is_not_used_for_loopback(
    client: Client, service: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    service.on("GET", "/x", Reply({"ok": 1}))
    assert client.call("GET", "/x") == {"ok": 1}


def test_empty_and_list_answers(client: Client, service: Standin) -> None:
    service.on("DELETE", "/x", Reply(None, 204))
    service.on("GET", "/list", Reply([{"id": 1}]))
    assert client.call("DELETE", "/x") == {}
    assert client.call("GET", "/list") == {"items": [{"id": 1}]}


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_get_is_repeated_after_server_trouble(
    client: Client, service: Standin, fake_time: FakeTime, status: int
) -> None:
    service.on("GET", "/x", Reply("<html>", status), Reply("<html>", status), Reply({"ok": 1}))
    assert client.call("GET", "/x") == {"ok": 1}
    assert fake_time.slept == [0.5, 1.0]


def test_the_pauses_are_capped() -> None:
    patience = Patience(first_delay=0.5, longest_delay=3)
    assert [patience.delay(attempt) for attempt in range(5)] == [0.5, 1.0, 2.0, 3, 3]


def test_a_lost_answer_to_a_get_is_asked_again(client: Client, service: Standin) -> None:
    service.on("GET", "/x", LOST, Reply({"ok": 1}))
    assert client.call("GET", "/x") == {"ok": 1}


def test_a_get_gives_up_after_all_tries(client: Client, service: Standin) -> None:
    service.on("GET", "/x", Reply("down", 503))
    with pytest.raises(ProviderDownError, match="HTTP 503"):
        client.call("GET", "/x")
    assert len(service.seen) == 4


@pytest.mark.parametrize("reply", [LOST, Reply("oops", 500), Reply("gone", 502), Reply("<html>fine</html>", 200)])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_create_is_sent_once_and_its_lost_answer_is_ambiguous(
    client: Client, service: Standin, method: str, reply: Reply
) -> None:
    service.on(method, "/x", reply)
    with pytest.raises(AmbiguousError):
        client.call(method, "/x", body={})
    assert len(service.seen) == 1


def test_a_create_that_was_never_sent_is_not_ambiguous(patience: Patience) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: it refuses, and nobody else gets it meanwhile
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        client = Client("vast", "Vast.ai", url, BearerKey(VAST_KEY), classify, patience)
        with pytest.raises(ProviderDownError, match="cannot be reached"):
            client.call("POST", "/x", body={})


def test_a_create_that_times_out_is_ambiguous(service: Standin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = Client("vast", "Vast.ai", url, BearerKey(VAST_KEY), classify, Patience(read_timeout=0.2))
        with pytest.raises(AmbiguousError, match="no answer in time"):
            client.call("POST", "/x", body={})


def test_a_create_gets_a_connection_of_its_own(client: Client, service: Standin) -> None:
    """A pooled connection that the service closed meanwhile would look like a lost answer."""
    service.on("GET", "/x", Reply({}))
    service.on("POST", "/x", Reply({}))
    for method in ("GET", "GET", "POST", "GET", "POST"):
        client.call(method, "/x", body={} if method == "POST" else None)
    pooled, *creates = {request.connection for request in service.calls("GET")}, *service.calls("POST")
    assert len(pooled) == 1
    assert len({request.connection for request in creates} | pooled) == 3


@pytest.mark.parametrize(
    ("reply", "waited"),
    [
        (Reply("slow down", 429, {"Retry-After": "7"}), 7.0),
        (Reply({"detail": "no", "retry_after": 4.5}, 429), 4.5),
        (Reply("slow down", 429, {"X-RateLimit-Reset": "1009"}), 9.0),
        (Reply("slow down", 429, {"Retry-After": formatdate(1012, usegmt=True)}), 12.0),
        (Reply("API requests too frequent: endpoint threshold=4.5", 429), 4.5),
        (Reply("API requests too frequent", 429), 0.5),
        (Reply("slow down", 429, {"Retry-After": "0"}), 0.5),
        (Reply("slow down", 429, {"Retry-After": "nonsense"}), 0.5),
        (Reply({"error": "busy"}, 503, {"Retry-After": "3"}), 3.0),
    ],
)
def test_the_wait_is_what_the_provider_asks_for(
    client: Client, service: Standin, fake_time: FakeTime, reply: Reply, waited: float
) -> None:
    service.on("GET", "/x", reply, Reply({"ok": 1}))
    assert client.call("GET", "/x") == {"ok": 1}
    assert fake_time.slept == [waited]


def test_a_quota_that_resets_in_hours_is_an_error_at_once(
    client: Client, service: Standin, fake_time: FakeTime
) -> None:
    body = {"success": False, "error": "search_quota_exceeded", "msg": "daily"}
    service.on("GET", "/x", Reply(body, 429, {"X-RateLimit-Reset": "20000"}))
    with pytest.raises(ThrottledError, match="asks to wait 19000 s") as caught:
        client.call("GET", "/x")
    assert (caught.value.code, caught.value.retry_after, fake_time.slept) == ("search_quota_exceeded", 19000.0, [])


def test_a_throttled_create_is_not_repeated_here(client: Client, service: Standin) -> None:
    service.on("PUT", "/x", Reply("API requests too frequent", 429, {"Retry-After": "2"}))
    with pytest.raises(ThrottledError) as caught:
        client.call("PUT", "/x", body={})
    assert len(service.seen) == 1
    assert caught.value.retry_after == 2.0


def test_refusals_are_not_repeated(client: Client, service: Standin) -> None:
    service.on("GET", "/x", Reply({"success": False, "error": "invalid_args", "msg": "error 400/3467: no"}, 400))
    with pytest.raises(InvalidRequestError, match="error 400/3467"):
        client.call("GET", "/x")
    assert len(service.seen) == 1


def test_success_false_with_status_200_is_a_failure(client: Client, service: Standin) -> None:
    service.on("GET", "/x", Reply({"success": False, "error": "auth_error", "msg": "Invalid user key"}))
    with pytest.raises(AuthenticationError):
        client.call("GET", "/x")


def test_a_redirect_is_not_followed(client: Client, service: Standin) -> None:
    service.on("POST", "/x", Reply("moved", 301, {"Location": service.url + "/y"}))
    with pytest.raises(ProviderError):
        client.call("POST", "/x", body={})
    assert [request.path for request in service.seen] == ["/x"]


def test_the_key_is_in_no_text(client: Client, service: Standin) -> None:
    """Not when the service echoes it, not when the connection breaks, not in any part of a printed traceback."""

    def echo(request: Request) -> Reply:
        return Reply({"success": False, "error": "invalid_args", "msg": f"bad {request.headers['authorization']}"}, 400)

    texts = [repr(client), str(client)]
    service.on("GET", "/echo", echo)
    service.on("GET", "/html", lambda request: Reply(f"<html>{VAST_KEY}</html>"))
    service.on("POST", "/lost", LOST)
    service.on("GET", "/down", Reply(f"{VAST_KEY}", 503))
    for method, path in (("GET", "/echo"), ("GET", "/html"), ("POST", "/lost"), ("GET", "/down")):
        with pytest.raises(ProviderError) as caught:
            client.call(method, path)
        error = caught.value
        texts += [str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception(error))]
        assert error.__cause__ is None
        shown = traceback.TracebackException.from_exception(error, capture_locals=False)
        texts.append("".join(shown.format()))
    assert [text for text in texts if VAST_KEY in text] == []


@pytest.mark.parametrize("key", ["with space", "line\nbreak", "kéy"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        Client("vast", "Vast.ai", "http://127.0.0.1:9", BearerKey(key), classify)
    assert key not in str(caught.value)


def test_a_long_text_is_shortened(client: Client, service: Standin) -> None:
    service.on("GET", "/x", Reply("y" * 5000, 400))
    with pytest.raises(InvalidRequestError) as caught:
        client.call("GET", "/x")
    assert len(str(caught.value)) < 400


def test_fields_of_an_answer_that_is_no_object() -> None:
    assert Answer(200, {}, [1], "").fields == {}


def test_a_stream_is_read_until_it_is_quiet_and_a_refusal_is_an_error(client: Client, service: Standin) -> None:
    lines = 'data: {"line": "a"}\n\n: a comment\n\ndata: broken\n\ndata: {"line": "b"}\n\n'
    service.on("GET", "/logs", Reply(lines))
    assert client.events("/logs", {"tail": 9}, most=9, quiet_s=0.2) == [{"line": "a"}, {"line": "b"}]
    assert client.events("/logs", {"tail": 9}, most=1, quiet_s=0.2) == [{"line": "a"}]
    assert service.seen[0].headers["accept"] == "text/event-stream"
    service.on("GET", "/logs", Reply({"success": False, "error": "auth_error", "msg": "Invalid user key"}, 404))
    with pytest.raises(AuthenticationError):
        client.events("/logs", {}, most=1, quiet_s=0.2)
    service.on("GET", "/logs", LOST)
    with pytest.raises(ProviderDownError, match=r"Vast\.ai cannot be reached"):
        client.events("/logs", {}, most=1, quiet_s=0.2)


def test_the_key_goes_to_no_place_that_a_provider_names(
    service: Standin, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = own_home / ".netrc"
    netrc.write_text("machine 127.1 login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    service.on("GET", "/log", Reply("a\nb"))
    assert fetch_text(service.url.replace("127.0.0.1", "127.1") + "/log") == "a\nb"
    assert "authorization" not in service.seen[0].headers
    assert fetch_text(service.url + "/nothing") is None
