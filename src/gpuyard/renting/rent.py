"""From a ranked list of offers to a machine that answers over SSH, and back to nothing; the same for every cloud.

At most one machine a run: :func:`rent` looks for the run's instances first, tries one offer after another only where
the last one was refused for lack of capacity, and never sends a second create while the first one's fate is unknown.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import fcntl
import hashlib
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from gpuyard import paths
from gpuyard.config import SshKey
from gpuyard.errors import (
    AmbiguousError,
    LeakError,
    NoCapacityError,
    ProviderDownError,
    ProviderError,
    ThrottledError,
    UnreachableError,
    UsageError,
)
from gpuyard.files import write_whole
from gpuyard.market import describe
from gpuyard.providers.base import CreateSpec, Instance, Offer, Progress, Provider, State, alias_prefix, sandbox_prefix
from gpuyard.providers.rental import UNLISTED_S
from gpuyard.providers.values import same_ssh_key
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.pending import Note, PendingNotes

MOST_OFFERS = 8  # tried in one rent; Vast allows one create in 4.5 s
MOST_AT_ONE_CLOUD = 3  # tried there before the other clouds have their turn
_LIVE = (State.PENDING, State.RUNNING, State.UNKNOWN)
_SSH_CONNECT_TIMEOUT_S = 10
_TOLD_EVERY_S = 10.0
KEY_ARRIVES_S = 120.0  # a new machine may refuse for that long the key that it was rented with
KEY_REFUSED_S = 12.0  # one that was there before knows its keys
_KEYS_NAMED = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Clock:
    """Time and the pace of polling, in seconds; tests bring their own."""

    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic
    date: Callable[[], float] = time.time  # seconds since 1970
    first_delay: float = 0.3
    factor: float = 1.5
    longest_delay: float = 3.0

    def delays(self) -> Iterator[float]:
        """Yield the pauses between looks: small at first, capped."""
        delay = self.first_delay
        while True:
            yield delay
            delay = min(self.longest_delay, delay * self.factor)


def rent(
    providers: Sequence[Provider],
    offers: Sequence[Offer],
    spec: CreateSpec,
    *,
    notes: PendingNotes | None = None,
    progress: Progress | None = None,
) -> Instance:
    """Return a new machine for the run, from the first offer that can be had.

    ``offers`` are in order of preference; ``notes`` keep each request until its answer is certain. When the run has a
    machine, :class:`UsageError` says so: one that lives is enough, and the disk of one that was preempted, failed or
    was stopped may hold what no checkpoint has. Raises :class:`NoCapacityError` when all offers are gone, and whatever
    :meth:`Provider.create` raises.
    """
    tell = progress or _silent
    existing = find(providers, spec.ref.run)
    live = [instance for instance in existing if instance.state in _LIVE]
    if len(live) > 1:
        names = ", ".join(_name(instance) for instance in live)
        raise LeakError(
            f"Run {spec.ref.run} has {len(live)} machines, and all of them bill: {names}. "
            f"Destroy those that are too many, or tear the run down.",
            provider=live[0].provider,
        )
    if live:
        raise UsageError(
            f"Run {spec.ref.run} has got {_name(live[0])} from another command meanwhile, and nothing more is rented: "
            "the next launch finds that machine."
        )
    if existing:
        names = ", ".join(f"{_name(instance)} ({instance.state})" for instance in existing)
        raise UsageError(
            f"Run {spec.ref.run} still has {names}, whose disk may hold what no checkpoint has. Resume the run to "
            "replace it, or tear the run down to destroy it."
        )
    return _first_to_be_had(providers, offers, spec, notes or PendingNotes(), tell)


def worth_trying(offers: Sequence[Offer]) -> list[Offer]:
    """Return the offers to try, in order, when each may turn out to be gone.

    They come best first. A cloud that has refused a few is likely to be sold out, whatever it lists, so the other
    clouds' offers come before the rest of its own.
    """
    seen: Counter[str] = Counter()
    first: list[Offer] = []
    later: list[Offer] = []
    for offer in offers:
        seen[offer.provider] += 1
        (first if seen[offer.provider] <= MOST_AT_ONE_CLOUD else later).append(offer)
    return [*first, *later][:MOST_OFFERS]


def _first_to_be_had(
    providers: Sequence[Provider], offers: Sequence[Offer], spec: CreateSpec, notes: PendingNotes, tell: Progress
) -> Instance:
    if not offers:
        raise UsageError("There is no offer to rent.")
    by_name = {provider.name: provider for provider in providers}
    refusals: list[NoCapacityError] = []
    for offer in worth_trying(offers):
        tell(f"Renting {describe(offer)}.")
        provider = by_name[offer.provider]
        try:
            instance = _create(provider, offer, spec, notes, tell)
        except NoCapacityError as refusal:
            tell(f"Not to be had any more: {refusal}")
            refusals.append(refusal)
            continue
        # Ids of a sandbox that is gone may come again, and a pin of theirs would make this machine a stranger.
        with suppress(OSError):
            forget_host_key(instance)
            forget_run(spec.ref.run, providers)
        tell(
            f"Rented {_name(instance)} for run {spec.ref.run}; it bills until `ansible-playbook teardown.yml "
            f"-e run={spec.ref.run}` ends that."
        )
        return instance
    raise NoCapacityError(
        f"None of the {len(refusals)} best offers could be had; the last answer: {refusals[-1]} Nothing was rented.",
        provider=refusals[-1].provider,
    )


def _create(provider: Provider, offer: Offer, spec: CreateSpec, notes: PendingNotes, tell: Progress) -> Instance:
    """Rent ``offer``; whatever ends this program before the answer is certain leaves a note of the request."""
    written: list[Note | None] = []

    def note() -> None:
        written.append(notes.write(spec.ref, provider.name))
        notes.clear(*written[:-1])  # only the last request of several can be unanswered

    try:
        instance = provider.create(
            offer, dataclasses.replace(spec, market=offer.market, before_request=note), progress=tell
        )
    except AmbiguousError:
        raise
    except ProviderError:
        notes.clear(*written)
        raise
    notes.clear(*written)
    return instance


def await_noted(
    providers: Sequence[Provider], run: str, notes: PendingNotes, *, progress: Progress | None = None, clock: Clock
) -> list[Instance]:
    """Wait while a request that another command has sent for ``run``, and not seen answered, may still show a machine.

    Comes back with the run's machines as soon as one lives, and with none when a machine of the last such request can
    no longer be unlisted. Raises the error of a cloud that cannot be asked at that moment.
    """
    tell = progress or _silent
    by_name = {provider.name: provider for provider in providers}
    waiting: list[Note] = []
    for one in notes.read(run):
        if clock.date() - one.sent_at >= UNLISTED_S:
            notes.clear(one)
        elif one.provider not in by_name:
            tell(
                f"A command on {one.controller} has asked {one.provider} for a machine of run {run} and has noted no "
                f"answer. There is no key of {one.provider} here, so a machine there would be overlooked."
            )
        else:
            waiting.append(one)
    if not waiting:
        return []
    # A clock that is ahead makes no wait longer than this.
    left = min(UNLISTED_S, max(one.sent_at for one in waiting) + UNLISTED_S - clock.date())
    end = clock.now() + left
    asked = [by_name[name] for name in sorted({one.provider for one in waiting})]
    tell(
        f"A command on {waiting[-1].controller} has asked {waiting[-1].provider} for a machine of run {run} and has "
        f"noted no answer. Looking for that machine for {left:.0f} s before anything else."
    )
    told = clock.now()
    live: list[Instance] = []
    for delay in clock.delays():
        seen = survey(asked)
        live = [one for one in owned(seen.instances, run) if one.state in _LIVE]
        if live:
            tell(f"That request has rented {_name(live[0])}.")
            break
        if clock.now() >= end:
            seen.complete()
            tell("No such machine has shown up, so that request has rented nothing.")
            break
        if clock.now() - told >= _TOLD_EVERY_S:
            told = clock.now()
            tell(f"Looking for it; {end - clock.now():.0f} s are left.")
        clock.sleep(min(delay, end - clock.now()))
    notes.clear(*waiting)
    return live


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
                f"{_name(instance)} was not ready after {timeout_s:.0f} s; {state}. It is rented and bills."
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
    timeout_s: float = 300.0,
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> str:
    """Connect until a command runs on the machine, pin its host key, and return that key's fingerprint.

    The first key that answers is trusted, filed under the instance's own alias, and the only one accepted from then on.
    Raises :class:`UnreachableError` after ``timeout_s``, and at once when the host answers with another key than the
    pinned one. A machine that refuses our own key is given time to learn it when it is ``new``, rented by this very
    command; of another one that is soon an error, which names the ``account_keys``.
    """
    tell = progress or _silent
    clock = clock or Clock(first_delay=0.2, longest_delay=2.0)
    file = known_hosts or paths.known_hosts()
    paths.ensure_private(file.parent)
    command = ["ssh", *ssh_args(instance, key, file, first_contact=True), "true"]
    start = clock.now()
    last = ""
    known: Sequence[str] = []
    refused_until: float | None = None
    for delay in clock.delays():
        with _locked(file, shared=True):
            complaint = _try_ssh(command)
        elapsed = clock.now() - start
        if complaint is None:
            fingerprint = host_key_fingerprint(instance, file)
            if fingerprint is None:
                raise UnreachableError(f"{_name(instance)} answers over SSH, but its host key is not in {file}.")
            tell(f"{_name(instance)} answers over SSH after {elapsed:.0f} s; host key {fingerprint}.")
            add_ssh_host(instance, key, file)
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
            patience = KEY_ARRIVES_S if new else _key_may_arrive_s(instance, key, known, clock)
            refused_until = clock.now() + patience
        elif clock.now() >= refused_until:
            raise UnreachableError(_refused(instance, key, known, new))
        if elapsed > timeout_s:
            raise UnreachableError(
                f"{_name(instance)} did not answer over SSH at {instance.ssh_host}:{instance.ssh_port} within "
                f"{timeout_s:.0f} s ({last}). It is rented and bills."
            )
        clock.sleep(delay)
    raise AssertionError("the delays never end")


def _account_keys(ask: Callable[[], Sequence[str]]) -> Sequence[str]:
    try:
        return ask()
    except ProviderError:
        return []  # they only make a sentence clearer


def _key_may_arrive_s(instance: Instance, key: SshKey, known: Sequence[str], clock: Clock) -> float:
    """Return how long a machine that was there before this command may still refuse ``key`` and know it in the end."""
    if instance.created_at is None or not any(same_ssh_key(key.public_text, one) for one in known):
        return KEY_REFUSED_S
    # It may have been rented a moment ago, by a command of this controller that was killed.
    return min(KEY_ARRIVES_S, max(KEY_REFUSED_S, instance.created_at + KEY_ARRIVES_S - clock.date()))


def _refused(instance: Instance, key: SshKey, known: Sequence[str], new: bool) -> str:
    ours = f"{key_fingerprint(key.public_text)} ({key.private_path})"
    if new:
        return f"{_name(instance)} still refuses the SSH key with which it was rented, {ours}. It is rented and bills."
    others = [
        f"{key_fingerprint(one)}{f' ({name})' if (name := ' '.join(one.split()[2:])) else ''}"
        for one in known
        if not same_ssh_key(key.public_text, one)
    ]
    more = f" and {len(others) - _KEYS_NAMED} more" if len(others) > _KEYS_NAMED else ""
    account = f" The account also has {', '.join(others[:_KEYS_NAMED])}{more}." if others else ""
    run = instance.ref.run if instance.ref else "…"
    return (
        f"{_name(instance)} does not know the SSH key of this controller, {ours}: another controller has rented it, "
        f"with a key of its own.{account} Name that key's private file with -e ssh_key=PATH, work from that "
        f"controller, or end the run with `ansible-playbook teardown.yml -e run={run}`."
    )


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
        *_ssh_options(instance, known_hosts or paths.known_hosts(), first_contact),
        *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SSH_CONNECT_TIMEOUT_S}", "-o", "LogLevel=ERROR"),
        # A command or terminal request in the user's own ssh configuration (Host *) would break ours.
        *("-o", "RemoteCommand=none", "-o", "RequestTTY=no"),
        *("-i", str(key.private_path), "-p", str(instance.ssh_port)),
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
        "ansible_ssh_private_key_file": str(key.private_path),
        "ansible_ssh_common_args": shlex.join(_ssh_options(instance, known_hosts or paths.known_hosts(), False)),
    }


def host_key_fingerprint(instance: Instance, known_hosts: Path | None = None) -> str | None:
    """Return the fingerprint (``SHA256:…``) of the instance's pinned host key, ``None`` when none is pinned."""
    for line in _known_lines(known_hosts or paths.known_hosts()):
        fields = line.split()
        if len(fields) >= 3 and fields[0] == instance.host_key_alias and (found := _fingerprint(fields[2])):
            return found
    return None


