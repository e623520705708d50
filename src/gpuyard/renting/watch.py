"""What goes on on a rented machine: asked over SSH, in one connection, without Ansible.

The questions are answered by ``gpuyard.box.stages`` on the box; its machine-readable answers pass through here
unchanged.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from queue import Empty, SimpleQueue
from typing import Any

from gpuyard import ssh
from gpuyard.box.checkpoints import Store
from gpuyard.box.stages import findings
from gpuyard.box.stages.expected import bar
from gpuyard.config import SshKey
from gpuyard.errors import CheckpointError, ConnectionLostError, GpuyardError, NothingBegunError, UsageError
from gpuyard.providers.base import Instance, Progress
from gpuyard.remedies import option, remedy
from gpuyard.renting.runs import Node, Run

BOX_PYTHON = "/opt/gpuyard/venv/bin/python"
BOX_SETTINGS = "/opt/gpuyard/run/settings.json"
ASK_S = 5.0
"""How long all machines together have to say what they do."""
# ssh itself exits with 255; anything else is the command's own status.
_SSH_FAILED = 255
# What our command line exits with on a machine that was never told what to run.
_NOTHING_BEGUN = 44
# A machine that vanishes is noticed after a minute. No connection is shared with another one: a connection that stays
# open in the background would keep our pipes open as well.
_SSH_OPTIONS = [
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
    *("-o", "ControlMaster=no", "-o", "ControlPath=none"),
]
# What ssh says when nothing answers at the address at all.
_SILENT = ("ssh: connect to host", "ssh: Could not resolve hostname")
# How long a stop may take before its first word, and after the time that the machine itself has named.
_FIRST_WORD_S = 120.0
_SPARE_S = 180.0
_TOLD_EVERY_S = 15.0
_JOIN_S = 5.0
_PATIENT_S = 20.0
_SETTLE_S = 60.0
AS_ASKED = ("finished", "idle")
"""The states of a run that has done what it was asked for: all of it, or the stages that were chosen."""


def as_asked(states: Iterable[str], text: str) -> tuple[str, str]:
    """Return the state of a run whose machines have done what they were asked for, and ``text`` with what is left."""
    if "idle" not in states:
        return "finished", text
    return "idle", f"What was to run is done; the run has other stages left.\n{text}".rstrip()


def command(instance: Instance, key: SshKey, words: list[str]) -> list[str]:
    """Return the command line that runs ``python -m gpuyard.box.stages <words>`` on the machine."""
    runner = shlex.join([BOX_PYTHON, "-m", "gpuyard.box.stages", *words])
    # To anybody but root a folder that must not be entered looks as if it were empty.
    line = f'test -e {BOX_SETTINGS} || test "$(id -u)" != 0 || exit {_NOTHING_BEGUN}; exec {runner}'
    if instance.ssh_user != "root":
        line = shlex.join(["sudo", "-n", "sh", "-c", line])
    return ["ssh", *_SSH_OPTIONS, *ssh.ssh_args(instance, key), line]


def status(instance: Instance, key: SshKey, *, timeout_s: float = ASK_S) -> Mapping[str, Any]:
    """Return what the machine's stages do, as ``gpuyard.box.stages status --json`` says it.

    ``state`` is always there: ``not-started`` also for a machine that was never told what to run, and ``unreachable``
    for one that does not answer in time.
    """
    unreachable = {"state": "unreachable"}
    if not instance.ssh_host or timeout_s <= 0:
        return unreachable
    try:
        answer = subprocess.run(
            command(instance, key, ["status", "--json"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        return unreachable
    if answer.returncode == _NOTHING_BEGUN:
        return {"state": "not-started"}
    return _last_record(answer.stdout.splitlines(), "state") or unreachable


def asked(found: Sequence[Run], key: SshKey, *, timeout_s: float = ASK_S) -> list[Run]:
    """Return the runs with what their machines say, asked at the same time, in ``timeout_s`` seconds altogether."""
    deadline = time.monotonic() + timeout_s

    def ask(instance: Instance) -> Mapping[str, Any]:
        return status(instance, key, timeout_s=deadline - time.monotonic())

    up = {(run.name, node.name): node.machine for run in found for node in run.nodes if node.machine and node.is_up}
    with ThreadPoolExecutor(max_workers=max(1, len(up))) as pool:
        said = dict(zip(up, pool.map(ask, up.values()), strict=True))
    return [
        replace(run, stages={**run.stages, **{node: said[name, node] for name, node in up if name == run.name}})
        for run in found
    ]


def how_it_ended(whose: str, instance: Instance, key: SshKey, state: str) -> str:
    """Return how a run or node ended that was followed, in words: with the stage that failed, and its last lines."""
    stages = status(instance, key, timeout_s=_PATIENT_S)
    failure = stages.get("failure")
    if state == "waiting":
        run = instance.ref.run if instance.ref else ""
        moves = f"`{remedy('launch', run=run, follow=True)}` moves it there"
        return f"{whose} waits for a machine of pool {stages.get('waits_for')}: {moves}."
    if state != "failed" or not isinstance(failure, Mapping):
        return f"{whose} {'has failed' if state == 'failed' else f'is {state}' if state else 'is out of reach'}."
    words = f"{whose} has failed{failure_text({'failure': {**failure, 'last_line': ''}})}."
    if not failure.get("stage"):
        return words
    query = LogQuery(str(failure["stage"]), failure.get("iteration"), lines=10)
    try:
        last = list(lines(instance, key, query.words()))
    except GpuyardError:
        last = [str(failure.get("last_line"))]
    return "\n".join([f"{words} Its last lines:", *(f"    {line}" for line in last)])


def failure_text(stages: Mapping[str, Any]) -> str:
    """Return of a failed run where it failed and what it said last, to follow "has failed"; empty when not known."""
    failure = stages.get("failure")
    if not isinstance(failure, Mapping):
        return ""
    words = ""
    if failure.get("stage"):
        words = f" in iteration {failure.get('iteration')}, {failure['stage']}"
    reason = str(failure.get("reason") or "").rstrip(".")
    if failure.get("exit_code") is not None:
        # A reason may begin with the exit code, or be no more than that.
        why = reason.removeprefix(f"{failure.get('stage')} ended with exit code {failure['exit_code']}").lstrip(": ")
        words += f" (exit code {failure['exit_code']}{f': {why}' if why else ''})"
    elif failure.get("reason"):
        words += f" ({reason})"
    return words + (f": {str(failure['last_line']).strip()}" if failure.get("last_line") else "")


def stop(
    instance: Instance,
    key: SshKey,
    *,
    wait_s: float | None = None,
    limit_s: float | None = None,
    tell: Progress = lambda _: None,
) -> Mapping[str, Any]:
    """Let the machine's stages end in good order and publish; return the answer of ``gpuyard.box.stages stop``.

    It is waited for as long as the running stage's own grace time and publishing may take, as the machine says it, or
    ``wait_s`` seconds. After ``limit_s`` seconds the machine is not waited for any longer, whatever it says. ``tell``
    gets a line now and then. Raises :class:`NothingBegunError`, and :class:`GpuyardError` when the machine gives no
    answer.
    """
    words = ["stop", "--progress", *([] if wait_s is None else ["--wait", f"{wait_s:g}"])]
    where = f"{instance.provider} {instance.id}"
    began = time.monotonic()
    allowed = _FIRST_WORD_S if limit_s is None else limit_s
    came: SimpleQueue[str | BaseException | None] = SimpleQueue()
    process = _start(instance, key, words)

    def read() -> None:
        try:
            for line in _lines_of(process, instance):
                came.put(line)
            came.put(None)
        except GpuyardError as error:
            came.put(error)

    reader = threading.Thread(target=read, name=f"stop {where}", daemon=True)
    reader.start()
    said: list[str] = []
    shown: tuple[object, object] | None = None
    shown_at = began
    try:
        while True:
            if time.monotonic() - began > allowed:
                raise ConnectionLostError(f"{where} has not said within {allowed:.0f} s whether its work is saved.")
            try:
                line = came.get(timeout=min(1.0, max(0.05, began + allowed - time.monotonic())))
            except Empty:
                continue
            if isinstance(line, BaseException):
                if (answer := _last_record(said, "saved")) is not None:
                    return answer  # it exits with 1 when something has not ended, and says so in its answer as well
                if "unrecognized arguments" in str(line):
                    raise GpuyardError(
                        f"gpuyard on {where} is older than this one and cannot say whether all is saved; "
                        "launch the run again to bring it up to date."
                    )
                raise line
            if line is None:
                break
            said.append(line)
            if (waiting := _last_record([line], "event")) is not None:
                if limit_s is None and isinstance(waiting.get("of"), int | float):
                    allowed = float(waiting["of"]) + _SPARE_S
                doing = (waiting.get("doing"), waiting.get("stage"))
                if doing != shown or time.monotonic() - shown_at >= _TOLD_EVERY_S:
                    shown, shown_at = doing, time.monotonic()
                    tell(f"{where}: {_waiting(waiting)}")
    finally:
        if process.poll() is None:
            process.terminate()
        reader.join(_JOIN_S)
    answer = _last_record(said, "saved")
    if answer is None:
        raise GpuyardError(f"{where} has not said whether its work is saved: {said[-1] if said else 'no answer'}")
    return answer


def settle(instance: Instance, key: SshKey) -> None:
    """Have everything written to the machine's disks; one that does not answer in time has had its chance."""
    if not instance.ssh_host:
        return
    with suppress(subprocess.TimeoutExpired, OSError):
        subprocess.run(
            ["ssh", *_SSH_OPTIONS, *ssh.ssh_args(instance, key), "sync"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SETTLE_S,
            check=False,
        )


def _waiting(record: Mapping[str, Any]) -> str:
    """Return in words what is waited for."""
    time_left = f"({record.get('seconds')} s of at most {record.get('of')} s)"
    if record.get("doing") == "saving" and record.get("stage"):
        return f"stage {record['stage']} is saving its work {time_left}"
    return f"the last checkpoint is being published {time_left}"


def _last_record(said: Sequence[str], key: str) -> dict[str, Any] | None:
    """Return the last JSON object with ``key`` among ``said``: a login shell may print a banner around it."""
    for line in reversed(said):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and key in record:
            return record
    return None


def lines(instance: Instance, key: SshKey, words: list[str]) -> Iterator[str]:
    """Yield the lines that ``python -m gpuyard.box.stages <words>`` prints, as they come.

    Raises :class:`gpuyard.errors.GpuyardError` with the machine's own last words when the command fails,
    :class:`ConnectionLostError` when the connection is lost, and :class:`NothingBegunError` on a machine that was never
    told what to run.
    """
    yield from _lines_of(_start(instance, key, words), instance)


def _start(instance: Instance, key: SshKey, words: list[str]) -> subprocess.Popen[str]:
    if not instance.ssh_host:
        name = f"{instance.provider} instance {instance.id}"
        raise ConnectionLostError(f"{name} has no address yet ({instance.status_text}).", silent=True)
    try:
        return subprocess.Popen(
            command(instance, key, words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise UsageError("ssh is not installed; install the OpenSSH client.") from None


def _lines_of(process: subprocess.Popen[str], instance: Instance) -> Iterator[str]:
    assert process.stdout is not None and process.stderr is not None  # both were asked for at its start
    try:
        for line in process.stdout:
            yield line.rstrip("\n")
        complaint = process.stderr.read().strip().splitlines()
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stdout.close()
        process.stderr.close()
    if code == _SSH_FAILED or code < 0:  # below 0: a signal has ended ssh
        reason = complaint[-1] if complaint else "no reason given"
        raise ConnectionLostError(
            f"The connection to {instance.provider} instance {instance.id} is lost: {reason}",
            silent=reason.startswith(_SILENT),
        )
    if code == _NOTHING_BEGUN:
        run = f"run {instance.ref.run}" if instance.ref else f"{instance.provider} {instance.id}"
        raise NothingBegunError(f"No stage has begun on the machine of {run}: it was never told what to run.")
    if code:
        raise GpuyardError(complaint[-1] if complaint else f"The machine's stage runner ended with status {code}.")


def progress(instance: Instance, key: SshKey) -> Iterator[Mapping[str, Any]]:
    """Yield what the stages do, one record a change, until the run ends (``gpuyard.box.stages progress --follow``).

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
            why = f": {record['reason']}" if record.get("reason") else ""
            return f"■ {place}: {record.get('outcome')} after {float(record.get('seconds') or 0):.1f} s{why}"
        case "retry":
            return (
                f"↻ {place} is tried again in {float(record.get('wait_s') or 0):g} s, attempt {record.get('attempt')}"
            )
        case "pass-over":
            return f"» {place} is passed over: {record.get('reason')}"
        case "progress":
            return f"  {bar(record)}"
        case "output":
            return f"    {record.get('line')}"
        case "published":
            sent = int(record.get("bytes_sent") or 0) / 1024
            return f"  ⇡ checkpoint {record.get('sequence')} is in the bucket ({sent:.0f} KiB sent)"
        case "notice":
            return f"  ! {record.get('text')}"
        case "pruned":
            return f"  The disk was nearly full; removed: {record.get('text')}"
        case "end" if record.get("waits_for"):
            return f"The run waits for a machine of pool {record['waits_for']}."
        case "end":
            return f"The run is {record.get('state')}."
        case _:
            return ""


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which log is wanted: of the stage written to last, or a named one; its last ``lines`` lines.

    ``errors``: only errors and warnings, see :func:`gpuyard.box.stages.findings.last_errors`.
    """

    stage: str | None = None
    iteration: int | None = None
    lines: int = 50
    errors: bool = False

    def words(self) -> list[str]:
        """Return the command line of ``gpuyard.box.stages`` that answers it."""
        words = ["log", "--lines", str(self.lines)]
        for name, value in (("--stage", self.stage), ("--iteration", self.iteration)):
            if value is not None:
                words += [name, str(value)]
        return [*words, "--errors"] if self.errors else words


@dataclass(frozen=True, slots=True)
class LogText:
    """Lines of a log, and the addresses at which experiment trackers show the run, by the trackers' names."""

    lines: list[str]
    links: Mapping[str, str]


def log(instance: Instance, key: SshKey, query: LogQuery) -> LogText:
    """Return the wanted log from the machine, which sends no more than is shown. Raises as :func:`lines` does."""
    said = list(lines(instance, key, [*query.words(), "--links"]))
    record = _last_record(said[-1:], "links")
    return LogText(said, {}) if record is None else LogText(said[:-1], record["links"])


_LOG_FILE = re.compile(r"\.gpuyard/logs/(\d+)-(.+)\.log")


def published_log(whose: str, one: Node, store: Store, query: LogQuery) -> LogText:
    """Return the wanted log from the newest checkpoint of a node whose machine is gone; ``whose`` names it in words.

    Raises :class:`UsageError` that lists the logs there are when the wanted one is not among them.
    """
    if one.problem:
        raise CheckpointError(one.problem)
    found: dict[tuple[int, str], str] = {}
    for entry in one.manifest.files if one.manifest else ():
        if match := _LOG_FILE.fullmatch(entry.path):
            found[int(match[1]), match[2]] = entry.key
    fitting = [place for place in found if query.stage in (None, place[1]) and query.iteration in (None, place[0])]
    if not fitting:
        names = ", ".join(f"{iteration}-{stage}" for iteration, stage in sorted(found)) or "none"
        where = "" if query.iteration is None else f" in iteration {query.iteration}"
        raise UsageError(
            f"The newest checkpoint of {whose} has no log of {query.stage or 'any stage'}{where}. "
            f"Logs (iteration-stage): {names}."
        )
    current = (one.progress.get("iteration"), one.progress.get("stage"))
    # Without a stage named, the one that the run was at is meant; of several iterations, the last.
    wanted = current if current in fitting else max(fitting)
    text = store.get(found[wanted]).decode(errors="replace")
    said = text.splitlines()
    shown = findings.last_errors(said, query.lines) if query.errors else said[-query.lines :]
    return LogText(shown, findings.links_in(text))


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
        raise UsageError(f"Name the run with {option('run')}; the runs there are: {names}.")
    return alive[0]


def choose_node(run: Run, wanted: str | None) -> Node:
    """Return the node called ``wanted``, or, when none is named, the first whose machine runs.

    Raises :class:`UsageError` that lists the nodes for one that there is not.
    """
    names = [node.name for node in run.nodes]
    if wanted:
        if wanted not in names:
            raise UsageError(f"node={wanted!r} is no node of run {run.name}; its nodes are: {', '.join(names)}.")
        return run.node(wanted)
    working = [node for node in run.nodes if node.is_up]
    begun = [node for node in run.nodes if node.machine or node.manifest]
    return next(iter([*working, *begun]), run.nodes[0])
