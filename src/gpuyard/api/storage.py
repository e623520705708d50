"""The volume of a node: made once, and given to its machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpuyard.api.resources import Outcome, Placed, Steps, describe
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.providers.base import Instance, Offer, Progress, Provider
from gpuyard.providers.resources import Resource
from gpuyard.remedies import remedy
from gpuyard.renting import locks, machine, storage


@dataclass(frozen=True, slots=True)
class Stored:
    """The volume of a node, and what was done to have it, or with ``check`` would be."""

    name: str
    outcome: Outcome

    def on_box(self) -> dict[str, Any]:
        """Return by which of its names the machine knows the disk, where the cloud says it; by the volume's name."""
        device = self.outcome.found[0].detail.get("device") if self.outcome.found else None
        return {self.name: {"source": device}} if device else {}


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
    which stays and bills: the same launch goes on with it.
    """
    if want is None or (instance is None and not offers):
        return None
    at = instance.provider if instance else offers[0].provider
    cloud = next(cloud for cloud in clouds if cloud.name == at)
    shelf = storage.shelf_of(cloud)
    assert shelf is not None  # the plan has seen to it
    steps = Steps(Placed(cloud, shelf), check, progress)
    try:
        with locks.exclusive(f"{cloud.name}.{shelf.kind.value}"):
            there = shelf.all()
            found = want.among(there, cloud)
            if found is None:
                found = steps.make(want.spec(instance.region if instance else offers[0].region, there))
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


def _free(steps: Steps, found: Resource, instance: Instance) -> Resource:
    """Take a volume from a machine that is gone; raises :class:`UsageError` when one that lives has it."""
    cloud = steps.placed.cloud
    for other in found.attached_to:
        if other == instance.id:
            return found
        held = cloud.instance(other)
        if held and held.alive:
            whose = f" of run {held.ref.run}" if held.ref else ""
            raise UsageError(
                f"{describe(found)} is attached to machine {other}{whose}, which lives: end that one first."
            )
    if not found.attached_to:
        return found
    steps.do(f"detach {describe(found)}", lambda: steps.placed.shelf.detach(found.id, progress=steps.progress))
    return steps.again(replace(found, attached_to=()))
