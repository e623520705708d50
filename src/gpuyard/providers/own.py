"""Boxes that the user owns, behind the same interface as a cloud.

An offer is a box of the user's inventory that no run has claimed, at the price of 0. "Create" claims it, "destroy"
takes the claim back and leaves the box as it is (:mod:`gpuyard.box.own`). Nothing here can switch a box off.

The claim is on the box itself, so every controller sees it. What this controller has seen last is also kept below
``~/.gpuyard/own``: a box that is switched off is still its run's.
"""

from __future__ import annotations

import getpass
import json
import secrets
import shlex
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from gpuyard import gpus, paths
from gpuyard.box import own as box
from gpuyard.errors import (
    AmbiguousError,
    LeakError,
    NoCapacityError,
    ProviderDownError,
    UsageError,
)
from gpuyard.files import write_whole
from gpuyard.formats.label import RunRef
from gpuyard.providers import ssh_options
from gpuyard.providers.base import (
    OWN,
    CreateSpec,
    Instance,
    Market,
    Offer,
    PlannedCall,
    Progress,
    Provider,
    Query,
    State,
    Way,
)
from gpuyard.providers.credentials import Credential
from gpuyard.providers.http import Patience
from gpuyard.providers.rental import Waits, create_once

ROOT = "/opt/gpuyard"
OWN_FILE = Path("inventories/own.yml")
_CONNECT_S = 5
_ANSWER_S = 20.0  # a box that trains with all its processors takes its time, and so does nvidia-smi
_RELEASE_S = 60.0
_FACTS = ("gpu_count", "gpu_ram_gb", "cpu_cores", "ram_gb", "disk_gb")
_TEXTS = ("gpu_name", "region")
# What ssh says where nothing can have been done on the box.
_NEVER_REACHED = (
    *("ssh: connect to host", "ssh: Could not resolve hostname", "Permission denied (", "Host key verification failed"),
    *("Connection closed by", "kex_exchange_identification", "IDENTIFICATION HAS CHANGED"),
)


@dataclass(frozen=True, eq=False, slots=True)
class Box:
    """A host of the user's inventory. ``facts`` are those of its variables that say what the box is."""

    name: str
    host: str
    port: int
    user: str
    way: Way
    facts: Mapping[str, Any] = field(default_factory=dict)


class _SilentError(Exception):
    """A box does not answer. ``untouched``: nothing was done there."""

    def __init__(self, reason: str, *, untouched: bool) -> None:
        super().__init__(reason)
        self.untouched = untouched


