"""All nodes of a run, rented side by side: each exactly once, and all of them or none.

One lock of this controller, and one claim in the bucket, stand for the whole run. Each node is rented as a run of one
node is (:mod:`machine`); what they share is which offers are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from gpuyard.errors import GpuyardError, LeakError
from gpuyard.formats.label import check_name
from gpuyard.providers.base import Instance, Progress, Provider
from gpuyard.renting import claim, destroy, machine, rent, survey, together
from gpuyard.renting.machine import Order, Outcome


def present(
    providers: Mapping[str, Sequence[Provider]],
    orders: Sequence[Order],
    *,
    check: bool = False,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Make every node of ``orders``, all of one run, have a machine; return what was done, in their order.

    ``providers`` are by node the clouds at which its machine is looked for and rented. When a node cannot be had, the
    machines that this call has rented for others go back, unless the run had one before; the error says so. Raises what
    :func:`gpuyard.renting.machine.present` raises, and :class:`LeakError` when a machine could not be given back.
    """
    tell = progress or (lambda _: None)
    if len(orders) == 1:
        (only,) = orders
        return [machine.present(providers[only.node], only, check=check, progress=progress)]
    run = check_name(orders[0].run)
    if check:
        return [
            machine.present_alone(providers[order.node], order, check=True, progress=_named(order, tell))
            for order in orders
        ]
    claims = orders[0].claims if any(order.planned for order in orders) else None
    with claim.alone(run, claims, progress) as waited:
        for order in orders if waited else ():
            machine.refuse_after_another(providers[order.node], order)
        orders[0].keep()
        shared = rent.Shared()
        everywhere = orders[0].everywhere or providers[orders[0].node]
        had = [one for one in survey.take(everywhere).instances if one.ref and one.ref.run == run and one.alive]
        # Opened once, so that not every node opens the bucket for itself.
        with suppress(GpuyardError):
            orders[0].ledger.bucket.store()

        def one(order: Order, say: Progress) -> Outcome | GpuyardError:
            try:
                return machine.present_alone(
                    providers[order.node], replace(order, shared=shared), progress=_named(order, say)
                )
            except GpuyardError as error:
                shared.fail()
                return error

        answers = together.at_once(one, orders, tell, see_through=False)
        done = [answer for answer in answers if isinstance(answer, Outcome)]
        errors = {
            order.node: answer
            for order, answer in zip(orders, answers, strict=True)
            if isinstance(answer, GpuyardError)
        }
        if not errors:
            return done
        rented = [outcome.instance for outcome in done if outcome.rented and outcome.instance]
        if rented and not had:
            _give_back(everywhere, rented, orders[0], errors, tell)
            for order in orders:
                machine.give_back(order, next(iter(errors.values())))
        raise _why(run, errors, rented, kept=bool(had))


def _named(order: Order, say: Progress) -> Progress:
    """Return a way to tell what concerns one node."""
    return lambda line: say(f"{order.node}: {line}")


def _give_back(
    clouds: Sequence[Provider],
    rented: Sequence[Instance],
    order: Order,
    errors: Mapping[str, GpuyardError],
    tell: Progress,
) -> None:
    tell(f"Not all nodes of run {order.run} can be had, so what was just had for the others goes back.")
    try:
        destroy.destroy_all(clouds, rented, ledger=order.ledger, progress=tell)
    except LeakError as leak:
        first = next(iter(errors.values()))
        raise LeakError(f"{first} {leak}", provider=leak.provider, instance_id=leak.instance_id) from None


def _why(run: str, errors: Mapping[str, GpuyardError], rented: Sequence[Instance], *, kept: bool) -> GpuyardError:
    """Return the first node's own error, a leak before all others, with what became of the other nodes' machines."""
    node, error = min(
        errors.items(), key=lambda item: (not isinstance(item[1], LeakError), item[1].args[0] == rent.GAVE_UP)
    )
    names = "; ".join(map(machine.describe, rented))
    own = all(one.way for one in rented)
    got, bills = ("What was claimed", "") if own else ("What was rented", ", and bills")
    if not rented:
        end = ""
    elif kept:
        end = f" {got} for its other nodes is kept{bills}: {names}."
    else:
        end = f" {got} for its other nodes has gone back, confirmed: {names}."
    error.args = (f"Node {node} of run {run} cannot be had: {error}{end}",)
    return error
