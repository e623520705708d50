from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from stage_box import CANARY, RUN, Box, alive, mark, until, wait_for

from gpuyard.box.checkpoints import (
    BucketError,
    LocalStore,
    Restored,
    latest_manifest,
    latest_whole_manifest,
    list_runs,
    manifest_of,
    manifests,
)
from gpuyard.box.stages import runner
from gpuyard.box.stages.spec import load_spec
from gpuyard.formats.journal import fold


def prover_stage(total: int, flush_every: int, seconds: float, **fields: Any) -> dict[str, Any]:
    command = f"{sys.executable} prover.py {total} {flush_every} {seconds}"
    return {
        "name": "search",
        "command": command,
        "resume_command": f"{command} --resume-from results",
        "resumable": True,
        "grace_s": 60,
        **fields,
    }


def searched(box: Box) -> list[int]:
    file = box.repository / "searched"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def results(box: Box) -> list[int]:
    file = box.root / "trajectories/results"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_all_stages_of_all_iterations_run_in_order(box: Box) -> None:
    box.describe([mark("finetune"), mark("search")], iterations=2)
    assert box.run() == 0
    assert box.marks == ["0-finetune", "0-search", "1-finetune", "1-search"]
    assert [event["event"] for event in box.events()][:3] == ["run-start", "stage-start", "stage-end"]
    assert box.events()[-1]["outcome"] == "done"
    status = box.status()
    assert (status["state"], status["stage"], status["stages_done"], status["tmux"]) == ("finished", None, 4, False)
    assert [row["outcome"] for row in status["stages"]] == ["done"] * 4


def test_the_environment_of_a_stage(box: Box) -> None:
    box.describe(
        [
            {
                "name": "look",
                "command": 'echo "$ITERATION|$STAGE|$RUN|$GPUYARD_RUN|$GPUYARD_PERSIST|$COLOUR|$PWD|${PATH%%:*}"; '
                'test "$WANDB_API_KEY" = ' + CANARY + " && echo has the key",
            }
        ]
    )
    assert box.run() == 0
    log = (box.root / ".gpuyard/logs/0-look.log").read_text()
    assert f"0|look|{RUN}|{RUN}|{box.root}|red and blue|{box.repository}|/opt/own/bin\nhas the key\n" in log
    # What the stage did not print itself, nobody did.
    assert CANARY not in box.screen + (box.root / ".gpuyard/journal.jsonl").read_text()


def test_output_goes_whole_to_the_log_and_to_the_screen(box: Box) -> None:
    box.describe([{"name": "talk", "command": "seq 1 20000; echo to stderr >&2; printf 'no newline at the end'"}])
    assert box.run() == 0
    log = (box.root / ".gpuyard/logs/0-talk.log").read_text()
    for text in (log, box.screen):
        assert "\n19999\n20000\nto stderr\nno newline at the end" in text
    assert box.status()["last_line"].endswith("exit code 0")


def test_a_failure_ends_the_run_and_is_retried_as_often_as_asked(box: Box) -> None:
    flaky = {"name": "flaky", "command": "echo x >> marks; test $(wc -l < marks) -ge 3", "retries": 2}
    box.describe([flaky, {"name": "broken", "command": "echo it breaks; exit 7", "retries": 1}, mark("never")])
    assert box.run() == 1
    assert box.marks == ["x"] * 3
    assert box.outcomes() == [(0, "flaky", "failed")] * 2 + [(0, "flaky", "done")] + [(0, "broken", "failed")] * 2
    assert box.events("stage-end")[-1]["exit_code"] == 7
    status = box.status()
    assert (status["state"], status["stage"]) == ("failed", "broken")
    reason = "broken ended with exit code 7."
    assert status["failure"] == {
        "stage": "broken",
        "iteration": 0,
        "exit_code": 7,
        "reason": reason,
        "last_line": "it breaks",
    }
    assert status["space_free_gb"] > 0
    assert f"  why it failed: {reason}\n" in box.call("status").stdout
    # A later run begins with what failed.
    assert box.run() == 1
    assert box.marks == ["x"] * 3 and len(box.outcomes()) == 7