def read_inventory(file: Path) -> list[Box]:
    """Return the hosts of an inventory in Ansible's YAML form, by name; none where the file is missing.

    A variable that stands at the groups above a host counts for it, the nearer one first. Raises :class:`UsageError`.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(getattr(error, "problem", None) or getattr(error, "strerror", None) or "it is not text")
        raise UsageError(f"{file}, the inventory of your own boxes, cannot be read: {reason}.") from None
    found: dict[str, dict[str, Any]] = {}
    _collect(file, content or {}, {}, found)
    return [_box(file, name, variables) for name, variables in sorted(found.items())]


def _collect(file: Path, groups: Any, above: Mapping[str, Any], found: dict[str, dict[str, Any]]) -> None:
    for name, group in _mapping(file, groups, "its groups").items():
        body = _mapping(file, group, f"group {name}")
        variables = {**above, **_mapping(file, body.get("vars"), f"vars of group {name}")}
        for host, own in _mapping(file, body.get("hosts"), f"hosts of group {name}").items():
            found[str(host)] = {**found.get(str(host), {}), **variables, **_mapping(file, own, f"host {host}")}
        _collect(file, body.get("children"), variables, found)


def _mapping(file: Path, value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{file}: {what} must be a mapping (name: …), not {value!r}.")
    return value


def _box(file: Path, name: str, variables: Mapping[str, Any]) -> Box:
    where = f"{file}: host {name}"
    facts: dict[str, Any] = {key: str(variables[key]) for key in _TEXTS if key in variables}
    for key in _FACTS:
        if key in variables:
            facts[key] = _number(where, key, variables[key])
    key_file = str(variables.get("ansible_ssh_private_key_file") or "")
    if key_file:
        key_file = str(Path(key_file).expanduser().absolute())
        if not Path(key_file).is_file():
            raise UsageError(f"{where}: ansible_ssh_private_key_file={key_file} does not exist.")
    options = _ssh_options(where, str(variables.get("ansible_ssh_common_args") or ""))
    host = str(variables.get("ansible_host") or name)
    port, user = variables.get("ansible_port"), variables.get("ansible_user")
    if not (port and user):
        usual = _usual(host)
        port, user = port or usual.get("port") or 22, user or usual.get("user") or getpass.getuser()
    return Box(
        name,
        host,
        int(_number(where, "ansible_port", port)),
        str(user),
        Way(name, key_file, options),
        facts,
    )


@cache
def _usual(host: str) -> dict[str, str]:
    """Return what the user's own ssh configuration says of a host; nothing is connected to."""
    try:
        said = subprocess.run(["ssh", "-G", "--", host], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        return {}
    return dict(line.split(" ", 1) for line in said.stdout.splitlines() if " " in line)


def _number(where: str, key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(f"{where}: {key}={value!r} must be a number, 0 or more.")
    return number


def _ssh_options(where: str, text: str) -> tuple[tuple[str, str], ...]:
    """Return the options of ssh in ``ansible_ssh_common_args`` by name: ``-o Name=value`` and ``-J jump``."""
    found = []
    try:
        words = shlex.split(text)
    except ValueError:
        words = [text]
    while words:
        word = words.pop(0)
        if word in ("-o", "-J") and words:
            word += words.pop(0)
        name, _, value = word[2:].partition("=") if word[:2] == "-o" else ("ProxyJump", "", word[2:])
        if word[:2] not in ("-o", "-J") or not (name.isalnum() and value):
            raise UsageError(
                f"{where}: ansible_ssh_common_args holds {word!r}; it can hold -o Name=value and -J jump-host only."
            )
        found.append((name, value))
    return tuple(found)


@dataclass(frozen=True)
class OwnBoxes(Credential):
    """The inventory of the user's own boxes, which are entered with the keys that it names."""

    variable: ClassVar[str] = "GPUYARD_OWN_BOXES"
    file: ClassVar[str] = str(OWN_FILE)

    @classmethod
    def kept(cls, env: Mapping[str, str]) -> str:
        file = OWN_FILE.absolute()
        return str(file) if read_inventory(file) else ""


class Own(Provider):
    """The user's own boxes behind the neutral interface; their inventory file takes the place of a key."""

    name: ClassVar[str] = OWN
    title: ClassVar[str] = "Own boxes"
    console_url: ClassVar[str] = "the box itself"
    preinstalled: ClassVar[str] = "what is there"
    remark: ClassVar[str] = "costs nothing, and stays on"

    def __init__(
        self,
        inventory: str,
        *,
        sandbox: str = "",
        patience: Patience | None = None,
        waits: Waits | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.inventory = Path(inventory)
        # Whoever waits for all clouds together must not take one silent box for a silent cloud.
        self._limit_s = min(patience.read_timeout - 2.0, _ANSWER_S) if patience else _ANSWER_S
        self._waits = waits or Waits()
        self._boxes = {one.name: one for one in read_inventory(self.inventory)}

    def __repr__(self) -> str:
        return f"Own({str(self.inventory)!r})"

    # -- offers ---------------------------------------------------------------------------------------------------

    def offers(self, query: Query) -> list[Offer]:
        """Return the boxes that answer and that no run has claimed. What the inventory does not say, the box is asked.

        They are looked at in the same round trip that asks for their claim, so nothing of it is kept.
        """
        answers = self._ask_all("facts")
        return [
            self._offer(one, answer.get("facts") or {})
            for one, answer in answers.items()
            if isinstance(answer, dict) and not answer.get("claim")
        ]

    def _offer(self, one: Box, seen: Mapping[str, Any]) -> Offer:
        facts = {**seen, **one.facts}  # what the inventory says wins
        return Offer(
            provider=self.name,
            id=one.name,
            region=str(facts.get("region") or ""),
            gpu_name=gpus.normalise(str(facts.get("gpu_name") or "")),
            market="on-demand",
            price_per_hour_usd=0.0,
            machine_id=one.name,
            emulated=bool(self.sandbox),
            gpu_count=float(facts.get("gpu_count") or 0.0),
            gpu_ram_gb=float(facts.get("gpu_ram_gb") or 0.0),
            cpu_cores=float(facts.get("cpu_cores") or 0.0),
            ram_gb=float(facts.get("ram_gb") or 0.0),
            disk_gb=float(facts.get("disk_gb") or 0.0),
        )

    # -- create ---------------------------------------------------------------------------------------------------

    def create(self, offer: Offer, spec: CreateSpec, *, progress: Progress | None = None) -> Instance:
        """Claim the box of ``offer``; see :func:`gpuyard.providers.rental.create_once`.

        Its SSH keys stay as they are: the way in is the user's own.
        """
        self.refuse_mounts(spec)
        one = self._box(offer.id)
        wanted = {
            "version": 1,
            "id": f"{one.name}-{secrets.token_hex(3)}",
            "label": spec.ref.label,
            "claimed_at": round(time.time(), 3),
            "market": offer.market,
            "region": offer.region,
            "gpu_name": offer.gpu_name,
            **{name: getattr(offer, name) for name in ("gpu_count", "gpu_ram_gb")},
        }

        def send() -> Instance:
            try:
                claim = self._ask(one, "claim", json.dumps(wanted))["claim"]
            except _SilentError as error:
                kind = NoCapacityError if error.untouched else AmbiguousError
                raise kind(self._words(one, error), provider=self.name) from None
            if claim.get("id") != wanted["id"]:
                raise NoCapacityError(f"Own box {one.name} has just been claimed by another run.", provider=self.name)
            return self._instance(one, claim, State.RUNNING, "claimed")

        return create_once(self, spec, send, waits=self._waits, progress=progress)

    def plan_create(self, offer: Offer, spec: CreateSpec) -> list[PlannedCall]:
        """Return the one file that :meth:`create` would write."""
        self.refuse_mounts(spec)
        one = self._box(offer.id)
        return [PlannedCall("CLAIM", f"ssh://{one.host}:{one.port}{ROOT}/{box.CLAIM}", {"label": spec.ref.label})]

    # -- instances ------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """Return the boxes that runs have claimed, asked at the same time.

        One that does not answer is :attr:`State.UNKNOWN`, with the run whose claim this controller saw there last, if
        any.
        """
        found = []
        for one, answer in self._ask_all("look").items():
            if isinstance(answer, _SilentError):
                found.append(self._silent(one, answer))
            elif answer.get("claim"):
                found.append(self._instance(one, answer["claim"], State.RUNNING, "claimed"))
        return found

    def instance(self, instance_id: str) -> Instance | None:
        """Return a claim by its id, ``None`` when its box says that it has no such claim, or is not listed any more."""
        one = self._boxes.get(instance_id.rpartition("-")[0])
        if one is None:
            return None
        try:
            claim = self._ask(one, "look")["claim"]
        except _SilentError as error:
            raise ProviderDownError(self._words(one, error), provider=self.name) from None
        return self._instance(one, claim, State.RUNNING, "claimed") if claim.get("id") == instance_id else None

    def _silent(self, one: Box, error: _SilentError) -> Instance:
        return self._instance(one, self._seen(one), State.UNKNOWN, f"does not answer: {error}")

    def _instance(self, one: Box, claim: Mapping[str, Any], state: State, status_text: str) -> Instance:
        market: Market = "interruptible" if claim.get("market") == "interruptible" else "on-demand"
        created = claim.get("claimed_at")
        return Instance(
            provider=self.name,
            id=str(claim.get("id") or one.name),
            label=str(claim.get("label") or ""),
            ref=RunRef.from_label(str(claim.get("label") or "")),
            state=state,
            status_text=status_text,
            region=str(claim.get("region") or ""),
            gpu_name=str(claim.get("gpu_name") or ""),
            gpu_count=float(claim.get("gpu_count") or 0.0),
            gpu_ram_gb=float(claim.get("gpu_ram_gb") or 0.0),
            market=market,
            price_per_hour_usd=0.0,
            ssh_host=one.host,
            ssh_port=one.port,
            ssh_user=one.user,
            created_at=float(created) if isinstance(created, int | float) else None,
            machine_id=one.name,
            emulated=bool(self.sandbox),
            sandbox=self.sandbox,
            way=one.way,
        )

    # -- actions --------------------------------------------------------------------------------------------------

    def destroy(self, instance_id: str, *, progress: Progress | None = None) -> None:
        """End the run on its box and take the claim back; the box itself stays as it is, and on.

        Comes back when the box says that the claim is gone.
        """
        one = self._boxes.get(instance_id.rpartition("-")[0])
        if one is None:
            return
        try:
            left = self._ask(one, "release", instance_id, within_s=_RELEASE_S)["claim"]
        except _SilentError as error:
            raise self._leak(one, instance_id, str(error)) from None
        if left.get("id") == instance_id:
            raise self._leak(one, instance_id, "the claim is still there")
        if progress:
            progress(f"Own box {one.name} is free again: the run's settings, secrets and code are gone, the box stays.")

    def plan_destroy(self, instance_id: str) -> list[PlannedCall]:
        """Return the one file that :meth:`destroy` would remove last."""
        one = self._box(instance_id.rpartition("-")[0])
        return [PlannedCall("RELEASE", f"ssh://{one.host}:{one.port}{ROOT}/{box.CLAIM}")]

    def credit_usd(self) -> float | None:
        """Return ``None``: there is nothing to pay."""
        return None

    def _leak(self, one: Box, instance_id: str, reason: str) -> LeakError:
        return LeakError(
            f"Own box {one.name} could not be confirmed free ({reason}). It costs nothing. Run the teardown again when "
            f"it answers; a box that is gone for good is given up by removing it from {self.inventory}.",
            provider=self.name,
            instance_id=instance_id,
        )

    # -- asking ---------------------------------------------------------------------------------------------------

    def _box(self, name: str) -> Box:
        if name not in self._boxes:
            raise NoCapacityError(f"There is no host {name} in {self.inventory} any more.", provider=self.name)
        return self._boxes[name]

    def _words(self, one: Box, error: Exception) -> str:
        return f"Own box {one.name} does not answer: {error}."

    def _ask_all(self, action: str) -> dict[Box, Any]:
        """Return by box what it answers, or the :class:`_SilentError` of one that does not."""

        def ask(one: Box) -> Any:
            try:
                return self._ask(one, action)
            except _SilentError as error:
                return error

        boxes = list(self._boxes.values())
        with ThreadPoolExecutor(max_workers=max(1, len(boxes))) as pool:
            return dict(zip(boxes, pool.map(ask, boxes), strict=True))

    def _ask(self, one: Box, *words: str, within_s: float | None = None) -> dict[str, Any]:
        """Run :mod:`gpuyard.box.own` on a box and return its answer; raises :class:`_SilentError`."""
        limit_s = within_s or self._limit_s
        source = Path(box.__file__).read_text(encoding="utf-8")
        command = shlex.join([*([] if one.user == "root" else ["sudo", "-n"]), "python3", "-c", source, ROOT, *words])
        known_hosts = paths.known_hosts()
        target = self._instance(one, {}, State.UNKNOWN, "")
        line = [
            *("ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_S}", "-o", "LogLevel=ERROR"),
            *("-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "RemoteCommand=none", "-o", "RequestTTY=no"),
            *ssh_options.words(target, known_hosts, first_contact=True),
            *(["-i", one.way.private_key] if one.way.private_key else []),
            *("-p", str(one.port), f"{one.user}@{one.host}", command),
        ]
        try:
            with ssh_options.locked(known_hosts, shared=True):
                done = subprocess.run(
                    line, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit_s
                )
        except subprocess.TimeoutExpired:
            raise _SilentError(f"no answer within {limit_s:g} s", untouched=words[0] in ("look", "facts")) from None
        except FileNotFoundError:
            raise UsageError("ssh is not installed; install the OpenSSH client.") from None
        for text in reversed(done.stdout.splitlines()):  # a login shell may print a banner before it
            if done.returncode == 0 and text.startswith('{"claim"'):
                answer: dict[str, Any] = json.loads(text)
                self._note(one, answer["claim"])
                return answer
        said = " ".join(done.stderr.split())
        untouched = any(sign in said for sign in _NEVER_REACHED)
        if "python3" in said and "not found" in said:
            said, untouched = "it has no python3, which every own box needs", True
        elif said.startswith("sudo:"):
            said, untouched = f"user {one.user} may not use sudo without a password there ({said})", True
        raise _SilentError(said[:300].rstrip(".") or f"ssh ended with {done.returncode}", untouched=untouched)

    def _note(self, one: Box, claim: Mapping[str, Any]) -> None:
        """Keep the claim that a box has, for when it does not answer."""
        file = self._notes(one)
        if claim:
            paths.ensure_private(file.parent)
            write_whole(file, json.dumps(claim))
        else:
            file.unlink(missing_ok=True)

    def _seen(self, one: Box) -> Mapping[str, Any]:
        try:
            found = json.loads(self._notes(one).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _notes(self, one: Box) -> Path:
        alias = self._instance(one, {}, State.UNKNOWN, "").host_key_alias
        return paths.home() / "own" / f"{alias.replace('/', '_')}.json"
