# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`make test-live`, for which a real account is meant, against the emulated ones (V16)."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest

from .conftest import ROOT, Yard


def live(yard: Yard, **given: str) -> subprocess.CompletedProcess[str]:
    """Run `make test-live` as somebody types it."""
    environment = yard.environment | {"GPUYARD_SANDBOX": "1"} | given
    done = subprocess.run(
        ["make", "--silent", "test-live"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    yard.printed.append(done.stdout + done.stderr)
    return done


def test_without_being_asked_for_it_does_nothing(yard: Yard) -> None:
    done = live(yard, PROVIDER="vast", SPEND="1")
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert done.stdout.startswith("Nothing was done: ") and "MANUAL=1 make test-live PROVIDER=" in done.stdout
    unnamed = live(yard, MANUAL="1")
    assert unnamed.returncode and "Name the one cloud that is to be checked: vast, vultr, lambda, runpod" in (
        unnamed.stderr
    )


@pytest.mark.parametrize("provider", ["vast", "vultr", "lambda", "runpod"])
def test_it_reads_and_changes_nothing(yard: Yard, provider: str) -> None:
    done = live(yard, MANUAL="1", PROVIDER=provider)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert "changes nothing there" in first and "It is free." in first
    assert "key valid" in done.stdout and "On offer: " in done.stdout
    assert last == "Nothing was rented. With SPEND=1 one machine is, for some minutes."
    assert yard.rented() == []


@pytest.mark.parametrize("provider", ["vast", "lambda"])
def test_it_rents_runs_a_command_destroys_and_audits(yard: Yard, provider: str) -> None:
    yard.fault("lost-answer", provider)
    done = live(yard, MANUAL="1", PROVIDER=provider, SPEND="1")
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    most = re.search(r"It costs at most \$(\d+\.\d+)", said)
    assert most and float(most[1]) < 3 and said.index(most[0]) < said.index("Renting ")
    assert "The machine says: Linux " in said
    assert re.search(r"nothing of run live-\w+ is left, nothing of it bills", said.splitlines()[-1])
    assert yard.rented() == []


def test_nothing_dearer_than_said_is_rented(yard: Yard) -> None:
    done = live(yard, MANUAL="1", PROVIDER="vast", SPEND="1", MAX_PRICE_PER_HOUR="0.001")
    assert done.returncode and "max_price_per_hour <= 0.001, has 0.07" in done.stderr
    assert "Renting" not in done.stdout


def test_cut_off_by_ctrl_c_it_still_ends_what_it_rented(yard: Yard) -> None:
    words = [ROOT / ".venv/bin/gpuyard", "live", "vast", "--spend"]
    environment = yard.environment | {"GPUYARD_SANDBOX": "1"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as check:
        assert check.stdout
        seen = ""
        for line in check.stdout:
            seen += line
            if line.startswith("Rented "):
                os.killpg(check.pid, signal.SIGINT)
                break
        seen += check.stdout.read()
        check.wait()
    assert check.returncode == 130, seen
    assert "is gone." in seen and yard.rented() == []