def add_ssh_host(instance: Instance, key: SshKey, known_hosts: Path | None = None) -> None:
    """Let ``ssh -F ~/.gpuyard/ssh_config <run>`` reach the instance, with its pinned host key and nothing else.

    ssh, scp, rsync and editors take it; whoever includes that file in their own configuration can leave out ``-F``.
    """
    if instance.ref is None:
        return
    file = known_hosts or paths.known_hosts()
    # One file a run: a machine that replaces a lost one takes over its name.
    entry = _ssh_entries(file) / f"{instance.ref.run}.conf"
    paths.ensure_private(entry.parent)
    options = {
        "HostName": instance.ssh_host,
        "Port": str(instance.ssh_port),
        "User": instance.ssh_user,
        "IdentityFile": _ssh_path(key.private_path),
        **_ssh_settings(instance, file, first_contact=False),
    }
    lines = [f"Host {instance.ref.run}", *(f"  {name} {value}" for name, value in options.items())]
    write_whole(entry, "\n".join(lines) + "\n")
    top = file.parent / "ssh_config"
    if not top.exists():
        write_whole(top, f"# Written by gpuyard: one file a run.\nInclude {_ssh_path(entry.parent)}/*.conf\n")


def _ssh_entries(known_hosts: Path) -> Path:
    return known_hosts.parent / "ssh"


