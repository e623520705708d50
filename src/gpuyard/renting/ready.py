"""Waiting for a machine: until its provider calls it running, and until it answers over SSH."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gpuyard import paths, ssh
from gpuyard.config import SshKey
from gpuyard.errors import (
    ProviderDownError,
    ProviderError,
    ThrottledError,
    UnreachableError,
    UnsupportedError,
)
from gpuyard.pace import Clock
from gpuyard.providers import ssh_options
from gpuyard.providers.base import Instance, Progress, Provider, State
from gpuyard.providers.rental import UNLISTED_S
from gpuyard.providers.values import same_ssh_key
from gpuyard.remedies import option, remedy

KEY_ARRIVES_S = 120.0  # a new machine may refuse for that long the key that it was rented with
KEY_REFUSED_S = 12.0  # one that was there before knows its keys
_KEYS_NAMED = 4


def wait_ready(
    provider: Provider,
    instance: Instance,
    *,
    timeout_s: float = 900.0,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> Instance:
    """Poll until the provider calls the instance running and says where SSH is.

    States need not advance in order. Only one that can never lead to a running machine ends the wait early, and only
    when it was seen twice in a row, since a provider's first answers about a new instance are not always right. Raises
    :class:`UnreachableError` for that and when ``timeout_s`` is over. The instance is left as it is, and bills.
    """
    tell = progress or _silent
    clock = clock or Clock()
    start = clock.now()
    seen = False
    last = ""
    previous_end = ""
    for delay in clock.delays():
        end = trouble = ""
        elapsed = clock.now() - start
        try:
            now = provider.instance(instance.id)
        except (ProviderDownError, ThrottledError) as error:
            trouble = str(error)
        else:
            seen = seen or now is not None
            if now is not None and now.status_text != last:
                last = now.status_text
                tell(f"{_name(instance)} after {elapsed:.0f} s: {last}.")
            if now is not None and now.state is State.RUNNING and now.ssh_host:
                return now
            end = _end_of(now, gone=seen or elapsed > UNLISTED_S)
        if end and end == previous_end:
            raise UnreachableError(f"{_name(instance)} {end}")
        previous_end = end
        if elapsed > timeout_s:
            state = trouble or f"it last was {last or 'not listed'}"
            raise UnreachableError(
                f"{_name(instance)} was not ready after {timeout_s:.0f} s; {state}.{_bills(instance)}"
            )
        clock.sleep(delay)
    raise AssertionError("the delays never end")


def _end_of(instance: Instance | None, *, gone: bool) -> str:
    """Return in words why the instance will never run, ``""`` when it may. ``gone``: being unlisted means the end."""
    if instance is None:
        return "is gone: its provider no longer lists it." if gone else ""
    if instance.state in (State.FAILED, State.PREEMPTED):
        return f"will not start: it is {instance.state} ({instance.status_text}). It may still bill."
    return ""


def wait_ssh(
    instance: Instance,
    key: SshKey,
    known_hosts: Path | None = None,
    *,
    new: bool = True,
    account_keys: Callable[[], Sequence[str]] = list,
    add_key: Callable[[], None] | None = None,
    timeout_s: float = 300.0,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> str:
    """Connect until a command runs on the machine, pin its host key, and return that key's fingerprint.

    The first key that answers is trusted, filed under the instance's own alias, and the only one accepted from then on.
    Raises :class:`UnreachableError` after ``timeout_s``, and at once when the host answers with another key than the
    pinned one. A machine that refuses our own key is given time to learn it when it is ``new``, rented by this very
    command. Of another one that is soon an error, which names the ``account_keys``; where ``add_key`` can bring the key
    to a machine that lives, it does so first.
    """
    tell = progress or _silent
    clock = clock or Clock(first_delay=0.2, longest_delay=2.0)
    file = known_hosts or paths.known_hosts()
    paths.ensure_private(file.parent)
    # Whoever comes next, by Ansible, needs no connection of their own.
    shared = ssh.shared_connection_args(instance, key)
    command = ["ssh", *shared, *ssh.ssh_args(instance, key, file, first_contact=True), "true"]
    ssh.end_shared_connection(instance, key)
    start = clock.now()
    last = ""
    known: Sequence[str] = []
    refused_until: float | None = None
    for delay in clock.delays():
        with ssh_options.locked(file, shared=True):
            complaint = ssh.try_once(command, within_s=timeout_s)
        elapsed = clock.now() - start
        if complaint is None:
            fingerprint = ssh.host_key_fingerprint(instance, file)
            if fingerprint is None:
                raise UnreachableError(f"{_name(instance)} answers over SSH, but its host key is not in {file}.")
            tell(f"{_name(instance)} answers over SSH after {elapsed:.0f} s; host key {fingerprint}.")
            ssh.add_ssh_host(instance, key, file)
            return fingerprint
        if "IDENTIFICATION HAS CHANGED" in complaint or "Host key verification failed" in complaint:
            raise UnreachableError(
                f"{_name(instance)} answers with another host key than the one pinned in {file}. If it was recycled on "
                f"purpose, remove the line {instance.host_key_alias} there; otherwise somebody else answers."
            )
        if complaint != last:
            last = complaint
            tell(f"{_name(instance)} does not answer yet: {last}")
        if "Permission denied (" not in complaint:
            refused_until = None
        elif refused_until is None:
            known = [] if new else _account_keys(account_keys)
            added = not new and add_key is not None and _added(add_key, instance, tell)
            patience = KEY_ARRIVES_S if new or added else _key_may_arrive_s(instance, key, known, clock)
            refused_until = clock.now() + patience
        elif clock.now() >= refused_until:
            raise UnreachableError(_refused(instance, key, known, new))
        if elapsed > timeout_s:
            raise UnreachableError(
                f"{_name(instance)} did not answer over SSH at {instance.ssh_host}:{instance.ssh_port} within "
                f"{timeout_s:.0f} s ({last}).{_bills(instance)}"
            )
        clock.sleep(delay)
    raise AssertionError("the delays never end")


_BOOT = "cat /proc/sys/kernel/random/boot_id && cut -d' ' -f22 /proc/1/stat"
"""Prints what no two boots of a machine have in common: the kernel's, or of a container its first process's start."""
_BOOT_NOTE = "/tmp/.gpuyard-boot"


def note_boot(instance: Instance, key: SshKey) -> bool:
    """Note on the machine which boot this is; return whether it answers."""
    return ssh.try_once(["ssh", *ssh.ssh_args(instance, key), f"({_BOOT}) >{_BOOT_NOTE}"]) is None


def wait_boot(instance: Instance, key: SshKey, *, timeout_s: float, clock: Clock | None = None) -> None:
    """Wait until the machine has begun anew since :func:`note_boot`; raises :class:`UnreachableError` after a time."""
    clock = clock or Clock()
    ssh.end_shared_connection(instance, key)
    # A note that is gone went with what was in memory.
    command = ["ssh", *ssh.ssh_args(instance, key), f"! ({_BOOT}) | cmp -s - {_BOOT_NOTE}"]
    start = clock.now()
    for delay in clock.delays():
        if ssh.try_once(command) is None:
            return
        if clock.now() - start > timeout_s:
            raise UnreachableError(f"{_name(instance)} has not rebooted within {timeout_s:.0f} s.{_bills(instance)}")
        clock.sleep(delay)


def _account_keys(ask: Callable[[], Sequence[str]]) -> Sequence[str]:
    try:
        return ask()
    except ProviderError:
        return []  # they only make a sentence clearer


def _added(add_key: Callable[[], None], instance: Instance, tell: Progress) -> bool:
    """Let the key be added to a machine that another controller has rented; return whether it is."""
    try:
        add_key()
    except UnsupportedError:
        return False
    except ProviderError as error:
        tell(f"{_name(instance)} was not given the SSH key of this controller: {error}")
        return False
    tell(f"{_name(instance)} was rented by another controller, and is given the SSH key of this one, too.")
    return True


def _key_may_arrive_s(instance: Instance, key: SshKey, known: Sequence[str], clock: Clock) -> float:
    """Return how long a machine that was there before this command may still refuse ``key`` and know it in the end."""
    if instance.created_at is None or not any(same_ssh_key(key.public_text, one) for one in known):
        return KEY_REFUSED_S
    # It may have been rented a moment ago, by a command of this controller that was killed.
    return min(KEY_ARRIVES_S, max(KEY_REFUSED_S, instance.created_at + KEY_ARRIVES_S - clock.date()))


def _refused(instance: Instance, key: SshKey, known: Sequence[str], new: bool) -> str:
    ours = f"{ssh.key_fingerprint(key.public_text)} ({key.private_path})"
    if new:
        return f"{_name(instance)} still refuses the SSH key with which it was rented, {ours}.{_bills(instance)}"
    others = [
        f"{ssh.key_fingerprint(one)}{f' ({name})' if (name := ' '.join(one.split()[2:])) else ''}"
        for one in known
        if not same_ssh_key(key.public_text, one)
    ]
    more = f" and {len(others) - _KEYS_NAMED} more" if len(others) > _KEYS_NAMED else ""
    account = f" The account also has {', '.join(others[:_KEYS_NAMED])}{more}." if others else ""
    run = instance.ref.run if instance.ref else "…"
    return (
        f"{_name(instance)} does not know the SSH key of this controller, {ours}: another controller has rented it, "
        f"with a key of its own.{account} Name that key's private file with {option('ssh_key', 'PATH')}, work from "
        f"that controller, or end the run with `{remedy('teardown', run=run)}`."
    )


def _bills(instance: Instance) -> str:
    return "" if instance.way else " It is rented and bills."


def _name(instance: Instance) -> str:
    return f"{instance.provider} instance {instance.id}"


def _silent(_: str) -> None:
    """Tell nobody."""
