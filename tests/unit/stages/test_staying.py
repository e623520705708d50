"""The monitor where no stage runs: when a machine is finished with, and that it ends itself only then."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from stage_box import RUN, Box, until, wait_for
from test_monitor import monitors

from gpuyard.box.checkpoints import LocalStore
from gpuyard.box.monitor import known_limits, own_key, people, pruning, staying, stopping
from gpuyard.box.monitor.known_limits import KnownLimits
from gpuyard.box.monitor.staying import Staying
from gpuyard.formats.limits import Limits, limits_key

STAGE = {"name": "a", "command": "true"}
INSTANCE = {"provider": "vast", "id": "77"}
SAVED = {"state": True, "sequence": 3, "why": "The bucket holds everything that is on this box, as checkpoint 3."}
KEY = "canary-own-key-51c07d"


class Cloud(http.server.ThreadingHTTPServer):
    """STAND-IN for a cloud: it keeps what it is asked, and answers with ``status``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, str]] = []
        self.status = 200
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Cloud

    def do_DELETE(self) -> None:
        self.server.asked.append(("DELETE", self.path, self.headers["Authorization"]))
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_DELETE

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    server = Cloud()
    yield server
    server.shutdown()
    server.server_close()


def tell(box: Box, **settings: Any) -> None:
    """Change what the box was told of itself."""
    file = box.settings / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "instance": INSTANCE, **settings}))


def ended(box: Box, outcome: str = "done") -> None:
    """Write the journal of a run that has ended."""
    (box.root / ".gpuyard").mkdir(parents=True, exist_ok=True)
    events = [
        {"event": "run-start"},
        {"event": "stage-start", "iteration": 0, "stage": "a"},
        {"event": "stage-end", "iteration": 0, "stage": "a", "outcome": outcome, "exit_code": 0},
        {"event": "run-end", "outcome": outcome},
    ]
    lines = [json.dumps({"time": "2026-01-01T00:00:00Z", **event}) for event in events]
    (box.root / ".gpuyard/journal.jsonl").write_text("\n".join(lines) + "\n")


