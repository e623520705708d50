"""What the APIs of Vast and Vultr do with requests that no client should send: a sentence, and nothing stays behind."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from conftest import Apis, StandInEngine

from gpuyard.errors import UsageError
from gpuyard.sandbox.cloud import Cloud
from gpuyard.sandbox.engine import EngineError
from gpuyard.sandbox.model import World

ASK = 11402000
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleExa test"
VAST = {"image": "vastai/pytorch", "disk": 20}
VULTR = {"region": "ewr", "plan": "vcg-a16-2c-8g-2vram", "os_id": 2136}
SCRIPT = base64.b64encode(b"#!/bin/sh\n").decode()

# Bodies that are no JSON object, or hold what no answer could repeat.
RAW = [
    *(b"{", b"[]", b'"text"', b"null", b"7", b"\xff\xfe{}", b'{"label": "\xff"}', b"{} {}"),
    *(b'{"disk": NaN}', b'{"disk": Infinity}', b'{"price": -Infinity}', b'{"disk": 1e999}', b'{"unknown": [NaN]}'),
    *(b'{"disk": %s}' % (b"9" * digits) for digits in (19, 400, 5000)),
    *(b'{"label": "\\ud800"}', b'{"\\udfff": 1}', b'{"tags": ["\\ud800"]}'),
    *(b'{"x": ' + b"[" * deep + b"]" * deep + b"}" for deep in (100, 1000, 50_000)),
    *(b'{"x": ' * deep + b"1" + b"}" * deep for deep in (101, 50_000)),
    *(b"[" * 100_000, b'{"x":' * 100_000),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 7, 0.5, 1e308, 2**62, "", "x", "-x", "--privileged", "\0", "a\nb", "x" * 5000, "NaN"),
    *([], [None], ["x"], ["\0"], [7], [[]], [{}], {}, {"x": 1}, {"": "x"}, {"A=B": "x"}, {"A": "\0"}, {"A": None}),
    *({"A": ["x"]}, {"-p 70001:70001": "1"}, {"-p 0:0": "1"}, {"-p 1:99999999999": "1"}, {"-v /:/host": "1"}),
]
VAST_FIELDS = (
    *("image", "env", "price", "disk", "label", "onstart", "runtype", "target_state", "cancel_unavail", "user"),
    *("image_login", "volume_info", "unknown"),
)
VULTR_FIELDS = (
    *("region", "plan", "os_id", "image_id", "sshkey_id", "user_data", "label", "hostname", "tags", "tag", "backups"),
    "unknown",
)


def look_around(apis: Apis) -> None:
    """Assert that lists, single instances, the account and the bill are still to be had, also after a restart."""
    assert apis.vast("GET", "/v1/instances/").status_code == 200
    assert apis.vultr("GET", "/instances").status_code == 200
    for rental in apis.cloud.world.living("vast"):
        assert apis.vast("GET", f"/v0/instances/{rental.id}/").status_code == 200
    for rental in apis.cloud.world.living("vultr"):
        assert apis.vultr("GET", f"/instances/{rental.id}").status_code == 200
    assert apis.vast("GET", "/v0/users/current").status_code == apis.vultr("GET", "/account").status_code == 200
    headers = {"Authorization": f"Bearer {apis.cloud.settings.control_key}"}
    assert apis.client.get("/sandbox/status", headers=headers).status_code == 200
    assert len(World.load(apis.cloud._file).rentals) == len(apis.cloud.world.rentals)


def in_words(answer: Any) -> bool:
    """Return whether an answer is a success, or a refusal in the words of its API."""
    if answer.status_code < 300:
        return True
    said = answer.json().get("msg") or answer.json().get("error")
    return 400 <= answer.status_code < 500 and isinstance(said, str) and len(said) < 500


def test_bodies_that_are_no_object_are_refused(apis: Apis) -> None:
    contract, instance = apis.rent_vast(), apis.rent_vultr()
    vast = {"Authorization": f"Bearer {apis.cloud.settings.vast_key}"}
    vultr = {"Authorization": f"Bearer {apis.cloud.settings.vultr_key}", "Content-Type": "application/json"}
    routes = [
        *(("POST", path, vast) for path in ("/api/v0/bundles/", "/api/v0/asks/bulk/", "/api/v0/ssh/")),
        *(("PUT", f"/api/v0/{path}", vast) for path in (f"asks/{ASK}/", "search/asks/", f"instances/{contract}/")),
        *(("POST", path, vultr) for path in ("/v2/instances", "/v2/instances/halt", "/v2/ssh-keys")),
        ("PATCH", f"/v2/instances/{instance}", vultr),
    ]
    for method, path, headers in routes:
        for raw in RAW:
            answer = apis.client.request(method, path, content=raw, headers=headers)
            assert (answer.status_code, in_words(answer)) == (400, True), (path, raw[:40], answer.text)
    assert len(apis.cloud.world.rentals) == 2
    look_around(apis)


def test_no_value_of_a_field_of_a_create_call_is_a_crash_or_a_poison(apis: Apis) -> None:
    for provider, names in (("vast", VAST_FIELDS), ("vultr", VULTR_FIELDS)):
        for name in names:
            for value in VALUES:
                if provider == "vast":
                    answer = apis.vast("PUT", f"/v0/asks/{ASK}/", {**VAST, name: value})
                else:
                    answer = apis.vultr("POST", "/instances", {**VULTR, name: value})
                assert in_words(answer), (name, value, answer.text)
                for rental in apis.cloud.world.living(provider):  # type: ignore[arg-type]
                    row = apis.cloud.world.find(rental.provider, rental.id)
                    assert row is not None
                    shown = f"/v0/instances/{row.id}/" if provider == "vast" else f"/instances/{row.id}"
                    call = apis.vast if provider == "vast" else apis.vultr
                    assert call("GET", shown).status_code == 200, (name, value)
                apis.cloud.world.rentals.clear()
                apis.cloud.world.listings.clear()


def test_no_value_of_a_field_of_another_call_is_a_crash_or_a_poison(apis: Apis) -> None:
    contract, instance = apis.rent_vast(), apis.rent_vultr()
    assert apis.vast("POST", "/v0/ssh/", {"ssh_key": KEY}).status_code == 200
    key = apis.vultr("POST", "/ssh-keys", {"name": "n", "ssh_key": KEY}).json()["ssh_key"]["id"]
    for value in VALUES:
        for method, path, name in (
            *(("POST", "/v0/bundles/", name) for name in ("type", "order", "limit", "allocated_storage", "num_gpus")),
            *(("POST", "/v0/bundles/", name) for name in ("gpu_name", "geolocation", "id", "unknown")),
            *(("PUT", "/v0/search/asks/", name) for name in ("q", "select_cols", "unknown")),
            *(("PUT", f"/v0/instances/{contract}/", name) for name in ("state", "label", "image", "unknown")),
            *(("PUT", "/v0/instances/", "ids"), ("DELETE", "/v0/instances/", "instance_ids")),
            *(("POST", "/v0/ssh/", "ssh_key"), ("POST", f"/v0/instances/{contract}/ssh/", "ssh_key")),
            ("POST", "/v0/asks/bulk/", "ids"),
        ):
            answer = apis.vast(method, path, {name: value})
            assert in_words(answer), (path, name, value, answer.text)
        for method, path, name in (
            *(("PATCH", f"/instances/{instance}", name) for name in ("label", "tags", "tag", "user_data", "plan")),
            *(("PATCH", f"/instances/{instance}", name) for name in ("os_id", "firewall_group_id", "unknown")),
            *(("POST", f"/instances/{action}", "instance_ids") for action in ("start", "halt", "reboot")),
            *(("PATCH", f"/ssh-keys/{key}", name) for name in ("name", "ssh_key", "unknown")),
            ("POST", "/ssh-keys", "ssh_key"),
        ):
            answer = apis.vultr(method, path, {name: value})
            assert in_words(answer), (path, name, value, answer.text)
        token = base64.b64encode(json.dumps({"after": value}).encode()).decode()
        asked = {
            **dict.fromkeys(("select_filters", "order_by", "select_cols"), json.dumps(value)),
            "after_token": token,
        }
        for name, text in (*asked.items(), ("limit", str(value)), ("unknown", str(value))):
            answer = apis.vast("GET", "/v1/instances/", params={name: text})
            assert in_words(answer), (name, text, answer.text)
        for name in ("per_page", "cursor", "label", "tag", "region", "unknown"):
            assert in_words(apis.vultr("GET", "/instances", params={name: str(value)})), (name, value)
    look_around(apis)


@pytest.mark.parametrize("id_", ["9" * 5000, "9" * 19, "0", "-1", "%00", "x", "..%2f", "1e9", "9" * 18])
def test_odd_ids_are_nothing_that_there_is(apis: Apis, id_: str) -> None:
    for method, path in (("GET", "instances"), ("PUT", "asks"), ("DELETE", "instances"), ("DELETE", "ssh")):
        answer = apis.vast(method, f"/v0/{path}/{id_}/", VAST if method == "PUT" else None)
        assert answer.status_code in (400, 404, 405, 410, 501), answer.text
    for method, path in (("GET", "instances"), ("DELETE", "instances"), ("GET", "ssh-keys"), ("GET", "regions")):
        assert apis.vultr(method, f"/{path}/{id_}").status_code in (404, 501)
    token = base64.b64encode(b'{"after": 1e999}').decode()
    assert apis.vast("GET", "/v1/instances/", params={"after_token": token}).json()["error"] == "invalid_token"


def test_a_body_has_a_limit(apis: Apis) -> None:
    large = b'{"x": "' + b"x" * 1024 * 1024 + b'"}'
    for method, path in (("POST", "/api/v0/bundles/"), ("POST", "/v2/ssh-keys"), ("POST", "/sandbox/faults")):
        headers = {"Authorization": f"Bearer {apis.cloud.settings.vultr_key}", "Content-Type": "application/json"}
        assert apis.client.request(method, path, content=large, headers=headers).status_code == 413
        # Without a length that says so at the beginning.
        pieces = (large[start : start + 65_536] for start in range(0, len(large), 65_536))
        assert apis.client.request(method, path, content=pieces, headers=headers).status_code == 413
    assert apis.client.post("/api/v0/bundles/", content=b"{}").status_code == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"disk": "nan"}, "disk is not between"),
        ({"label": ["x"]}, "label is not a text."),
        ({"label": "a\nb"}, "label holds a control character."),
        ({"onstart": {"x": 1}}, "onstart is not a text."),
        ({"onstart": "\0"}, "onstart holds a control character."),
        ({"image": ["x"]}, "image is not a text."),
        ({"image": "--privileged"}, "image is not the name of an image."),
        ({"image": "localhost/x y"}, "image is not the name of an image."),
        ({"env": {"": "x"}}, "env: '' is not a variable's name"),
        ({"env": {"A=B": "x"}}, "env: 'A=B' is not a variable's name"),
        ({"env": {"A": "x\0"}}, "env: the value of A is not a text of one line."),
        ({"env": {"A": "x\ny"}}, "env: the value of A is not a text of one line."),
        ({"env": {"-p 70001:70001": "1"}}, "env: '-p 70001:70001' names a port that is not between 1 and 65535."),
        ({"env": {"-p 8080:0": "1"}}, "names a port that is not between 1 and 65535."),
        ({"env": {"-p 53:53/udp": "1"}}, "env: the sandbox does not carry out '-p 53:53/udp'"),
        ({"env": {"-v V.1:/mnt": "1"}}, "env: the sandbox does not carry out '-v V.1:/mnt'"),
        ({"env": {f"-p {port}:{port}": "1" for port in range(1000, 1064)}}, "env: more than 64 ports."),
        ({"price": 0}, "price is not between 0.001 and 128."),
        ({"price": 1e9}, "price is not between 0.001 and 128."),
        ({"runtype": "args"}, "runtype: the sandbox does not carry out 'args'"),
        ({"runtype": "jupyter_direc ssh_direc ssh_proxy"}, "runtype: the sandbox does not carry out 'jupyter"),
        ({"target_state": "frozen"}, "target_state is neither running nor stopped."),
        ({"args": ["sleep"]}, "does not carry out args"),
        ({"template_hash_id": "x"}, "does not carry out template_hash_id"),
        ({"volume_info": {"create_new": True}}, "volume_id is not the id of a volume"),
        ({"extra": "--gpus all"}, "does not carry out extra"),
        ({"use_jupyter_lab": True}, "does not carry out use_jupyter_lab"),
        ({"vm": True}, "does not carry out vm"),
        ({"user": "somebody"}, "does not carry out user"),
    ],
)
def test_vast_names_what_it_refuses(apis: Apis, change: dict[str, Any], words: str) -> None:
    answer = apis.vast("PUT", f"/v0/asks/{ASK}/", {**VAST, **change})
    assert answer.status_code == 400
    assert words in answer.json()["msg"]
    assert apis.cloud.world.rentals == []


def test_what_the_published_client_sends_by_default_is_accepted(apis: Apis) -> None:
    # docs/reference/vast.md, Create, with what gpuyard adds.
    apis.rent_vast(
        client_id="me", env={"A": "b", "-p 8080:8080": "1", "-p 8081:81/tcp": "1"}, price=None, label=None, extra=None,
        onstart=None, image_login=None, python_utf8=False, lang_utf8=False, use_jupyter_lab=False, jupyter_dir=None,
        force=False, cancel_unavail=False, template_hash_id=None, user=None, runtype="ssh_direc ssh_proxy",
        target_state="running",
    )  # fmt: skip
    (rental,) = apis.cloud.world.living("vast")
    assert set(rental.ports) == {"22", "8080", "81"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            ({name: value}, f"The sandbox does not carry out {name}: leave it out.")
            for name, value in (
                *(("script_id", "x"), ("firewall_group_id", "x"), ("attach_vpc", ["x"]), ("enable_vpc", True)),
                *(("vpc_only", True), ("reserved_ipv4", "x"), ("block_devices", [{}]), ("app_variables", {"a": "b"})),
                *(("ipxe_chain_url", "x"), ("disable_public_ipv4", True), ("ddos_protection", True)),
                *(("backups", "enabled"), ("enable_ipv6", True), ("made_up", 1)),
            )
        ),
        *(
            ({"os_id": None, name: value}, f"The sandbox does not carry out {name}: leave it out.")
            for name, value in (("snapshot_id", "x"), ("iso_id", "x"), ("app_id", 1), ("image_id", "docker"))
        ),
        ({"os_id": 164}, "The sandbox does not carry out os_id 164 (Snapshot)."),
        ({"user_data": base64.b64encode(b"#cloud-config\n").decode()}, "unless it is a script that begins with #!."),
        ({"user_data": 7}, "user_data is not a text."),
        ({"user_scheme": "guest"}, "user_scheme is neither root nor limited."),
        ({"hostname": "--x"}, "hostname is not a host name"),
        ({"label": {}}, "label is not a text."),
        ({"tags": "x"}, "tags is not a list."),
        ({"tags": [7]}, "each of tags is not a text."),
        ({"sshkey_id": "x"}, "sshkey_id is not a list."),
    ],
)
def test_vultr_names_what_it_refuses(apis: Apis, change: dict[str, Any], words: str) -> None:
    answer = apis.vultr("POST", "/instances", {**VULTR, **change})
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert apis.cloud.world.rentals == []


def test_vultr_changes_what_it_can_and_refuses_the_rest(apis: Apis) -> None:
    asks_for_nothing = {"enable_ipv6": False, "backups": "disabled", "activation_email": True, "script_id": None}
    instance = apis.rent_vultr(user_data=SCRIPT, tag="old", **asks_for_nothing)
    path = f"/instances/{instance}"
    assert apis.vultr("GET", f"{path}/user-data").json() == {"user_data": {"data": SCRIPT}}
    assert apis.vultr("GET", f"{path}/vpcs").json()["vpcs"] == []
    for name, value in (("plan", "vc2-1c-1gb"), ("os_id", 1743), ("firewall_group_id", "x"), ("backups", "enabled")):
        answer = apis.vultr("PATCH", path, {"label": "new", name: value})
        assert (answer.status_code, name in answer.json()["error"]) == (400, True)
    row = apis.vultr("GET", path).json()["instance"]
    assert (row["label"], row["tags"]) == ("", ["old"])
    other = base64.b64encode(b"#!/bin/bash\n").decode()
    same = {"plan": VULTR["plan"], "os_id": VULTR["os_id"], "backups": "disabled"}
    assert apis.vultr("PATCH", path, {**same, "label": "new", "user_data": other}).status_code == 202
    assert apis.vultr("GET", f"{path}/user-data").json() == {"user_data": {"data": other}}


def test_a_route_that_the_sandbox_has_not_is_501_with_its_name(apis: Apis) -> None:
    for method, path in (("GET", "/vfs"), ("POST", "/startup-scripts"), ("DELETE", "/vpcs/x"), ("GET", "/users")):
        answer = apis.vultr(method, path)
        assert answer.json() == {"error": f"The sandbox has no route {method} /v2{path}.", "status": 501}
        assert answer.status_code == 501
    answer = apis.vast("PUT", "/v0/instances/command/7/", {})
    assert (answer.status_code, answer.json()["error"]) == (501, "not_emulated")
    assert "PUT /api/v0/instances/command/7" in answer.json()["msg"]
    # A filter that is not applied would answer too much.
    for path in ("/instances", "/plans", "/ssh-keys"):
        answer = apis.vultr("GET", path, params={"os": "windows"})
        assert (answer.status_code, "carry out os" in answer.json()["error"]) == (400, True)
    assert apis.vast("GET", "/v1/instances/", params={"machine": "7"}).status_code == 400
    # These the real API has not either, and what is not there is a 404 as before.
    for path in ("/regions/ewr", "/plans/x", "/os/1", "/instances/x", "/ssh-keys/x"):
        assert apis.vultr("GET", path).status_code == 404, path


def test_a_bulk_create_rents_all_or_names_what_it_rented(apis: Apis, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = [
        offer["id"] for offer in apis.vast("POST", "/v0/bundles", {"order": [["dph_total", "asc"]]}).json()["offers"]
    ]
    for ids in ([asks[0], 1], [asks[0], asks[0]], [asks[0], "x"], [asks[0], True], []):
        assert apis.vast("POST", "/v0/asks/bulk/", {**VAST, "ids": ids}).status_code in (400, 410)
        assert apis.cloud.world.rentals == []
    done = apis.vast("POST", "/v0/asks/bulk/", {**VAST, "ids": asks[:2]}).json()
    assert done["new_contracts"] == [int(rental.id) for rental in apis.cloud.world.living("vast")]
    # Between the check and the renting of the last one, somebody else is faster.
    apis.cloud.take_fault = lambda provider, kind, place="": (
        kind == "no-capacity" and len(apis.cloud.world.rentals) == 3
    )  # type: ignore[method-assign]
    refused = apis.vast("POST", "/v0/asks/bulk/", {**VAST, "ids": asks[2:4]})
    assert refused.status_code == 410
    assert refused.json()["new_contracts"] == [int(apis.cloud.world.living("vast")[-1].id)]
    # Or this machine has no address left.
    del apis.cloud.take_fault  # type: ignore[method-assign]
    addresses = iter(["127.77.9.9"])
    monkeypatch.setattr("gpuyard.sandbox.boxes.choose_address", lambda *_: next(addresses, None) or no_address())
    refused = apis.vast("POST", "/v0/asks/bulk/", {**VAST, "ids": asks[3:5]})
    assert (refused.status_code, refused.json()["msg"]) == (503, "No loopback address is free.")
    assert refused.json()["new_contracts"] == [int(apis.cloud.world.living("vast")[-1].id)]


def no_address() -> str:
    raise EngineError("No loopback address is free.")


def test_a_wrong_key_does_not_use_up_the_right_ones_calls(apis: Apis) -> None:
    apis.cloud.settings.rate_limits = True
    wrong = {"Authorization": "Bearer wrong"}
    assert apis.client.get("/api/v1/instances/", headers=wrong).status_code == 404
    assert apis.vast("GET", "/v1/instances/").status_code == 200


def test_the_control_api_answers_bad_requests_in_words(apis: Apis) -> None:
    headers = {"Authorization": f"Bearer {apis.cloud.settings.control_key}", "Content-Type": "application/json"}
    for path in ("/sandbox/faults", "/sandbox/preempt"):
        for raw in (*RAW, b"", b'{"notice_s": Infinity, "count": NaN}', b'{"instance": "\\ud800"}', b'{"run": ["x"]}'):
            answer = apis.client.post(path, content=raw, headers=headers)
            assert 400 <= answer.status_code < 500, (path, raw[:40])
            assert isinstance(answer.json()["detail"], str)


def test_vultr_pages_backwards(apis: Apis) -> None:
    def page(cursor: str) -> tuple[list[str], dict[str, str]]:
        answer = apis.vultr("GET", "/plans", params={"per_page": 4, "cursor": cursor}).json()
        return [plan["id"] for plan in answer["plans"]], answer["meta"]["links"]

    first, links = page("")
    second, links = page(links["next"])
    _, links = page(links["next"])
    assert page(links["prev"])[0] == second
    assert page(page(links["prev"])[1]["prev"])[0] == first


def test_what_an_older_version_remembered_is_mended_and_nonsense_is_one_sentence(apis: Apis) -> None:
    apis.rent_vast(label="a")
    apis.rent_vultr(label="b")
    file = apis.cloud._file
    data = json.loads(file.read_text(encoding="utf-8"))
    vast, vultr = data["rentals"]
    vast.update(disk_gb=float("nan"), bid=float("inf"), label=["x"], status_text="\ud800")
    vast["request"] = {"runtype": 7, "env": ["x"], "onstart": {}, "image": "\ud800", "label": ["x"]}
    vultr.update(tags="x", public_keys=[7, KEY], label=None)
    vultr["request"] = {"hostname": {}, "os": [], "user_data": 7}
    for rental in (vast, vultr):
        del rental["made"]  # which an older version did not know
        rental["phase"] = "running"
        rental["lines"][0]["price_per_hour_usd"] = float("nan")
    file.write_text(json.dumps(data), encoding="utf-8")
    apis.cloud.world = Cloud(StandInEngine(), apis.cloud.settings, file.parent, clock=apis.clock).world
    apis.cloud.save()
    look_around(apis)
    for text in ("{", "[]", '{"rentals": [{}]}', "{}"):
        other = file.with_name("nonsense.json")  # the sandbox itself may be writing the first one
        other.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match="cannot be read as a sandbox's memory"):
            World.load(other)
