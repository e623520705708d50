"""One run with its machines and its bucket, and the faults that strike it: all of it as processes of this machine.

The stage runner, the publisher, the restore and the journal are gpuyard's own, started as on a box; the training
program is a stand-in. Every process of a world has the world's folder for tmux in its environment: by that it is found,
and nothing else is ever killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gpuyard
from gpuyard.box.checkpoints import Retention, open_store
from gpuyard.box.stages.spec import BoxSpec, load_spec

from . import checks, s3, trainer
from .checks import WrongError, demand

RUN = "chaos-0"
STEPS, STEP_S, EVERY_S = 28, 0.004, 0.1
KEEP_LAST = 3
LONGEST_S = 180.0
HERE = Path(__file__).parent
SOURCE = str(Path(gpuyard.__file__).parents[1])
_ROOT_BYTES, _BUCKET_BYTES = "8m", "48m"
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Have this process wait for what a killed runner leaves, so that no dead process stays in the table."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def isolate_mounts() -> bool:
    """Give this process mounts of its own, which end with it; return whether that worked: it takes root."""
    try:
        os.unshare(os.CLONE_NEWNS)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@dataclass
class Machine:
    """The folders of one machine: its disk, its settings, its copy of the repository."""

    folder: Path

    @property
    def root(self) -> Path:
        """The persistent root."""
        return self.folder / "persistent"

    @property
    def settings(self) -> Path:
        """What the machine was told to run."""
        return self.folder / "run"


@dataclass
class World:
    """One run. ``s3_endpoint`` is that of a real server, "" for a folder as the bucket; ``mounts``: small disks."""

    number: int
    seed: str
    folder: Path
    s3_endpoint: str = ""
    mounts: bool = False
    iterations: int = 2
    machines: int = 0
    machine: Machine = field(init=False)
    life: subprocess.Popen[bytes] | None = None
    monitored: bool = False
    clock_ahead_s: int = 0
    fault: int = 0
    proxy: s3.Proxy | None = None

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed}/{self.number}")
        self.folder.mkdir(parents=True)
        self.sockets = self.folder / "t"
        self.sockets.mkdir()
        self.trace = self.folder / "trace"
        if self.s3_endpoint:
            self.proxy = s3.Proxy(self.s3_endpoint)
            self.url, self.endpoint = f"s3://{s3.BUCKET}/world-{self.number}-{self.seed}", self.proxy.start()
            direct = open_store(self.url, env=self._keys() | {"AWS_ENDPOINT_URL": self.s3_endpoint})
        else:
            self.store_folder = self.folder / "bucket"
            self.store_folder.mkdir()
            if self.mounts:
                _mount(self.store_folder, _BUCKET_BYTES)
            self.url, self.endpoint = (self.store_folder / "b").as_uri(), ""
            direct = open_store(self.url)
        self.bucket = checks.Bucket(direct)
        self.new_machine()

    # --- machines ---

    def new_machine(self) -> None:
        """Have an empty machine in place of the one before, whose disk is gone."""
        if self.machines:
            if self.mounts:
                subprocess.run(["umount", "-l", str(self.machine.root)], check=True, capture_output=True)
            shutil.rmtree(self.machine.folder)
        self.machines += 1
        self.clock_ahead_s = 0
        self.machine = Machine(self.folder / f"m{self.machines}")
        for folder in (self.machine.root, self.machine.settings, self.machine.folder / "src"):
            folder.mkdir(parents=True)
        if self.mounts:
            _mount(self.machine.root, _ROOT_BYTES)
        self.describe()

    def describe(self) -> None:
        """Write the machine's settings."""
        train = f"{sys.executable} -I -S {HERE / 'trainer.py'}"
        workload = {
            "name": "chaos",
            "environment": {
                "set": {"CHAOS_STEPS": STEPS, "CHAOS_STEP_S": STEP_S, "CHAOS_TRACE": str(self.trace)},
            },
            "persist": {"root": str(self.machine.root), "directories": ["models", "results"]},
            "checkpoints": {"every_s": EVERY_S, "keep_last": KEEP_LAST, "keep_every": 0},
            "monitoring": {"every_s": 0.05 if self.monitored else 600},
            "iterations": self.iterations,
            "stages": [
                {"name": "prepare", "command": f"{train} prepare", "run": "once"},
                {
                    "name": "train",
                    "command": f"{train} train",
                    "resume_command": f"{train} train --resume",
                    "resumable": True,
                    "grace_s": 20,
                    "retries": 2,
                },
                {"name": "export", "command": f"{train} export"},
            ],
        }
        settings = {
            "run": RUN,
            "bucket": self.url,
            "bucket_endpoint": self.endpoint,
            "repository": str(self.machine.folder / "src"),
        }
        (self.machine.settings / "workload.json").write_text(json.dumps(workload))
        (self.machine.settings / "settings.json").write_text(json.dumps(settings))
        secrets = self.machine.settings / "secrets.env"
        secrets.write_text("".join(f"{name}='{value}'\n" for name, value in self._keys().items()))
        secrets.chmod(0o600)

    def _keys(self) -> dict[str, str]:
        if not self.s3_endpoint:
            return {}
        return {"AWS_ACCESS_KEY_ID": s3.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": s3.SECRET_KEY, "AWS_REGION": "us-east-1"}

    @property
    def spec(self) -> BoxSpec:
        """The machine's settings, as the box code reads them."""
        return load_spec(self.machine.settings)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every process of this world."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, "PYTHONPATH": SOURCE, "TMUX_TMPDIR": str(self.sockets)}

    # --- processes ---

    def start(self, *words: str, killed_at: tuple[int, Path] | None = None) -> subprocess.Popen[bytes]:
        """Start one of the box's programs: a module of ``gpuyard.box``, a command, and its arguments.

        With ``killed_at`` it kills itself before that change (by number) below that folder.
        """
        module, command, *rest = words
        number, below = killed_at or (0, Path())
        wrapped = [str(HERE / "box_program.py"), str(self.clock_ahead_s), str(number), str(below)]
        with (self.folder / "screen").open("ab") as screen:
            settings = ("--settings", str(self.machine.settings))
            return subprocess.Popen(
                [sys.executable, *wrapped, f"gpuyard.box.{module}", command, *settings, *rest],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if command == "stop" else screen,
                stderr=screen,
                start_new_session=True,
            )

    def running(self) -> subprocess.Popen[bytes]:
        """Return the runner that lives; start one where none does, with more to do where all is done."""
        if self.life is None or self.life.poll() is not None:
            self.extend()
            self.life = self.start("stages", "run")
        return self.life

    def wait_for_work(self) -> None:
        """Wait until the program does something, so that what comes then comes into the middle of its work."""
        size = _size(self.trace)
        life = self.running()
        self.wait("the program's work", lambda: _size(self.trace) > size or life.poll() is not None)

    def extend(self) -> None:
        """Give a run that has finished more iterations."""
        if checks.progress_in(checks.disk(self.machine.root), self.spec).finished:
            self.iterations += 2
            self.describe()

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = LONGEST_S) -> None:
        """Wait until the condition holds; :class:`WrongError` when it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            demand(time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s")
            time.sleep(0.01)

    def wait_for_end(self, process: subprocess.Popen[bytes]) -> int:
        """Wait until a process has ended, and return its exit code."""
        self.wait(f"the end of {process.args!r}", lambda: process.poll() is not None)
        assert process.returncode is not None  # the wait says so
        return process.returncode

    def stop(self) -> None:
        """End the runner in good order, where one lives."""
        if self.life is not None and self.life.poll() is None:
            self.life.send_signal(signal.SIGTERM)
            self.wait_for_end(self.life)
        self.life = None

    @staticmethod
    def saved(stopping: subprocess.Popen[bytes]) -> bool:
        """Tell whether a ``stages stop`` that has ended says that everything is in the bucket."""
        assert stopping.stdout is not None  # asked for by start
        lines = stopping.stdout.read().splitlines()
        return bool(lines) and json.loads(lines[-1])["saved"]["state"] is True

    def members(self, word: str = "") -> list[int]:
        """Return the processes of this world whose command line holds ``word``."""
        mark, found = f"TMUX_TMPDIR={self.sockets}".encode(), []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    marked = mark in (folder / "environ").read_bytes().split(b"\0")
                    if marked and word.encode() in (folder / "cmdline").read_bytes():
                        found.append(int(folder.name))
        return found

    def kill(self, *processes: int) -> None:
        """Kill these processes of this world."""
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def kill_all(self) -> None:
        """Kill every process of this world, and return when there is none."""

        def none_left() -> bool:
            self.kill(*(there := self.members()))
            if self.life is not None:
                self.life.poll()
            self.reap()
            return not there

        self.wait("the end of all processes", none_left)
        if self.life is not None:
            self.life.wait()
        self.life = None

    def reap(self) -> None:
        """Fetch what has ended and was left to this process by a parent that was killed."""
        life = self.life.pid if self.life is not None and self.life.returncode is None else None
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != life:
                with contextlib.suppress(OSError, IndexError):
                    state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                    if state == "Z" and int(parent) == os.getpid():
                        os.waitpid(int(folder.name), os.WNOHANG)

    # --- what is known ---

    def note(self, what: str, iteration: int, *words: object) -> None:
        """Write a line of the trace."""
        line = [what, 0, f"{trainer.uptime():.2f}", iteration, *words]
        with self.trace.open("a") as file:
            file.write(" ".join(map(str, line)) + "\n")

    def note_fault(self) -> None:
        """Write down that the fault strikes now."""
        self.note("fault", 0, self.fault)

    def note_loss(self) -> dict[int, int]:
        """Write down what the bucket holds of each iteration, now that the disk is gone; return it."""
        manifest = self.bucket.newest(self.spec)
        read: checks.Read = checks.objects_of(self.bucket.store, manifest) if manifest else lambda path: b""
        found = checks.goes_on_at(read, self.spec, STEPS)
        for iteration, step in found.items():
            self.note("lost", iteration, step)
        return found

    def restore(self) -> None:
        """Bring the machine to the newest set, as a launch does, and check that it is that set."""
        self.wait_for_end(restoring := self.start("checkpoints", "restore"))
        demand(restoring.returncode == 0, f"a restore ended with exit code {restoring.returncode}")
        manifest = self.bucket.newest(self.spec)
        read = checks.disk(self.machine.root)
        for entry in manifest.files if manifest else ():
            right = checks.objects_of(self.bucket.store, manifest)(entry.path) if manifest else b""
            demand(read(entry.path) == right, f"{entry.path} is restored otherwise than it was published")

    def check(self) -> dict[int, checks.Recovery]:
        """Check everything that has to hold now; return how it went on after each fault."""
        spec = self.spec
        self.bucket.check(spec, STEPS, Retention(KEEP_LAST, 0))
        if self.life is None:
            checks.check_files(checks.disk(self.machine.root), spec, STEPS, "the disk", published=False)
        progress = checks.progress_in(checks.disk(self.machine.root), spec)
        return checks.check_trace(self.trace, progress.done)

    # --- the end ---

    def finish(self) -> None:
        """Let the run come to its end undisturbed, and compare what it leaves with a run that was never disturbed."""
        if self.clock_ahead_s and self.s3_endpoint:
            # A server takes no request that is a quarter of an hour off.
            self.stop()
            self.clock_ahead_s = 0
        for _ in range(6):
            if self.life is None:
                self.life = self.start("stages", "run")
            code = self.wait_for_end(self.life)
            self.life = None
            if code == 0 and checks.progress_in(checks.disk(self.machine.root), self.spec).finished:
                break
        else:
            raise WrongError(f"the run does not come to its end; the last exit code was {code}")
        stopping = self.start("stages", "stop")
        self.wait_for_end(stopping)
        demand(self.saved(stopping), "all is done, and the bucket does not hold it")
        self.kill_all()
        reference = self.folder / "reference"
        train_undisturbed(reference, self.iterations, STEPS)
        self._compare(reference, "the disk")
        self.new_machine()
        self.restore()
        self._compare(reference, "the bucket")
        self.check()

    def _compare(self, reference: Path, where: str) -> None:
        for file in sorted(path for path in reference.rglob("*") if path.is_file()):
            name = file.relative_to(reference)
            same = checks.disk(self.machine.root)(str(name)) == file.read_bytes()
            demand(same, f"{where}: {name} is not as in an undisturbed run")

    def close(self) -> None:
        """End everything of this world; its folder stays."""
        with contextlib.suppress(WrongError):
            self.kill_all()
        if self.proxy is not None:
            self.proxy.close()

    def clear(self) -> None:
        """Remove its folder."""
        if self.mounts:
            for place in (self.machine.root, *(() if self.s3_endpoint else (self.store_folder,))):
                subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)
        shutil.rmtree(self.folder)


def train_undisturbed(root: Path, iterations: int, steps: int) -> None:
    """Make in the folder ``root`` what a run leaves that nothing disturbs."""
    (root / "results").mkdir(parents=True)
    for iteration in range(iterations):
        for stage in (*(["prepare"] if not iteration else []), "train", "export"):
            environment = {
                "ITERATION": str(iteration),
                "GPUYARD_PERSIST": str(root),
                "CHAOS_STEPS": str(steps),
                "CHAOS_STEP_S": "0",
                "CHAOS_TRACE": os.devnull,
            }
            command = [sys.executable, "-I", "-S", str(HERE / "trainer.py"), stage]
            subprocess.run(command, env=environment, check=True)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _mount(folder: Path, size: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "gpuyard-chaos", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Leave no byte free on the small disk that ``folder`` lies on, for as long as the block takes."""
    folder.mkdir(parents=True, exist_ok=True)
    filler = folder / "filler"
    try:
        with filler.open("wb") as file:
            for size in (1 << 20, 1 << 16, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
                        file.flush()
        yield
    finally:
        filler.unlink(missing_ok=True)
