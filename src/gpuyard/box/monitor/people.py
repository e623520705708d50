"""Who is at the machine: logins of people, and not the connections over which gpuyard and Ansible work.

A person has a terminal (``sshd: root@pts/0``), or a connection without one (``sshd: root@notty``, as editors use it)
below which something runs that is neither gpuyard's nor Ansible's. Terminals of tmux, which ``who`` may list, are the
run's own windows.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

PROC = Path("/proc")
_SESSION = re.compile(r"sshd(?:-session)?: (?P<user>[^@\s]+)@(?P<terminal>\S+)")
_OURS = re.compile(rb"gpuyard|ansible|sftp-server|AnsiballZ")
_LIMIT_S = 5.0


def somebody(proc: Path = PROC, *, who: str = "who") -> str:
    """Return who is logged in, in words; empty when nobody is."""
    sessions = dict(_sessions(proc))
    parents = _parents(proc) if any(terminal == "notty" for _, terminal in sessions.values()) else {}
    for pid, (user, terminal) in sessions.items():
        if terminal.startswith("pts/"):
            return f"{user} at {terminal}"
        if terminal == "notty" and _works_for_somebody(proc, pid, parents):
            return f"{user} over SSH"
    return _listed(who)


def _sessions(proc: Path) -> list[tuple[int, tuple[str, str]]]:
    found = []
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if match := _SESSION.match(words):
                    found.append((int(folder.name), (match["user"], match["terminal"])))
    return found


def _parents(proc: Path) -> dict[int, list[int]]:
    """Return the children of every process."""
    children: dict[int, list[int]] = {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    return children


def _works_for_somebody(proc: Path, pid: int, children: dict[int, list[int]]) -> bool:
    """Tell whether something runs below a connection, and nothing of it is ours."""
    waiting, commands = list(children.get(pid, ())), list[bytes]()
    while waiting:
        child = waiting.pop()
        waiting += children.get(child, ())
        with contextlib.suppress(OSError):
            commands.append((proc / str(child) / "cmdline").read_bytes())
    return bool(commands) and not any(_OURS.search(command) for command in commands)


def _listed(who: str) -> str:
    program = shutil.which(who)
    if program is None:
        return ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(
            [program], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
        for line in answer.stdout.splitlines():
            if line.strip() and "tmux(" not in line:
                return " at ".join(line.split()[:2])
    return ""
