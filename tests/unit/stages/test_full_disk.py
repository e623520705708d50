"""A full disk ends a run with a record of it. The disk is a real one, small, in a mount namespace of its own."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from stage_box import RUN, Box, mark

from gpuyard.box.checkpoints import LocalStore, manifests
from gpuyard.box.stages import runner
from gpuyard.formats.journal import RESERVE_BYTES, Journal, parse

# The journal is filled up to the end of its last block first, so that its next line needs a new one.
FILLS = """
import os, sys
if os.path.exists("roomy"):
    sys.exit(0)
root = os.environ["GPUYARD_PERSIST"]
if "gone" in sys.argv:
    os.unlink(root + "/.gpuyard/tmp/reserve")
journal = os.open(root + "/.gpuyard/journal.jsonl", os.O_WRONLY | os.O_APPEND)
os.write(journal, b"x" * (-os.fstat(journal).st_size % 4096 - 1) + b"\\n")
big = os.open(root + "/models/big", os.O_WRONLY | os.O_CREAT)
for size in (65536, 4096, 1):
    try:
        while True:
            os.write(big, bytes(size))
    except OSError:
        pass
print("the last words", flush=True)
sys.exit(3)
"""

ON_A_SMALL_DISK = """
mount -t tmpfs -o size=4m tmpfs "$ROOT" || exit 99
yard() { "$PYTHON" -m gpuyard.box.stages "$@" --settings "$SETTINGS"; }
yard run > first; echo "exit code $?" >> first
yard status --json > status
yard stop > stopped
cat "$ROOT/.gpuyard/journal.jsonl" > journal
rm "$ROOT/models/big"; touch "$REPOSITORY/roomy"
yard run > second; echo "exit code $?" >> second
stat -c %s "$ROOT/.gpuyard/tmp/reserve" > reserve
"""


@pytest.mark.parametrize("reserve", ["kept", "gone"])
def test_a_full_disk_ends_the_run_with_a_record(box: Box, reserve: str) -> None:
    (box.repository / "fills.py").write_text(FILLS)
    fill = {"name": "fill", "command": f"{sys.executable} fills.py {reserve}"}
    box.describe([mark("prepare"), fill], bucket=(box.base / "bucket").as_uri())
    box.root.mkdir()
    places = {"ROOT": box.root, "REPOSITORY": box.repository, "SETTINGS": box.settings, "PYTHON": sys.executable}
    # As root, that is enough; else, in a user namespace of its own.
    apart = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    done = subprocess.run(
        [*apart, "sh", "-c", ON_A_SMALL_DISK],
        env={**box.env, **{name: str(place) for name, place in places.items()}},
        cwd=box.base,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, f"this test needs the right to mount a file system: {done.stderr}"
    assert "Traceback" not in done.stderr
    screen, status = (box.base / "first").read_text(), json.loads((box.base / "status").read_text())
    reason = f"no space left on the disk of {box.root}"
    assert reason in screen and screen.endswith("exit code 1\n")
    events = parse((box.base / "journal").read_bytes())
    published = [{entry.path for entry in found.files} for found in manifests(LocalStore(box.base / "bucket"), RUN)]
    assert any("models/big" in paths for paths in published), "what fills the disk is published all the same"
    if reserve == "kept":
        assert [event for event in events if event["event"] == "run-end"][-1]["outcome"] == "failed"
        reason += ", and fill ended with exit code 3."
        assert status["failure"] == {
            "stage": "fill",
            "iteration": 0,
            "exit_code": 3,
            "reason": reason,
            "last_line": "the last words",
        }
        assert status["state"] == "failed" and status["space_free_gb"] < 0.001
        assert json.loads((box.base / "stopped").read_text())["saved"]["state"]
    else:
        # Nothing can be written any more, but nothing is hidden either.
        assert status["state"] == "interrupted" and "Warning: the journal cannot be written" in screen
    assert (box.base / "second").read_text().endswith("exit code 0\n")
    assert int((box.base / "reserve").read_text()) == RESERVE_BYTES


def test_a_log_that_cannot_be_written_does_not_end_the_stage(box: Box) -> None:
    box.describe([{"name": "a", "command": "echo x >> marks"}])
    (box.root / ".gpuyard/logs/0-a.log").mkdir(parents=True)
    assert box.run() == 0
    assert box.marks == ["x"] and "Warning: the log" in box.screen and "cannot be written" in box.screen


@pytest.mark.usefixtures("signals")
def test_a_runner_that_cannot_go_on_says_why_and_ends_its_stage(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.describe([{"name": "a", "command": "echo $$ > pid; touch ready; sleep 600", "grace_s": 20}])
    wrote = Journal.append
    said: list[dict[str, Any]] = []

    def append(self: Journal, event: str, **fields: Any) -> dict[str, Any]:
        said.append(wrote(self, event, **fields))
        return said[-1]

    def broken(*_: object) -> None:
        if (box.repository / "ready").exists():
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Journal, "append", append)
    monkeypatch.setattr(runner.Runner, "_copy", broken)
    assert runner.Runner(box.spec).run() == "failed"
    assert said[-1]["event"] == "run-end"
    assert said[-1]["reason"] == "the runner could not go on: [Errno 5] Input/output error."
    assert not runner.processes.members(said[1]["token"])
    assert box.status()["failure"]["reason"] == said[-1]["reason"]


def test_the_kernel_knows_who_holds_a_lock_that_could_not_be_signed(box: Box) -> None:
    box.describe([])
    with (box.settings / runner.LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert runner.lock_owner(box.spec) == os.getpid()
    assert runner.lock_owner(box.spec) is None