def forget_host_key(instance: Instance, known_hosts: Path | None = None) -> None:
    """Remove the instance's pinned host key and its entry for ssh; nothing happens when there is none."""
    _forget(lambda alias: alias == instance.host_key_alias, known_hosts or paths.known_hosts())


def forget_run(run: str, clouds: Iterable[Provider], known_hosts: Path | None = None) -> None:
    """Remove what is kept for reaching the last machine of ``run``, where ``clouds`` list no machine of it any more.

    Only this run's: another account of the same user may hold the machines of other runs.
    """
    file = known_hosts or paths.known_hosts()
    prefixes = tuple(alias_prefix(cloud.name, cloud.sandbox) for cloud in clouds)
    aliases = {alias for alias in _aliases(_ssh_entries(file) / f"{run}.conf") if alias.startswith(prefixes)}
    if aliases:
        _forget(lambda alias: alias in aliases, file)


def forget_sandbox(name: str, known_hosts: Path | None = None) -> None:
    """Remove what is kept for reaching the machines of a sandbox that is gone."""
    file = known_hosts or paths.known_hosts()
    if file.parent.is_dir():
        _forget(lambda alias: alias.startswith(sandbox_prefix(name)), file)


def _forget(unwanted: Callable[[str], bool], file: Path) -> None:
    """Remove the pinned keys, and the entries for ssh, whose alias is ``unwanted``."""
    with _locked(file):
        for entry in _ssh_entries(file).glob("*.conf"):
            if any(map(unwanted, _aliases(entry))):
                entry.unlink()
        lines = _known_lines(file)
        kept = [line for line in lines if not (line.split() and unwanted(line.split()[0]))]
        if len(kept) != len(lines):
            write_whole(file, "".join(line + "\n" for line in kept))


