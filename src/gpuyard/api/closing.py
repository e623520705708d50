"""What becomes of the machines of a launch that has failed, or that is through.

The decisions about money that ``launch.yml`` follows: which machine goes, which is kept, and what is said of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuyard.api.site import Site
from gpuyard.errors import GpuyardError
from gpuyard.providers.base import Progress
from gpuyard.renting import ending
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.pending import PendingNotes

_STATES = {
    "finished": "has finished",
    "failed": "has failed",
    "waiting": "waits for a machine of another pool",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A launch that has failed after its machine was there.

    ``node`` is the place that the machine takes, ``rented`` whether this launch has rented it, ``shutdown`` whether the
    rental was to end with the run, ``hand_over`` whether the run was to be moved to it from another machine.
    """

    run: str
    task: str
    node: str
    rented: bool = False
    shutdown: bool = False
    hand_over: bool = False


def give_up(site: Site, failure: Failure, *, progress: Progress) -> str:
    """Give back what nobody waits for, and return what failed, what was destroyed, and what is kept and bills.

    A machine that this launch has rented and on which no stage has begun holds nothing that is not elsewhere. It goes
    where nobody stays to see it bill, and where its run has another one that waits. Every other machine is kept.
    """
    what = f'"{failure.task}" failed, as shown above.'
    again = f"`ansible-playbook launch.yml -e run={failure.run}` tries again"
    end = f"`ansible-playbook teardown.yml -e run={failure.run}` ends it"
    if not (failure.rented and (failure.shutdown or failure.hand_over)):
        return f"{what} The machine is kept, and bills: {again}, {end}."
    order = ending.Order(failure.run, node=failure.node, only="not-begun")
    try:
        end_machines(site, order, progress=progress)
    except GpuyardError as error:
        return f"{what} {error}"
    if failure.hand_over:
        return f"{what} The new machine is destroyed: no stage had begun on it."
    return f"{what} The machine is destroyed, as shutdown=true asks for."


def end_machines(site: Site, order: ending.Order, *, progress: Progress) -> ending.Ending:
    """End the machines of ``order``; raises what :func:`gpuyard.renting.ending.end` raises."""
    notebook = Notebook(site.shared_store)
    return ending.end(
        site.clouds(),
        site.store(),
        order,
        ending.OverSsh(site.key()),
        ledger=Ledger(notebook, progress),
        notes=PendingNotes(notebook, progress),
        progress=progress,
    )


def left_alone(run: str, state: str, price_per_hour_usd: float) -> list[str]:
    """Return what to say of a run that nobody follows: what it does, and what its machine costs an hour."""
    # Short enough not to be folded, so that the commands can be copied.
    return [
        f"Run {run} {_STATES.get(state, 'is at work')}. Its log: ansible-playbook logs.yml -e run={run}",
        f"The machine bills {price_per_hour_usd:.4f} USD an hour, also when the run has ended, until:",
        f"ansible-playbook teardown.yml -e run={run}",
    ]
