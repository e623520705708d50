"""What accounts hold beside instances: volumes, snapshots, SSH keys, stored variables. Made once, listed, ended.

A request names no cloud's own words. What a cloud cannot do is refused in one sentence before it is asked, with the
names of the clouds that can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gpuyard import config, records
from gpuyard.api.site import Site
from gpuyard.errors import LeakError, NotFoundError, ProviderError, UnsupportedError, UsageError
from gpuyard.formats.label import TAG, RunRef, check_form
from gpuyard.providers.base import Instance, PlannedCall, Progress, Provider
from gpuyard.providers.resources import Kind, Resource, ResourceSpec, Shelf
from gpuyard.remedies import option
from gpuyard.renting import locks, shelved
from gpuyard.renting.storage import DISKS as DISKS
from gpuyard.renting.storage import does, plain

WORDS = {
    Kind.VOLUME: "volume",
    Kind.FILESYSTEM: "filesystem",
    Kind.SNAPSHOT: "snapshot",
    Kind.SSH_KEY: "SSH key",
    Kind.VARIABLE: "stored variable",
}
"""The kinds in the words of a sentence."""
HIDDEN = "***"
"""Stands for a secret."""
LOOK_EVERY_S = 3.0
_TOLD_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class ResourcesRequest:
    """Which resources are wanted: of these ``kinds``, of ``run``, called ``name``; ``None`` is any.

    ``foreign``: also those that gpuyard did not make. ``partial``: a cloud that does not answer is only named.
    """

    kinds: tuple[Kind, ...]
    run: str | None = None
    name: str | None = None
    foreign: bool = False
    partial: bool = False

    def takes(self, found: Resource) -> bool:
        """Tell whether this resource is wanted."""
        if not (self.foreign or found.ours or found.ref):
            return False
        return matches(found, self.run, self.name)


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources in the order of cloud, kind and name, and a sentence for each cloud that could not be asked."""

    found: list[Resource]
    unanswered: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"resources": [to_dict(one) for one in self.found], "unanswered": dict(self.unanswered)}

    def render(self) -> str:
        """Return it as a table for people."""
        rows = [["cloud", "kind", "id", "name", "run", "region", "GB", "$/month", "attached to", "state"]]
        for one in self.found:
            price = one.price_per_month_usd
            rows.append(
                [
                    one.provider,
                    one.kind.value,
                    one.id,
                    one.name,
                    one.ref.run if one.ref else "-" if one.ours else "not ours",
                    one.region or "-",
                    f"{one.size_gb:g}" if one.size_gb is not None else "-",
                    f"{price:.2f}" if price is not None else "?",
                    ", ".join(one.attached_to) or "-",
                    one.status_text or ("ready" if one.ready else "not ready"),
                ]
            )
        table = records.table(rows) if self.found else ["There is none."]
        return "\n".join([*table, *self.unanswered.values()])


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """One resource, and what is to be so of it.

    ``kinds`` are tried in their order, the first that a cloud knows is taken. It is found by ``id``, by the ``run``
    that it belongs to, which has one of a kind at a cloud, or by its ``name`` in the account. A snapshot is of
    ``source``, an id, or of the machine of ``source_run``. ``attached_to`` is the id of an instance, or a run.
    ``foreign``: whether one may be ended that gpuyard did not make. ``timeout_s``: how long it may take to be ready.
    """

    kinds: tuple[Kind, ...]
    name: str = ""
    id: str | None = None
    run: str | None = None
    workload: str | None = None
    region: str = ""
    size_gb: float | None = None
    source: str = ""
    source_run: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    attached_to: str | None = None
    foreign: bool = False
    timeout_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, or with ``check`` would be, in words and as API calls; the resources before and after."""

    before: list[str]
    after: list[str]
    actions: list[str] = field(default_factory=list)
    planned: list[PlannedCall] = field(default_factory=list)
    found: list[Resource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, done."""
        return bool(self.actions)

    @classmethod
    def together(cls, parts: Sequence[Outcome]) -> Outcome:
        """Return what several outcomes say together."""
        return cls(
            [line for part in parts for line in part.before],
            [line for part in parts for line in part.after],
            [line for part in parts for line in part.actions],
            [call for part in parts for call in part.planned],
            [one for part in parts for one in part.found],
            [line for part in parts for line in part.notes],
        )

    def to_dict(self, *, check: bool = False) -> dict[str, Any]:
        """Return it as the result of a module."""
        result: dict[str, Any] = {
            "changed": self.changed,
            "actions": self.actions,
            "resources": [to_dict(one) for one in self.found],
            "diff": {"before": {"resources": self.before}, "after": {"resources": self.after}},
            "text": "\n".join(self.notes),
        }
        if check:
            result["planned_calls"] = [records.call_to_dict(call) for call in self.planned]
            result["text"] = "\n".join([*records.planned_text(self.actions, self.planned), *self.notes])
        return result


