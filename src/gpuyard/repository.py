"""The repository of a workload: which addresses can be used, and what is known of it before a machine is rented."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpuyard.errors import UsageError

# plugins/modules/work_tree.py has the same rules, for whoever uses it alone; there file:// is a folder of the machine.
_HOST = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_WEB = re.compile(rf"(?:https?|git)://{_HOST}(?::\d+)?/[^\s?#]+")
_SSH = re.compile(rf"ssh://(?:[A-Za-z0-9._-]+@)?{_HOST}(?::\d+)?/[^\s?#]+|[A-Za-z0-9._]+@{_HOST}:[^\s?#:-][^\s?#:]*")
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s'\"]*@|\?[^\s'\"]+")
_PERHAPS = re.compile(r"[:/=][^\s]*@|\?")  # what may hold a token is not shown
_SHOWN = 100  # characters
_SAID = 300  # characters of git's own words
# What servers and git say when there is no such repository, or none that can be read without a password.
_NO = re.compile(
    r"repository[^\n]*not found|could not be found|does not exist|does not appear to be a git repository"
    r"|could not read (?:Username|Password)|terminal prompts disabled|Authentication failed"
    r"|returned error: (?:401|403|404|410)|not our ref|couldn't find remote ref|no such remote ref|unadvertised object",
    re.IGNORECASE,
)


def why_not(url: str) -> str:
    """Return why ``url`` cannot be used, as the end of a sentence that shows no token; ``""`` when it can."""
    if _WEB.fullmatch(url) or _SSH.fullmatch(url):
        return ""
    if _PERHAPS.search(url):
        return (
            "must not hold a user name, a password or a token: a workload can be read in plans, logs and on the "
            "machine. Write the address without them; repository.credentials names what opens a private repository"
        )
    if url.startswith("file:"):
        return "must be an address that the machine can reach; a folder of this one is named with repository.path"
    shown = url if len(url) <= _SHOWN else url[:_SHOWN] + "…"
    return f"must be an address such as https://host/path, ssh://git@host/path or git@host:path, not {shown!r}"


def redacted(text: str) -> str:
    """Return ``text`` without what stands for a user in its addresses, and without what follows a question mark."""
    return _CREDENTIALS.sub(lambda found: "…@" if found[0].endswith("@") else "?…", text)


@dataclass(frozen=True, slots=True)
class Way:
    """How git gets at a private repository: words for its command line, which hold no secret, and its environment."""

    words: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def with_token(url: str, user: str, token: str) -> Way:
    """Return the way with a token, which no other host than that of ``url`` ever gets."""
    answer = 'printf "username=%s\\npassword=%s\\n" "$REPOSITORY_USER" "$REPOSITORY_SECRET"'
    helper = f'!f() {{ test "$1" != get || {answer}; }}; f'
    host = "/".join(url.split("/")[:3])
    return Way(["-c", f"credential.{host}.helper={helper}"], {"REPOSITORY_USER": user, "REPOSITORY_SECRET": token})


def with_key(file: Path) -> Way:
    """Return the way with a private SSH key alone."""
    options = f"-o BatchMode=yes -o IdentitiesOnly=yes -i {shlex.quote(str(file))}"
    return Way(environment={"GIT_SSH_COMMAND": f"ssh {options}"})


def look(url: str, commit: str, *, way: Way | None = None, timeout_s: float = 10.0) -> str:
    """Return a warning when this machine cannot say whether the repository has ``commit``; ``""`` when it has.

    Raises :class:`UsageError` when the server says that it has not: no machine would get it either. Nobody is asked for
    a password, and none that is kept here is used, since the machine has none; ``way`` is what the machine will have.
    """
    began = time.monotonic()
    name = f"{redacted(url)} at {commit[:12]}"
    with tempfile.TemporaryDirectory(prefix="gpuyard-look-") as folder:
        steps = (
            ["ls-remote", "--quiet", "--", url],
            ["init", "--quiet", "--bare"],
            # The one commit without any of its files, where the server can leave them out.
            ["fetch", "--quiet", "--depth", "1", "--no-tags", "--filter=tree:0", "--", url, commit],
        )
        for step in steps:
            left = timeout_s - (time.monotonic() - began)
            try:
                done = _git(folder, *step, way=way or Way(), timeout_s=max(left, 0.1))
            except FileNotFoundError:
                return f"There is no git here, so nobody has looked for {name}."
            except subprocess.TimeoutExpired:
                return f"{name} could not be looked for within {timeout_s:g} s; the machine will try to fetch it."
            told = [line for line in done.stderr.splitlines() if line.startswith(("fatal:", "ssh:"))] or [done.stderr]
            said = redacted(" ".join(told[0].removeprefix("fatal:").split()))[:_SAID]
            if done.returncode and _NO.search(done.stderr):
                what = "has no such commit" if step[0] == "fetch" else "cannot be read"
                raise UsageError(
                    f"repository.url: {name} {what}, so no machine could fetch it either: git says {said!r}."
                )
            if done.returncode:
                return f"{name} cannot be looked for from here, and the machine may fail as well; git says: {said}."
            if commit in done.stdout:
                break
    return ""


def _git(folder: str, *words: str, way: Way, timeout_s: float) -> subprocess.CompletedProcess[str]:
    alone = {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",
        "SSH_ASKPASS": "true",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
        "LC_ALL": "C",
    }
    process = subprocess.Popen(
        ["git", "-C", folder, "-c", "credential.helper=", *way.words, *words],
        env={**os.environ, **alone, **way.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        # git's own children, which hold the connection, go with it.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def check_python(
    root: Path, names: Collection[str], *, requirements: str | None, project: str | None, lock: str | None
) -> None:
    """Raise :class:`UsageError` when a file that the Python environment needs does not go to the machine.

    ``names`` is what goes there of ``root``; ``requirements``, ``project`` and ``lock`` are the workload's.
    """
    listed = set(names)
    needed = {"python.requirements": requirements, "python.lock": lock}
    if project is not None:
        needed["python.project"] = posixpath.join(project, "pyproject.toml")
    for key, name in needed.items():
        if name is None or posixpath.normpath(name) in listed:
            continue
        exists = (root / name).is_file()
        why = "is ignored by git or .gpuyardignore, so it does not go to the machine" if exists else f"is not in {root}"
        raise UsageError(f"{key}: the file {name} {why}.")


def check_tree(root: Path, names: Collection[str], *, persist: str, folders: list[str]) -> None:
    """Raise :class:`UsageError` for what would only fail on the machine: ``names`` is what goes there of ``root``.

    ``folders`` become links to the same folders below ``persist``.
    """
    listed = set(names)
    for folder in folders:
        parts = folder.split("/")
        for end in range(1, len(parts) + 1):
            inner = "/".join(parts[:end])
            if inner not in listed:
                continue
            if not (root / inner).is_symlink():
                raise UsageError(
                    f"persist.directories: {inner} is a file in {root}, so no folder can be kept under that name."
                )
            target = os.fspath((root / inner).readlink())
            if target == f"{persist}/{inner}":
                continue
            other = target.removesuffix(f"/{inner}")
            way_out = (
                f"with persist.root: {other} the link would lead to the folder that is kept"
                if target.startswith("/") and other not in (target, "")
                else "remove the link from the repository, or keep another folder"
            )
            raise UsageError(
                f"persist.directories: {inner} is a link to {target} in {root}, which stands in the way of the link to "
                f"{persist}/{inner}: {way_out}."
            )


def kept(names: Iterable[str], folders: Iterable[str]) -> list[str]:
    """Return those of ``names`` that lie in one of ``folders``."""
    beginnings = tuple(f"{folder}/" for folder in folders)
    return [name for name in names if name.startswith(beginnings)]
