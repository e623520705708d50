# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A sandbox of one's own, and a way to run tasks of this collection against it as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuyard import config
from gpuyard.renting import destroy, survey

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
BOOT_S = 2.0

WORKLOAD = {
    "name": "tiny",
    "repository": {"path": "code"},
    "needs": {"gpu_count": 1, "gpu_ram_gb": 8, "disk_gb": 20},
    "stages": [{"name": "one", "command": "true", "hours": {"expected": 0.1, "worst": 0.2}}],
}


@dataclass
class Yard:
    """A running sandbox, the environment that leads to it, and everything that Ansible printed so far."""

    folder: Path
    environment: dict[str, str]
    secrets: list[str] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)

    @property
    def workload(self) -> str:
        """The path of a small workload."""
        return str(self.folder / "workloads" / "tiny.yml")

    def gpuyard(self, *words: str) -> str:
        """Run the command line tool and return what it printed."""
        done = subprocess.run(
            [BIN / "gpuyard", *words], env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def fault(self, kind: str, provider: str, count: int = 1) -> None:
        """Let the next calls at ``provider`` fail."""
        self.gpuyard("sandbox", "fault", kind, "--provider", provider, "--count", str(count))

    def rented(self) -> list[dict[str, Any]]:
        """Return what the sandbox itself says is rented."""
        found: list[dict[str, Any]] = json.loads(self.gpuyard("sandbox", "status", "--json"))["instances"]
        return found

    def billable(self) -> list[Any]:
        """Return what the sandbox says still costs something."""
        found: list[Any] = json.loads(self.gpuyard("sandbox", "bill", "--json"))["billable"]
        return found

    def ansible(self, *words: str, status: int = 0, **environment: str) -> str:
        """Run a command of Ansible's from the repository's root and return all that it printed."""
        done = subprocess.run(
            [BIN / words[0], *words[1:]],
            cwd=ROOT,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        self.printed.append(done.stdout)
        assert done.returncode == status, done.stdout
        return done.stdout

    def play(self, tasks: list[dict[str, Any]], *words: str, **environment: str) -> list[dict[str, Any]]:
        """Run tasks on localhost, very verbosely, and return the result of each; a failed one does not end the play."""
        answers = self.folder / "answers.json"
        registered = [
            {"ignore_errors": True, "name": f"Step {number}", "register": f"step_{number}", **task}
            for number, task in enumerate(tasks)
        ]
        values = [f"{{{{ step_{number} }}}}" for number in range(len(tasks))]
        keep = {
            "name": "Keep the answers",
            "ansible.builtin.copy": {
                "content": "{{ {'all': values} | to_json }}",
                "dest": str(answers),
                "mode": "0600",
            },
            "vars": {"values": values},
            "no_log": True,
            "check_mode": False,
        }
        defaults = {"group/gpuyard.cloud.all": {"sandbox": True}}
        play = {"hosts": "localhost", "gather_facts": False, "module_defaults": defaults, "tasks": [*registered, keep]}
        path = self.folder / "play.yml"
        path.write_text(yaml.safe_dump([play]))
        answers.unlink(missing_ok=True)
        self.ansible("ansible-playbook", str(path), "-vvv", *words, **environment)
        found: list[dict[str, Any]] = json.loads(answers.read_text())["all"]
        return found

    def task(self, module: str, **options: Any) -> dict[str, Any]:
        """Run one module and return its result."""
        return self.play([{f"gpuyard.cloud.{module}": options}])[0]


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Start a sandbox for these tests, and end it with everything that it runs."""
    folder = tmp_path_factory.mktemp("yard")
    (folder / "code").mkdir()
    (folder / "code" / "train.py").write_text("print()")
    (folder / "workloads").mkdir()
    (folder / "workloads" / "tiny.yml").write_text(yaml.safe_dump(WORKLOAD))
    dropped = ("GPUYARD_", "ANSIBLE_", "VAST_", "VULTR_", "AWS_", "CLOUD_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment |= {
        "GPUYARD_HOME": str(folder / "home"),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_DEPRECATION_WARNINGS": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    yard = Yard(folder, environment)
    try:
        yard.gpuyard("sandbox", "up", "--boot-seconds", str(BOOT_S))
        keys = json.loads(yard.gpuyard("sandbox", "status", "--json"))["keys"]
        yard.secrets += [*(keys[name] for name in ("vast", "vultr", "lambda", "runpod")), keys["s3"]["secret_key"]]
        yield yard
    finally:
        yard.gpuyard("sandbox", "down")


@pytest.fixture
def yard(running: Yard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    """Return the sandbox with nothing rented; what a test printed may hold no key and no deprecation."""
    monkeypatch.setenv("GPUYARD_HOME", running.environment["GPUYARD_HOME"])
    running.printed.clear()
    yield running
    printed = "\n".join(running.printed)
    running.gpuyard("sandbox", "fault", "clear")
    clouds = config.connect(sandbox=True, sandbox_state=running.folder / "home" / "sandbox", env={})
    destroy.destroy_all(clouds, survey.find(clouds))
    assert running.billable() == []
    assert [secret for secret in running.secrets if secret in printed] == []
    assert "DEPRECATION WARNING" not in printed
    assert "Traceback" not in printed
