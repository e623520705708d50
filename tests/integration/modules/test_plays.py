# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plays where they are cut off, cannot know what is meant, or cannot reach the machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from gpuyard import config
from gpuyard.box import checkpoints
from gpuyard.renting import runs

from .conftest import BIN, ROOT, Yard

SANDBOX = ("-e", "sandbox=true")


def press(group: int) -> None:
    """Press Ctrl-C for a process group, which may just have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGINT)


def cut_off(yard: Yard, verb: str, marker: str, *words: str) -> str:
    """Start a play, press Ctrl-C as soon as a line begins with ``marker``, and return what it printed by then."""
    with subprocess.Popen(
        [BIN / "ansible-playbook", f"{verb}.yml", *SANDBOX, *words],
        cwd=ROOT,
        env=yard.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal would make it
    ) as play:
        assert play.stdout
        seen = ""
        for line in play.stdout:
            seen += line
            if line.strip().startswith(marker):
                press(play.pid)
                break
        # Python drops what a signal raises in the moment of a fork, and Ansible forks for every task: press again then.
        again = threading.Timer(15, press, (play.pid,))
        again.start()
        rest = play.stdout.read()
        play.wait()
        again.cancel()
    # Python may have told of such an exception; there must be no secret in that either.
    yard.printed.append(seen)
    assert [secret for secret in yard.secrets if secret in rest] == []
    assert marker in seen, seen + rest
    assert play.returncode != 0
    return seen


@pytest.mark.parametrize("marker", ["Renting ", "Rented "])
def test_a_launch_cut_off_while_it_rents_is_taken_up_by_the_next(yard: Yard, marker: str) -> None:
    words = ("-e", f"workload={yard.workload}", "-e", "provider=vast", "-e", "bucket=")
    cut_off(yard, "launch", marker, *words)
    before = [one["id"] for one in yard.rented()]
    assert len(before) <= 1
    # The next one is cut off as soon as it has its machine: bringing that into shape is not what this is about.
    said = cut_off(yard, "launch", "TASK [Compare the machine", *words)
    (only,) = yard.rented()
    if before:
        assert only["id"] == before[0]
        assert f"has vast {only['id']}" in " ".join(said.split())
        assert "Renting" not in said


def test_several_runs_that_can_be_resumed_are_listed_and_nothing_is_done(yard: Yard, tmp_path: Path) -> None:
    bucket = "s3://gpuyard/several"
    state = yard.folder / "home" / "sandbox"
    store = runs.open_bucket(config.s3_settings(bucket, sandbox=True, sandbox_state=state))
    assert store
    (tmp_path / "weights").write_text("1")
    for run in ("tiny-7", "tiny-8"):
        checkpoints.write_record(store, run, "tiny")
        checkpoints.publish(store, run, tmp_path, progress=lambda _journal: {"iteration": 1, "stage": "one"})
    words = ("-e", f"workload={yard.workload}", "-e", f"bucket={bucket}")
    said = yard.ansible("ansible-playbook", "resume_search.yml", *SANDBOX, *words, status=2)
    sentence = " ".join(said.split())
    assert "2 runs can be resumed: tiny-7 (interrupted, iteration 1, one), tiny-8 (interrupted, iteration 1, one)" in (
        sentence
    )
    assert "-e run=" in sentence
    assert "Renting" not in said
    assert yard.rented() == []
    # One that is named is the one that is meant; what cannot be read of it is not begun over.
    store.put("tiny-8/checkpoints/000002/manifest.json", b"")
    words += ("-e", "run=tiny-8")
    unreadable = yard.ansible("ansible-playbook", "resume_search.yml", *SANDBOX, *words, status=2)
    sentence = " ".join(unreadable.split())
    assert "tiny-8/checkpoints/000002/manifest.json is empty" in sentence and "-e restore=1 (there is 1)" in sentence
    assert "Renting" not in unreadable
    named = yard.ansible(
        "ansible-playbook", "resume_search.yml", *SANDBOX, *words, "-e", "restore=1", "--check", "--diff"
    )
    assert "Run tiny-8 of workload tiny goes on from iteration 1, one" in " ".join(named.split())
    assert yard.rented() == []


def test_the_environment_names_the_provider_of_a_play(yard: Yard) -> None:
    words = (*SANDBOX, "-e", f"workload={yard.workload}", "-e", "bucket=", "--check")
    for provider, call in (("vast", "PUT http"), ("vultr", "POST http")):
        said = yard.ansible("ansible-playbook", "launch.yml", *words, GPUYARD_PROVIDER=provider)
        (rent,) = [line for line in said.splitlines() if "would rent" in line]
        assert provider in rent
        assert call in said


def test_what_cannot_be_saved_is_kept_and_told_until_it_may_be_lost(yard: Yard) -> None:
    yard.task("instance", run="deaf-0", workload="tiny", provider="vast")
    known = yard.folder / "home" / "known_hosts"
    pins = known.read_text()
    # As if somebody else answered at the machine's address: it was pinned with another key than it has.
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(yard.folder / "other")], check=True)
    other = (yard.folder / "other.pub").read_text().split()[:2]
    known.write_text("".join(f"{line.split()[0]} {' '.join(other)}\n" for line in pins.splitlines()))
    teardown = ("ansible-playbook", "teardown.yml", *SANDBOX, "-e", "run=deaf-0")
    assert "wait_s='abc' must be a number" in yard.ansible(*teardown, "-e", "wait_s=abc", status=2)
    sentence = " ".join(yard.ansible(*teardown, status=2).split())
    assert "Host key verification failed" in sentence and "is kept, and bills" in sentence
    assert "teardown.yml -e run=deaf-0" in sentence and "-e lose=true" in sentence
    (kept,) = yard.rented()
    said = yard.ansible(*teardown, "-e", "lose=true")
    assert "Destroyed all the same, as lose=true asks for" in " ".join(said.split())
    assert yard.rented() == []
    # One on which nothing has begun says so, and goes as it is.
    known.write_text(pins)
    yard.task("instance", run="idle-0", workload="tiny", provider="vast")
    status = yard.ansible("ansible-playbook", "status.yml", *SANDBOX)
    assert "not started" in status and "No stage has begun on idle-0" in status and kept["id"] not in status
    log = yard.ansible("ansible-playbook", "logs.yml", *SANDBOX, "-e", "run=idle-0", status=2)
    assert "No stage has begun on the machine of run idle-0" in " ".join(log.split())
    said = yard.ansible("ansible-playbook", "teardown.yml", *SANDBOX, "-e", "run=idle-0")
    assert "No stage has begun on vast" in said
    assert json.loads(yard.gpuyard("sandbox", "bill", "--json"))["billable"] == []
