"""The market: which offers fit, in which order they are taken, and why the others lost.

A provider may hand in more than was asked for; here every condition is applied again, because servers do not always
honour filters, and counted, because "nothing fits" is only useful with the condition that did it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gpuyard import gpus
from gpuyard.errors import GpuyardError, NoOfferError, UsageError
from gpuyard.providers.base import OWN, Offer, Progress, Provider, Query


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an offer does not fit: the condition as the user would write it, and what the offer has instead."""

    condition: str  # "gpu_ram_gb >= 24"
    seen: str  # "16"
    nearness: float | None = None  # more is nearer to fitting; None: the values have no order

    def __str__(self) -> str:
        return f"{self.condition}, has {self.seen}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the query says of one offer."""

    offer: Offer
    reasons: tuple[Reason, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether no condition speaks against the offer."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Removal:
    """What one condition did to the market."""

    condition: str
    removed: int
    total: int
    best_seen: str  # the nearest to the condition among the removed; "" where there is no nearer or farther

    def __str__(self) -> str:
        if self.condition == "failed_hosts":
            return f"{self.condition} removed {self.removed} of {self.total}: {self.best_seen}"
        best = f" (best seen {self.best_seen})" if self.best_seen else ""
        return f"{self.condition} removed {self.removed} of {self.total}{best}"


@dataclass(frozen=True, slots=True)
class Collected:
    """The offers of all clouds that answered, and what went wrong with the others (by provider)."""

    offers: list[Offer]
    problems: dict[str, GpuyardError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Condition:
    """One condition of a query."""

    words: str
    holds: Callable[[Offer], bool]
    shows: Callable[[Offer], str]
    nearness: Callable[[Offer], float] | None = None

    def reason(self, offer: Offer) -> Reason:
        return Reason(self.words, self.shows(offer), self.nearness(offer) if self.nearness else None)


def check_conditions(conditions: Mapping[str, Any]) -> None:
    """Refuse a number that no machine can be held against; ``conditions`` are by the names of the options."""
    for name in _POSITIVE:
        value = conditions.get(name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name}={value:g} must be a number above 0.")
    share = conditions.get("reliability")
    if share is not None and not 0 <= share <= 1:
        raise UsageError(f"reliability={share:g} must be a number from 0 to 1.")


def collect(providers: Sequence[Provider], query: Query, *, progress: Progress | None = None) -> Collected:
    """Ask all clouds at the same time.

    One that fails is a problem to report as long as another answers; when none does, its error is raised. A wish for
    what is no GPU model is refused here, where it is known which models there are.
    """
    if not providers:
        return Collected([])
    offers: list[Offer] = []
    problems: dict[str, GpuyardError] = {}
    with ThreadPoolExecutor(max_workers=len(providers)) as pool:
        asked = [(provider, pool.submit(provider.offers, query)) for provider in providers]
        for provider, future in asked:
            try:
                found = future.result()
            except GpuyardError as error:
                problems[provider.name] = error
                if progress:
                    progress(f"{provider.title} cannot be asked: {error}")
                continue
            offers += found
            if progress:
                progress(f"{provider.title}: {len(found)} offers.")
    if len(problems) == len(providers):
        raise next(iter(problems.values()))
    check_gpu_names(query.gpu_names, offers)
    return Collected(offers, problems)


def check_gpu_names(wanted: Iterable[str], offers: Sequence[Offer]) -> None:
    """Refuse what is only a piece of a GPU's name (``RTX``), and say which names there are."""
    for name in wanted:
        if gpus.names_a_model(name) or any(gpus.matches(name, offer.gpu_name) for offer in offers):
            continue
        known = sorted({offer.gpu_name for offer in offers if offer.gpu_name})
        raise UsageError(
            f"gpu_name={name!r} is no GPU model; write a whole name"
            + (f", one of those that are offered now: {', '.join(known)}." if known else ", such as RTX_4090.")
        )


def judge(
    offers: Iterable[Offer],
    query: Query,
    *,
    avoid_machines: Collection[str] = (),
    failed_hosts: Mapping[tuple[str, str], str] | None = None,
) -> list[Verdict]:
    """Hold every offer against every condition.

    A condition on something that a provider does not publish (reliability, CUDA) lets the offer pass.
    ``avoid_machines`` are physical hosts (``Offer.machine_id``) that are not to be rented again, ``failed_hosts`` those
    that have failed before, by provider and host, with the words for when and why.
    """
    conditions = _conditions(query, frozenset(avoid_machines))
    if failed_hosts:
        conditions.append(_not_failed(failed_hosts))
    return [
        Verdict(offer, tuple(condition.reason(offer) for condition in conditions if not condition.holds(offer)))
        for offer in offers
    ]


def rank(verdicts: Iterable[Verdict]) -> list[Offer]:
    """Return the fitting offers, best first: cheapest with its disk, then most reliable, then most GPU memory.

    Those with a later turn come after all others, whatever they cost.
    """
    return sorted((verdict.offer for verdict in verdicts if verdict.fits), key=_rank_key)


def choose(offers: Iterable[Offer], query: Query, *, avoid_machines: Collection[str] = ()) -> list[Offer]:
    """Return the fitting offers, best first; raise :class:`NoOfferError`, with reasons, when there is none."""
    verdicts = judge(offers, query, avoid_machines=avoid_machines)
    ranked = rank(verdicts)
    if not ranked:
        raise no_offer(verdicts)
    return ranked


def removals(verdicts: Sequence[Verdict]) -> list[Removal]:
    """Return what each condition removed, in the order in which the conditions are asked; harmless ones are left out.

    An offer that several conditions speak against counts for each of them.
    """
    by_condition: dict[str, list[Reason]] = {}
    for verdict in verdicts:
        for reason in verdict.reasons:
            by_condition.setdefault(reason.condition, []).append(reason)
    found = [
        Removal(condition, len(removed), len(verdicts), _best_seen(removed))
        for condition, removed in by_condition.items()
    ]
    return sorted(found, key=lambda removal: _ORDER.index(removal.condition.split()[0]))


def explain(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the choice in words: the winner and why, the runner-up, and what every condition removed.

    Raises :class:`NoOfferError` when nothing fits.
    """
    ranked = rank(verdicts)
    if not ranked:
        raise no_offer(verdicts)
    winner = ranked[0]
    if len(ranked) == 1:
        why = f"the only one of {_offers(len(verdicts))} that fits"
    elif any(other.price_per_hour_usd < winner.price_per_hour_usd for other in ranked[1:]):
        why = f"the first of {len(ranked)} that fit, in the order in which the clouds are taken"
    elif ranked[1].price_per_hour_usd > winner.price_per_hour_usd:
        why = f"the cheapest of {len(ranked)} that fit"
    else:
        price = ", at the lowest price" if winner.price_per_hour_usd else ""
        why = f"the best of {len(ranked)} that fit{price}"
    lines = [f"Taking {describe(winner)}: {why}."]
    if len(ranked) > 1:
        second = ranked[1]
        lines.append(f"Next would be {describe(second)}{_compared(second, winner)}.")
    return lines + [f"{removal}." for removal in removals(verdicts)]


def _compared(second: Offer, winner: Offer) -> str:
    """Return how much dearer the second offer is; nothing where the first one costs nothing."""
    if not winner.price_per_hour_usd:
        return ""
    dearer = second.price_per_hour_usd / winner.price_per_hour_usd - 1
    return f" ({dearer:+.0%})" if abs(dearer) >= 0.005 else " (at the same price)"


def no_offer(verdicts: Sequence[Verdict]) -> NoOfferError:
    """Return the error for a market in which nothing fits: what removed how many, and the nearest miss."""
    if not verdicts:
        return NoOfferError("No offer fits: the clouds have nothing for rent at all right now. Nothing was rented.")
    seen = ", ".join(sorted({verdict.offer.provider for verdict in verdicts}))
    details = "; ".join(str(removal) for removal in removals(verdicts))
    nearest = min(verdicts, key=lambda verdict: (len(verdict.reasons), _rank_key(verdict.offer)))
    misses = "; ".join(str(reason) for reason in nearest.reasons)
    return NoOfferError(
        f"No offer fits. Of {_offers(len(verdicts))} seen ({seen}), {details}. "
        f"Nearest miss: {describe(nearest.offer)}: {misses}. Nothing was rented."
    )


def describe(offer: Offer) -> str:
    """Return an offer in one line: where, what, and the price with the disk."""
    name = f"{offer.gpu_name or 'GPU'} {offer.gpu_ram_gb:g} GB"
    bid = " interruptible" if offer.market == "interruptible" else ""
    emulated = " (emulated)" if offer.emulated else ""
    price = "costs nothing" if offer.provider == OWN else f"${offer.price_per_hour_usd:.4f}/h"
    return (
        f"{offer.provider} {offer.id}{emulated}: {count_of(offer.gpu_count)} x {name}, {offer.cpu_cores:g} cores, "
        f"{offer.ram_gb:g} GB RAM, {offer.region or 'region not said'}, {price}{bid}"
    )


def why_behind(winner: Offer, other: Offer) -> str:
    """Return in a few words why ``other``, which fits as well, comes behind ``winner`` in :func:`rank`."""
    dearer = other.price_per_hour_usd - winner.price_per_hour_usd
    if other.turn > winner.turn and dearer < 0:
        return f"${-dearer:.4f} an hour cheaper, and later in the order in which the clouds are taken"
    if round(dearer, 4) > 0:
        share = f", {dearer / winner.price_per_hour_usd:+.0%}" if winner.price_per_hour_usd else ""
        return f"${dearer:.4f} an hour dearer{share}"
    if (other.reliability or 0.0) < (winner.reliability or 0.0):
        known = "not said" if other.reliability is None else f"{other.reliability:.3f}"
        return f"the same price, and less reliable ({known} against {winner.reliability:.3f})"
    if other.gpu_ram_gb * max(1.0, other.gpu_count) < winner.gpu_ram_gb * max(1.0, winner.gpu_count):
        return "the same price, and less GPU memory"
    return "the same in all that counts; the order of the names decides"


def count_of(gpu_count: float) -> str:
    """Return a number of GPUs as people write it: ``2``, or ``1/8`` for a slice."""
    if 0 < gpu_count < 1:
        return f"1/{round(1 / gpu_count)}"
    return f"{gpu_count:g}"


_POSITIVE = ("gpu_count", "gpu_ram_gb", "cpu_cores", "ram_gb", "disk_gb", "max_price_per_hour")

# The first word of every condition, in the order in which people think of them.
_ORDER = (
    "market",
    "gpu_names",
    "gpu_count",
    "gpu_ram_gb",
    "cpu_cores",
    "ram_gb",
    "disk_gb",
    "cuda",
    "reliability",
    "regions",
    "max_price_per_hour",
    "avoid_machines",
    "failed_hosts",
)


def _conditions(query: Query, avoid: frozenset[str]) -> list[_Condition]:
    found = []
    if query.market != "any":
        found.append(
            _Condition(
                f"market = {query.market}",
                # Nobody takes an own box away, and nothing is cheaper.
                lambda offer: offer.market == query.market or offer.provider == OWN,
                lambda offer: offer.market,
            )
        )
    if query.gpu_names:
        found.append(
            _Condition(
                f"gpu_names = {' or '.join(query.gpu_names)}",
                lambda offer: gpus.matches_any(query.gpu_names, offer.gpu_name),
                lambda offer: offer.gpu_name or "not said",
            )
        )
    # A machine with a slice of a GPU sees one GPU. How large the slice is shows in its memory.
    least: list[tuple[str, float | None, Callable[[Offer], float | None]]] = [
        ("gpu_count", query.gpu_count, _gpus_seen),
        ("gpu_ram_gb", query.gpu_ram_gb, lambda offer: offer.gpu_ram_gb),
        ("cpu_cores", query.cpu_cores, lambda offer: offer.cpu_cores),
        ("ram_gb", query.ram_gb, lambda offer: offer.ram_gb),
        ("disk_gb", query.disk_gb, lambda offer: offer.disk_gb),
        ("reliability", query.reliability, lambda offer: offer.reliability),
    ]
    found += [_at_least(name, wanted, value) for name, wanted, value in least if wanted is not None]
    if query.cuda is not None:
        found.append(_cuda(query.cuda))
    if query.regions:
        found.append(
            _Condition(
                f"regions = {' or '.join(query.regions)}",
                lambda offer: any(in_region(region, offer.region) for region in query.regions),
                lambda offer: offer.region or "not said",
            )
        )
    if query.max_price_per_hour_usd is not None:
        limit = query.max_price_per_hour_usd
        found.append(
            _Condition(
                f"max_price_per_hour <= {limit:g}",
                lambda offer: offer.price_per_hour_usd <= limit + 1e-9,
                lambda offer: f"{offer.price_per_hour_usd:.4g}",
                lambda offer: -offer.price_per_hour_usd,
            )
        )
    if avoid:
        found.append(
            _Condition(
                "avoid_machines",
                lambda offer: not offer.machine_id or offer.machine_id not in avoid,
                lambda offer: f"machine {offer.machine_id}",
            )
        )
    return found


def _not_failed(failed: Mapping[tuple[str, str], str]) -> _Condition:
    def holds(offer: Offer) -> bool:
        return (offer.provider, offer.machine_id) not in failed

    def shows(offer: Offer) -> str:
        return f"host {offer.machine_id} failed us {failed[offer.provider, offer.machine_id]}"

    return _Condition("failed_hosts", holds, shows)


def _gpus_seen(offer: Offer) -> float:
    """Return how many GPUs the machine sees: one of a slice, none on an own box that has none."""
    return 0.0 if offer.provider == OWN and not offer.gpu_count else max(1.0, offer.gpu_count)


def _at_least(name: str, wanted: float, value: Callable[[Offer], float | None]) -> _Condition:
    def shows(offer: Offer) -> str:
        seen = value(offer)
        return "not said" if seen is None else f"{seen:g}"

    def nearness(offer: Offer) -> float:
        return value(offer) or 0.0

    def holds(offer: Offer) -> bool:
        seen = value(offer)
        return seen is None or seen >= wanted

    return _Condition(f"{name} >= {wanted:g}", holds, shows, nearness)


def _cuda(wanted: str) -> _Condition:
    def shows(offer: Offer) -> str:
        return offer.cuda or "not said"

    def holds(offer: Offer) -> bool:
        return offer.cuda is None or version_of(offer.cuda) >= version_of(wanted)

    def nearness(offer: Offer) -> float:
        major, minor = (*version_of(offer.cuda or "0"), 0, 0)[:2]
        return major * 1000 + minor

    return _Condition(f"cuda >= {wanted}", holds, shows, nearness)


def _best_seen(removed: Sequence[Reason]) -> str:
    """Return the nearest value among those removed; where values have no order, the first few of them."""
    ordered = [(reason.nearness, reason.seen) for reason in removed if reason.nearness is not None]
    if ordered:
        return max(ordered)[1]
    distinct = sorted({reason.seen for reason in removed})
    return ", ".join(distinct[:4]) + (", …" if len(distinct) > 4 else "")


def version_of(version: str) -> tuple[int, ...]:
    """Return a version such as ``12.4`` in a form that can be compared."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def in_region(wanted: str, offered: str) -> bool:
    """Say whether ``offered`` is the region ``wanted``: an id (``ewr``), a place, or the country of ``City, CC``."""
    want, have = wanted.strip().lower(), offered.strip().lower()
    return want == have or want in (part.strip() for part in have.split(","))


def _rank_key(offer: Offer) -> tuple[float, float, float, float, str, str]:
    # Prices are compared to a hundredth of a cent: what differs by less is a rounding of the same price.
    return (
        offer.turn,
        round(offer.price_per_hour_usd, 4),
        -(offer.reliability if offer.reliability is not None else 0.0),
        -offer.gpu_ram_gb * max(1.0, offer.gpu_count),
        offer.provider,
        offer.id,
    )


def _offers(count: int) -> str:
    return f"{count} offer{'' if count == 1 else 's'}"
