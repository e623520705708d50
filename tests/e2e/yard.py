"""A controller as a user has it: plays and programs in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuyard import config, ssh
from gpuyard.box.checkpoints import Manifest, Store, latest_manifest
from gpuyard.providers.base import Instance
from gpuyard.renting import runs, survey
from gpuyard.sandbox.client import Control, load

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
LONG_S = 1500
SHOWN_EVERY_S = 20
# A cloud does not say when a machine began to run, so the ledger knows it to the seconds between two looks at it.
BETWEEN_LOOKS_S = 5
# A value that must turn up nowhere but in the 0600 file on the machine.
CANARY = "canary-token-7d1f0b9c2e854a6f93d4518ab06"


@dataclass(frozen=True)
class Said:
    """How a program ended, and everything that it printed."""

    code: int
    text: str

    def changed(self) -> dict[str, int]:
        """Return the recap's ``changed`` count by host."""
        return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.text, re.M)}


@dataclass
class Yard:
    """A controller: its state folder, its environment, its sandbox, and what everything printed so far."""

    home: Path
    environment: dict[str, str]
    printed: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """The sandbox's state folder."""
        return self.home / "sandbox"

    def run(self, *words: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Said:
        """Run one of the environment's programs, and show now and then where a long one is."""
        began = shown = time.monotonic()
        process = subprocess.Popen(
            [str(PROGRAMS / words[0]), *words[1:]],
            cwd=cwd,
            env=self.environment | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None  # asked for above
        watchdog = threading.Timer(LONG_S, process.kill)
        watchdog.start()
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if line.strip() and time.monotonic() - shown >= SHOWN_EVERY_S:
                    shown = time.monotonic()
                    print(f"    {words[0]} after {shown - began:.0f} s: {line.strip()[:90]}", flush=True)
            code = process.wait()
        finally:
            watchdog.cancel()
        self.printed.append("".join(lines))
        return Said(code, self.printed[-1])

    def play(self, verb: str, *flags: str, ok: bool = True, env: dict[str, str] | None = None, **extra: str) -> Said:
        """Run a play from the root of the checkout as a user would; ``ok`` asserts how it ends."""
        given = [word for name, value in extra.items() for word in ("-e", f"{name}={value}")]
        said = self.run("ansible-playbook", f"{verb}.yml", "-e", "sandbox=true", *given, *flags, env=env)
        assert (said.code == 0) is ok, said.text
        assert "Traceback" not in said.text and "DEPRECATION" not in said.text, said.text
        return said

    @property
    def control(self) -> Control:
        """The sandbox's control API."""
        return Control(load(self.state))

    @property
    def store(self) -> Store:
        """The sandbox's bucket."""
        opened = runs.open_bucket(config.s3_settings(sandbox=True, sandbox_state=self.state))
        assert opened is not None
        return opened

    def manifest(self, run: str) -> Manifest | None:
        """The run's newest checkpoint."""
        return latest_manifest(self.store, run)

    def published(self, run: str, pattern: str) -> dict[str, bytes]:
        """Path and content of the newest checkpoint's files whose path matches."""
        manifest, store = self.manifest(run), self.store
        files = manifest.files if manifest else ()
        return {entry.path: store.get(entry.key) for entry in files if re.fullmatch(pattern, entry.path)}

    def instances(self, run: str) -> list[Instance]:
        """The run's machines, whatever their state."""
        return survey.find(config.connect(sandbox=True, sandbox_state=self.state), run)

    def machine(self, run: str) -> Instance:
        """The run's one running machine."""
        (one,) = [instance for instance in self.instances(run) if instance.state == "running"]
        return one

    def on_machine(self, run: str, command: str) -> str:
        """Run a shell command on the run's machine over SSH."""
        words = ["ssh", *ssh.ssh_args(self.machine(run), config.ssh_key()), command]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode in (0, 1), done.stderr
        return done.stdout

    def wait(self, what: str, condition: Any, *, seconds: float = 600) -> Any:
        """Wait until ``condition()`` is true, and return it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if answer := condition():
                return answer
            time.sleep(0.2)
        raise AssertionError(f"{what} did not happen within {seconds} s")
