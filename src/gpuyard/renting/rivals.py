"""One machine a node, also when two commands on two controllers rent for it at the same moment.

The lock that keeps two commands apart is one controller's. What two controllers both see is what the clouds list: after
renting, each command asks all of them once more, and of two machines the younger one goes back. Both commands compare
the same two times, so they agree on which that is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from gpuyard.errors import ProviderError, UsageError
from gpuyard.providers.base import Instance, Progress, Provider
from gpuyard.renting import destroy, survey
from gpuyard.renting.ledger import Ledger


def settle(
    clouds: Sequence[Provider],
    mine: Instance,
    known_ids: Collection[str],
    *,
    ledger: Ledger,
    last: bool,
    progress: Progress | None = None,
) -> None:
    """Look for another new machine of the same node at all ``clouds``, and give ``mine`` back when that one is older.

    ``known_ids`` are machines that the run had before. ``last``: there is no later look, so a younger machine that is
    still there is named as one that bills. A cloud that does not answer is told. Raises :class:`UsageError` when
    ``mine`` has gone back, and :class:`gpuyard.errors.LeakError` when that could not be confirmed.
    """
    tell = progress or (lambda _: None)
    assert mine.ref is not None  # it was rented for a run
    run = mine.ref.run
    seen = survey.take(clouds)
    for name, error in seen.errors.items():
        tell(f"{name} does not answer now, so a second machine of run {run} there would be overlooked: {error}")
    held = survey.owned(seen.instances, run, mine.ref.node)
    rivals = [one for one in held if one.place != mine.place and one.id not in known_ids and not one.idle]
    if not rivals:
        # Both commands say so, also the one that has never seen the other machine.
        for other in ledger.given_back(mine, known_ids) if last else ():
            tell(
                f"Run {run} had got {other.provider} {other.id} from another command at the same moment. That one has "
                f"gone back; this command goes on with {_words(mine)}."
            )
        return
    first = min([_as_listed(clouds, mine, held), *rivals], key=_seniority)
    if first.place != mine.place:
        tell(f"Run {run} has got {_words(first)} from another command at the same moment. {_words(mine)} goes back.")
        destroy.destroy_all(clouds, [mine], ledger=ledger, progress=progress)
        raise UsageError(
            f"Run {run} got {_words(first)} from another command at the same moment; {_words(mine)}, rented by this "
            f"one, has gone back. Run the same command again, without provider=, to go on with {_words(first)}."
        )
    for rival in rivals:
        consoles = {cloud.name: cloud.console_url for cloud in clouds}
        tell(
            f"Run {run} still has {_words(rival)} of another command beside {_words(mine)}, and both bill. The other "
            f"command may be giving it back; if it stays, destroy it at {consoles[rival.provider]}."
            if last
            else f"Run {run} has got {_words(rival)} from another command at the same moment. That one is younger and "
            f"goes back; this command goes on with {_words(mine)}."
        )


def _seniority(instance: Instance) -> tuple[float, str, str]:
    """Order machines by their age. One whose age nobody says counts as the youngest."""
    created = math.inf if instance.created_at is None else instance.created_at
    return created, instance.provider, instance.id


def _as_listed(clouds: Sequence[Provider], mine: Instance, held: Sequence[Instance]) -> Instance:
    """Return the machine as its cloud describes it: the answer to a create may not say when it was made."""
    listed = next((one for one in held if one.place == mine.place), None)
    if listed is not None:
        return listed
    try:
        return next(cloud for cloud in clouds if cloud.name == mine.provider).instance(mine.id) or mine
    except ProviderError:
        return mine


def _words(instance: Instance) -> str:
    return f"{instance.provider} {instance.id}"
