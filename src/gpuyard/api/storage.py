"""The volume of a node: made once, and given to its machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpuyard.api.resources import LOOK_EVERY_S, Outcome, Placed, Steps, describe
from gpuyard.errors import GpuyardError, ProviderError, UsageError
from gpuyard.providers.base import Instance, Offer, Progress, Provider
from gpuyard.providers.resources import Kind, Resource
from gpuyard.remedies import remedy
from gpuyard.renting import locks, machine, storage


@dataclass(frozen=True, slots=True)
class Stored:
    """The volume of a node, and what was done to have it, or with ``check`` would be."""

    name: str
    outcome: Outcome

    mounted: bool = False  # whether the cloud itself mounts it, when it creates the machine

    def on_box(self) -> dict[str, Any]:
        """Return what the machine has to know of it, by the volume's name: which disk it is, or that it is mounted."""
        device = self.outcome.found[0].detail.get("device") if self.outcome.found else None
        source = "mounted" if self.mounted else device
        return {self.name: {"source": source}} if source else {}


HELD_S = 120.0
"""How long a machine that is gone may hold its volume; at Vast it is half a minute."""


class AtCreation:
    """The volume of a node at clouds whose machines get one only with the request that creates them.

    ``may_go``: whether one of the run's own that the new machine cannot reach is given up, since the bucket has all.
    """

    def __init__(self, want: storage.Wanted, clouds: Sequence[Provider], *, may_go: bool, progress: Progress) -> None:
        self._want, self._may_go, self._progress = want, may_go, progress
        self._clouds = {cloud.name: cloud for cloud in clouds}
        self._made: list[tuple[Placed, Resource]] = []  # by this launch

    def mounts(self, offer: Offer) -> tuple[tuple[str, str], ...]:
        """Return the volume with which the machine of ``offer`` is to be created, by id, and where it lies.

        It is made when it is not there. Raises :class:`gpuyard.errors.NoCapacityError` when the offer's place has none.
        """
        cloud = self._clouds[offer.provider]
        shelf = storage.shelf_of(cloud)
        if shelf is None or not shelf.at_create:
            self.give_back()
            return ()
        steps = Steps(Placed(cloud, shelf), check=False, progress=self._progress)
        with locks.exclusive(f"{cloud.name}.{shelf.kind.value}"):
            there = shelf.all()
            found = self._want.among(there, cloud)
            if found and not shelf.reaches(found, offer):
                self._give_up(steps.placed, found)
                there, found = [one for one in there if one is not found], None
            elif found is None:
                self.give_back()  # what was made at another cloud
            if found is None:
                found = steps.make(shelf.beside(self._want.spec(there), offer))
                self._made.append((steps.placed, found))
                # Another controller may have made one at the same moment: that is said, since both bill.
                self._want.among(shelf.all(), cloud)
            elif not shelf.elastic:
                found = steps.larger(found, self._want.volume.size_gb)
        if found.kind is Kind.VOLUME:
            self._await_free(steps.placed, found)
        return ((found.id, self._want.volume.mount),)

    def _give_up(self, placed: Placed, found: Resource) -> None:
        """End one that the new machine cannot reach, where that is allowed."""
        if found.id not in [one.id for _, one in self._made] and (self._want.keep or not self._may_go):
            raise UsageError(
                f"{describe(found)} cannot be had by the new machine, and may hold what is nowhere else: delete it "
                "with the module volume and state: absent, or wait until its own place has a machine again."
            )
        self._progress(f"Deleting {describe(found)}, which the new machine cannot have.")
        placed.shelf.destroy(found.id, progress=self._progress)
        self._made = [(where, one) for where, one in self._made if one.id != found.id]

    def _await_free(self, placed: Placed, found: Resource) -> None:
        """Wait until a machine that is gone lets the volume go; one that lives raises :class:`UsageError`."""
        end = time.monotonic() + HELD_S
        while found.attached_to:
            _refuse_living(placed.cloud, found)
            if time.monotonic() >= end:
                raise ProviderError(
                    f"{describe(found)} is not free after {HELD_S:g} s; the same command goes on.",
                    provider=placed.cloud.name,
                )
            time.sleep(LOOK_EVERY_S)
            found = next((one for one in placed.shelf.all() if one.id == found.id), found)

    def give_back(self) -> None:
        """End what this launch has made when no machine got it; one that another machine has got meanwhile stays."""
        for placed, made in self._made:
            now = next((one for one in placed.shelf.all() if one.id == made.id), None)
            if now and any(placed.cloud.instance(one) for one in now.attached_to):
                continue
            self._progress(f"Deleting {describe(made)}, since no machine has it.")
            placed.shelf.destroy(made.id, progress=self._progress)
        self._made = []