def test_a_failing_command_in_the_middle_or_in_a_pipe_is_a_failure(box: Box) -> None:
    box.describe([{"name": "pipe", "command": "false | cat\necho went on >> marks"}])
    assert box.run() == 1
    assert box.marks == []


def test_the_persistent_folders_are_there(box: Box) -> None:
    box.describe([{"name": "a", "command": "touch $GPUYARD_PERSIST/models/x $GPUYARD_PERSIST/trajectories/y"}])
    assert box.run() == 0


def test_a_missing_repository_is_a_failed_stage(box: Box) -> None:
    box.describe([mark("a")])
    box.repository.rmdir()
    assert box.run() == 1
    assert box.events("stage-end")[0]["exit_code"] == 127
    box.repository.mkdir()


def test_the_checkpoint_command_tells_whether_the_bucket_holds_it(box: Box) -> None:
    """It ends no training by itself; with --strict its code is 0 only when what is on the box is in the bucket."""
    ask = "eval $GPUYARD_CHECKPOINT_COMMAND{} && echo 0 >> marks || echo $? >> marks"
    half = "exec 3> $GPUYARD_PERSIST/models/half; echo w >&3; " + ask.format(" --strict")
    stages = [
        {"name": "lenient", "command": ask.format("")},
        {"name": "strict", "command": ask.format(" --strict")},
        {"name": "half", "command": half},
        {"name": "again", "command": half},
    ]
    box.describe(stages, bucket=(box.base / "bucket").as_uri())
    assert box.run() == 0
    assert box.marks == ["0", "0", "75", "75"]
    said = (box.root / ".gpuyard/logs/0-again.log").read_text()
    assert "does not hold everything: " in said and "models/half" in said
    (box.base / "file").touch()
    for bucket in ((box.base / "file/bucket").as_uri(), ""):
        (box.repository / "marks").unlink()
        box.describe(stages[:2], bucket=bucket)
        assert box.run("--from", "lenient") == 0
        assert box.marks == ["0", "75"]
        text = (box.root / ".gpuyard/logs/0-strict.log").read_text()
        assert ("the bucket has just failed" if bucket else "No bucket is set for canyon-0") in text


INSTANCE = {
    "node": "search-3",
    "provider": "vast",
    "id": "1234567",
    "region": "SE",
    "market": "interruptible",
    "price_per_hour_usd": 0.43,
}


def stage_environment(box: Box, secrets: dict[str, str] | None = None, **settings: Any) -> dict[str, str]:
    """Run a stage with more settings and secrets, and return the environment that it had."""
    box.describe([{"name": "show", "command": "env -0 > shown"}])
    file = box.settings / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    (box.settings / "secrets.env").write_text("".join(f"{name}={value}\n" for name, value in (secrets or {}).items()))
    assert box.run("--only", "show") == 0
    lines = (box.repository / "shown").read_text().split("\0")[:-1]
    return dict(line.split("=", 1) for line in lines)


