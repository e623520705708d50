"""The three windows beside the iteration: the GPU, the newest log, the disk. They redraw until somebody closes them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from gpuyard.box.stages.report import follow_log, newest_log
from gpuyard.box.stages.runner import is_running
from gpuyard.box.stages.spec import BoxSpec

PANES = ("gpu", "log", "disk")
_CLEAR = "\x1b[H\x1b[2J"
_GPU_EVERY_S = 5.0
_DISK_EVERY_S = 30.0


def show(spec: BoxSpec, pane: str) -> None:
    """Fill the window until the process is ended."""
    if pane == "log":
        _follow_forever(spec)
    elif pane == "gpu":
        _redraw(gpu_text, _GPU_EVERY_S)
    else:
        _redraw(lambda: disk_text(spec), _DISK_EVERY_S)


def gpu_text() -> str:
    """Return what ``nvidia-smi`` says, or a sentence when there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "This box has no nvidia-smi, so there is no NVIDIA GPU to watch.\n"
    answer = subprocess.run([program], capture_output=True, text=True, check=False)
    return answer.stdout + answer.stderr


def disk_text(spec: BoxSpec) -> str:
    """Return the file system's use, and the size of every persistent folder."""
    places = [spec.root / name for name in spec.directories]
    present = [str(place) for place in places if place.is_dir()] or [str(spec.root)]
    free = subprocess.run(["df", "-h", str(spec.root)], capture_output=True, text=True, check=False)
    used = subprocess.run(["du", "-sh", *present], capture_output=True, text=True, check=False)
    return f"{free.stdout}\n{used.stdout}"


def _redraw(text: Callable[[], str], every_s: float) -> None:
    while True:
        sys.stdout.write(f"{_CLEAR}{time.strftime('%H:%M:%S')}\n{text()}")
        sys.stdout.flush()
        time.sleep(every_s)


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