class World:
    """What the staying monitor sees and does; ``saved`` is what saving everything answers."""

    def __init__(self, box: Box, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
        self.saved: Mapping[str, Any] = SAVED
        self.finished: list[tuple[str, bool]] = []
        self.who = ""
        self.slept: list[float] = []
        self.calls: list[str] = []
        self.box, self.cloud = box, cloud
        first = box.base / "environ"
        first.write_bytes(f"CONTAINER_API_KEY={KEY}\0CONTAINER_ID=77\0".encode())
        monkeypatch.setattr(own_key, "FIRST_PROCESS", first)
        monkeypatch.setattr(staying.time, "sleep", self.slept.append)
        monkeypatch.setattr(staying, "_call", lambda spec, *words: self.calls.append(words[0]) or b"{}")

    def staying(self) -> Staying:
        return Staying(self.box.settings, finish=self.finish, somebody=lambda: self.who)

    def finish(self, reason: str, ends_itself: bool) -> Mapping[str, Any]:
        self.finished.append((reason, ends_itself))
        return self.saved


@pytest.fixture
def world(box: Box, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(box, cloud, monkeypatch)


def steps(one: Staying, *moments: float, date: float = 1_000_000.0) -> list[bool]:
    return [one.step(moment, date + moment) for moment in moments]


@pytest.mark.parametrize("outcome", ["done", "failed"])
def test_a_machine_whose_stages_have_ended_ends_itself_u9(box: Box, world: World, cloud: Cloud, outcome: str) -> None:
    box.describe([STAGE])
    tell(box, rental={"shutdown": True, "api": cloud.address})
    ended(box, outcome)
    one = world.staying()
    # Whoever follows the run ends it by itself, and has a minute for it.
    assert steps(one, 0, 5, 59) == [True, True, True] and cloud.asked == []
    assert steps(one, 60) == [True]
    assert world.finished == [("shutdown", True)]
    assert cloud.asked == [("DELETE", "/api/v0/instances/77/", f"Bearer {KEY}")]
    assert [line["alert"] for line in alerts(box)] == ["rental"]


def alerts(box: Box) -> list[dict[str, Any]]:
    file = box.root / ".gpuyard/alerts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_machine_that_holds_what_the_bucket_lacks_is_never_ended(box: Box, world: World, cloud: Cloud) -> None:
    """U9: never before the last checkpoint is whole in the bucket."""
    box.describe([STAGE])
    tell(box, rental={"shutdown": True, "api": cloud.address})
    ended(box)
    one = world.staying()
    for saved in ({"state": False, "why": "The bucket does not answer."}, {}, {"state": "yes"}):
        world.saved = saved
        one = world.staying()
        steps(one, 0, 60, 400, 800)
    assert len(world.finished) == 9 and cloud.asked == []
    world.saved = SAVED
    steps(one, 1500)
    assert len(cloud.asked) == 1, "it is tried again until it is saved"


def test_a_run_that_was_interrupted_or_goes_on_keeps_its_machine(box: Box, world: World, cloud: Cloud) -> None:
    box.describe([STAGE])
    tell(box, rental={"shutdown": True, "api": cloud.address})
    ended(box, "interrupted")
    assert not staying.waits(box.spec) and steps(world.staying(), 0, 100) == [True, False]
    ended(box, "waiting")
    assert not staying.waits(box.spec), "somebody has to hand it over"
    ended(box)
    one = world.staying()
    box.describe([{"name": "a", "command": until("test -e go")}])
    (box.root / ".gpuyard/journal.jsonl").unlink()
    tell(box, rental={"shutdown": True, "api": cloud.address})
    runner = box.start("run")
    wait_for(lambda: box.status()["state"] == "running")
    assert steps(one, 0, 100) == [True, False], "a runner has a monitor of its own"
    (box.repository / "go").touch()
    runner.wait(timeout=120)
    assert world.finished == [] and cloud.asked == []


def test_nothing_is_ended_beside_a_runner_that_begins_meanwhile(box: Box, world: World, cloud: Cloud) -> None:
    box.describe([STAGE])
    tell(box, rental={"shutdown": True, "api": cloud.address})
    ended(box)
    one = world.staying()

    def finish(reason: str, ends_itself: bool) -> Mapping[str, Any]:
        box.describe([STAGE, {"name": "b", "command": until("test -e go")}])
        runners.append(box.start("run"))
        wait_for(lambda: box.status()["state"] == "running")
        return SAVED

    runners: list[subprocess.Popen[bytes]] = []
    one._finish = finish
    steps(one, 0, 60)
    assert cloud.asked == []
    (box.repository / "go").touch()
    runners[0].wait(timeout=120)


def test_where_the_cloud_gives_no_key_it_is_written_down_and_left_to_others(
    box: Box, world: World, cloud: Cloud
) -> None:
    box.describe([STAGE])
    tell(box, rental={"shutdown": True, "api": cloud.address}, instance={"provider": "vultr", "id": "77"})
    ended(box)
    assert steps(world.staying(), 0, 60) == [True, False], "there is nothing more to wait for"
    assert world.finished == [("shutdown", False)] and cloud.asked == []


def test_a_key_of_another_instance_is_not_used_and_no_key_is_told(cloud: Cloud) -> None:
    mine = {"CONTAINER_API_KEY": KEY, "CONTAINER_ID": "77"}
    pod = {"RUNPOD_API_KEY": KEY, "RUNPOD_POD_ID": "p1"}
    assert own_key.find(INSTANCE, environment={**mine, "CONTAINER_ID": "78"}) is None
    assert own_key.find({"provider": "lambda", "id": "77"}, environment=mine) is None
    assert own_key.find({}, environment=mine) is None
    found = own_key.find({"provider": "runpod", "id": "p1"}, environment=pod)
    assert found is not None and found.address == "https://api.runpod.io/v2/pods/p1" and KEY not in repr(found)
    found = own_key.find(INSTANCE, cloud.address, environment=mine)
    assert found is not None
    for cloud.status in (403, 302, 500):
        with pytest.raises(own_key.NotEndedError, match=f"answered {cloud.status}") as error:
            found.end()
        assert KEY not in str(error.value)
    assert {path for _, path, _ in cloud.asked} == {"/api/v0/instances/77/"}, "the key follows no redirection"
    silent = own_key.find(INSTANCE, "http://127.0.0.1:1", environment=mine)
    assert silent is not None
    with pytest.raises(own_key.NotEndedError, match="could not be reached"):
        silent.end()


def test_a_machine_that_nobody_needs_is_ended_and_one_with_somebody_is_not(
    box: Box, world: World, cloud: Cloud
) -> None:
    box.describe([STAGE], monitoring={"idle_minutes": 10})
    tell(box, rental={"api": cloud.address})
    ended(box, "interrupted")
    one = world.staying()
    world.who = "root at pts/0"
    steps(one, 0, 100, 1000)
    world.who = ""
    steps(one, 1100, 1500, 1599)
    assert world.finished == [], "somebody was there less than ten minutes ago"
    steps(one, 1640)
    assert world.finished == [("idle", True)] and len(cloud.asked) == 1
    [line] = alerts(box)
    assert "nobody was logged in for 10 minutes" in line["text"]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (KnownLimits(lease_end=1_000_100.0), "lease"),
        (KnownLimits(budget_usd=2.0, spent_usd=1.9, price_per_hour_usd=3.6, time=1_000_000.0), "budget"),
    ],
)
def test_a_run_past_its_lease_or_budget_ends(
    box: Box, world: World, cloud: Cloud, limits: KnownLimits, reason: str
) -> None:
    box.describe([STAGE])
    tell(box, rental={"api": cloud.address})
    ended(box, "interrupted")
    known_limits.write(box.settings, limits)
    one = world.staying()
    assert steps(one, 0, 70, 99) == [True] * 3 and world.finished == []
    steps(one, 101)
    assert world.finished == [(reason, True)] and world.calls[-1] == "beat", "the bucket was asked once more"


