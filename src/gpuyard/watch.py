"""What goes on on a rented machine: asked over SSH, in one connection, without Ansible.

The questions are answered by ``gpuyard.stages`` on the box; its machine-readable answers pass through here unchanged.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpuyard import rent
from gpuyard.checkpoints import Store
from gpuyard.config import SshKey
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.providers.base import Instance
from gpuyard.runs import Run
from gpuyard.stages.report import ERRORS

BOX_PYTHON = "/opt/gpuyard/venv/bin/python"
# ssh itself exits with 255; anything else is the command's own status.
_SSH_FAILED = 255


def command(instance: Instance, key: SshKey, words: list[str]) -> list[str]:
    """Return the command line that runs ``python -m gpuyard.stages <words>`` on the machine."""
    return ["ssh", *rent.ssh_args(instance, key), shlex.join([BOX_PYTHON, "-m", "gpuyard.stages", *words])]


def status(instance: Instance, key: SshKey, *, timeout_s: float = 60) -> Mapping[str, Any] | None:
    """Return ``status --json`` of the machine's stages, ``None`` when the machine or its runner does not answer."""
    try:
        answer = subprocess.run(
            command(instance, key, ["status", "--json"]),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        found = json.loads(answer.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return found if isinstance(found, dict) else None


def lines(instance: Instance, key: SshKey, words: list[str]) -> Iterator[str]:
    """Yield the lines that ``python -m gpuyard.stages <words>`` prints, as they come.

    Raises :class:`gpuyard.errors.GpuyardError` with the machine's own last words when the command fails or the
    connection is lost.
    """
    process = subprocess.Popen(
        command(instance, key, words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None and process.stderr is not None  # both were asked for above
    try:
        for line in process.stdout:
            yield line.rstrip("\n")
        complaint = process.stderr.read().strip().splitlines()
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code == _SSH_FAILED or code < 0:  # below 0: a signal has ended ssh
        reason = complaint[-1] if complaint else "no reason given"
        raise GpuyardError(f"The connection to {instance.provider} instance {instance.id} is lost: {reason}")
    if code:
        raise GpuyardError(complaint[-1] if complaint else f"The machine's stage runner ended with status {code}.")


def progress(instance: Instance, key: SshKey) -> Iterator[Mapping[str, Any]]:
    """Yield what the stages do, one record a change, until the run ends (``gpuyard.stages progress --follow``).

    A restored journal begins with what an earlier machine did; that is left out.
    """
    for line in lines(instance, key, ["progress", "--follow"]):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a login banner, say
        if isinstance(record, dict) and not _before(instance, record):
            yield record


def _before(instance: Instance, record: Mapping[str, Any]) -> bool:
    """Tell whether a journal record is older than the instance."""
    when = record.get("time")
    if instance.created_at is None or not isinstance(when, str):
        return False
    return datetime.fromisoformat(when).timestamp() < instance.created_at


def tell(record: Mapping[str, Any]) -> str:
    """Return a progress record as one line for people, empty for one that says nothing to them."""
    place = f"iteration {record.get('iteration')}, {record.get('stage')}"
    match record.get("event"):
        case "stage-start":
            attempt = int(record.get("attempt") or 1)
            afresh = f", afresh: {record['afresh']}" if record.get("afresh") else ""
            return f"▶ {place}" + (f", attempt {attempt}" if attempt > 1 else "") + afresh
        case "resume":
            return f"↻ {place} goes on where it was"
        case "stage-end":
            return f"■ {place}: {record.get('outcome')} after {float(record.get('seconds') or 0):.1f} s"
        case "output":
            return f"    {record.get('line')}"
        case "published":
            sent = int(record.get("bytes_sent") or 0) / 1024
            return f"  ⇡ checkpoint {record.get('sequence')} is in the bucket ({sent:.0f} KiB sent)"
        case "end":
            return f"The run is {record.get('state')}."
        case _:
            return ""


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which log is wanted: of the stage written to last, or a named one; its last ``lines`` lines, or only errors."""

    stage: str | None = None
    iteration: int | None = None
    lines: int = 50
    errors: bool = False

    def words(self) -> list[str]:
        """Return the command line of ``gpuyard.stages`` that answers it."""
        words = ["log", "--lines", str(self.lines)]
        for option, value in (("--stage", self.stage), ("--iteration", self.iteration)):
            if value is not None:
                words += [option, str(value)]
        return [*words, "--errors"] if self.errors else words


_LOG_FILE = re.compile(r"\.gpuyard/logs/(\d+)-(.+)\.log")


def published_log(one: Run, store: Store, query: LogQuery) -> list[str]:
    """Return the wanted log from the run's newest checkpoint, for a run whose machine is gone.

    Raises :class:`UsageError` that lists the logs there are when the wanted one is not among them.
    """
    found: dict[tuple[int, str], str] = {}
    for entry in one.manifest.files if one.manifest else ():
        if match := _LOG_FILE.fullmatch(entry.path):
            found[int(match[1]), match[2]] = entry.key
    fitting = [place for place in found if query.stage in (None, place[1]) and query.iteration in (None, place[0])]
    if not fitting:
        names = ", ".join(f"{iteration}-{stage}" for iteration, stage in sorted(found)) or "none"
        where = "" if query.iteration is None else f" in iteration {query.iteration}"
        raise UsageError(
            f"The newest checkpoint of run {one.name} has no log of {query.stage or 'any stage'}{where}. "
            f"Logs (iteration-stage): {names}."
        )
    current = (one.progress.get("iteration"), one.progress.get("stage"))
    # Without a stage named, the one that the run was at is meant; of several iterations, the last.
    wanted = current if current in fitting else max(fitting)
    text = store.get(found[wanted]).decode(errors="replace").splitlines()
    return [line for line in text if not query.errors or ERRORS.search(line)][-query.lines :]


def choose(found: Sequence[Run], wanted: str | None) -> Run:
    """Return the run called ``wanted``, or, when none is named, the one there is.

    Raises :class:`UsageError` that lists the runs when there is not exactly one to choose.
    """
    names = ", ".join(one.name for one in found) or "none"
    if wanted:
        for one in found:
            if one.name == wanted:
                return one
        raise UsageError(f"run={wanted!r} is not known to the clouds and the bucket; the runs there are: {names}.")
    alive = [one for one in found if one.machine] or list(found)
    if len(alive) != 1:
        raise UsageError(f"Name the run with -e run=…; the runs there are: {names}.")
    return alive[0]
