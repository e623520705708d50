"""The three windows beside the iteration: the GPU, the newest log, the disk. They redraw until somebody closes them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from gpuyard.box.monitor.checks import disks_of
from gpuyard.box.stages import sign_of_life
from gpuyard.box.stages.expected import bar
from gpuyard.box.stages.report import follow_log, newest_log
from gpuyard.box.stages.runner import is_running, progress_of
from gpuyard.box.stages.spec import BoxSpec

PANES = ("gpu", "log", "disk")
_CLEAR = "\x1b[H\x1b[2J"
_GPU_EVERY_S = 5.0
_DISK_EVERY_S = 30.0
# How many times as long as it has taken to find out what a window shows, nothing is asked again.
_PAUSE = 50.0


def show(spec: BoxSpec, pane: str) -> None:
    """Fill the window until the process is ended."""
    if pane == "log":
        _follow_forever(spec)
    elif pane == "gpu":
        _redraw(lambda: progress_text(spec) + gpu_text(), _GPU_EVERY_S)
    else:
        _redraw(lambda: disk_text(spec), _DISK_EVERY_S)


def progress_text(spec: BoxSpec) -> str:
    """Return how far the stage is that runs, as a line; empty where nothing says so."""
    place = progress_of(spec).running
    found = sign_of_life.progress(spec, place) if place and is_running(spec) else None
    return f"{found['stage']}, iteration {found['iteration']}: {bar(found)}\n\n" if found else ""


def gpu_text() -> str:
    """Return what ``nvidia-smi`` says, or a sentence when there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "This box has no nvidia-smi, so there is no NVIDIA GPU to watch.\n"
    answer = subprocess.run([program], capture_output=True, text=True, check=False)
    return answer.stdout + answer.stderr


def disk_text(spec: BoxSpec) -> str:
    """Return the use of the run's file systems, and the size of every persistent folder."""
    places = [spec.root / name for name in spec.directories]
    present = [str(place) for place in places if place.is_dir()] or [str(spec.root)]
    disks = [disk.path for disk in disks_of(spec)]
    free = subprocess.run(["df", "-h", *disks], capture_output=True, text=True, check=False)
    used = subprocess.run(["du", "-sh", *present], capture_output=True, text=True, check=False)
    return f"{free.stdout}\n{used.stdout}"


def _redraw(text: Callable[[], str], every_s: float) -> None:
    while True:
        began = time.monotonic()
        drawn = text()
        sys.stdout.write(f"{_CLEAR}{time.strftime('%H:%M:%S')}\n{drawn}")
        sys.stdout.flush()
        # Folders of millions of files take long to add up, which must not keep a disk busy that a stage needs.
        time.sleep(max(every_s, _PAUSE * (time.monotonic() - began)))


def _follow_forever(spec: BoxSpec) -> None:
    while True:
        if newest_log(spec) is not None:
            for text in follow_log(spec, None, None, lines=40):
                sys.stdout.write(text)
                sys.stdout.flush()
        else:
            sys.stdout.write(f"{_CLEAR}No stage has written anything yet.\n")
            sys.stdout.flush()
        # The next run shows up here, too.
        while not is_running(spec) or newest_log(spec) is None:
            time.sleep(1)
