"""The market: which offers fit, in which order they are taken, and why the others lost.

A provider may hand in more than was asked for; here every condition is applied again, because servers do not always
honour filters, and counted, because "nothing fits" is only useful with the condition that did it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from gpuyard import geography, gpus
from gpuyard.errors import GpuyardError, NoOfferError, UsageError
from gpuyard.providers.base import OWN, Offer, Progress, Provider, Query
from gpuyard.ranking import Ranking, all_in, is_region


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an offer does not fit: the condition as the user would write it, and what the offer has instead."""

    condition: str  # "gpu_ram_gb >= 24"
    seen: str  # "16"

    def __str__(self) -> str:
        return f"{self.condition}, has {self.seen}"


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """One condition of a query: what it asks, of which value of an offer, and which values will do.

    Values are hashable: a market of tens of thousands of offers has few different ones, and each is judged once.
    """

    words: str
    value: Callable[[Offer], Any]
    takes: Callable[[Any], bool]
    shows: Callable[[Any], str]
    nearness: Callable[[Any], float] | None = None

    def misses(self, offers: Sequence[Offer]) -> list[int]:
        """Return the places of the offers that do not hold it."""
        values = list(map(self.value, offers))
        bad = {value for value in set(values) if not self.takes(value)}
        return [place for place, value in enumerate(values) if value in bad] if bad else []

    def reason(self, offer: Offer) -> Reason:
        """Return why ``offer`` does not hold it."""
        return Reason(self.words, self.shows(self.value(offer)))


