"""A run that was at work goes on by itself when its machine is restarted, by systemd or by the cloud's start script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Sandbox, wait

from gpuyard import boxzip
from gpuyard.providers import vast

REPOSITORY = Path(__file__).parents[3]
# The search waits for ever, unless it is resumed. Its first lines tell whether it ever ran twice at a time.
WORKLOAD = {
    "name": "canyon",
    "persist": {"root": "/mnt/canyon", "directories": []},
    "checkpoints": {"every_s": 0},
    "stages": [
        {
            "name": "search",
            "command": "echo begun >> $GPUYARD_PERSIST/seen; sleep 3600",
            "resume_command": "echo resumed >> $GPUYARD_PERSIST/seen; sleep 3600",
            "resumable": True,
            "grace_s": 5,
        }
    ],
}


@dataclass
class Rented:
    """A box of the sandbox: how to run a command on it, how it is reached over SSH, and how its cloud restarts it."""

    run: Callable[[str], subprocess.CompletedProcess[str]]
    host: str
    port: int
    key: Path
    restart: Callable[[], None]

    def does(self, command: str) -> str:
        done = self.run(command)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def seen(self) -> list[str]:
        return self.run("cat /mnt/canyon/seen").stdout.split()

    def status(self) -> dict[str, Any]:
        done = self.run("/usr/bin/python3 -I -m gpuyard.box.stages status --json")
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            return {"state": done.stderr}

    def session(self, folder: Path, **options: Any) -> dict[str, Any]:
        """Call the module as the role does, and return its result."""
        options = {"run": "canyon-0", "repository": "/opt/gpuyard/src", "python": "/usr/bin/python3", **options}
        inventory = folder / "inventory.json"
        connection = {
            "ansible_host": self.host,
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        inventory.write_text(json.dumps({"all": {"hosts": {"box": connection}}}))
        program = Path(sys.executable).with_name("ansible")
        words = [
            str(program),
            "box",
            "-i",
            str(inventory),
            "-m",
            "gpuyard.cloud.stage_session",
            "-a",
            json.dumps(options),
        ]
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
        }
        done = subprocess.run(
            [*words, "-a", json.dumps(options)],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout[done.stdout.index("{") :]))


def rent_machine(sandbox: Sandbox) -> Rented:
    """Rent a box that systemd runs."""
    instance = sandbox.rent_vultr()
    row = sandbox.wait_vultr(instance)

    def restart() -> None:
        assert sandbox.vultr("POST", f"/instances/{instance}/reboot").ok
        sandbox.wait_vultr(instance)

    host = row["main_ip"]
    return Rented(lambda command: sandbox.ssh(host, 22, command), host, 22, sandbox.private_key, restart)


def rent_container(sandbox: Sandbox) -> Rented:
    """Rent a container without systemd, with the start script that our client gives it, and have it outbid."""
    contract = sandbox.rent_vast(onstart=f"touch ~/.no_auto_tmux\n{vast.START_AGAIN}\n")
    row = sandbox.wait_vast(contract)

    def restart() -> None:
        for state in ("stopped", "running"):
            assert sandbox.vast("PUT", f"/api/v0/instances/{contract}/", {"state": state}).ok
            sandbox.wait_vast(contract, {"stopped": "exited"}.get(state, state))

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return sandbox.ssh_vast(sandbox.vast_row(contract), command)

    port = int(row["ports"]["22/tcp"][0]["HostPort"])
    return Rented(run, row["public_ipaddr"].strip(), port, sandbox.private_key, restart)


@pytest.mark.parametrize(
    ("rent", "caller"),
    [(rent_machine, "systemctl is-enabled gpuyard-run.service"), (rent_container, "test ! -d /run/systemd/system")],
    ids=["systemd", "container"],
)
def test_a_run_goes_on_once_when_its_machine_is_restarted(
    sandbox: Sandbox, tmp_path: Path, rent: Callable[[Sandbox], Rented], caller: str
) -> None:
    box = rent(sandbox)
    box.does("command -v tmux || { apt-get update -q && apt-get install -qy tmux; }; mkdir -p /opt/gpuyard/src")
    boxzip.build(tmp_path / "box.zip")
    copy = ["scp", "-q", "-i", str(box.key), "-P", str(box.port), "-o", "StrictHostKeyChecking=no"]
    copy += ["-o", "UserKnownHostsFile=/dev/null", str(tmp_path / "box.zip"), f"root@{box.host}:/opt/gpuyard/box.zip"]
    subprocess.run(copy, check=True)
    box.does("echo /opt/gpuyard/box.zip > /usr/lib/python3/dist-packages/gpuyard-box.pth")

    begun = box.session(tmp_path, workload=WORKLOAD, at_boot=True)
    assert (begun["changed"], begun["session"]["state"]) == (True, "running")
    assert not box.session(tmp_path, workload=WORKLOAD, at_boot=True)["changed"]
    box.does(caller)
    wait(lambda: {"seen": box.seen()}, lambda found: found["seen"] == ["begun"])

    box.restart()
    wait(box.status, lambda status: status["state"] == "running" and len(status["stages"]) == 1)
    wait(lambda: {"seen": box.seen()}, lambda found: found["seen"] == ["begun", "resumed"])
    assert box.does("pgrep -fc '^/usr/bin/python3 -I -m gpuyard.box.stages run'").strip() == "1"
    # A second start, whoever it is, finds the first one's session.
    assert "does not start again: it is running" in box.does("/opt/gpuyard/start-again")
    assert not box.session(tmp_path, workload=WORKLOAD, at_boot=True)["changed"]

    # What somebody has stopped stays so.
    assert box.session(tmp_path, state="stopped")["session"]["state"] == "interrupted"
    box.restart()
    assert "was not at work when this machine went down" in box.does("/opt/gpuyard/start-again")
    assert box.status()["state"] == "interrupted" and box.seen() == ["begun", "resumed"]
