"""The script beside this file, on a good day and on two bad ones."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("rent.py")


def run(sandbox, gigabytes):
    """Run the script as a user does, with the emulated cloud in its environment."""
    words = [sys.executable, str(SCRIPT), str(gigabytes)]
    return subprocess.run(words, env=sandbox.environment, capture_output=True, text=True, check=False)


def test_it_rents_and_gives_back(gpuyard_sandbox):
    done = run(gpuyard_sandbox, 16)
    assert done.returncode == 0, done.stderr
    assert "runs." in done.stdout
    assert gpuyard_sandbox.rented() == []
    assert gpuyard_sandbox.bill()["total_usd"] > 0


def test_it_takes_the_next_offer_when_one_is_gone(gpuyard_sandbox):
    gpuyard_sandbox.control.fault("no-capacity", "vast", 2)
    assert run(gpuyard_sandbox, 16).returncode == 0


def test_it_says_so_when_there_is_nothing(gpuyard_sandbox):
    done = run(gpuyard_sandbox, 1000)
    assert done.stderr == "No machine has a GPU with 1000 GB.\n"
    assert gpuyard_sandbox.bill()["lines"] == []