class Verdict(NamedTuple):
    """What the query says of one offer: the conditions ``against`` it, and which of the query's choices it is.

    Of an offer that fits no choice, the conditions are those of the choice that it is nearest to.
    """

    offer: Offer
    against: tuple[Condition, ...] = ()
    choice: int = 0

    @property
    def fits(self) -> bool:
        """Whether no condition speaks against the offer."""
        return not self.against

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it does not fit."""
        return tuple(condition.reason(self.offer) for condition in self.against)


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


def check_conditions(conditions: Mapping[str, Any]) -> None:
    """Refuse a number that no machine can be held against; ``conditions`` are by the names of the options."""
    for name in _POSITIVE:
        value = conditions.get(name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name}={value:g} must be a number above 0.")
    least, most = conditions.get("gpu_ram_gb"), conditions.get("most_gpu_ram_gb")
    if least is not None and most is not None and least > most:
        raise UsageError(f"gpu_ram_gb={least:g} is above most_gpu_ram_gb={most:g}, so nothing can fit.")
    for name in ("cuda", "driver", "compute_capability"):
        version = conditions.get(name)
        if version is not None and not _VERSION.fullmatch(str(version)):
            raise UsageError(f"{name}={version!r} must be a version such as 12.4.")
    for country in conditions.get("countries") or ():
        if not re.fullmatch(r"[A-Za-z]{2}", str(country).strip()):
            raise UsageError(f"countries={country!r} must be a country of two letters, such as SE.")
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
    offers: Sequence[Offer],
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
    further = [_not_failed(failed_hosts)] if failed_hosts else []
    chosen = [0] * len(offers)
    nearest: list[tuple[Condition, ...]] = []
    for number, choice in enumerate(query.choices):
        against = _against(offers, [*_conditions(choice, frozenset(avoid_machines)), *further])
        if not number:
            nearest = against
            continue
        for place, conditions in enumerate(against):
            # Of two that an offer misses by as much, the later one is the less that was asked for.
            if nearest[place] and len(conditions) <= len(nearest[place]):
                nearest[place], chosen[place] = conditions, number
    return list(map(Verdict, offers, nearest, chosen))


def _against(offers: Sequence[Offer], conditions: Sequence[Condition]) -> list[tuple[Condition, ...]]:
    """Return of each offer the conditions that it does not hold."""
    # As one number for each, so that what many offers have in common is made once.
    missed = [0] * len(offers)
    for bit, condition in enumerate(conditions):
        for place in condition.misses(offers):
            missed[place] |= 1 << bit
    by_number = {
        number: tuple(condition for bit, condition in enumerate(conditions) if number >> bit & 1)
        for number in set(missed)
    }
    return [by_number[number] for number in missed]


def rank(verdicts: Iterable[Verdict], query: Query | None = None) -> list[Offer]:
    """Return the fitting offers, best first.

    An offer of an earlier choice of ``query`` comes first, and among those of one choice what ``query.rank`` asks for:
    by default the cheapest with its disk and traffic, then the most reliable, then the one with most GPU memory.
    """
    seen = list(verdicts)
    fitting = [verdict for verdict in seen if not verdict.against]
    key = Ranking(query or Query(), (verdict.offer for verdict in seen)).key
    by_choice: dict[int, list[Offer]] = {}
    for verdict in fitting:
        by_choice.setdefault(verdict.choice, []).append(verdict.offer)
    return [offer for _, offers in sorted(by_choice.items()) for offer in sorted(offers, key=key)]


def choose(offers: Sequence[Offer], query: Query, *, avoid_machines: Collection[str] = ()) -> list[Offer]:
    """Return the fitting offers, best first; raise :class:`NoOfferError`, with reasons, when there is none."""
    verdicts = judge(offers, query, avoid_machines=avoid_machines)
    ranked = rank(verdicts, query)
    if not ranked:
        raise no_offer(verdicts)
    return ranked


def removals(verdicts: Sequence[Verdict]) -> list[Removal]:
    """Return what each condition removed, in the order in which the conditions are asked; harmless ones are left out.

    An offer that several conditions speak against counts for each of them.
    """
    by_condition: dict[str, tuple[Condition, list[Offer]]] = {}
    for verdict in verdicts:
        for condition in verdict.against:
            by_condition.setdefault(condition.words, (condition, []))[1].append(verdict.offer)
    found = [
        Removal(words, len(removed), len(verdicts), _best_seen(condition, removed))
        for words, (condition, removed) in by_condition.items()
    ]
    return sorted(found, key=lambda removal: _ORDER.index(removal.condition.split()[0]))


def explain(
    verdicts: Sequence[Verdict], query: Query | None = None, ranked: Sequence[Offer] | None = None
) -> list[str]:
    """Return the choice in words: the winner and why, the runner-up, and what every condition removed.

    ``ranked`` is what :func:`rank` returns for both, where the caller has it. Raises :class:`NoOfferError` when nothing
    fits.
    """
    ranked = rank(verdicts, query) if ranked is None else ranked
    if not ranked:
        raise no_offer(verdicts)
    asked = query or Query()
    winner, count = ranked[0], len(ranked)
    if count == 1:
        why = f"the only one of {_offers(len(verdicts))} that fits"
    elif asked.rank != "price":
        why = f"the best of {count} that fit, {_RANKED_BY[asked.rank]}"
    elif any(all_in(other, asked) < all_in(winner, asked) for other in ranked[1:]):
        why = f"the first of {count} that fit, in the order in which the clouds are taken"
    elif all_in(ranked[1], asked) > all_in(winner, asked):
        why = f"the cheapest of {count} that fit"
    else:
        price = ", at the lowest price" if winner.price_per_hour_usd else ""
        why = f"the best of {count} that fit{price}"
    if asked.alternatives:
        number = next(verdict.choice for verdict in verdicts if verdict.offer is winner)
        why += f"; it is the first choice of {len(asked.choices)}" if not number else f"; it is alternative {number}"
    lines = [f"Taking {describe(winner)}: {why}."]
    if count > 1:
        second = ranked[1]
        lines.append(f"Next would be {describe(second)}{_compared(second, winner, asked)}.")
    beside = []
    if winner.volume_price_per_hour_usd:
        beside.append(f"its volume, ${winner.volume_price_per_hour_usd:.4f} an hour,")
    if asked.traffic_gb_per_hour and winner.traffic_price_per_gb_usd:
        beside.append(f"the workload's traffic, {asked.traffic_gb_per_hour:.3g} GB an hour,")
    if beside:
        whole = f"${all_in(winner, asked):.4f} an hour"
        lines.append(f"With {' and '.join(beside)} that is {whole}; offers are compared by this price.")
    return lines + [f"{removal}." for removal in removals(verdicts)]


_RANKED_BY = {
    "value": "by the price of what its GPUs do",
    "distance": "by the distance to the bucket",
    "regions": "by the order of the regions",
}


def runners_up(ranked: Sequence[Offer], query: Query, verdicts: Sequence[Verdict] = (), *, most: int = 3) -> list[str]:
    """Return why each of the ``most`` offers behind the first of ``ranked`` lost; ``verdicts`` tell their choices."""
    if len(ranked) < 2:
        return []
    ranking = Ranking(query, [verdict.offer for verdict in verdicts] or ranked)
    winner, *others = ranked[: most + 1]
    told = {id(offer) for offer in (winner, *others)}
    choices = {id(verdict.offer): verdict.choice for verdict in verdicts if id(verdict.offer) in told}
    lines = []
    for place, other in enumerate(others, start=2):
        choice = choices.get(id(other), 0)
        why = ranking.why_behind(winner, other)
        if choice > choices.get(id(winner), 0):
            why = f"it is alternative {choice} only"
        lines.append(f"{place}. {other.provider} {other.id}, {other.market}, lost: {why}.")
    return lines


def _compared(second: Offer, winner: Offer, query: Query) -> str:
    """Return how much dearer the second offer is; nothing where the first one costs nothing."""
    least = all_in(winner, query)
    if not least:
        return ""
    dearer = all_in(second, query) / least - 1
    return f" ({dearer:+.0%})" if abs(dearer) >= 0.005 else " (at the same price)"


def no_offer(verdicts: Sequence[Verdict]) -> NoOfferError:
    """Return the error for a market in which nothing fits: what removed how many, and the nearest miss."""
    if not verdicts:
        return NoOfferError("No offer fits: the clouds have nothing for rent at all right now. Nothing was rented.")
    seen = ", ".join(sorted({verdict.offer.provider for verdict in verdicts}))
    details = "; ".join(str(removal) for removal in removals(verdicts))
    ranking = Ranking(Query(), [])
    nearest = min(verdicts, key=lambda verdict: (len(verdict.against), ranking.key(verdict.offer)))
    misses = "; ".join(str(reason) for reason in nearest.reasons)
    return NoOfferError(
        f"No offer fits. Of {_offers(len(verdicts))} seen ({seen}), {details}. "
        f"Nearest miss: {describe(nearest.offer)}: {misses}. Nothing was rented."
    )


def describe(offer: Offer) -> str:
    """Return an offer in one line: where, what, and the price with the disk."""
    name = f"{offer.gpu_name or 'GPU'} {offer.gpu_ram_gb:g} GB"
    bid = " interruptible" if offer.market == "interruptible" else ""
    if offer.least_bid_usd is not None:
        bid += f", bid ${offer.bid_usd:.4f} of at least ${offer.least_bid_usd:.4f}"
    emulated = " (emulated)" if offer.emulated else ""
    price = "costs nothing" if offer.provider == OWN else f"${offer.price_per_hour_usd:.4f}/h"
    return (
        f"{offer.provider} {offer.id}{emulated}: {count_of(offer.gpu_count)} x {name}, {offer.cpu_cores:g} cores, "
        f"{offer.ram_gb:g} GB RAM, {offer.region or 'region not said'}, {price}{bid}"
    )


def count_of(gpu_count: float) -> str:
    """Return a number of GPUs as people write it: ``2``, or ``1/8`` for a slice."""
    if 0 < gpu_count < 1:
        return f"1/{round(1 / gpu_count)}"
    return f"{gpu_count:g}"


_VERSION = re.compile(r"\d+(\.\d+){0,3}")
_POSITIVE = (
    *("gpu_count", "gpu_ram_gb", "most_gpu_ram_gb", "cpu_cores", "ram_gb", "disk_gb", "internet_mbit_s"),
    "max_price_per_hour",
)

# The first word of every condition, in the order in which people think of them.
_ORDER = (
    "market",
    "gpu_names",
    "gpu_count",
    "gpu_ram_gb",
    "compute_capability",
    "cpu_cores",
    "ram_gb",
    "disk_gb",
    "cuda",
    "driver",
    "reliability",
    "internet_mbit_s",
    "static_ip",
    "data_center",
    "regions",
    "countries",
    "max_price_per_hour",
    "bid",
    "avoid_machines",
    "failed_hosts",
)


def _conditions(query: Query, avoid: frozenset[str]) -> list[Condition]:
    found = []
    if query.market != "any":
        found.append(
            Condition(
                f"market = {query.market}",
                attrgetter("market", "provider"),
                # Nobody takes an own box away, and nothing is cheaper.
                lambda said: said[0] == query.market or said[1] == OWN,
                lambda said: str(said[0]),
            )
        )
    if query.gpu_names:
        found.append(
            Condition(
                f"gpu_names = {' or '.join(query.gpu_names)}",
                attrgetter("gpu_name"),
                lambda name: gpus.matches_any(query.gpu_names, name),
                lambda name: name or "not said",
            )
        )
    # A machine with a slice of a GPU sees one GPU. How large the slice is shows in its memory.
    least: list[tuple[str, float | None, Callable[[Offer], float | None]]] = [
        ("gpu_count", query.gpu_count, _gpus_seen),
        *(
            (name, getattr(query, name), attrgetter(name))
            for name in ("gpu_ram_gb", "cpu_cores", "ram_gb", "disk_gb", "reliability", "internet_mbit_s")
        ),
    ]
    found += [_at_least(name, wanted, value) for name, wanted, value in least if wanted is not None]
    if query.most_gpu_ram_gb is not None:
        found.append(_at_most("gpu_ram_gb", query.most_gpu_ram_gb, attrgetter("gpu_ram_gb")))
    versions: list[tuple[str, str | None, Callable[[Offer], str | None]]] = [
        ("cuda", query.cuda, attrgetter("cuda")),
        ("driver", query.driver, attrgetter("driver")),
        ("compute_capability", query.compute_capability, _capability),
    ]
    found += [_at_least_version(name, wanted, value) for name, wanted, value in versions if wanted is not None]
    switches = [("static_ip", query.static_ip), ("data_center", query.data_center)]
    found += [
        Condition(f"{name} = true", attrgetter(name), lambda said: said is not False, lambda _: "none")
        for name, wanted in switches
        if wanted
    ]
    if query.regions:
        found.append(
            Condition(
                f"regions = {' or '.join(query.regions)}",
                attrgetter("region"),
                lambda name: any(is_region(region, name) for region in query.regions),
                lambda name: name or "not said",
            )
        )
    if query.countries:
        countries = {country.strip().upper() for country in query.countries}
        found.append(
            Condition(
                f"countries = {' or '.join(query.countries)}",
                attrgetter("region", "provider"),
                lambda place: _country(*place) in countries,
                lambda place: _country(*place) or "not known",
            )
        )
    if query.max_price_per_hour_usd is not None:
        price = attrgetter("price_per_hour_usd")
        found.append(_at_most("max_price_per_hour", query.max_price_per_hour_usd, price))
    if query.bid_at_most_usd is not None:
        found.append(_at_most("bid", query.bid_at_most_usd, attrgetter("least_bid_usd")))
    if avoid:
        found.append(
            Condition(
                "avoid_machines",
                attrgetter("machine_id"),
                lambda host: not host or host not in avoid,
                lambda host: f"machine {host}",
            )
        )
    return found


def _not_failed(failed: Mapping[tuple[str, str], str]) -> Condition:
    return Condition(
        "failed_hosts",
        attrgetter("provider", "machine_id"),
        lambda host: host not in failed,
        lambda host: f"host {host[1]} failed us {failed[host]}",
    )


def _gpus_seen(offer: Offer) -> float:
    """Return how many GPUs the machine sees: one of a slice, none on an own box that has none."""
    count = offer.gpu_count
    if count >= 1.0:
        return count
    return 0.0 if offer.provider == OWN and not count else 1.0


def _at_least(name: str, wanted: float, value: Callable[[Offer], float | None]) -> Condition:
    return Condition(
        f"{name} >= {wanted:g}", value, lambda seen: seen is None or seen >= wanted, _figure, lambda seen: seen or 0.0
    )


def _at_most(name: str, wanted: float, value: Callable[[Offer], float | None]) -> Condition:
    limit = wanted + 1e-9
    return Condition(
        f"{name} <= {wanted:g}", value, lambda seen: seen is None or seen <= limit, _figure, lambda seen: -(seen or 0.0)
    )


def _figure(seen: float | None) -> str:
    return "not said" if seen is None else f"{seen:.4g}"


def _at_least_version(name: str, wanted: str, value: Callable[[Offer], str | None]) -> Condition:
    least = version_of(wanted)

    def nearness(seen: str | None) -> float:
        major, minor, patch = (*version_of(seen or "0"), 0, 0)[:3]
        return major * 1e6 + minor * 1e3 + patch

    return Condition(
        f"{name} >= {wanted}",
        value,
        lambda seen: seen is None or version_of(seen) >= least,
        lambda seen: seen or "not said",
        nearness,
    )


def _capability(offer: Offer) -> str | None:
    """Return the compute capability that the cloud names, else that of the model."""
    known = gpus.facts(offer.gpu_name) if offer.compute_capability is None else None
    return offer.compute_capability or (known[0] if known and known[0] else None)


def _country(region: str, provider: str) -> str:
    place = geography.spot(region, provider)
    return place.country if place else ""


def _best_seen(condition: Condition, removed: Sequence[Offer]) -> str:
    """Return the nearest value among those removed; where values have no order, the first few of them."""
    values = set(map(condition.value, removed))
    if condition.nearness:
        return condition.shows(max(values, key=condition.nearness))
    distinct = sorted({condition.shows(value) for value in values})
    return ", ".join(distinct[:4]) + (", …" if len(distinct) > 4 else "")


def version_of(version: str) -> tuple[int, ...]:
    """Return a version such as ``12.4`` in a form that can be compared."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _offers(count: int) -> str:
    return f"{count} offer{'' if count == 1 else 's'}"