def to_dict(one: Resource) -> dict[str, Any]:
    """Return a resource as plain values; ``run`` and ``workload`` are empty when it belongs to no run."""
    values = asdict(one)
    del values["ref"]
    return values | {
        "kind": one.kind.value,
        "attached_to": list(one.attached_to),
        "detail": dict(one.detail),
        "run": one.ref.run if one.ref else "",
        "workload": one.ref.workload if one.ref else "",
    }


def matches(found: Resource, run: str | None, name: str | None) -> bool:
    """Tell whether a resource is of ``run`` and called ``name``; ``None`` is any."""
    of_run = run is None or (found.ref is not None and found.ref.run == run)
    return of_run and (name is None or plain(found.name) == plain(name))


def own_name(name: str) -> str:
    """Return what a resource of the account is called at its cloud, so that it is known there as gpuyard's."""
    return name if plain(name) != name.lower().replace("_", "-") else f"{TAG}-{name}"


# -- which cloud -----------------------------------------------------------------------------------------------------


def able(kinds: Collection[Kind], verb: str = "") -> str:
    """Return the clouds that know one of ``kinds``, and carry out ``verb`` (``attach``, ``grow``) on it, in words."""
    names = [
        cloud.title
        for cloud in config.known_clouds()
        if any(kind in kinds and (not verb or does(shelf, verb)) for kind, shelf in cloud.shelves().items())
    ]
    return f"{' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))} can" if names else "no cloud can"


def shelves_of(clouds: Sequence[Provider], kinds: Collection[Kind], provider: str | None) -> list[Placed]:
    """Return every shelf of ``kinds`` at ``clouds``, the kinds in their order.

    Raises :class:`UnsupportedError` when there is none, which names the clouds that have one.
    """
    found = [
        Placed(cloud, shelf) for cloud in clouds for kind in kinds if (shelf := cloud.shelves().get(kind)) is not None
    ]
    if found:
        return found
    what = " or ".join(f"{WORDS[kind]}s" for kind in kinds)
    where = clouds[0].title if provider and clouds else "No cloud that has a key here"
    verb = "keeps no" if provider else "keeps"
    raise UnsupportedError(f"{where} {verb} {what} with gpuyard; {able(kinds)}.", provider=provider or "")


@dataclass(frozen=True, slots=True)
class Placed:
    """A shelf, and the cloud that it is at."""

    cloud: Provider
    shelf: Shelf

    def needs(self, verb: str, words: str) -> None:
        """Raise :class:`UnsupportedError` when the shelf does not carry out ``verb``, which ``words`` say."""
        if not does(self.shelf, verb):
            kind = self.shelf.kind
            raise UnsupportedError(
                f"{self.cloud.title} cannot {words}; {able(DISKS if kind in DISKS else (kind,), verb)}.",
                provider=self.cloud.name,
            )

    def instance(self, wanted: str, name: str) -> Instance:
        """Return the one living instance of this cloud that the option ``name`` means, by its id or its run."""
        alive = [one for one in self.cloud.instances() if one.alive]
        of_run = [one for one in alive if one.ref and one.ref.run == wanted]
        named = [one for one in alive if one.id == wanted] or of_run
        if len(named) == 1:
            return named[0]
        where = self.cloud.title
        if named:
            raise UsageError(
                f"{name}={wanted} has {len(named)} machines at {where}: name one by its id, "
                f"{', '.join(one.id for one in named)}."
            )
        raise UsageError(f"{name}={wanted}: {where} has no living machine of that id or run.")


# -- list ------------------------------------------------------------------------------------------------------------


def find(site: Site, request: ResourcesRequest) -> Resources:
    """Return the resources that the clouds of ``site`` list and ``request`` wants. All are asked at the same time.

    Raises :class:`gpuyard.errors.ProviderError` when a cloud does not answer, with ``partial`` when none does.
    """
    placed = shelves_of(site.clouds(), request.kinds, site.provider)
    seen = shelved.take(list({id(one.cloud): one.cloud for one in placed}.values()), kinds=request.kinds)
    errors = {name: error for (name, _kind), error in seen.errors.items()}
    if errors and not (request.partial and len(seen.errors) < len(placed)):
        raise next(iter(errors.values()))
    found = sorted(
        (one for one in seen.resources if request.takes(one)), key=lambda one: (*one.place[:2], one.name, one.id)
    )
    unanswered = {name: f"{name} could not be asked, so what it holds is not seen: {e}" for name, e in errors.items()}
    return Resources(found, unanswered)


