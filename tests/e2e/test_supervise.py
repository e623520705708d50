"""Two runs with nobody at the keyboard: one loses its machine, then the supervisor is killed, and another goes on."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_hand_over import kill
from yard import PROGRAMS, ROOT, Yard

from gpuyard.api import supervise

WORKLOAD = """\
name: kept
repository: {path: code}
needs: {gpu_count: 1, gpu_ram_gb: 8, cpu_cores: 2, ram_gb: 4}
environment: {optional: [KEPT_WEBHOOK]}
monitoring: {notify: {webhook: {address_from: KEPT_WEBHOOK}}}
persist: {directories: [models]}
checkpoints: {every_s: 1}
stages:
  - name: count
    resumable: true
    grace_s: 2
    command: sh count.sh first
    resume_command: sh count.sh again
  - name: sum
    command: cd $GPUYARD_PERSIST/models; seq $(cat n) > result
"""
# A machine that is not lost waits for a word, so that nothing here depends on how fast this computer is.
COUNT = """cd $GPUYARD_PERSIST/models
n=$(cat n || echo 0)
while [ $n -lt 30 ]; do n=$((n+1)); echo $n > new; mv new n; sleep 0.2; done
[ $1 = again ] || while [ ! -e go ]; do sleep 0.5; done
"""


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that notices are posted to, and what it got."""
    got: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    server.server_close()


def test_x6_u9_a_lost_run_goes_on_under_a_supervisor_that_is_itself_lost(
    yard: Yard, tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    address, got = webhook
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "count.sh").write_text(COUNT)
    (tmp_path / "kept.yml").write_text(WORKLOAD)
    env = {"KEPT_WEBHOOK": address}

    def launch(run: str) -> None:
        yard.play("launch", provider="vast", run=run, workload=str(tmp_path / "kept.yml"), env=env)

    with ThreadPoolExecutor() as pool:
        list(pool.map(launch, ("kept-0", "kept-1")))
    yard.wait("a checkpoint with work in it", lambda: yard.published("kept-0", "models/n"), seconds=300)

    words = [str(PROGRAMS / "gpuyard"), "supervise", "kept-0", "kept-1", "--shutdown", "--sandbox"]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(words, cwd=ROOT, env=yard.environment | env, stdout=log, stderr=subprocess.STDOUT)
    try:
        yard.wait("the first supervisor", lambda: supervise.wanted(yard.store) == ["kept-0", "kept-1"])
        lost = yard.machine("kept-0").id
        yard.control.preempt(run="kept-0")
        yard.wait("another machine", lambda: [one for one in yard.instances("kept-0") if one.id != lost], seconds=300)
    finally:
        kill(first)
    yard.on_machine("kept-1", "touch /mnt/persistent/models/go")

    # Anybody may go on, and needs no names: the bucket says which runs are to be kept at work, and how they end.
    said = yard.play("supervise", env=env).text
    assert "has finished" in said and "Renting" not in said, said
    for run in ("kept-0", "kept-1"):
        assert yard.published(run, "models/result") == {
            "models/result": "".join(f"{number}\n" for number in range(1, 31)).encode()
        }
        assert yard.instances(run) == []
    bill = yard.control.status()["bill"]
    assert bill["billable"] == []
    # As many machines as were needed: one for each run, and one for the one that was lost.
    assert len({line["id"] for line in bill["lines"]}) == 3, bill
    mine = [(one["run"], one["alert"]) for one in got if one["event"] in ("warning", "news")]
    assert sorted(mine) == [("kept-0", "end"), ("kept-0", "loss"), ("kept-0", "resume"), ("kept-1", "end")], got
    # Nothing is left to do, and nothing is told twice.
    again = yard.play("supervise", env=env).text
    assert "No run is to be supervised." in again
    assert len([one for one in got if one["event"] in ("warning", "news")]) == len(mine)
