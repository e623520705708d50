"""What is looked for in the logs of stages: errors and warnings, and where an experiment tracker shows the run."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

ERRORS = re.compile(
    r"error|exception|traceback|panicked|fatal|killed|out of memory|warn(?:ing)?\b|segmentation fault|core dumped",
    re.IGNORECASE,
)
"""A line with one of these words, in capitals or not, is an error or a warning."""
# These go on over indented lines, up to and with the first line that is not: the exception itself, the message.
_OPENS = re.compile(r"Traceback \(most recent call last\)|panicked at ")
_LINK = r"https?://[^\s\x1b\"'<>@]+"
TRACKERS = {
    "wandb": re.compile(rf"wandb:.*?({_LINK}/runs/[\w-]+)|(https?://wandb\.ai/[^\s\x1b\"'<>@]+/runs/[\w-]+)"),
    "mlflow": re.compile(rf"({_LINK}/#/experiments/\w+/runs/\w+)"),
    "tensorboard": re.compile(rf"TensorBoard \S+ at ({_LINK})"),
}
"""By its name, what each tracker prints when it tells where its page is."""
# Trackers say so when a stage begins or ends, so a long log need not be read whole (bytes at either end).
_READ_BYTES = 256 * 1024
_MOST_LOGS = 10


def error_blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield what looks like an error or a warning (:data:`ERRORS`): one line, or a whole traceback or panic."""
    block: list[str] = []
    prefix = ""
    for raw in lines:
        line = raw.rstrip("\r\n")
        if block:
            # Several processes that share a log begin their lines alike: "[rank0]: ".
            rest = line.removeprefix(prefix)
            if opens := _OPENS.search(line):
                yield block
                block, prefix = [line], line[: opens.start()]
                continue
            block.append(line)
            if rest[:1] in (" ", "\t", ""):
                continue
            yield block
            block = []
        elif opens := _OPENS.search(line):
            block, prefix = [line], line[: opens.start()]
        elif ERRORS.search(line):
            yield [line]
    if block:
        yield block


def last_errors(lines: Iterable[str], count: int) -> list[str]:
    """Return the last errors and warnings, at most ``count`` lines; of tracebacks none is cut, and one always fits."""
    kept: deque[list[str]] = deque()
    total = 0
    for block in error_blocks(lines):
        kept.append(block)
        total += len(block)
        while len(kept) > 1 and total > count:
            total -= len(kept.popleft())
    return [line for block in kept for line in block]


def links_in(text: str) -> dict[str, str]:
    """Return the addresses that trackers named, the last of each, by the trackers' names."""
    found = {}
    for name, pattern in TRACKERS.items():
        for match in pattern.finditer(text):
            found[name] = next(group for group in match.groups() if group).rstrip(".,;)")
    return found


def links(logs: Iterable[Path]) -> dict[str, str]:
    """Return where trackers show the run, from the newest of ``logs`` (the first is the newest) that says so."""
    found: dict[str, str] = {}
    for file in list(logs)[:_MOST_LOGS]:
        found = {**links_in(_ends(file)), **found}
    return found


def _ends(file: Path) -> str:
    """Return the beginning and the end of a log."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_READ_BYTES)
            size = file.stat().st_size
            if size > _READ_BYTES:
                stream.seek(max(_READ_BYTES, size - _READ_BYTES))
                data += b"\n" + stream.read()
    except OSError:
        return ""
    return data.decode(errors="replace")