def _aliases(entry: Path) -> set[str]:
    """Return the aliases that an entry for ssh names."""
    return {words[1] for line in _known_lines(entry) if (words := line.split())[:1] == ["HostKeyAlias"]}


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What a number of ``clouds`` answered: their instances, and for each that did not answer its error."""

    clouds: int
    instances: list[Instance] = dataclasses.field(default_factory=list)
    errors: dict[str, ProviderError] = dataclasses.field(default_factory=dict)

    def complete(self) -> list[Instance]:
        """Return the instances, or raise the first error, since what cannot be seen may still be there."""
        for error in self.errors.values():
            raise error
        return self.instances

    def answered(self) -> list[Instance]:
        """Return the instances that could be seen; raises the first error only when no cloud answered at all."""
        return self.instances if self.clouds > len(self.errors) else self.complete()

    def unanswered(self) -> dict[str, str]:
        """Return a sentence for each cloud that could not be asked, by its name."""
        return {
            name: f"{name} could not be asked, so what is rented there is not seen, and may bill: {error}"
            for name, error in self.errors.items()
        }


def survey(providers: Sequence[Provider]) -> Survey:
    """Ask all ``providers`` for their instances at the same time."""

    def ask(provider: Provider) -> list[Instance] | ProviderError:
        try:
            return provider.instances()
        except ProviderError as error:
            return error

    found = Survey(len(providers))
    with ThreadPoolExecutor(max_workers=max(1, len(providers))) as pool:
        for provider, answer in zip(providers, pool.map(ask, providers), strict=True):
            if isinstance(answer, ProviderError):
                found.errors[provider.name] = answer
            else:
                found.instances.extend(answer)
    return found


def find(providers: Sequence[Provider], run: str | None = None) -> list[Instance]:
    """Return the instances of ``run`` in all clouds, or of all runs of gpuyard when none is named.

    One cloud that cannot be asked raises its error: without it nobody can say what a run has.
    """
    return owned(survey(providers).complete(), run)


def owned(instances: Iterable[Instance], run: str | None = None) -> list[Instance]:
    """Return those of ``instances`` that belong to ``run``, or to any run when none is named."""
    return [one for one in instances if one.ref is not None and run in (None, one.ref.run)]


def destroy_all(
    providers: Sequence[Provider],
    instances: Iterable[Instance],
    *,
    ledger: Ledger | None = None,
    progress: Progress | None = None,
) -> None:
    """Destroy the instances, all at the same time, forget their host keys, and write their ends into ``ledger``.

    Raises one :class:`LeakError` that names every id which could not be confirmed destroyed, after all were tried.
    """
    by_name = {provider.name: provider for provider in providers}
    wanted = list(instances)
    if not wanted:
        return
    missing = [instance for instance in wanted if instance.provider not in by_name]
    if missing:
        raise UsageError(f"{_name(missing[0])} belongs to a cloud that is not configured here.")

    def destroy(instance: Instance, tell: Progress) -> ProviderError | None:
        try:
            by_name[instance.provider].destroy(instance.id, progress=tell)
        except ProviderError as error:
            return error
        # A line too many in that file does no harm; what became of the other machines must be told.
        with suppress(OSError):
            forget_host_key(instance)
        return None

    # Until a cloud no longer lists a machine it may take a while for which nothing is asked.
    asked_at = ledger.now() if ledger else 0.0
    answers = _at_once(destroy, wanted, progress or _silent)
    for instance, answer in zip(wanted, answers, strict=True):
        if ledger is not None and answer is None:
            ledger.ended(instance, asked_at)
    errors = [error for error in answers if error is not None]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise LeakError(" ".join(str(error) for error in errors), provider=errors[0].provider)


def _at_once(
    work: Callable[[Instance, Progress], ProviderError | None], instances: Sequence[Instance], progress: Progress
) -> list[ProviderError | None]:
    """Apply ``work`` to all instances at the same time, and return what it returned, in their order.

    What it tells is told from this thread. A signal is handled here, too, so it finds no other thread in the middle of
    a line, with the lock of whoever shows it.
    """
    told: SimpleQueue[str] = SimpleQueue()
    with ThreadPoolExecutor(max_workers=min(8, len(instances))) as pool:
        answers = [pool.submit(work, instance, told.put) for instance in instances]
        while not all(answer.done() for answer in answers):
            with suppress(Empty):
                progress(told.get(timeout=0.1))
        while not told.empty():
            progress(told.get())
        return [answer.result() for answer in answers]


def _ssh_settings(instance: Instance, known_hosts: Path, first_contact: bool) -> dict[str, str]:
    checking = "accept-new" if first_contact else "yes"
    return {
        "HostKeyAlias": instance.host_key_alias,
        "UserKnownHostsFile": _ssh_path(known_hosts),
        # Only our own file counts: addresses and ports are re-used by other people's machines.
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": checking,
        "HashKnownHosts": "no",
        "UpdateHostKeys": "no",
        "IdentitiesOnly": "yes",
    }


def _ssh_options(instance: Instance, known_hosts: Path, first_contact: bool) -> list[str]:
    settings = _ssh_settings(instance, known_hosts, first_contact)
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _ssh_path(path: Path) -> str:
    """Return a path as ssh's option syntax wants it: ``%`` doubled, in quotes when it holds a space."""
    escaped = str(path).replace("%", "%%")
    return f'"{escaped}"' if " " in escaped else escaped


