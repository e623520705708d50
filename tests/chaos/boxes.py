"""Chaos on the sandbox: one run on real boxes, with the plays as a user types them, struck again and again.

Machines go without notice, with a notice, or are outbid; the controller is killed while it rents; the clouds answer
with errors, or not at all. After each the run is resumed, every set in the bucket is checked, and in the end nothing
bills and the results are those of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from yard import PROGRAMS, ROOT, Yard

from gpuyard.box.checkpoints import Retention, read_record
from gpuyard.box.stages.spec import BoxSpec, load_spec
from gpuyard.sandbox.clouds import EMULATED

from . import checks, world
from .checks import WrongError, demand
from .running import Result, Struck

RUN = "chaos-0"
STEPS, STEP_S, KEEP_LAST = 300, 0.04, 3
CLOUDS = ("vast", "vultr", "lambda", "runpod")
_WAIT_S = 900.0


class Boxes:
    """The run, its controller and its sandbox."""

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder, self.random = folder, random.Random(f"{seed}/boxes")
        self.iterations = 3
        dropped = ("GPUYARD_", "ANSIBLE_", "VAST", "VULTR", "LAMBDA", "RUNPOD", "AWS_", "CLOUD_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        home = folder / "home"
        home.mkdir(parents=True)
        self.yard = Yard(home, kept | {"GPUYARD_HOME": str(home), "ANSIBLE_NOCOLOR": "1"})
        os.environ["GPUYARD_HOME"] = str(home)
        code = folder / "code"
        code.mkdir()
        shutil.copy(world.HERE / "trainer.py", code)
        self.workload = folder / "chaos.yml"
        self.workload.write_text(yaml.safe_dump(self._workload(code)))

    def _workload(self, code: Path) -> dict[str, object]:
        hours = {"expected": 0.1, "worst": 0.2}
        train = "python3 -I -S trainer.py train"
        settings = {"CHAOS_STEPS": str(STEPS), "CHAOS_STEP_S": str(STEP_S), "CHAOS_TRACE": "/tmp/trace"}
        return {
            "name": "chaos",
            "repository": {"path": str(code)},
            "needs": {"gpu_count": 1, "gpu_ram_gb": 8, "disk_gb": 20},
            "environment": {"set": settings},
            "persist": {"root": "/mnt/persistent", "directories": ["models", "results", "data"]},
            "checkpoints": {"every_s": 1, "keep_last": KEEP_LAST},
            "iterations": self.iterations,
            "stages": [
                {"name": "prepare", "command": "python3 -I -S trainer.py prepare", "run": "once", "hours": hours},
                {
                    "name": "train",
                    "command": train,
                    "resume_command": f"{train} --resume",
                    "resumable": True,
                    "hours": hours,
                },
                {"name": "export", "command": "python3 -I -S trainer.py export", "hours": hours},
            ],
        }

    @property
    def spec(self) -> BoxSpec:
        """What the box is told to run, as far as the checks need it."""
        settings = self.folder / "settings"
        settings.mkdir(exist_ok=True)
        document = yaml.safe_load(self.workload.read_text()) | {"checkpoints": {}, "iterations": self.iterations}
        (settings / "workload.json").write_text(json.dumps(document))
        (settings / "settings.json").write_text(json.dumps({"run": RUN}))
        return load_spec(settings)

    def newest(self) -> checks.Read:
        """Return a reader of the newest set."""
        manifest = self.bucket.newest(self.spec)
        return checks.objects_of(self.bucket.store, manifest) if manifest else lambda path: b""

    def check(self) -> None:
        """Check the bucket."""
        self.bucket.check(self.spec, STEPS, Retention(KEEP_LAST, 0))

    def play(self, verb: str, *words: str) -> None:
        """Run a play, again where a fault ended it in good order."""
        for _ in range(3):
            given = ("-e", f"run={RUN}", *words)
            said = self.yard.run("ansible-playbook", f"{verb}.yml", "-e", "sandbox=true", *given)
            if said.code == 0:
                return
        raise WrongError(f"{verb}.yml fails three times: {said.text[-1500:]}")

    def begin(self) -> None:
        """Start the sandbox and the run."""
        up = self.yard.run("gpuyard", "sandbox", "up", "--boot-seconds", "2")
        demand(up.code == 0, up.text)
        self.play("launch", "-e", f"workload={self.workload}")
        self.bucket = checks.Bucket(self.yard.store)

    def wait_for_work(self) -> None:
        """Wait until the box has published something new, with more to do where all is done, then a random moment."""
        if self.finished():
            self.resume()
        before = max(self.bucket.seen, default=0)

        def is_new() -> bool:
            found = self.bucket.newest(self.spec)
            return self.finished() or (found is not None and found.sequence > before)

        self.yard.wait("a new checkpoint", is_new, seconds=_WAIT_S)
        time.sleep(self.random.uniform(0, 4))

    def finished(self) -> bool:
        """Tell whether the run has come to its end."""
        return checks.progress_in(self.newest(), self.spec).finished

    def resume(self, *words: str) -> None:
        """Go on, with more iterations where all are done."""
        if self.finished():
            self.iterations += 3
        self.play("resume_search", "-e", f"iterations={self.iterations}", *words)

    def kill_a_resume(self) -> str:
        """Begin to resume, and kill the controller with all its workers at a random second."""
        words = ("-e", "sandbox=true", "-e", f"run={RUN}", "-e", f"iterations={self.iterations}")
        play = subprocess.Popen(
            [str(PROGRAMS / "ansible-playbook"), "resume_search.yml", *words],
            cwd=ROOT,
            env=self.yard.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        seconds = self.random.uniform(1, 25)
        deadline = time.monotonic() + seconds
        while play.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        # Each worker of Ansible has a session of its own.
        children = Path(f"/proc/{play.pid}/task/{play.pid}/children")
        workers = [int(word) for word in children.read_text().split()] if children.exists() else []
        for group in (play.pid, *workers):
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                continue
        play.wait()
        return f"after {seconds:.0f} s"

    def end(self) -> None:
        """Let the run come to its end, end the rental, and check that nothing bills and the results are right."""
        self.resume("-e", "shutdown=true")
        control = self.yard.control
        demand(self.yard.instances(RUN) == [], "a machine is left after the run's end")
        demand(control.status()["bill"]["billable"] == [], f"something bills: {control.status()['bill']['billable']}")
        self.check()
        read, record = self.newest(), read_record(self.bucket.store, RUN)
        demand(self.finished() and record is not None and record.outcome == "done", "the run has not come to its end")
        reference = self.folder / "reference"
        world.train_undisturbed(reference, self.iterations, STEPS)
        for file in sorted(path for path in reference.rglob("*") if path.is_file()):
            name = str(file.relative_to(reference))
            demand(read(name) == file.read_bytes(), f"{name} is not as in an undisturbed run")


def _lost(boxes: Boxes) -> str:
    outcome = boxes.random.choice(EMULATED[boxes.yard.machine(RUN).provider].outcomes)
    boxes.yard.control.preempt(run=RUN, outcome=outcome)
    return outcome


def _notice(boxes: Boxes) -> str:
    boxes.yard.control.preempt(run=RUN, notice_s=5)
    boxes.yard.wait("the end of the notice", lambda: not _runs(boxes), seconds=_WAIT_S)
    return ""


def _runs(boxes: Boxes) -> bool:
    return any(one.state == "running" for one in boxes.yard.instances(RUN))


def _controller(boxes: Boxes) -> str:
    boxes.yard.control.preempt(run=RUN)
    return boxes.kill_a_resume()


def _clouds(kind: str) -> Callable[[Boxes], str]:
    def strike(boxes: Boxes) -> str:
        boxes.yard.control.preempt(run=RUN)
        for cloud in CLOUDS:
            boxes.yard.control.fault(kind, cloud, 1 if kind == "lost-answer" else 2)
        return ""

    return strike


KINDS: dict[str, Callable[[Boxes], str]] = {
    "machine lost": _lost,
    "notice of 5 s": _notice,
    "controller killed": _controller,
    "clouds answer 5xx": _clouds("server-error"),
    "a rental's answer is lost": _clouds("lost-answer"),
}


def run(folder: Path, seed: str, count: int) -> Result:
    """Strike one run ``count`` times; return how it went."""
    boxes, result = Boxes(folder, seed), Result(0, "boxes", folder=str(folder))
    began = time.monotonic()
    try:
        boxes.begin()
        for number in range(1, count + 1):
            kind = boxes.random.choice(list(KINDS))
            boxes.wait_for_work()
            struck = Struck(number, kind, "")
            result.faults.append(struck)
            floor = checks.goes_on_at(boxes.newest(), boxes.spec, STEPS)
            at = time.monotonic()
            struck.note = KINDS[kind](boxes)
            boxes.resume()
            struck.seconds = round(time.monotonic() - at, 1)
            boxes.yard.control.clear_faults()
            boxes.check()
            now = checks.goes_on_at(boxes.newest(), boxes.spec, STEPS)
            behind = [f"{step} of iteration {place}" for place, step in floor.items() if now[place] < step]
            demand(not behind, f"what was published is behind: {', '.join(behind)}")
            print(f"fault {number:>4} (boxes): {kind}: {struck.note or 'done'}, {struck.seconds:.0f} s", flush=True)
        boxes.end()
    except Exception as error:  # whatever it is, the sandbox has to be taken down
        result.problem = str(error) if isinstance(error, WrongError) else f"{type(error).__name__}: {error}"
    finally:
        (folder / "printed").write_text("\n".join(boxes.yard.printed))
        boxes.yard.run("gpuyard", "sandbox", "down")
        result.seconds = round(time.monotonic() - began, 1)
    return result
