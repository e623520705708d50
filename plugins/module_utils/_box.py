# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules share that run on a rented box: standard library only, Python 3.10 or newer.

Private to this collection.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_BLOCK = 1 << 20
_ATTEMPTS = 3
_TIMEOUT_S = 60.0
# Made by the first command that locks the machine for bringing it into shape, see gpuyard.box.converging.
MODULES_LOCK = Path("/opt/gpuyard/modules.lock")
# The runner holds this lock while it lives, see gpuyard.box.stages.runner, which a box need not have yet.
_RUNNER_LOCK = "runner.lock"


# The same as in gpuyard.box.stages.folders, which a box need not have yet.
_NO_ROOT = re.compile(
    r"(?:/(?:bin|boot|dev|etc|lib(?:x?32|64)?|proc|run|sbin|snap|sys|usr|var)|/opt/gpuyard)(?:/.*)?"  # with all below
    r"|(?:/root|/home/[^/]+)/\.[^/]+(?:/.*)?"  # .ssh, .aws and their like
    r"|/|/home|/home/[^/]+|/lost\+found|/opt|/root|/srv|/tmp"  # but folders in them will do
)


class BoxError(Exception):
    """A failure that a user can act on; the text is one sentence, possibly followed by a program's last lines.

    ``details`` become keys of the module's result.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


def guarded(module: AnsibleModule, work: Callable[[AnsibleModule], dict[str, Any]]) -> None:
    """Run ``work``, leave with its result, and turn an expected failure into one sentence."""
    # The programs that are run inherit the standard input, which may be a terminal: one that asks must not wait there.
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        with at_work():
            began = time.monotonic()
            result = work(module)
            note_time(module, result, time.monotonic() - began)
    except BoxError as error:
        module.fail_json(msg=str(error), **error.details)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        module.fail_json(msg=f"{place}{error.strerror or error}.")
    else:
        module.exit_json(**result)


@contextmanager
def at_work() -> Iterator[None]:
    """Show, by a shared lock, that a module is at work, so that nobody else begins to bring the machine into shape.

    A module outlives its controller when that is killed. Nothing is locked on a machine that nobody has ever locked.
    """
    try:
        handle = MODULES_LOCK.open("rb")
    except OSError:
        yield
        return
    with handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def stages_run(settings: Path) -> bool:
    """Tell whether a stage runner lives, by the lock that it holds."""
    try:
        with (settings / _RUNNER_LOCK).open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def note_time(module: AnsibleModule, result: Mapping[str, Any], seconds: float) -> None:
    """Note beside the lock how long it took to make what the module was asked for, by its path.

    Whoever has a bundle of it compares that with fetching. The longest time counts: a later change to what is there
    already takes less, and says nothing of making it.
    """
    path = result.get("path") or module.params.get("root")
    if not path or not result.get("changed") or module.check_mode or not MODULES_LOCK.exists():
        return
    file = MODULES_LOCK.with_name("took.json")
    took = read_record(file)
    if seconds > took.get(str(path), 0.0):
        write_record(file, {**took, str(path): round(seconds, 1)})


def check_persistent_root(root: str) -> None:
    """Raise :class:`BoxError` for a folder that the system or gpuyard itself uses."""
    for path in (os.path.normpath("/" + root.lstrip("/")), os.path.realpath(root)):
        if _NO_ROOT.fullmatch(path):
            raise BoxError(
                f"root={root} must not be {path}, which the system or gpuyard itself uses: all that is in it, keys "
                "too, would go to the bucket; name a folder of its own, such as /mnt/persistent."
            )


def tail(text: str, lines: int = 8) -> str:
    """Return the last ``lines`` lines of a program's output."""
    return "\n".join(text.strip().splitlines()[-lines:])


def execute(
    module: AnsibleModule,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> tuple[int, str, str]:
    """Run a program in ``folder`` and return its exit code, standard output and standard error.

    ``environment`` is added to the module's own. Nothing in ``command`` is expanded. Raises :class:`OSError` with the
    program's name when it cannot be run.
    """
    try:
        done: tuple[int, str, str] = module.run_command(
            list(command),
            environ_update=dict(environment or {}),
            cwd=str(folder) if folder else None,
            ignore_invalid_cwd=False,
            expand_user_and_vars=False,
            errors="replace",
            handle_exceptions=False,
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, command[0]) from error
    return done


def run(
    module: AnsibleModule,
    command: Sequence[str],
    *,
    purpose: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program in ``folder`` and return its standard output.

    ``environment`` is added to the module's own. Raises :class:`BoxError` that begins with ``purpose`` ("Installing …")
    and ends with the program's last lines.
    """
    try:
        code, output, errors = execute(module, command, environment=environment, folder=folder)
    except OSError as error:
        raise BoxError(f"{purpose} failed: {command[0]}: {error.strerror}.") from error
    if code:
        said = tail(f"{output}\n{errors}")
        raise BoxError(f"{purpose} failed with exit code {code}:\n{said}", rc=code)
    return output


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download(url: str, target: Path, accepted: Sequence[str]) -> None:
    """Fetch ``url`` to ``target`` and check it against the SHA-256 sums in ``accepted``, any of which will do.

    A broken connection or a busy server is tried three times. A wrong checksum is an error at once, and leaves nothing.
    """
    failure = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(2.0**attempt)
        try:
            # The bytes as they are, and no password from a file that is meant for other programs.
            with (
                open_url(url, timeout=_TIMEOUT_S, decompress=False, use_netrc=False) as answer,
                target.open("wb") as stream,
            ):
                while block := answer.read(_BLOCK):
                    stream.write(block)
            break
        except urllib.error.HTTPError as error:
            failure = f"the server answered {error.code} {error.reason}"
            if error.code < 500 and error.code != 429:
                raise BoxError(f"{url} cannot be fetched: {failure}.") from error
        except (OSError, ValueError) as error:
            failure = str(getattr(error, "reason", error))
    else:
        raise BoxError(f"{url} cannot be fetched after {_ATTEMPTS} attempts: {failure}.")
    found = file_sha256(target)
    if found not in accepted:
        target.unlink()
        raise BoxError(f"{url} has the SHA-256 {found}, but {' or '.join(accepted)} is pinned: nothing was installed.")


def write_file(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a small file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
        Path(scratch).chmod(mode)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``; ``{}`` when none can be read, so that the work is done again."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` as JSON, see :func:`write_file`."""
    write_file(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def note_brought(root: Path, found: Mapping[str, str]) -> None:
    """Note below the persistent root what the repository has brought there: SHA-256 by path.

    gpuyard.box.checkpoints goes by it when it restores a set, to tell what the run has changed.
    """
    place = root / ".gpuyard/brought.json"
    record = read_record(place)
    if any(record.get(name) != digest for name, digest in found.items()):
        write_record(place, {**record, **found})


def version_tuple(text: str) -> tuple[int, ...]:
    """Return ``1.96.0`` as ``(1, 96, 0)``; what follows the numbers is ignored."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
