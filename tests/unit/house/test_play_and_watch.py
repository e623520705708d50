"""Plays from Python, and what is told of a run."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from gpuyard import demo, records
from gpuyard.box.checkpoints import FileEntry, LocalStore, Manifest, RunRecord
from gpuyard.config import SshKey
from gpuyard.errors import ConnectionLostError, GpuyardError, NothingBegunError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.play import Event, _translate, run_playbook
from gpuyard.providers.base import Instance, State
from gpuyard.renting import watch
from gpuyard.renting.runs import Run

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
    assert Event("task", "Plan the run, and have a machine for each of its nodes") in seen
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


WAITING = {"event": "waiting", "stage": "search", "seconds": 3, "of": 540, "doing": "saving"}
STOPPED = {"changed": True, "ended": True, "saved": {"state": True, "sequence": 4, "why": "All of it."}}


def say(*records: dict[str, Any]) -> str:
    """Return the shell commands of a machine that prints ``records``."""
    return "".join(f"echo '{json.dumps(record)}'\n" for record in records)


def test_a_stop_is_waited_for_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_ssh(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked\necho a banner\n' + say(WAITING, STOPPED))
    told: list[str] = []
    assert watch.stop(machine(), KEY, tell=told.append) == STOPPED
    assert told == ["vast 7: stage search is saving its work (3 s of at most 540 s)"]
    asked = (tmp_path / "asked").read_text()
    # The machine knows how long its stage needs, and one that vanishes is noticed.
    assert "stop --progress" in asked and "--wait" not in asked and "ServerAliveInterval=" in asked
    watch.stop(machine(), KEY, wait_s=7.5)
    assert "stop --progress --wait 7.5" in (tmp_path / "asked").read_text()


def test_only_root_can_tell_that_a_machine_was_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BOX_PYTHON", "echo")
    monkeypatch.setattr(watch, "BOX_SETTINGS", str(tmp_path / "settings.json"))
    line = watch.command(machine(), KEY, ["log"])[-1]

    def on_the_machine(user: int) -> subprocess.CompletedProcess[str]:
        (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
        (tmp_path / "id").chmod(0o755)
        path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return subprocess.run(["sh", "-c", line], env=path, capture_output=True, text=True, check=False)

    assert on_the_machine(0).returncode == 44
    assert on_the_machine(1000).stdout == "-m gpuyard.box.stages log\n"
    (tmp_path / "settings.json").touch()
    assert on_the_machine(0).stdout == "-m gpuyard.box.stages log\n"


def test_what_has_not_ended_is_an_answer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = {"ended": False, "saved": {"state": False, "sequence": None, "why": "It is still saving."}}
    stand_in_for_ssh(tmp_path, monkeypatch, f"{say(late)}echo It is still saving. >&2; exit 1")
    assert watch.stop(machine(), KEY) == late


@pytest.mark.parametrize(
    ("script", "kind", "says"),
    [
        ("exit 44", NothingBegunError, "No stage has begun on the machine of vast 7"),
        ("echo ssh: connect to host 192.0.2.7 port 22: refused >&2; exit 255", ConnectionLostError, "refused"),
        ("echo Host key verification failed. >&2; exit 255", ConnectionLostError, "Host key"),
        ("echo done", GpuyardError, "has not said whether its work is saved: done"),
        ("echo usage: error: unrecognized arguments: --progress >&2; exit 2", GpuyardError, "older than this one"),
        ("exec sleep 60", ConnectionLostError, "has not said within 0 s"),
    ],
)
def test_a_stop_without_an_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: type[GpuyardError], says: str
) -> None:
    stand_in_for_ssh(tmp_path, monkeypatch, script)
    with pytest.raises(kind, match=says) as caught:
        watch.stop(machine(), KEY, limit_s=0.2 if "sleep" in script else 60)
    assert getattr(caught.value, "silent", None) is (None if kind is not ConnectionLostError else "connect" in script)
    if kind is NothingBegunError:
        with pytest.raises(NothingBegunError):
            list(watch.lines(machine(), KEY, ["log"]))


def test_a_machine_without_an_address_cannot_be_asked() -> None:
    with pytest.raises(ConnectionLostError, match="has no address yet") as caught:
        watch.stop(machine(ssh_host=""), KEY)
    assert caught.value.silent
    assert watch.status(machine(ssh_host=""), KEY) == {"state": "unreachable"}


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ('echo welcome; echo \'{"state": "idle", "stage": "search"}\'', "idle"),
        ("exit 44", "not-started"),
        ("exit 255", "unreachable"),
        ("echo no JSON", "unreachable"),
    ],
)
def test_a_machine_says_what_its_stages_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, state: str
) -> None:
    stand_in_for_ssh(tmp_path, monkeypatch, script)
    assert watch.status(machine(), KEY, timeout_s=60)["state"] == state


def test_machines_that_do_not_answer_cost_the_same_however_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The number is the machine's port, and every one but the first is silent.
    script = "case \"$*\" in *' -p 9 '*) exit 44;; esac\nexec sleep 60"
    stand_in_for_ssh(tmp_path, monkeypatch, script)
    many = [Run(f"r-{number}", "w", (machine(id=str(number), ssh_port=9 + number),)) for number in range(12)]
    gone = Run("gone", "w", (machine(state=State.PREEMPTED),))
    began = time.monotonic()
    found = watch.asked([*many, gone], KEY, timeout_s=3)
    assert time.monotonic() - began < 30  # one after the other they would take 33 s
    assert [one.state for one in found] == ["not-started", *["unreachable"] * 11, "preempted"]
    assert found[-1].stages == {}


def test_how_a_followed_run_ended_is_told_with_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = {"stage": "train", "iteration": 0, "exit_code": 3, "reason": "x", "last_line": "no GPU"}
    stages = json.dumps({"state": "failed", "failure": failure})
    log = "case \"$*\" in *'log --lines 10 --stage train --iteration 0') echo one; echo no GPU; exit 0;; esac\n"
    stand_in_for_ssh(tmp_path, monkeypatch, f"{log}echo '{stages}'")
    assert watch.how_it_ended("Run ups-0", machine(), KEY, "failed") == (
        "Run ups-0 has failed in iteration 0, train (exit code 3: x). Its last lines:\n    one\n    no GPU"
    )
    assert watch.how_it_ended("Run ups-0", machine(), KEY, "interrupted") == "Run ups-0 is interrupted."
    stand_in_for_ssh(tmp_path, monkeypatch, """echo '{"state": "waiting", "waits_for": "search"}'""")
    waiting = machine(ref=RunRef("ups-0", "w"))
    assert watch.how_it_ended("Run ups-0", waiting, KEY, "waiting") == (
        "Run ups-0 waits for a machine of pool search: `ansible-playbook launch.yml -e run=ups-0 -e follow=true` moves "
        "it there."
    )
    stand_in_for_ssh(tmp_path, monkeypatch, "exit 255")
    assert watch.how_it_ended("Run ups-0", machine(), KEY, "failed") == "Run ups-0 has failed."


@pytest.mark.parametrize(
    ("stages", "shown", "notes"),
    [
        ({"state": "running", "iteration": 1, "stage": "search"}, "iteration 1, search", []),
        ({"state": "not-started"}, "not started", ["No stage has begun on a-0", "launch.yml -e run=a-0"]),
        (
            {"state": "waiting", "waits_for": "search", "iteration": 0, "stage": "search"},
            "waiting",
            ["a-0 waits for a machine of pool search, and bills", "launch.yml -e run=a-0 moves it"],
        ),
        ({"state": "idle"}, "idle", ["Nothing runs on a-0 (idle), and it bills"]),
        ({"state": "interrupted"}, "interrupted", ["launch.yml -e run=a-0 goes on", "teardown.yml -e run=a-0"]),
        ({"state": "finished"}, "finished", ["a-0 has ended and still bills: ansible-playbook teardown.yml"]),
        ({"state": "unreachable"}, "unreachable", ["does not answer, and bills"]),
        (
            {"state": "failed", "failure": {"stage": "train", "iteration": 0, "exit_code": 3, "last_line": "no GPU"}},
            "failed",
            ["a-0 has failed in iteration 0, train (exit code 3): no GPU, and still bills"],
        ),
        (
            {"state": "failed", "failure": {"stage": None, "exit_code": None, "reason": "No space is left."}},
            "failed",
            ["a-0 has failed (No space is left), and still bills: ansible-playbook teardown.yml -e run=a-0"],
        ),
    ],
)
def test_the_table_shows_what_the_machine_says(stages: dict[str, Any], shown: str, notes: list[str]) -> None:
    heading, row, *rest, sums = records.run_table([Run("a-0", "w", (machine(),), stages={"main-0": stages})])
    assert shown in row and heading.startswith("run") and sums.startswith("In all $")
    assert len(rest) == (1 if notes else 0)
    for note in notes:
        assert note in rest[0]


def test_the_table_shows_how_a_machine_is_used_its_alerts_and_its_trackers() -> None:
    """U5, B24."""
    gpu = {"index": 0, "name": "A100", "use_percent": 97.0, "memory_used_gb": 34.2, "memory_total_gb": 85.9}
    facts = {"gpus": [gpu], "disk": {"used_percent": 42.4}, "load": 3.14, "cores": 16}
    alert = {"alert": "disk /mnt/persistent", "text": "the disk is 91 % full", "time": "2026-01-01T00:00:00Z"}
    stages: dict[str, Any] = {"state": "running", "iteration": 1, "stage": "search", "machine": facts}
    heading, row, *notes = records.run_table([Run("a-0", "w", (machine(),), stages={"main-0": stages})])
    place = heading.index("GPU")
    assert heading[place:].startswith("GPU") and row[place:].split()[:4] == ["97%", "34G", "42%", "3.1/16"]
    assert len(notes) == 1
    second = {**gpu, "use_percent": 3.0, "memory_used_gb": 60.0}
    busy = {
        **stages,
        "machine": {**facts, "gpus": [gpu, second]},
        "alerts": [alert, {**alert, "text": "busy: 3 %"}],
        "links": {"wandb": "https://wandb.ai/me/w/runs/1"},
    }
    _, row, *notes = records.run_table([Run("a-0", "w", (machine(),), stages={"main-0": busy})])
    assert "2× 50% 60G" in row
    assert notes[:2] == [
        "a-0 has 2 alerts: the disk is 91 % full; busy: 3 %",
        "a-0 at wandb: https://wandb.ai/me/w/runs/1",
    ]
    # A machine without a GPU, and one that does not answer, show that they do not.
    for nothing in ({**facts, "gpus": []}, {}):
        _, row, *_ = records.run_table(
            [Run("a-0", "w", (machine(),), stages={"main-0": {**stages, "machine": nothing}})]
        )
        assert row[place:].split()[0] == "-"


def test_the_table_shows_how_far_a_stage_is_and_a_runner_that_gives_no_sign_of_life() -> None:
    progress = {"iteration": 1, "stage": "search", "done": 30.0, "total": 120.0, "percent": 25.0, "unit": "lines"}
    stages: dict[str, Any] = {"state": "running", "iteration": 1, "stage": "search", "progress": progress}
    for age, said in ((12.0, []), (75.0, ["a-0: its runner has given no sign of life for 75 s"])):
        sign = {"time": "2026-01-01T00:00:00Z", "age_s": age, "doing": "running"}
        run = Run("a-0", "w", (machine(),), stages={"main-0": {**stages, "sign_of_life": sign}})
        _, _, *notes = records.run_table([run])
        bar = "a-0, search of iteration 1: [######------------------] 25 % (30 of 120 lines)"
        assert notes[: len(said) + 1] == [*said, bar]


def test_only_a_run_without_a_machine_is_to_be_resumed() -> None:
    record = RunRecord("a-0", "w", "2026-01-01T00:00:00Z")
    assert Run("a-0", "w", record=record).resumable
    assert not Run("a-0", "w", (machine(),), record, stages={"main-0": {"state": "interrupted"}}).resumable
    # A machine that does not answer takes nothing back from what the bucket knows.
    done = RunRecord("a-0", "w", "2026-01-01T00:00:00Z", outcome="done")
    assert Run("a-0", "w", (machine(),), done, stages={"main-0": {"state": "unreachable"}}).state == "finished"
    assert Run("a-0", "w", (machine(),), done, stages={"main-0": {"state": "running"}}).state == "running"


def test_records_are_told_in_words() -> None:
    record = {"event": "stage-start", "iteration": 1, "stage": "search", "attempt": 2}
    assert watch.tell(record) == "▶ iteration 1, search, attempt 2"
    assert "512 KiB" in watch.tell({"event": "published", "sequence": 3, "bytes_sent": 512 * 1024})
    assert watch.tell({"event": "rewind"}) == ""


def published(tmp_path: Path) -> tuple[Run, LocalStore]:
    """Return a run whose machine is gone, and the store with two logs of its search."""
    store = LocalStore(tmp_path)
    files = []
    link = "wandb: View run at https://wandb.ai/me/canyon/runs/1a2b\n"
    for iteration, text in ((0, "one\nerror: two\nthree\n"), (1, f"{link}four\nfive\n")):
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

    def shown(query: watch.LogQuery) -> list[str]:
        return watch.published_log("run r", one.nodes[0], store, query).lines

    assert shown(watch.LogQuery())[1:] == ["four", "five"]
    assert shown(watch.LogQuery("search", 0, lines=1)) == ["three"]
    assert shown(watch.LogQuery("search", 0, errors=True)) == ["error: two"]
    link = {"wandb": "https://wandb.ai/me/canyon/runs/1a2b"}
    assert watch.published_log("run r", one.nodes[0], store, watch.LogQuery()).links == link
    with pytest.raises(UsageError, match=r"no log of ebm.*0-search, 1-search"):
        watch.published_log("run r", one.nodes[0], store, watch.LogQuery("ebm"))
    with pytest.raises(UsageError, match=r"no log of any stage in iteration 7\. "):
        watch.published_log("run r", one.nodes[0], store, watch.LogQuery(iteration=7))


def test_the_run_meant_is_the_named_or_the_only_one() -> None:
    alive, gone = Run("a", "w", (machine(),)), Run("b", "w")
    assert watch.choose([alive, gone], "b") is gone
    assert watch.choose([alive, gone], None) is alive
    with pytest.raises(UsageError, match=r"Name the run.*a, c"):
        watch.choose([alive, Run("c", "w", (machine(id="8"),))], None)
    with pytest.raises(UsageError, match=r"'x' is not known.*: none"):
        watch.choose([], "x")
