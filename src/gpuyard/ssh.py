"""SSH to instances: how each is reached, and the host key by which it is known.

A host key is pinned to the instance at the first contact, under an alias of its own: addresses and ports are re-used by
other people's machines.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from gpuyard import paths
from gpuyard.config import SshKey
from gpuyard.errors import (
    UsageError,
)
from gpuyard.files import write_whole
from gpuyard.formats.label import FIRST_NODE
from gpuyard.hosts import host_name
from gpuyard.providers import ssh_options
from gpuyard.providers.base import OWN, Instance, Provider, alias_prefix, sandbox_prefix

_SSH_CONNECT_TIMEOUT_S = 10
# The kernel's limit is 108 bytes, and ssh puts 17 characters more behind the name while it makes the socket.
_MOST_SOCKET_PATH = 86


def key_fingerprint(public_text: str) -> str:
    """Return the fingerprint (``SHA256:…``) of a public key, ``type body comment``."""
    words = public_text.split()
    return (_fingerprint(words[1]) if len(words) > 1 else None) or "a key that cannot be read"


def _fingerprint(body: str) -> str | None:
    try:
        blob = base64.b64decode(body, validate=True)
    except binascii.Error:
        return None
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def ssh_args(
    instance: Instance, key: SshKey, known_hosts: Path | None = None, *, first_contact: bool = False
) -> list[str]:
    """Return the arguments of ``ssh`` that reach the instance; the command to run comes after them.

    ``first_contact`` accepts and pins an unknown host key; without it only the pinned one is accepted.
    """
    return [
        *ssh_options.words(instance, known_hosts or paths.known_hosts(), first_contact=first_contact),
        *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SSH_CONNECT_TIMEOUT_S}", "-o", "LogLevel=ERROR"),
        # A command or terminal request in the user's own ssh configuration (Host *) would break ours.
        *("-o", "RemoteCommand=none", "-o", "RequestTTY=no"),
        *(["-i", identity] if (identity := _identity(instance, key)) else []),
        *("-p", str(instance.ssh_port)),
        f"{instance.ssh_user}@{instance.ssh_host}",
    ]


def ansible_vars(instance: Instance, key: SshKey, known_hosts: Path | None = None) -> dict[str, str | int]:
    """Return the variables with which Ansible reaches the instance; without an address there are none."""
    if not instance.ssh_host:
        return {}
    return {
        "ansible_host": instance.ssh_host,
        "ansible_port": instance.ssh_port,
        "ansible_user": instance.ssh_user,
        "ansible_ssh_private_key_file": _identity(instance, key),
        "ansible_ssh_common_args": shlex.join(
            ssh_options.words(instance, known_hosts or paths.known_hosts(), first_contact=False)
        ),
        # Ansible replaces what begins with %, and so does ssh.
        "ansible_control_path": str(place).replace("%", "%%%%") if (place := _control_path(instance, key)) else "",
        # What the roles write belongs to root, as on every machine.
        **({} if instance.ssh_user == "root" else {"ansible_become": True}),
    }


def _identity(instance: Instance, key: SshKey) -> str:
    """Return the path of the private key for an instance; for an own box ``""`` when its inventory names none."""
    return instance.way.private_key if instance.way else str(key.private_path)


def shared_connection_args(instance: Instance, key: SshKey) -> list[str]:
    """Return ssh's arguments that leave the connection open for a minute to those who come by :func:`ansible_vars`."""
    shared = by_shared_connection(instance, key)
    return (
        [*shared, "-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o", "ServerAliveInterval=30"]
        if shared
        else []
    )


def end_shared_connection(instance: Instance, key: SshKey) -> None:
    """End the shared connection to the instance, which may have restarted since; nothing happens when there is none."""
    place = _control_path(instance, key)
    if place and place.is_socket():
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["ssh", "-O", "exit", "-o", f"ControlPath={ssh_options.quoted(place)}", instance.ssh_host],
                capture_output=True,
                timeout=_SSH_CONNECT_TIMEOUT_S,
            )


def by_shared_connection(instance: Instance, key: SshKey) -> list[str]:
    """Return ssh's arguments that use the shared connection where there is one, and one of its own otherwise."""
    place = _control_path(instance, key)
    return ["-o", f"ControlPath={ssh_options.quoted(place)}"] if place else []


def _control_path(instance: Instance, key: SshKey) -> Path | None:
    """Return the socket of the shared connection to this very instance, beside those of Ansible.

    ``None`` where none can be: the folder cannot be made, or its path is longer than the kernel takes.
    """
    words = (instance.host_key_alias, instance.ssh_host, instance.ssh_port, instance.ssh_user, key.private_path)
    digest = hashlib.sha256("|".join(map(str, words)).encode()).hexdigest()
    folder = _control_folder(str(Path.home()))
    place = f"{folder}/gpuyard-{digest[:16]}"
    return Path(place) if folder and len(place) <= _MOST_SOCKET_PATH else None


@lru_cache(maxsize=8)
def _control_folder(home: str) -> str:
    """Return where Ansible's shared connections are, made once; ``""`` where there can be no such folder."""
    folder = Path(home) / ".ansible" / "cp"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return ""
    return str(folder)


def host_key_fingerprint(instance: Instance, known_hosts: Path | None = None) -> str | None:
    """Return the fingerprint (``SHA256:…``) of the instance's pinned host key, ``None`` when none is pinned."""
    for line in _known_lines(known_hosts or paths.known_hosts()):
        fields = line.split()
        if len(fields) >= 3 and fields[0] == instance.host_key_alias and (found := _fingerprint(fields[2])):
            return found
    return None