def test_v11_a_stage_is_told_where_it_runs(box: Box) -> None:
    """The facts, the bucket for training code (E2, E3), and W&B's ``environment=<provider>`` (V11)."""
    bucket = {
        "bucket": "s3://yard/deep",
        "bucket_endpoint": "http://127.0.0.1:9",
        "bucket_region": "eu",
        "instance": INSTANCE,
    }
    seen = stage_environment(box, **bucket)
    expected = {
        "GPUYARD_RUN": RUN,
        "GPUYARD_WORKLOAD": "canyon",
        "GPUYARD_NODE": "search-3",
        "GPUYARD_POOL": "search",
        "GPUYARD_PROVIDER": "vast",
        "GPUYARD_INSTANCE_ID": "1234567",
        "GPUYARD_REGION": "SE",
        "GPUYARD_MARKET": "interruptible",
        "GPUYARD_PRICE_PER_HOUR_USD": "0.43",
        "GPUYARD_BUCKET": "s3://yard/deep",
        "GPUYARD_BUCKET_ENDPOINT": "http://127.0.0.1:9",
        "CLOUD_PROVIDER": "s3",
        "CLOUD_BUCKET": f"yard/deep/{RUN}/files",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_DEFAULT_REGION": "eu",
        "WANDB_TAGS": "environment=vast",
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert (Path(seen["GPUYARD_LIBRARIES"]) / "boto3/__init__.py").exists()
    # What the user sets stays, and of a bucket of the user's own no part is ours.
    users = {"WANDB_TAGS": "mine", "MLFLOW_TRACKING_URI": "http://m", "CLOUD_BUCKET": "other"}
    seen = stage_environment(box, users, **bucket)
    assert {name: seen[name] for name in users} == users
    assert "CLOUD_PROVIDER" not in seen and "AWS_ENDPOINT_URL_S3" not in seen
    seen = stage_environment(box)
    assert seen["CLOUD_PROVIDER"] == "local" and "CLOUD_BUCKET" not in seen and "WANDB_TAGS" not in seen


def test_e5_a_stage_uploads_with_what_it_is_told(box: Box, tmp_path: Path) -> None:
    """Training code on the box: checkpoints, and logs at its end, in the run's own bucket and beside gpuyard's keys."""
    (box.repository / "train.py").write_text(
        "import os, pathlib\n"
        "from gpuyard.cloud_sync import download_checkpoints, sync_checkpoints, sync_logs\n"
        "assert download_checkpoints('policy', 'work')\n"
        "for step in range(1, 11):\n"
        "    pathlib.Path('work/model').write_text(str(step))\n"
        "    if step % 5 == 0:\n"
        "        assert sync_checkpoints('work', 'policy')\n"
        "pathlib.Path('runs').mkdir()\n"
        "pathlib.Path('runs/events').write_text('curve')\n"
        "assert sync_logs('runs', 'policy')\n"
    )
    bucket = tmp_path / "bucket"
    box.describe([{"name": "train", "command": f"{sys.executable} train.py"}], bucket=bucket.as_uri())
    assert box.run() == 0, box.screen
    files = bucket / RUN / "files"
    assert (files / "policy/checkpoints/000002/files/model").read_text() == "10"
    assert (files / "policy/logs/events").read_text() == "curve"
    assert [record.run for record in list_runs(LocalStore(bucket))] == [RUN], "what it uploads is no run"
    assert latest_manifest(LocalStore(bucket), RUN) is not None


def test_from_only_and_iteration(box: Box) -> None:
    box.describe([mark("a"), mark("b"), mark("c")], iterations=2)
    assert box.run("--only", "b") == 0
    assert box.marks == ["0-b"]
    assert box.status()["state"] == "idle", "there is more to do, and nobody does it"
    assert box.run("--from", "c", "--iteration", "0") == 0
    # a was passed over, b is done; c and the second iteration ran.
    assert box.marks == ["0-b", "0-c", "1-a", "1-b", "1-c"]
    assert box.status()["state"] == "finished"
    assert box.run("--from", "b") == 0
    assert box.marks[5:] == ["1-b", "1-c"]
    assert box.run("--only", "a", "--iteration", "0") == 0
    assert box.marks[7:] == ["0-a"]
    assert box.run() == 0
    assert len(box.marks) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "nosuch"], "There is no stage 'nosuch'; the stages are a."),
        (["--only", "nosuch"], "There is no stage 'nosuch'; the stages are a."),
        (["--iteration", "5"], "iteration=5: there is no such iteration; the workload has one iteration, 0."),
    ],
)
def test_choices_that_do_not_exist(box: Box, arguments: list[str], message: str) -> None:
    box.describe([mark("a")])
    answer = box.call("run", *arguments)
    assert (answer.returncode, answer.stderr.strip()) == (2, message)
    assert box.marks == []


def test_a_box_without_settings(box: Box) -> None:
    box.describe([mark("a")])
    (box.settings / "settings.json").unlink()
    answer = box.call("status")
    assert answer.returncode == 2 and "this box has not been told what to run" in answer.stderr


def test_b25_sigterm_lets_a_program_save_that_hears_sigint_only(box: Box, prover: Path) -> None:
    box.describe([prover_stage(1000, 50, 0.05), mark("after")])
    runner = box.start("run")
    wait_for(lambda: len(searched(box)) >= 3, what="the search")
    runner.terminate()
    assert runner.wait(120) == 3
    # Every theorem that was begun was finished and flushed.
    assert results(box) == searched(box) and "flushed, leaving" in box.screen
    assert box.outcomes() == [(0, "search", "interrupted")] and box.marks == []
    assert (box.status()["state"], box.status()["stage"]) == ("interrupted", "search")