def _try_ssh(command: Sequence[str]) -> str | None:
    """Run ``command``; return ``None`` for success, else what ssh complained about in one line."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=3 * _SSH_CONNECT_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise UsageError("ssh is not installed; install the OpenSSH client.") from None
    except subprocess.TimeoutExpired:
        return "no answer in time"
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.split())[:300] or f"ssh ended with {done.returncode}"


def _known_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


@contextmanager
def exclusive(run: str, progress: Progress | None = None) -> Iterator[bool]:
    """Be the only one on this controller who rents for ``run``; yield whether somebody else was at it before.

    A second launch would otherwise see no machine either, and rent another under the same name.
    """
    file = paths.ensure_private(paths.home() / "locks") / f"{run}.lock"
    with file.open("w") as handle:
        waited = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            if progress:
                progress(f"Another command is renting for run {run}; waiting for it.")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield waited


@contextmanager
def _locked(file: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock that goes with ``file``.

    Rewriting it excludes everybody else; ssh, which appends to it, only excludes that: a line appended to the file that
    is just being replaced would be lost.
    """
    paths.ensure_private(file.parent)
    with file.with_name(f"{file.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def _name(instance: Instance) -> str:
    return f"{instance.provider} instance {instance.id}"


def _silent(_: str) -> None:
    """Tell nobody."""