# -- make ------------------------------------------------------------------------------------------------------------


def present(site: Site, request: ResourceRequest, *, check: bool = False, progress: Progress) -> Outcome:
    """Make the resource that ``request`` describes, unless it is there; make a volume larger, and attach it.

    At most one comes of it: what is there is found by its name and run, and a lost answer is looked up. With ``check``
    nothing is changed. Raises :class:`UsageError` and :class:`UnsupportedError` before anything is asked.
    """
    placed = _the_one(site, request)
    if request.attached_to:
        placed.needs("attach", "attach a volume to a machine that lives")
    with locks.exclusive(f"{placed.cloud.name}.{placed.shelf.kind.value}"):
        there = placed.shelf.all()
        found = _named(placed, request, there)
        ref = _ref(request, placed) if found is None and request.run else None
        steps = Steps(placed, check, progress, request.timeout_s)
        if found is None:
            spec = ResourceSpec(
                name=request.run or own_name(request.name),
                ref=ref,
                region=request.region,
                size_gb=request.size_gb,
                source=_source(request, placed),
                options=request.options,
                known_ids=frozenset(one.id for one in there),
            )
            found = steps.make(spec)
        else:
            steps.start(found)
            found = steps.fit(found, request)
        if request.attached_to:
            found = steps.attach(found, placed.instance(request.attached_to, "attached_to"))
    return steps.outcome(found)


def attached(site: Site, request: ResourceRequest, *, check: bool = False, progress: Progress) -> Outcome:
    """Give a volume that is there to the living instance that ``request`` names."""
    if not request.attached_to:
        raise UsageError(f"Which machine is it to be attached to? Name its run or id with {option('attached_to')}.")
    placed, found = _there(site, request)
    placed.needs("attach", "attach a volume to a machine that lives")
    steps = Steps(placed, check, progress, request.timeout_s)
    steps.start(found)
    return steps.outcome(steps.attach(found, placed.instance(request.attached_to, "attached_to")))


def detached(site: Site, request: ResourceRequest, *, check: bool = False, progress: Progress) -> Outcome:
    """Take a volume that is there from the instance that has it."""
    placed, found = _there(site, request)
    steps = Steps(placed, check, progress, request.timeout_s)
    steps.start(found)
    if found.attached_to:
        placed.needs("detach", "take a volume from a machine that lives")
        steps.do(f"detach {describe(found)}", lambda: placed.shelf.detach(found.id, progress=progress))
        found = steps.again(replace(found, attached_to=()))
    return steps.outcome(found)


def absent(site: Site, request: ResourceRequest, *, check: bool = False, progress: Progress) -> Outcome:
    """End every resource that ``request`` names, and confirm that it is gone. What is not ours stays.

    A volume that a living machine has is refused: whatever works on it there would lose its files.
    """
    if not (request.id or request.name or request.run):
        raise UsageError(f"Which one? Name it with {option('name')}, {option('id')} or {option('run')}.")
    placed = shelves_of(site.clouds(), request.kinds, site.provider)
    doomed = [(where, one) for where in placed for one in where.shelf.all() if _is(one, request)]
    for where, one in doomed:
        _may_end(where, one, request)
    return end(doomed, check=check, progress=progress)


def end(doomed: Sequence[tuple[Placed, Resource]], *, check: bool, progress: Progress) -> Outcome:
    """Delete resources, each confirmed gone. One that cannot be deleted keeps no other one; its error comes last."""
    words = [describe(one) for _, one in doomed]
    planned = [call for where, one in doomed for call in where.shelf.plan_destroy(one.id)] if check else []
    errors: list[ProviderError] = []
    for where, one in [] if check else doomed:
        progress(f"Deleting {describe(one)}.")
        try:
            where.shelf.destroy(one.id, progress=progress)
        except ProviderError as error:
            errors.append(error)
    if len(errors) > 1:
        raise LeakError(" ".join(map(str, errors)), provider=errors[0].provider)
    if errors:
        raise errors[0]
    return Outcome(words, [], [f"delete {one}" for one in words], planned)


def _may_end(where: Placed, one: Resource, request: ResourceRequest) -> None:
    if one.kind.bills and not (one.ours or one.ref or request.foreign):
        raise UsageError(
            f"{describe(one)} was not made by gpuyard, so it is not deleted: {option('foreign', True)} does it, or "
            f"{where.cloud.console_url}."
        )
    if one.kind in DISKS:
        living = [held for held in one.attached_to if where.cloud.instance(held) is not None]
        if living:
            raise UsageError(
                f"{describe(one)} is attached to machine {', '.join(living)}, which may be writing to it: "
                f"{option('state', 'detached')} takes it away first, or end the machine."
            )