@pytest.mark.parametrize(
    "shape", ["{prover}; echo on >> marks", "{prover} | tee copy", "( {prover} ) && echo on >> marks"]
)
def test_the_shell_around_a_program_neither_kills_it_nor_goes_on(box: Box, prover: Path, shape: str) -> None:
    command = shape.format(prover=f"{sys.executable} prover.py 1000 50 0.05")
    box.describe([{"name": "search", "command": command, "grace_s": 100}])
    runner = box.start("run")
    wait_for(lambda: len(searched(box)) >= 3, what="the search")
    began = time.monotonic()
    runner.terminate()
    assert runner.wait(120) == 3
    assert time.monotonic() - began < 50, "it left at the first signal, and not at half of the grace time"
    assert results(box) == searched(box)
    assert "\nflushed, leaving\n" in box.screen, "its output had a reader until its end"
    assert box.marks == []


HEARS = """
import signal, sys, time
def save(number, frame):
    open("marks", "a").write(f"saved on {signal.Signals(number).name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(60)
"""


def test_sigterm_reaches_a_program_that_hears_sigterm(box: Box) -> None:
    (box.repository / "hears.py").write_text(HEARS)
    box.describe([{"name": "train", "command": f"{sys.executable} hears.py", "grace_s": 60}])
    runner = box.start("run")
    wait_for((box.repository / "ready").exists)
    runner.terminate()
    assert runner.wait(120) == 3
    assert box.marks == ["saved on SIGTERM"]


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_script_with_a_trap_runs_its_trap(box: Box, name: str) -> None:
    script = box.repository / "script.sh"
    script.write_text(f"trap 'echo trapped >> marks; exit 0' {name}\ntouch ready\nwhile :; do sleep 0.2; done\n")
    box.describe([{"name": "train", "command": "bash script.sh", "grace_s": 100}])
    runner = box.start("run")
    wait_for((box.repository / "ready").exists)
    began = time.monotonic()
    runner.terminate()
    assert runner.wait(120) == 3
    assert box.marks == ["trapped"] and time.monotonic() - began < 50


STUBBORN = """
import os, signal, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: open("marks", "a").write(signal.Signals(number).name + "\\n"))
open("ready", "w").write(str(os.getpid()))
while True:
    time.sleep(60)
"""