def add_ssh_host(instance: Instance, key: SshKey, known_hosts: Path | None = None) -> None:
    """Let ``ssh -F ~/.gpuyard/ssh_config <host>`` reach the instance, with its pinned host key and nothing else.

    The host is called as in the inventory (:mod:`gpuyard.hosts`). ssh, scp, rsync and editors take it; whoever includes
    that file in their own configuration can leave out ``-F``.
    """
    ref = instance.ref
    if ref is None:
        return
    file = known_hosts or paths.known_hosts()
    options = {
        "HostName": instance.ssh_host,
        "Port": str(instance.ssh_port),
        "User": instance.ssh_user,
        **({"IdentityFile": ssh_options.quoted(Path(identity))} if (identity := _identity(instance, key)) else {}),
        **ssh_options.settings(instance, file, first_contact=False),
    }
    with ssh_options.locked(file):
        # One file a run, and in it one entry a node: a machine that replaces a lost one takes over its name.
        entry = _ssh_entries(file) / f"{ref.run}.conf"
        paths.ensure_private(entry.parent)
        lines = [f"  {name} {value}" for name, value in options.items()]
        _write_nodes(entry, {**_nodes_of(entry), ref.node: lines})
        top = file.parent / "ssh_config"
        if not top.exists():
            write_whole(
                top, f"# Written by gpuyard: one file a run.\nInclude {ssh_options.quoted(entry.parent)}/*.conf\n"
            )


def _nodes_of(entry: Path) -> dict[str, list[str]]:
    """Return the lines of a run's file for ssh, by the node that they reach."""
    found: dict[str, list[str]] = {}
    node = ""
    for line in _known_lines(entry):
        if line.startswith("Host "):
            name = line.removeprefix("Host ").strip()
            node = name.removeprefix(f"{entry.stem}.") if name != entry.stem else FIRST_NODE
            found[node] = []
        elif node:
            found[node].append(line)
    return found


def _write_nodes(entry: Path, nodes: Mapping[str, Sequence[str]]) -> None:
    if not nodes:
        entry.unlink(missing_ok=True)
        return
    blocks = [[f"Host {host_name(entry.stem, node, nodes)}", *lines] for node, lines in sorted(nodes.items())]
    write_whole(entry, "".join(line + "\n" for block in blocks for line in block))


def _ssh_entries(known_hosts: Path) -> Path:
    return known_hosts.parent / "ssh"


def forget_host_key(instance: Instance, known_hosts: Path | None = None) -> None:
    """Remove the instance's pinned host key and its entry for ssh; nothing happens when there is none."""
    _forget(lambda alias: alias == instance.host_key_alias, known_hosts or paths.known_hosts())


def forget_run(run: str, clouds: Iterable[Provider], known_hosts: Path | None = None, *, node: str = "") -> None:
    """Remove what is kept for reaching the last machines of ``run``, or of one ``node`` of it.

    For machines that ``clouds`` do not list any more. Only this run's: another account of the same user may hold the
    machines of other runs.
    """
    file = known_hosts or paths.known_hosts()
    prefixes = tuple(alias_prefix(cloud.name, cloud.sandbox) for cloud in clouds)
    kept = _nodes_of(_ssh_entries(file) / f"{run}.conf")
    lines = [line for name, lines in kept.items() if node in ("", name) for line in lines]
    aliases = {alias for alias in _aliases(lines) if alias.startswith(prefixes)}
    if aliases:
        _forget(lambda alias: alias in aliases, file)


def forget_sandbox(name: str, known_hosts: Path | None = None) -> None:
    """Remove what is kept for reaching the machines of a sandbox that is gone."""
    file = known_hosts or paths.known_hosts()
    if file.parent.is_dir():
        _forget(lambda alias: alias.startswith(sandbox_prefix(name)), file)


def _forget(unwanted: Callable[[str], bool], file: Path) -> None:
    """Remove the pinned keys, and the entries for ssh, whose alias is ``unwanted``."""
    with ssh_options.locked(file):
        for entry in _ssh_entries(file).glob("*.conf"):
            nodes = _nodes_of(entry)
            left = {node: lines for node, lines in nodes.items() if not any(map(unwanted, _aliases(lines)))}
            if len(left) != len(nodes):
                _write_nodes(entry, left)
        lines = _known_lines(file)
        # An own box stays the same machine, whatever runs on it, so its key stays pinned.
        kept = [
            line
            for line in lines
            if not (line.split() and unwanted(line.split()[0])) or line.startswith(alias_prefix(OWN, ""))
        ]
        if len(kept) != len(lines):
            write_whole(file, "".join(line + "\n" for line in kept))


def _aliases(lines: Iterable[str]) -> set[str]:
    """Return the aliases that lines of an entry for ssh name."""
    return {words[1] for line in lines if (words := line.split())[:1] == ["HostKeyAlias"]}


def try_once(command: Sequence[str], *, within_s: float = 3 * _SSH_CONNECT_TIMEOUT_S) -> str | None:
    """Run ``command``; return ``None`` for success, else what ssh complained about in one line.

    It has ``within_s`` seconds, and never more than half a minute.
    """
    # Not a pipe: a shared connection that stays open in the background would keep it open, too.
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=min(within_s, 3 * _SSH_CONNECT_TIMEOUT_S),
            )
        except FileNotFoundError:
            raise UsageError("ssh is not installed; install the OpenSSH client.") from None
        except subprocess.TimeoutExpired:
            return "no answer in time"
        if done.returncode == 0:
            return None
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    return " ".join(said.split())[:300] or f"ssh ended with {done.returncode}"


def _known_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _name(instance: Instance) -> str:
    return f"{instance.provider} instance {instance.id}"
