"""Plays from Python, and what is told of a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from gpuyard import demo, watch
from gpuyard.checkpoints import FileEntry, LocalStore, Manifest
from gpuyard.config import SshKey
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.play import Event, _translate, run_playbook
from gpuyard.providers.base import Instance, State
from gpuyard.runs import Run

# What ansible-runner says of a task whose condition does not hold, and what a front makes of it.
RAW = [
    {"event": name, "event_data": {"task": "Destroy every machine"}}
    for name in ("playbook_on_task_start", "runner_on_start", "runner_on_skipped")
]
EVENTS = [event for raw in RAW if (event := _translate(raw))]
KEY = SshKey(Path("/nowhere/id"), "ssh-ed25519 AAAA")


def machine(**changes: Any) -> Instance:
    """Return a machine that runs."""
    values: dict[str, Any] = {
        "provider": "vast",
        "id": "7",
        "label": "",
        "ref": None,
        "state": State.RUNNING,
        "status_text": "running",
        "region": "SE",
        "gpu_name": "T4",
        "gpu_count": 1,
        "gpu_ram_gb": 16,
        "market": "on-demand",
        "price_per_hour_usd": 0.1,
        "ssh_host": "127.0.0.1",
        "created_at": 1_000_000_000.0,
    }
    return Instance(**values | changes)


def stand_in_for_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program called ssh first on PATH: a stand-in for the connection to a machine."""
    program = folder / "ssh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_play_tells_tasks_changes_lines_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[Event] = []
    code = run_playbook(
        "launch",
        {"provider": "nowhere"},
        on_event=seen.append,
        environment={"VAST_API_KEY": "canary-vast-2b7c9d0e5f", "GPUYARD_HOME": str(tmp_path)},
    )
    assert code != 0
    assert Event("task", "Plan the run") in seen
    (failed,) = [event for event in seen if event.kind == "failed"]
    assert "provider='nowhere' is not known" in failed.text
    # ansible-runner writes the environment to disk while it runs; nothing of it may stay.
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"canary-vast" in path.read_bytes()]


def test_ctrl_c_ends_the_play_and_what_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen: list[Event] = []

    def press(event: Event) -> None:
        seen.append(event)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_playbook("launch", {"provider": "nowhere"}, on_event=press, environment={"GPUYARD_HOME": str(tmp_path)})
    assert seen
    # Later it does again what it did before.
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_skipped_task_is_not_told_as_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_playbook", lambda *_args, on_event, **_more: [*map(on_event, EVENTS)] and 0)
    busy: list[str] = []
    told = demo.Demo(tmp_path)
    monkeypatch.setattr(told.teller, "busy", busy.append)
    told.play("launch")
    assert busy == ["Destroy every machine", "launch.yml goes on", ""]


def test_progress_leaves_out_what_an_earlier_machine_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"event": "stage-start", "time": "2001-01-01T00:00:00Z", "stage": "search", "iteration": 0}
    new = {"event": "stage-start", "time": "2026-01-01T00:00:00Z", "stage": "search", "iteration": 0}
    end = {"event": "end", "state": "finished"}
    (tmp_path / "said").write_text("a banner\n" + "".join(json.dumps(one) + "\n" for one in (old, new, end)))
    stand_in_for_ssh(tmp_path, monkeypatch, f"cat {tmp_path}/said")
    assert list(watch.progress(machine(), KEY)) == [new, end]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'No route to host' >&2; exit 255", "connection to vast instance 7 is lost: No route to host"),
        ("kill -TERM $$", "connection to vast instance 7 is lost: no reason given"),
        ("echo 'miniprover has no stage x' >&2; exit 2", "miniprover has no stage x"),
    ],
)
def test_a_failed_question_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    stand_in_for_ssh(tmp_path, monkeypatch, script)
    with pytest.raises(GpuyardError, match=says):
        list(watch.lines(machine(), KEY, ["log"]))


def test_records_are_told_in_words() -> None:
    record = {"event": "stage-start", "iteration": 1, "stage": "search", "attempt": 2}
    assert watch.tell(record) == "▶ iteration 1, search, attempt 2"
    assert "512 KiB" in watch.tell({"event": "published", "sequence": 3, "bytes_sent": 512 * 1024})
    assert watch.tell({"event": "rewind"}) == ""


def published(tmp_path: Path) -> tuple[Run, LocalStore]:
    """Return a run whose machine is gone, and the store with two logs of its search."""
    store = LocalStore(tmp_path)
    files = []
    for iteration, text in ((0, "one\nerror: two\nthree\n"), (1, "four\nfive\n")):
        key = f"r/checkpoints/000001/.gpuyard/logs/{iteration}-search.log"
        store.put(key, text.encode())
        files.append(
            FileEntry(path=f".gpuyard/logs/{iteration}-search.log", size=len(text), sha256="", mode=0o644, key=key)
        )
    progress = {"iteration": 1, "stage": "search"}
    manifest = Manifest(run="r", sequence=1, time="2026-01-01T00:00:00Z", files=tuple(files), progress=progress)
    return Run("r", "w", manifest=manifest), store


def test_a_log_comes_from_the_bucket_when_the_machine_is_gone(tmp_path: Path) -> None:
    one, store = published(tmp_path)
    assert watch.published_log(one, store, watch.LogQuery()) == ["four", "five"]
    assert watch.published_log(one, store, watch.LogQuery("search", 0, lines=1)) == ["three"]
    assert watch.published_log(one, store, watch.LogQuery("search", 0, errors=True)) == ["error: two"]
    with pytest.raises(UsageError, match=r"no log of ebm.*0-search, 1-search"):
        watch.published_log(one, store, watch.LogQuery("ebm"))
    with pytest.raises(UsageError, match=r"no log of any stage in iteration 7\. "):
        watch.published_log(one, store, watch.LogQuery(iteration=7))


def test_the_run_meant_is_the_named_or_the_only_one() -> None:
    alive, gone = Run("a", "w", (machine(),)), Run("b", "w")
    assert watch.choose([alive, gone], "b") is gone
    assert watch.choose([alive, gone], None) is alive
    with pytest.raises(UsageError, match=r"Name the run.*a, c"):
        watch.choose([alive, Run("c", "w", (machine(id="8"),))], None)
    with pytest.raises(UsageError, match=r"'x' is not known.*: none"):
        watch.choose([], "x")
