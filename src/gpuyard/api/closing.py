"""What becomes of the machines of a launch that has failed, or that is through.

The decisions about money that ``launch.yml`` follows: which machine goes, which is kept, and what is said of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gpuyard import play_process
from gpuyard.api import end
from gpuyard.api.site import Site
from gpuyard.errors import GpuyardError
from gpuyard.providers.base import Progress
from gpuyard.remedies import remedy
from gpuyard.renting import ending, rent

_STATES = {
    "finished": "has finished",
    "failed": "has failed",
    "waiting": "waits for a machine of another pool",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A launch that has failed after its machine was there.

    ``node`` is the place that the machine takes, ``rented`` whether this launch has rented it, ``shutdown`` whether the
    rental was to end with the run, ``hand_over`` whether the run was to be moved to it from another machine, ``unfit``
    whether the machine itself cannot do the work, so that only another one can, ``own`` whether it is a box of the
    user's own, which costs nothing and is freed. ``layers`` are the profiles and overrides with which it was launched:
    a run that has not begun has not kept them.

    ``disk_full``: whether its disk, of ``disk_gb``, has no room for what was to be installed; ``spent`` is what renting
    it took. ``followed``: whether this command follows the run. ``options`` are the launch's own, with which it can
    begin anew; empty where it cannot by itself.
    """

    run: str
    task: str
    node: str
    rented: bool = False
    shutdown: bool = False
    hand_over: bool = False
    unfit: bool = False
    own: bool = False
    layers: Mapping[str, str] = field(default_factory=dict)
    disk_full: bool = False
    disk_gb: float = 0.0
    price_per_hour_usd: float = 0.0
    spent: rent.Spent = field(default_factory=rent.Spent)
    followed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What failed, what was destroyed, and what is kept and bills, in sentences.

    ``replaced``: whether the run is at work on another machine now.
    """

    text: str
    replaced: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"text": self.text, "replaced": self.replaced, "changed": self.replaced}


def give_up(
    site: Site, failure: Failure, *, play: Callable[..., int] = play_process.run, progress: Progress
) -> GivenUp:
    """Give back what nobody waits for, and return what became of the launch's machine.

    A machine that this launch has rented and on which no stage has begun holds nothing that is not elsewhere. It goes
    where nobody stays to see it bill, where its run has another one that waits, and where it cannot do the work. Every
    other machine is kept. One whose disk is full goes as well, and ``play`` launches the run anew with twice the disk,
    within the limits of the workload.
    """
    what = f'"{failure.task}" failed, as shown above.'
    again = f"`{remedy('launch', run=failure.run, **failure.layers)}` tries again"
    teardown = f"`{remedy('teardown', run=failure.run)}`"
    name, gone = ("box", "free again") if failure.own else ("machine", "destroyed")
    larger = failure.disk_full and not (failure.own or failure.hand_over)
    if not (failure.rented and (failure.shutdown or failure.hand_over or failure.unfit or larger)):
        if failure.own:
            return GivenUp(f"{what} The box stays the run's: {again}, {teardown} frees it.")
        return GivenUp(f"{what} The machine is kept, and bills: {again}, {teardown} ends it.")
    order = ending.Order(failure.run, node=failure.node, only="not-begun")
    try:
        end.end(site, order, progress=progress)
    except GpuyardError as error:
        return GivenUp(f"{what} {error}")
    if failure.hand_over:
        stays = f"The run is still where it was: `{remedy('launch', run=failure.run)}` goes on."
        return GivenUp(f"{what} The new {name} is {gone}: no stage had begun on it. {stays}")
    if larger:
        return _with_larger_disk(failure, what, play, progress)
    if failure.unfit:
        return GivenUp(f"{what} The {name} is {gone}, since it cannot do the work: {again} on another one.")
    return GivenUp(f"{what} The {name} is {gone}, as shutdown=true asks for.")


def _with_larger_disk(failure: Failure, what: str, play: Callable[..., int], progress: Progress) -> GivenUp:
    """Launch the run anew with twice the disk, where that can be done without the user."""
    wanted = failure.disk_gb * rent.LARGER
    gone = f"{what} The machine is destroyed, since its disk of {failure.disk_gb:g} GB is full"
    again = f"`{remedy('launch', run=failure.run, disk_gb=f'{wanted:g}', **failure.layers)}`"
    if not failure.options or failure.options.get("offer"):
        return GivenUp(f"{gone}: {again} tries again on one with twice as much.")
    progress(f"{gone}: launching once more with {wanted:g} GB.")
    seconds = time.time() - failure.spent.rented_at
    spent = rent.Spent(
        failure.spent.attempts,
        failure.spent.usd + failure.price_per_hour_usd * seconds / 3600,
        failure.spent.seconds + seconds,
    )
    # Whoever began the launch follows the run; where nobody does, the new one says what the run does and costs.
    more = {"run": failure.run, "disk_gb": wanted, "gpuyard_spent": asdict(spent)}
    more["gpuyard_hand_over"] = failure.followed
    if play("launch", {**failure.options, **more}, tell=progress):
        return GivenUp(f"{gone}, and launching it with {wanted:g} GB failed too, as shown above; {again} tries again.")
    return GivenUp(f"Run {failure.run} is on a machine with a disk of {wanted:g} GB now.", replaced=True)


def left_alone(
    run: str, states: Sequence[str], machines: int, price_per_hour_usd: float, shutdown: bool = False
) -> list[str]:
    """Return what to say of a run that nobody follows: what it does, and what its machines cost an hour together.

    ``states`` are those of its machines' stages, as far as they are known; with ``shutdown`` they end by themselves.
    """
    known = set(states)
    telling = next((state for state in ("failed", "waiting") if state in known), "")
    if known == {"finished"}:
        telling = "finished"
    who = "The machine bills" if machines == 1 else f"Its {machines} machines bill"
    costs = f"{who} {price_per_hour_usd:.4f} USD an hour, also when the run has ended, until:"
    if not price_per_hour_usd:
        costs = "It has boxes of yours only, which cost nothing and are the run's until:"
    if shutdown:
        costs = (
            f"{who} {price_per_hour_usd:.4f} USD an hour. When its stages have ended and all is in the bucket, "
            f"it ends by itself at Vast and RunPod, elsewhere by {remedy('reap')}. At once it ends by:"
        )
    # Short enough not to be folded, so that the commands can be copied.
    return [
        f"Run {run} {_STATES.get(telling, 'is at work')}. Its log: {remedy('logs', run=run)}",
        costs,
        f"{remedy('teardown', run=run)}",
    ]