def _the_one(site: Site, request: ResourceRequest) -> Placed:
    """Return where a resource is to be made: at the one cloud that is meant."""
    if not (request.name or request.run):
        raise UsageError(f"What is it called? Name it with {option('name')}.")
    placed = shelves_of(site.clouds(), request.kinds, site.provider)
    names = list(dict.fromkeys(where.cloud.name for where in placed))
    if len(names) > 1:
        what = " or ".join(f"{WORDS[kind]}s" for kind in request.kinds)
        raise UsageError(f"{' and '.join(names)} keep {what}: say which is meant, {option('provider', names[0])}.")
    return placed[0]


def _there(site: Site, request: ResourceRequest) -> tuple[Placed, Resource]:
    """Return the one resource that is meant, and where it is."""
    if not (request.id or request.name or request.run):
        raise UsageError(f"Which one? Name it with {option('name')}, {option('id')} or {option('run')}.")
    placed = shelves_of(site.clouds(), request.kinds, site.provider)
    found = [(where, one) for where in placed for one in where.shelf.all() if _is(one, request)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{len(found)} are meant: {', '.join(describe(one) for _, one in found)}. Name one by its id.")
    raise UsageError(f"There is no {_wanted(request)}; {option('state', 'present')} makes one.")


def _wanted(request: ResourceRequest) -> str:
    words = [WORDS[request.kinds[0]]]
    words += [f"called {request.name}"] if request.name else []
    words += [f"of run {request.run}"] if request.run else []
    words += [f"with id {request.id}"] if request.id else []
    return " ".join(words)


def _is(found: Resource, request: ResourceRequest) -> bool:
    if request.id:
        return found.id == request.id
    return matches(found, request.run, request.name or None)


def _named(placed: Placed, request: ResourceRequest, there: Sequence[Resource]) -> Resource | None:
    """Return what is there already under the name; of a run only its own, for the account only what is no run's."""
    same = [one for one in there if _is(one, request) and (request.run or one.ref is None)]
    if len(same) > 1:
        ids = ", ".join(one.id for one in same)
        bill = " All of them bill." if request.kinds[0].bills else ""
        raise UsageError(
            f"{placed.cloud.title} has {len(same)} where one is meant, {_wanted(request)}: {ids}.{bill} Delete those "
            f"that are too many with {option('state', 'absent')} and {option('id')}."
        )
    return same[0] if same else None


def _source(request: ResourceRequest, placed: Placed) -> str:
    """Return what a snapshot is made of: what is named, or the machine of its run; nothing for anything else."""
    if request.source or placed.shelf.kind is not Kind.SNAPSHOT:
        return request.source
    if request.source_run:
        return placed.instance(request.source_run, "run").id
    raise UsageError(f"What is the snapshot of? Name {option('run')}, {option('instance')} or {option('volume')}.")


def _ref(request: ResourceRequest, placed: Placed) -> RunRef:
    """Return whose the new resource is: the run, with the workload that its machine says or the request."""
    assert request.run is not None
    check_form(request.run)
    if request.workload:
        return RunRef(request.run, request.workload)
    named = {one.ref.workload for one in placed.cloud.instances() if one.ref and one.ref.run == request.run}
    if len(named) == 1:
        return RunRef(request.run, named.pop())
    raise UsageError(
        f"Run {request.run} has no machine at {placed.cloud.title} that says its workload: {option('workload')} does."
    )


@dataclass(slots=True)
class Steps:
    """The steps towards the wanted state, each told, or with ``check`` only noted."""

    placed: Placed
    check: bool
    progress: Progress
    timeout_s: float = 900.0
    before: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    planned: list[PlannedCall] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def start(self, found: Resource) -> None:
        """Note what was there before."""
        self.before = [describe(found)]

    def do(self, words: str, act: Callable[[], object]) -> None:
        """Carry out a step that ``words`` describe."""
        self.actions.append(words)
        if not self.check:
            self.progress(f"{words[0].upper()}{words[1:]}.")
            act()

    def make(self, spec: ResourceSpec) -> Resource:
        """Make a new one, and wait until it can be used."""
        shelf, cloud = self.placed.shelf, self.placed.cloud
        price = shelf.price_per_month_usd(spec)
        costs = f", ${price:.2f} a month" if price else ""
        of = f" of run {spec.ref.run}" if spec.ref else ""
        size = f", {spec.size_gb:g} GB" if spec.size_gb else ""
        words = f"make {shelf.title or WORDS[shelf.kind]} {spec.name}{of} at {cloud.title}{size}{costs}"
        self.actions.append(words)
        if self.check:
            secret = shelf.kind is Kind.VARIABLE
            self.planned += shelf.plan_create(replace(spec, content=HIDDEN) if secret else spec)
            return Resource(
                cloud.name,
                shelf.kind,
                id="",
                name=spec.name,
                ref=spec.ref,
                ours=True,
                region=spec.region,
                size_gb=spec.size_gb,
                price_per_month_usd=price,
            )
        self.progress(f"{words[0].upper()}{words[1:]}.")
        return self._ready(shelf.create(spec, progress=self.progress))

    def fit(self, found: Resource, request: ResourceRequest) -> Resource:
        """Make what is there as ``request`` wants it; raises :class:`UsageError` where it is elsewhere."""
        if request.region and found.region and found.region != request.region:
            raise UsageError(
                f"{describe(found)} is in {found.region}, not in region={request.region}, and cannot move: choose "
                "another name, or delete it first."
            )
        return self.larger(found, request.size_gb)

    def larger(self, found: Resource, wanted: float | None) -> Resource:
        """Make what is there as large as is wanted, and wait until it can be used. It never shrinks."""
        has = found.size_gb
        if has is not None and wanted is not None and wanted > has:
            self.placed.needs("grow", "make a volume larger")
            self.do(
                f"grow {describe(found)} from {has:g} to {wanted:g} GB",
                lambda: self.placed.shelf.grow(found.id, wanted),
            )
            found = self.again(replace(found, size_gb=wanted))
        elif has is not None and wanted is not None and wanted < has:
            self.notes.append(f"{describe(found)} keeps its {has:g} GB: what is there never shrinks.")
        return found if self.check else self._ready(found)

    def attach(self, found: Resource, instance: Instance) -> Resource:
        """Give a volume to an instance, unless it has it."""
        if instance.id in found.attached_to:
            return found
        if found.attached_to and found.kind is Kind.VOLUME:
            raise UsageError(
                f"{describe(found)} is attached to machine {', '.join(found.attached_to)}: "
                f"{option('state', 'detached')} takes it away first."
            )
        if found.region and instance.region and found.region != instance.region:
            raise UsageError(
                f"{describe(found)} is in {found.region}, and machine {instance.id} in {instance.region}: a volume can "
                "only be attached in its own region."
            )
        self.do(
            f"attach {describe(found)} to machine {instance.id}",
            lambda: self.placed.shelf.attach(found.id, instance.id, progress=self.progress),
        )
        return self.again(replace(found, attached_to=(*found.attached_to, instance.id)))

    def again(self, expected: Resource) -> Resource:
        """Return the resource as its cloud has it now; with ``check`` as it would be."""
        if self.check:
            return expected
        found = self.placed.shelf.get(expected.id)
        if found is None:
            raise NotFoundError(f"{describe(expected)} is gone.", provider=self.placed.cloud.name)
        return found

    def _ready(self, found: Resource) -> Resource:
        end, told = time.monotonic() + self.timeout_s, time.monotonic()
        while not found.ready:
            if time.monotonic() >= end:
                bills = ", and it may bill" if found.kind.bills else ""
                raise ProviderError(
                    f"{describe(found)} is not ready after {self.timeout_s:g} s ({found.status_text or 'no state'})"
                    f"{bills}; the same command waits for it once more.",
                    provider=found.provider,
                )
            if time.monotonic() - told >= _TOLD_EVERY_S:
                told = time.monotonic()
                self.progress(f"{describe(found)} is not ready yet ({found.status_text or 'no state'}).")
            time.sleep(LOOK_EVERY_S)
            found = self.again(found)
        return found

    def outcome(self, found: Resource) -> Outcome:
        """Return what was done, with what there is now."""
        return Outcome(self.before, [describe(found)], self.actions, self.planned, [found], self.notes)


def describe(one: Resource) -> str:
    """Return a resource in a few words: kind, name, cloud, id, size, and which machine has it."""
    facts = [one.id] if one.id and one.id != one.name else []
    facts += [f"{one.size_gb:g} GB"] if one.size_gb is not None else []
    facts += [f"at {', '.join(one.attached_to)}"] if one.attached_to and one.kind in DISKS else []
    more = f" ({', '.join(facts)})" if facts else ""
    return f"{one.provider} {WORDS[one.kind]} {one.name or one.id}{more}"