def test_after_the_grace_time_comes_sigkill(box: Box) -> None:
    (box.repository / "stubborn.py").write_text(STUBBORN)
    box.describe([{"name": "train", "command": f"{sys.executable} stubborn.py & wait", "grace_s": 6}])
    runner = box.start("run")
    wait_for(lambda: (box.repository / "ready").exists() and (box.repository / "ready").read_text())
    began = time.monotonic()
    runner.terminate()
    assert runner.wait(120) == 3
    assert time.monotonic() - began > 5.9
    assert box.marks == ["SIGTERM", "SIGINT"], "first what it listens to, at half-time the other one, each once"
    assert not alive((box.repository / "ready").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_end_the_runner_as_well(box: Box, number: signal.Signals) -> None:
    box.describe([{"name": "sleep", "command": "touch ready; sleep 600", "grace_s": 60}])
    runner = box.start("run")
    wait_for((box.repository / "ready").exists)
    runner.send_signal(number)
    assert runner.wait(120) == 3
    assert box.outcomes() == [(0, "sleep", "interrupted")]


def test_what_a_stage_leaves_in_the_background_ends_with_it(box: Box) -> None:
    box.describe(
        [{"name": "serve", "command": "(sleep 300 & echo $! > pid); setsid sleep 301 & echo up", "grace_s": 5}]
    )
    began = time.monotonic()
    assert box.run() == 0
    assert time.monotonic() - began < 150, "nobody waited for them"
    assert not alive((box.repository / "pid").read_text().strip())


def test_a_killed_runner_is_interrupted_and_its_stage_never_runs_twice(box: Box, prover: Path) -> None:
    box.describe([mark("finetune"), prover_stage(40, 5, 0.05), mark("evaluate")])
    (box.repository / "hold").write_text("12")
    runner = box.start("run")
    wait_for(lambda: len(searched(box)) >= 13, what="the search")
    assert box.status()["state"] == "running"
    runner.kill()
    runner.wait()
    status = box.status()
    assert (status["state"], status["stage"]) == ("interrupted", "search")
    assert box.run() == 0
    # The orphaned search was ended (in good order) before the new one began, so that no theorem was searched twice.
    assert sorted(searched(box)) == sorted(results(box)) == list(range(40))
    assert box.marks == ["0-finetune", "0-evaluate"]
    assert [event["attempt"] for event in box.events("stage-start") if event["stage"] == "search"] == [1, 2]
    assert len(box.events("resume")) == 1
    assert box.status()["state"] == "finished"


def test_a_stage_that_cannot_be_resumed_runs_again(box: Box) -> None:
    command = "echo began >> marks; test -e again || { touch again; sleep 600; }"
    box.describe([{"name": "export", "command": command, "resume_command": "echo wrong >> marks", "grace_s": 60}])
    runner = box.start("run")
    wait_for((box.repository / "again").exists)
    runner.terminate()
    runner.wait(120)
    assert box.run() == 0
    assert box.marks == ["began", "began"]


def test_a_resumable_stage_without_resume_command_runs_its_command(box: Box) -> None:
    box.describe([{"name": "ebm", "command": "echo $STAGE >> marks; test $(wc -l < marks) -eq 2", "resumable": True}])
    assert box.run() == 1
    assert box.run() == 0
    assert box.marks == ["ebm", "ebm"] and len(box.events("resume")) == 1


SAVES = "echo $STAGE started >> marks; {saves}; test -e go || exit 1"
RESUMES = "echo $STAGE resumed >> marks; test -e $GPUYARD_PERSIST/models/ckpt-$ITERATION.pt"


@pytest.mark.parametrize("resume_if", [None, "**/ckpt-$ITERATION.*"])
def test_a_stage_that_had_saved_nothing_starts_afresh_and_says_why(box: Box, resume_if: str | None) -> None:
    # The stage before it has written something this very moment: that is not the stage's own.
    first = {"name": "prepare", "command": "echo data > $GPUYARD_PERSIST/models/data"}
    train = {"name": "train", "resume_command": RESUMES, "resumable": True, "resume_if": resume_if}
    box.describe([first, {**train, "command": SAVES.format(saves="true")}])
    assert box.run() == 1
    assert box.run() == 1, "it was not resumed, which would have failed for another reason"
    assert box.marks == ["train started"] * 2 and box.events("resume") == []
    why = box.events("stage-start")[-1]["afresh"]
    assert why == "nothing of it was saved" if resume_if is None else why.startswith("nothing is there that matches")
    log = (box.root / ".gpuyard/logs/0-train.log").read_text()
    for text in (log, box.screen):
        assert f"iteration 0, train: started afresh ({why}), attempt 2" in text
    # Now it saves something, and is then resumed.
    saves = "echo w > $GPUYARD_PERSIST/models/ckpt-$ITERATION.pt"
    box.describe([first, {**train, "command": SAVES.format(saves=saves)}])
    assert box.run() == 1
    assert box.run() == 0
    assert box.marks == ["train started"] * 3 + ["train resumed"] and len(box.events("resume")) == 1


def test_what_was_saved_on_another_box_is_gone_on_from(box: Box, tmp_path: Path) -> None:
    saves = {"command": SAVES.format(saves="echo w > $GPUYARD_PERSIST/models/ckpt-0.pt"), "resume_command": RESUMES}
    for name, stage, marks in (
        ("a", saves, ["train resumed"]),
        ("b", {**saves, "command": SAVES.format(saves="true")}, ["train started"]),
    ):
        options: dict[str, Any] = {"bucket": (tmp_path / f"bucket-{name}").as_uri()}
        places = [tmp_path / name / str(number) for number in range(2)]
        boxes = [Box(at, at / "persistent", at / "run", at / "src", box.sockets) for at in places]
        for one in boxes:
            one.repository.mkdir(parents=True)
            one.describe([mark("prepare"), {"name": "train", "resumable": True, **stage}], **options)
        assert boxes[0].run() == 1
        assert boxes[1].call("restore", module="gpuyard.box.checkpoints").returncode == 0
        boxes[1].run()
        assert boxes[1].marks == marks


def test_a_clock_that_was_ahead_when_a_stage_began_loses_no_work(
    box: Box, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine begins with a wrong clock, which is put right before the stage saves something."""
    now = time.time_ns
    first = {"name": "prepare", "command": "echo data > $GPUYARD_PERSIST/models/data"}
    saves = SAVES.format(saves="echo w > $GPUYARD_PERSIST/models/ckpt-0.pt")
    box.describe([first, {"name": "train", "command": saves, "resume_command": RESUMES, "resumable": True}])
    with monkeypatch.context() as wrong:
        wrong.setattr(runner.time, "time_ns", lambda: now() + 7_200_000_000_000)
        assert runner.Runner(box.spec).run() == "failed"
    assert runner.Runner(box.spec).run() == "done"
    assert box.marks == ["train started", "train resumed"]


def test_an_older_journal_tells_the_second_in_which_a_stage_began(box: Box) -> None:
    box.describe([mark("a")])
    event = {"time": "2026-03-01T12:00:00Z", "event": "stage-start", "iteration": 0, "stage": "a"}
    assert fold([event], [(0, "a")]).at((0, "a")).began_ns == 1772366401 * 10**9
    assert fold([{**event, "time": "?"}], [(0, "a")]).at((0, "a")).began_ns is None


def test_a_journal_that_was_cut_off_in_a_line_goes_on(box: Box) -> None:
    box.describe([mark("a"), mark("b")])
    assert box.run("--only", "a") == 0
    journal = box.root / ".gpuyard/journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"time": "2026-03-01T00:00:00Z", "event": "stage-sta')
    assert box.status()["stages_done"] == 1
    assert box.run() == 0
    assert box.marks == ["0-a", "0-b"]
    assert b'stage-sta\n{"time"' in journal.read_bytes()


def test_there_is_one_runner_at_a_time(box: Box) -> None:
    box.describe([{"name": "sleep", "command": "touch ready; sleep 600", "grace_s": 60}])
    runner = box.start("run")
    wait_for((box.repository / "ready").exists)
    second = box.call("run")
    assert second.returncode == 2 and f"{RUN} is running already (process {runner.pid})" in second.stderr
    assert len(box.events("run-start")) == 1


# --- with a bucket ---


def bucket_of(box: Box) -> LocalStore:
    return LocalStore(box.base / "bucket")


def test_checkpoints_are_published_after_each_stage_and_at_the_end(box: Box) -> None:
    stages = [
        {"name": "train", "command": "mkdir -p $GPUYARD_PERSIST/models; echo w > $GPUYARD_PERSIST/models/w"},
        {"name": "wait", "command": until("test -e ../bucket/canyon-0/checkpoints/000001/manifest.json")},
    ]
    box.describe(stages, bucket=(box.base / "bucket").as_uri())
    assert box.run() == 0
    sets = list(manifests(bucket_of(box), RUN))
    assert len(sets) == 2
    assert sets[0].progress == {
        "iteration": None,
        "stage": None,
        "done": [[0, "train"], [0, "wait"]],
        "finished": True,
        "outcome": "done",
    }
    assert [0, "train"] in sets[-1].progress["done"] and not sets[-1].progress["finished"]
    assert {"models/w", ".gpuyard/journal.jsonl", ".gpuyard/logs/0-train.log"} <= {e.path for e in sets[0].files}
    (record,) = list_runs(bucket_of(box))
    assert (record.workload, record.outcome) == ("canyon", "done") and record.finished
    assert box.status()["last_published"]["sequence"] == sets[0].sequence


def test_checkpoints_are_published_every_few_seconds(box: Box) -> None:
    fourth = f"../bucket/{RUN}/checkpoints/000004/manifest.json"
    # A file that changes all the time is waited for, which is another test's business.
    now_and_then = "if [ $((i % 8)) = 0 ]; then echo $i > $GPUYARD_PERSIST/step; fi"
    box.describe(
        [{"name": "train", "command": until(f"{now_and_then}; test -e {fourth}")}],
        bucket=(box.base / "bucket").as_uri(),
        checkpoints={"every_s": 0.4, "keep_last": 0},
    )
    assert box.run() == 0
    steps = [manifest for manifest in manifests(bucket_of(box), RUN) if manifest.progress["stage"] == "train"]
    assert len(steps) >= 4


def test_a_program_can_ask_for_a_checkpoint_and_has_it_when_the_call_returns(box: Box) -> None:
    command = "echo 1 > $GPUYARD_PERSIST/step; eval $GPUYARD_CHECKPOINT_COMMAND; ls -R ../bucket"
    box.describe([{"name": "train", "command": command}], bucket=(box.base / "bucket").as_uri())
    assert box.run() == 0
    log = (box.root / ".gpuyard/logs/0-train.log").read_text()
    assert f"../bucket/{RUN}/checkpoints/000001:\nfiles\nmanifest.json\n" in log
    assert f"../bucket/{RUN}/checkpoints/000001/files:\nstep\n" in log


@pytest.mark.parametrize("bucket", ["file:///proc/nowhere", "s3://yard", "gs://yard", ""])
def test_a_dead_bucket_does_not_touch_the_stages(box: Box, bucket: str) -> None:
    command = "eval $GPUYARD_CHECKPOINT_COMMAND && echo went on >> marks"
    box.describe([{"name": "train", "command": command}, mark("search")], bucket=bucket)
    settings = json.loads((box.settings / "settings.json").read_text())
    # Port 9 (discard) has no listener.
    (box.settings / "settings.json").write_text(json.dumps({**settings, "bucket_endpoint": "http://127.0.0.1:9"}))
    with (box.settings / "secrets.env").open("a") as secrets:
        secrets.write("AWS_ACCESS_KEY_ID=canary-key-3377aabb\nAWS_SECRET_ACCESS_KEY=canary-secret-66ccdd00\n")
    began = time.monotonic()
    assert box.run() == 0
    assert time.monotonic() - began < 120
    assert box.marks == ["went on", "0-search"]
    assert ("Warning: no checkpoint was published" in box.screen) == bool(bucket)
    assert "canary-" not in box.screen


def test_preemption_without_notice_and_a_new_box(box: Box, prover: Path, tmp_path: Path) -> None:
    """The promise: the last published set, a box that knows nothing, and the search goes on where it was."""
    stages = [mark("finetune"), prover_stage(60, 5, 0.03), mark("evaluate")]
    options: dict[str, Any] = {
        "bucket": (tmp_path / "bucket").as_uri(),
        "checkpoints": {"every_s": 0.3, "keep_last": 2},
    }
    box.describe(stages, **options)
    (box.repository / "hold").write_text("20")
    runner = box.start("run")

    def published_results() -> bool:
        manifest = latest_manifest(LocalStore(tmp_path / "bucket"), RUN)
        return manifest is not None and any(entry.path == "trajectories/results" for entry in manifest.files)

    wait_for(published_results, what="published results")
    leader = [int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit() and is_prover(e, box)]
    assert leader
    runner.kill()
    for pid in leader:
        with contextlib.suppress(ProcessLookupError):  # the shell around the prover may have left with it
            os.kill(pid, signal.SIGKILL)
    runner.wait()
    manifest = latest_manifest(LocalStore(tmp_path / "bucket"), RUN)
    assert manifest is not None and manifest.progress["stage"] == "search"

    before = searched(box)
    other = Box(tmp_path, tmp_path / "other/persistent", tmp_path / "other/run", tmp_path / "other/src", box.sockets)
    other.repository.mkdir(parents=True)
    (other.repository / "prover.py").write_text(prover.read_text())
    other.describe(stages, **options)
    restored = json.loads(other.call("restore", module="gpuyard.box.checkpoints").stdout)
    assert restored["changed"] and restored["restored"]["source"] == "cloud"
    saved = results(other)
    assert saved and set(saved) <= set(before)
    again = other.call("restore", module="gpuyard.box.checkpoints")
    assert json.loads(again.stdout)["restored"]["source"] == "local"
    assert other.run() == 0
    assert sorted(results(other)) == list(range(60))
    assert set(searched(other)).isdisjoint(saved), "nothing that was saved is searched again"
    assert other.marks == ["0-evaluate"]
    listed = [json.loads(line) for line in other.call("list", module="gpuyard.box.checkpoints").stdout.splitlines()]
    assert len(listed) == 2 and listed[0]["progress"]["finished"]
    sound = other.call("verify", module="gpuyard.box.checkpoints")
    assert sound.returncode == 0 and json.loads(sound.stdout)["damaged"] == []
    older = manifest_of(LocalStore(tmp_path / "bucket"), RUN, listed[1]["sequence"])
    damaged = next(entry.key for entry in older.files if entry.path == "trajectories/results")
    (tmp_path / "bucket" / damaged).write_bytes(b"rotten")
    found = other.call("verify", "--sequence", str(older.sequence), module="gpuyard.box.checkpoints")
    assert found.returncode == 1 and f"Damaged: trajectories/results: {damaged} has 6 bytes" in found.stderr


def is_prover(process: Path, box: Box) -> bool:
    """Tell whether a process is the box's own prover: other tests run at the same time."""
    try:
        return b"prover.py" in (process / "cmdline").read_bytes() and (process / "cwd").readlink() == box.repository
    except OSError:
        return False


def test_a_box_runs_the_stages_of_its_pools_and_waits_before_another_pools_b2(box: Box, tmp_path: Path) -> None:
    """B2: at the boundary everything is published, and the next box goes on where this one has stopped."""
    bucket = f"file://{tmp_path / 'bucket'}"
    stages = [mark("finetune", pool="train"), mark("export", pool="train"), mark("search", pool="search")]
    box.describe(stages, iterations=2, bucket=bucket, turn_pools=["train"])
    assert box.run() == 4
    assert box.marks == ["0-finetune", "0-export"]
    end = box.events("run-end")[-1]
    assert (end["outcome"], end["complete"]) == ("waiting", False)
    assert end["reason"] == "search comes next, which a box of pool search has to run."
    status = box.status()
    assert (status["state"], status["waits_for"], status["stage"], status["failure"]) == (
        "waiting", "search", "search", None,
    )  # fmt: skip
    # It has not ended, and what the next box restores knows where it goes on.
    store = LocalStore(tmp_path / "bucket")
    (record,) = list_runs(store)
    whole = latest_whole_manifest(store, RUN)
    assert record.outcome is None and whole is not None
    assert (whole.progress["outcome"], whole.progress["stage"], whole.progress["iteration"]) == ("waiting", "search", 0)
    # Told to go on, it does no stage of another pool, and saves once more.
    assert box.run() == 4
    assert box.marks == ["0-finetune", "0-export"]

    box.describe(stages, iterations=2, bucket=bucket, turn_pools=["search"])
    assert box.run() == 4
    assert (box.marks[2:], box.status()["waits_for"]) == (["0-search"], "train")
    (end,) = [event for event in map(json.loads, box.call("progress").stdout.splitlines()) if event["event"] == "end"]
    assert (end["state"], end["waits_for"]) == ("waiting", "train")
    # A box for all of them goes through.
    box.describe(stages, iterations=2, bucket=bucket)
    assert box.run() == 0
    assert box.marks[3:] == ["1-finetune", "1-export", "1-search"]
    assert (box.status()["state"], box.status()["waits_for"]) == ("finished", None)


def test_a_bucket_that_is_away_for_a_moment_does_not_end_a_start(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.describe([mark("train")], bucket=(box.base / "bucket").as_uri())
    answers: list[Exception | Restored] = [BucketError("away"), Restored("nothing")]

    def restore(*_args: object, **_more: object) -> Restored:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr(runner, "restore", restore)
    monkeypatch.setattr(runner, "_BUCKET_AGAIN_S", 0.0)
    assert runner.restore_checkpoint(load_spec(box.settings)).source == "nothing" and answers == []
