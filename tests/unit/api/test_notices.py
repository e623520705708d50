"""What people are told of supervised runs, and what happens when a channel does not take it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpuyard import pace
from gpuyard.api.notices import AGAIN_S, TRIES, Notices
from gpuyard.box.checkpoints import LocalStore
from gpuyard.formats.workload_record import SourceRef, WorkloadRecord, workload_key
from gpuyard.renting import record
from gpuyard.workload import resolve

WORKLOAD = """\
name: kept
repository: {url: "https://git.example/x.git", commit: 0123456789012345678901234567890123456789}
environment: {optional: [HOOK, TOPIC]}
monitoring:
  notify:
    webhook: {address_from: HOOK}
    ntfy: {topic_from: TOPIC}
stages: [{name: work, command: "true"}]
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A bucket with a run whose workload names two channels."""
    (tmp_path / "kept.yml").write_text(WORKLOAD)
    (tmp_path / "bucket").mkdir()
    made = LocalStore(tmp_path / "bucket")
    document = record.document_of(resolve(str(tmp_path / "kept.yml")))
    made.put(workload_key("kept-0"), WorkloadRecord(document, SourceRef("git")).to_bytes())
    return made


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that webhooks reach."""
    got: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    server.server_close()


def test_a_notice_goes_to_the_channels_of_the_workload_and_a_secret_nowhere_else(
    store: LocalStore, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    address, got = hook
    lines: list[str] = []
    secret = f"{address}secret-9c1f"
    notices = Notices(store, lines.append, {"HOOK": secret})
    notices.tell("kept-0", "loss", "Run kept-0 has lost its machine.", warning=True)
    notices.tell("unknown-0", "loss", "Nobody is to be told.", warning=True)
    stop = threading.Event()
    stop.set()
    notices.serve(stop)
    (one,) = got
    assert (one["run"], one["workload"], one["alert"], one["event"]) == ("kept-0", "kept", "loss", "warning")
    assert one["text"] == "kept-0: Run kept-0 has lost its machine."
    # The other channel's variable is not set.
    assert len(lines) == 1 and "ntfy has not got the notice of loss (TOPIC is not set); it is tried again." in lines[0]
    assert "secret-9c1f" not in " ".join([*lines, json.dumps(got)])


def test_only_the_channel_that_failed_is_tried_again_and_not_for_ever(store: LocalStore) -> None:
    now, sent, lines = [0.0], list[list[str]](), list[str]()

    def send(channels: Mapping[str, Any], alert: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, str]:
        sent.append(sorted(channels))
        return {"ntfy": "no answer"} if len(sent) < 4 or len(sent) > 4 else {}

    notices = Notices(store, lines.append, {}, send, pace.Clock(now=lambda: now[0]))
    notices.tell("kept-0", "end", "Run kept-0 has finished.", warning=False)
    for _ in range(10):
        notices.send_waiting()
        notices.send_waiting()  # too early
        now[0] += AGAIN_S
    assert sent == [["ntfy", "webhook"], ["ntfy"], ["ntfy"], ["ntfy"]] and len(lines) == 1
    notices.tell("kept-0", "end", "Run kept-0 has finished.", warning=False)
    for _ in range(30):
        notices.send_waiting()
        now[0] += AGAIN_S
    assert len(sent) == 4 + TRIES and lines[-1].endswith("it is not tried again.")
