"""The right to rent for a run is one controller's at a time (X4)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gpuyard import pace
from gpuyard.box.checkpoints import LocalStore
from gpuyard.errors import BucketError
from gpuyard.renting import claim
from gpuyard.renting.claim import Claims
from gpuyard.renting.notebook import Notebook

RUN = "miniprover-0"
QUICK = pace.Clock(first_delay=0.01, longest_delay=0.05)

# Takes the claim, counts itself in, works a moment, and counts itself out; says so when it was not alone.
CONTROLLER = """
import os, sys, time
from pathlib import Path
from gpuyard import pace
from gpuyard.box.checkpoints import LocalStore
from gpuyard.renting.claim import Claims
from gpuyard.renting.notebook import Notebook
folder = Path(sys.argv[1])
claims = Claims(Notebook(lambda: LocalStore(folder)), clock=pace.Clock(first_delay=0.01, longest_delay=0.05))
for _ in range(3):
    with claims.hold("miniprover-0"):
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
        time.sleep(0.02)
        (folder / "inside").unlink()
"""


def claims(folder: Path, told: list[str] | None = None) -> Claims:
    return Claims(Notebook(lambda: LocalStore(folder)), (told if told is not None else []).append, QUICK)


def held(folder: Path) -> list[Path]:
    return sorted((folder / RUN / claim.FOLDER).glob("*"))


def test_x4_of_several_controllers_only_one_rents_at_a_time(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", CONTROLLER, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert held(tmp_path) == []


def test_the_second_one_waits_and_says_for_whom(tmp_path: Path) -> None:
    told: list[str] = []
    answers: list[bool] = []

    def second() -> None:
        with claims(tmp_path, told).hold(RUN) as waited:
            answers.append(waited)

    with claims(tmp_path).hold(RUN) as waited:
        assert waited is False
        other = threading.Thread(target=second)
        other.start()
        until = time.monotonic() + 30
        while not told and time.monotonic() < until:
            time.sleep(0.01)
        # Another run is nobody else's business.
        with claims(tmp_path).hold("other-0") as free:
            assert free is False
        assert answers == []
    other.join(30)
    assert answers == [True]
    assert len(told) == 1 and f"rents for run {RUN} at this moment" in told[0] and os.uname().nodename in told[0]


def test_a_killed_controllers_claim_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = CONTROLLER.replace("time.sleep(0.02)", "print('in', flush=True); time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (left,) = held(tmp_path)
    monkeypatch.setattr(claim, "LIVES_S", 1.0)
    began = time.monotonic()
    with claims(tmp_path).hold(RUN) as waited:
        assert waited is True and time.monotonic() - began > 0.5
        assert left not in held(tmp_path)


def test_a_claim_is_written_again_while_its_controller_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "RENEWED_EVERY_S", 0.05)
    with claims(tmp_path).hold(RUN):
        (own,) = held(tmp_path)
        first = own.stat().st_mtime_ns
        until = time.monotonic() + 30
        while own.stat().st_mtime_ns == first:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_without_a_bucket_that_answers_nobody_is_kept_out() -> None:
    def fail() -> LocalStore:
        raise BucketError("The bucket does not answer.")

    told: list[str] = []
    with Claims(Notebook(fail), told.append, QUICK).hold(RUN) as waited:
        assert waited is False
    assert told == [
        f"Another controller that rents for run {RUN} at this moment would not be seen: The bucket does not answer."
    ]
    with Claims().hold(RUN) as waited:
        assert waited is False