def have(
    want: storage.Wanted | None,
    instance: Instance | None,
    offers: Sequence[Offer],
    clouds: Sequence[Provider],
    *,
    check: bool,
    progress: Progress,
) -> Stored | None:
    """Have the volume of a node, made when it is not there, and attached to its ``instance``.

    With ``check`` nothing is changed, and ``offers`` say where it would be. Raises an error that names the machine,
    which stays and bills: the same launch goes on with it. A machine that was created with its volume has it already.
    """
    if want is None or (instance is None and not offers):
        return None
    at = instance.provider if instance else offers[0].provider
    cloud = next(cloud for cloud in clouds if cloud.name == at)
    shelf = storage.shelf_of(cloud)
    assert shelf is not None  # the plan has seen to it
    steps = Steps(Placed(cloud, shelf), check, progress)
    if shelf.at_create:
        return _have_at_creation(want, instance, offers, steps)
    try:
        with locks.exclusive(f"{cloud.name}.{shelf.kind.value}"):
            there = shelf.all()
            found = want.among(there, cloud)
            if found is None:
                found = steps.make(want.spec(there, instance.region if instance else offers[0].region))
                # Another controller may have made one at the same moment: that is said, since both bill.
                want.among([] if check else shelf.all(), cloud)
            else:
                steps.start(found)
                found = steps.larger(found, want.volume.size_gb)
        if instance:
            found = steps.attach(_free(steps, found, instance), instance)
        elif check:
            steps.actions.append(f"attach {describe(found)} to it")
    except GpuyardError as error:
        if instance and not check:
            again, end = remedy("launch", run=want.ref.run), remedy("teardown", run=want.ref.run)
            progress(f"{machine.describe(instance)} stays, and bills: `{again}` goes on with it, `{end}` ends it.")
        raise error from None
    return Stored(want.name, steps.outcome(found))


def _have_at_creation(want: storage.Wanted, instance: Instance | None, offers: Sequence[Offer], steps: Steps) -> Stored:
    """Return the volume with which the machine was created, or with ``steps.check`` is to be."""
    cloud, shelf = steps.placed.cloud, steps.placed.shelf
    there = shelf.all()
    found = want.among(there, cloud)
    if instance and (found is None or (found.attached_to and instance.id not in found.attached_to)):
        raise storage.without_volume(want, cloud)
    if found and (instance or shelf.reaches(found, offers[0])):
        steps.start(found)
    else:
        found = steps.make(shelf.beside(want.spec(there), offers[0]))
    if not instance:
        steps.actions.append(f"create it with {describe(found)} at {want.volume.mount}")
    return Stored(want.name, steps.outcome(found), mounted=True)


def _refuse_living(cloud: Provider, found: Resource) -> None:
    """Raise :class:`UsageError` when a machine that lives has the volume."""
    for other in found.attached_to:
        held = cloud.instance(other)
        if held and held.alive:
            whose = f" of run {held.ref.run}" if held.ref else ""
            raise UsageError(
                f"{describe(found)} is attached to machine {other}{whose}, which lives: end that one first."
            )


def _free(steps: Steps, found: Resource, instance: Instance) -> Resource:
    """Take a volume from a machine that is gone; raises :class:`UsageError` when one that lives has it."""
    if instance.id in found.attached_to:
        return found
    _refuse_living(steps.placed.cloud, found)
    if not found.attached_to:
        return found
    steps.do(f"detach {describe(found)}", lambda: steps.placed.shelf.detach(found.id, progress=steps.progress))
    return steps.again(replace(found, attached_to=()))
