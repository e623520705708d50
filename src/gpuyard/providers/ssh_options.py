"""The options with which ssh reaches a machine: whose host key is pinned where, and what the user's inventory says."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpuyard import paths
from gpuyard.providers.base import Instance


def settings(instance: Instance, known_hosts: Path, *, first_contact: bool) -> dict[str, str]:
    """Return the options of ssh for an instance by their names.

    ``first_contact`` accepts and pins an unknown host key; without it only the pinned one is accepted.
    """
    way = instance.way
    options = {
        "HostKeyAlias": instance.host_key_alias,
        "UserKnownHostsFile": quoted(known_hosts),
        # Only our own file counts: addresses and ports are re-used by other people's machines.
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "accept-new" if first_contact else "yes",
        "HashKnownHosts": "no",
        "UpdateHostKeys": "no",
        # For an own box without a key of its own ssh offers what it always offers.
        "IdentitiesOnly": "no" if way and not way.private_key else "yes",
    }
    # Of two values ssh takes the first, so the user's options cannot undo the pinning.
    return options | {name: value for name, value in (way.options if way else ()) if name not in options}


def words(instance: Instance, known_hosts: Path, *, first_contact: bool) -> list[str]:
    """Return the same as words of ssh's command line."""
    found = settings(instance, known_hosts, first_contact=first_contact)
    return [word for name, value in found.items() for word in ("-o", f"{name}={value}")]


def quoted(path: Path) -> str:
    """Return a path as ssh's option syntax wants it: ``%`` doubled, in quotes when it holds a space."""
    escaped = str(path).replace("%", "%%")
    return f'"{escaped}"' if " " in escaped else escaped


@contextmanager
def locked(file: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock that goes with ``file``.

    Rewriting it excludes everybody else; ssh, which appends to it, only excludes that: a line appended to the file that
    is just being replaced would be lost.
    """
    paths.ensure_private(file.parent)
    with file.with_name(f"{file.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