def test_a_lease_that_was_prolonged_counts(box: Box, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    box.describe([STAGE])
    tell(box)
    ended(box, "interrupted")
    known_limits.write(box.settings, KnownLimits(lease_end=1_000_100.0))
    one = world.staying()

    def beat(spec: Any, *words: str) -> bytes:
        known_limits.write(box.settings, KnownLimits(lease_end=1_005_000.0))
        return b""

    monkeypatch.setattr(staying, "_call", beat)
    assert steps(one, 0, 200, 300) == [True] * 3 and world.finished == []


def test_a_running_stage_is_told_to_stop_at_the_end_of_the_lease(box: Box) -> None:
    """The stage saves its work, the last checkpoint is published, and the run knows why."""
    stage = {"name": "a", "command": until("test -e go"), "grace_s": 5}
    bucket = box.base / "bucket"
    box.describe([stage], bucket=bucket.as_uri(), monitoring={"every_s": 1})
    # As a controller writes it.
    LocalStore(bucket).put(limits_key(RUN), Limits(lease_end=time.time() + 1).to_bytes())
    runner = box.start("run")
    assert runner.wait(timeout=120) == 3
    [end] = box.events("run-end")
    assert end["outcome"] == "interrupted" and end["reason"].startswith("its lease ended at 20")
    note = stopping.read(box.settings)
    assert note is not None and (note.kind, note.until) == ("lease", None)


def test_a_monitor_stays_where_a_runner_has_ended_while_there_is_something_to_wait_for(box: Box) -> None:
    """X8: one of them, after a kill and after an end in good order; and none where there is nothing to wait for."""
    box.describe([{"name": "a", "command": until("test -e go")}], monitoring={"idle_minutes": 600, "every_s": 1})
    tell(box)
    runner = box.start("run")
    wait_for(lambda: monitors(box), what="the monitor")
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    time.sleep(1)
    assert len(monitors(box)) == 1
    (box.repository / "go").touch()
    assert box.run() == 0
    wait_for(lambda: len(monitors(box)) == 1, what="the one that stays")
    box.describe([STAGE])
    wait_for(lambda: monitors(box) == [], what="the end, when there is nothing to wait for")


# --- who is at the machine -------------------------------------------------------------------------------------------


def process(proc: Path, pid: int, parent: int, command: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    (folder / "stat").write_text(f"{pid} (x) S {parent} 1 1")


@pytest.mark.parametrize(
    ("processes", "who"),
    [
        ([(10, 1, "sshd: root@pts/0"), (11, 10, "-bash")], "root at pts/0"),
        ([(10, 1, "sshd-session: ubuntu@pts/3,pts/4")], "ubuntu at pts/3,pts/4"),
        ([(10, 1, "sshd: root@notty"), (11, 10, "bash -c /root/.vscode-server/x")], "root over SSH"),
        ([(10, 1, "sshd: root@notty"), (11, 10, "sh -c x"), (12, 11, "python3 /root/.ansible/tmp/y")], ""),
        ([(10, 1, "sshd: root@notty"), (11, 10, "/opt/gpuyard/venv/bin/python -m gpuyard.box.stages progress")], ""),
        ([(10, 1, "sshd: root@notty")], ""),
        ([(10, 1, "sshd: /usr/sbin/sshd -D"), (11, 10, "sshd: root [priv]")], ""),
        ([], ""),
    ],
)
def test_people_are_told_from_our_own_connections(
    tmp_path: Path, processes: list[tuple[int, int, str]], who: str
) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "self").mkdir()
    for one in processes:
        process(proc, *one)
    assert people.somebody(proc, who="no-such-program") == who


def test_a_login_on_the_console_counts_and_a_window_of_tmux_does_not(tmp_path: Path) -> None:
    program = tmp_path / "who"  # STAND-IN for who
    program.write_text("#!/bin/sh\necho 'root pts/1 2026-11-26 21:00 (tmux(12).%0)'\n")
    program.chmod(0o755)
    (tmp_path / "proc").mkdir()
    assert people.somebody(tmp_path / "proc", who=str(program)) == ""
    program.write_text("#!/bin/sh\necho 'kim tty1 2026-11-26 21:00'\n")
    assert people.somebody(tmp_path / "proc", who=str(program)) == "kim at tty1"


# --- room on the disk ------------------------------------------------------------------------------------------------


def old(file: Path, hours: float = 3.0, size: int = 100_000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(os.urandom(size))
    then = time.time() - hours * 3600
    os.utime(file, (then, then))
    return file


def test_what_is_safe_to_remove_makes_room_and_nothing_else(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leftovers, logs that the bucket holds, and what the workload calls a cache; never data, models, checkpoints."""
    rules = [
        {"path": "cache/**", "kind": "cache"},
        {"path": "kept-cache/**", "kind": "cache", "publish": True},
        {"path": "data/**", "kind": "data"},
        {"path": "models/*", "kind": "model"},
    ]
    persist = {"root": str(box.root), "directories": ["models"], "rules": rules}
    box.describe([STAGE], bucket=(box.base / "bucket").as_uri(), persist=persist)
    gone = [
        old(box.root / "cache/pip/wheel"),
        old(box.root / "cache/hub/blob"),
        old(box.root / ".gpuyard/tmp/fetching/part"),
        old(box.root / ".gpuyard/logs/0-a.log.1"),
    ]
    stays = [
        old(box.root / "cache/in-use", hours=0.1),
        old(box.root / "kept-cache/file"),
        old(box.root / "data/set"),
        old(box.root / "models/m1"),
        old(box.root / "checkpoints/step-1"),
        old(box.root / ".gpuyard/tmp/reserve"),
        old(box.root / ".gpuyard/tmp/restore/part"),
        old(box.root / ".gpuyard/logs/0-a.log"),
        old(box.root / ".gpuyard/logs/0-a.log.2", hours=0.0),
    ]
    monkeypatch.setattr(pruning, "_used_since", lambda path, since: _mtime(path) >= since)
    assert pruning.prune(box.spec, time.time()).logs == 0, "nothing was ever published, so no log is in the bucket"
    old(box.root / ".gpuyard/tmp/hashes.json", hours=0.0)
    for file in gone[:3]:
        assert not file.exists()
    freed = pruning.prune(box.spec, time.time())
    assert freed.logs >= 100_000 and "old logs" in freed.words
    assert [file for file in gone if file.exists()] == [] and all(file.exists() for file in stays)


def _mtime(path: Path) -> float:
    """The kernel sets the time of the change, so a test cannot make a file look unused."""
    return max([path.stat().st_mtime] if path.is_file() else [one.stat().st_mtime for one in path.rglob("*")])


def test_what_was_used_within_the_hour_is_left(tmp_path: Path) -> None:
    file = old(tmp_path / "folder/file")
    assert pruning._used_since(file, time.time() - 3600), "it was made a moment ago, whatever its time says"
    assert pruning._used_since(tmp_path / "folder", time.time() - 3600)
    assert not pruning._used_since(file, time.time() + 60)


def test_the_one_that_stays_is_small(box: Box) -> None:
    """X8: 30 MB at most, and one percent of a processor."""
    box.describe([STAGE], monitoring={"idle_minutes": 600})
    tell(box)
    ended(box)
    staying_process = subprocess.Popen(
        [sys.executable, "-m", "gpuyard.box.monitor", "stay", "--settings", str(box.settings)],
        env=box.env,
        stdin=subprocess.DEVNULL,
    )
    box.processes.append(staying_process)
    wait_for(lambda: (box.settings / "monitor.lock").exists())
    time.sleep(1)
    fields = Path(f"/proc/{staying_process.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in fields if ":\t" in line)
    assert int(status["VmHWM"].split()[0]) <= 30_000

    def used_s() -> float:
        fields = Path(f"/proc/{staying_process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, began = used_s(), time.monotonic()
    time.sleep(5.5)
    assert used_s() - before <= 0.01 * (time.monotonic() - began) + 0.01, "one tick of the kernel's clock counts 0.01 s"
