"""In which order the offers that fit are taken, and why one comes behind another.

Prices count with everything: GPU, disk, the volume of the run, and the traffic that the workload itself causes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from gpuyard import geography, gpus
from gpuyard.errors import UsageError
from gpuyard.geography import Spot
from gpuyard.providers.base import Offer, Query
from gpuyard.remedies import option

Key = tuple[float | str, ...]
UNKNOWN = float("inf")  # comes last
DLPERF_PER_TFLOPS = 0.3
"""How many DLPerf a GPU has for 10^12 operations of its data sheet, where the market measures none of its offers."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a whole machine is, in DLPerf, Vast.ai's own measure, and where the figure comes from."""

    dlperf: float
    source: str  # "this machine", "same GPU at Vast.ai" or "data sheet"


class Speeds:
    """How fast machines are: as measured, else as others with the same GPU, else as its data sheet has it.

    Figures of data sheets are brought to DLPerf by what the market's measured GPUs have on theirs.
    """

    def __init__(self, offers: Iterable[Offer]) -> None:
        by_model: dict[str, dict[str, float]] = {}
        for offer in offers:
            if offer.dlperf and offer.gpu_count:
                by_model.setdefault(offer.gpu_name, {})[offer.id] = offer.dlperf / offer.gpu_count
        self._medians = {name: statistics.median(found.values()) for name, found in by_model.items()}
        ratios = [median / facts[1] for name, median in self._medians.items() if (facts := gpus.facts(name))]
        self._scale = statistics.median(ratios) if ratios else DLPERF_PER_TFLOPS

    def of(self, offer: Offer) -> Speed | None:
        """Return how fast a machine is, ``None`` where nobody says it."""
        if offer.dlperf:
            return Speed(offer.dlperf, "this machine")
        if not offer.gpu_count:
            return None
        if median := self._medians.get(offer.gpu_name):
            return Speed(median * offer.gpu_count, "same GPU at Vast.ai")
        facts = gpus.facts(offer.gpu_name)
        return Speed(facts[1] * self._scale * offer.gpu_count, "data sheet") if facts else None


def all_in(offer: Offer, query: Query) -> float:
    """Return what an offer costs an hour with its disk, its volume and the workload's own traffic, in US dollars."""
    traffic = offer.traffic_price_per_gb_usd * query.traffic_gb_per_hour
    return offer.price_per_hour_usd + offer.volume_price_per_hour_usd + traffic


def distance_km(offer: Offer, query: Query) -> float:
    """Return how far from the bucket an offer is; infinitely far where one of the two places is not known."""
    place = geography.spot(offer.region, offer.provider)
    return place.km_to(query.near) if place and query.near else UNKNOWN


def is_region(wanted: str, offered: str) -> bool:
    """Say whether ``offered`` is the region ``wanted``: an id (``ewr``), a place, or the country of ``City, CC``."""
    want, have = wanted.strip().lower(), offered.strip().lower()
    return want == have or want in (part.strip() for part in have.split(","))


def region_place(offer: Offer, query: Query) -> int:
    """Return the place of an offer's region in the order in which the regions were named."""
    return next(
        (place for place, region in enumerate(query.regions) if is_region(region, offer.region)), len(query.regions)
    )


def grounded(query: Query, *, near: Spot | None, traffic_gb_per_hour: float = 0.0) -> Query:
    """Return ``query`` with what its order depends on; raises :class:`UsageError` for an order that cannot be."""
    if query.rank == "distance" and near is None:
        raise UsageError(
            "rank=distance needs a bucket whose place is known, and neither its endpoint nor its region says one: name "
            f"a bucket with {option('bucket', 's3://…')} and AWS_REGION, or choose price, value or regions."
        )
    if query.rank == "regions" and not query.regions:
        raise UsageError("rank=regions needs regions in order of preference (needs.regions), and there are none.")
    known: dict[str, Any] = {"near": near, "traffic_gb_per_hour": traffic_gb_per_hour}
    others = tuple(replace(one, **known) for one in query.alternatives)
    return replace(query, alternatives=others, **known)


class Ranking:
    """The order that ``query`` asks for among ``offers``."""

    def __init__(self, query: Query, offers: Iterable[Offer]) -> None:
        self.query = query
        self._first: Callable[[Offer], float] | None = None
        if query.rank == "value":
            self.speeds = Speeds(offers)
            self._first = self._per_speed
        elif query.rank == "distance":
            kept: dict[tuple[str, str], float] = {}

            def distance(offer: Offer) -> float:
                place = offer.provider, offer.region
                if place not in kept:
                    kept[place] = distance_km(offer, query)
                return kept[place]

            self._first = distance
        elif query.rank == "regions":
            self._first = lambda offer: region_place(offer, query)

    def _per_speed(self, offer: Offer) -> float:
        """Return US dollars for an hour of one DLPerf."""
        dlperf = offer.dlperf
        if not dlperf:
            speed = self.speeds.of(offer)
            dlperf = speed.dlperf if speed else 0.0
        return all_in(offer, self.query) / dlperf if dlperf else UNKNOWN

    def key(self, offer: Offer) -> Key:
        """Return what offers are sorted by: what is smaller is better."""
        # Prices are compared to a hundredth of a cent: what differs by less is a rounding of the same price.
        traffic = offer.traffic_price_per_gb_usd * self.query.traffic_gb_per_hour
        price = offer.price_per_hour_usd + offer.volume_price_per_hour_usd + traffic
        memory = offer.gpu_ram_gb * offer.gpu_count if offer.gpu_count > 1.0 else offer.gpu_ram_gb
        rest = (round(price, 4), -(offer.reliability or 0.0), -memory, offer.provider, offer.id)
        return (offer.turn, self._first(offer), *rest) if self._first else (offer.turn, *rest)

    def why_behind(self, winner: Offer, other: Offer) -> str:
        """Return in a few words why ``other``, which fits as well, comes behind ``winner``."""
        if other.turn > winner.turn:
            return "later in the order in which the clouds are taken"
        if self._first and self._first(other) > self._first(winner):
            return self._why_later(winner, other)
        least, price = all_in(winner, self.query), all_in(other, self.query)
        if round(price - least, 4) > 0:
            share = f", {(price - least) / least:+.0%}" if least else ""
            volume = other.volume_price_per_hour_usd - winner.volume_price_per_hour_usd
            of_volume = f", of which the volume is ${volume:.4f}" if round(volume, 4) > 0 else ""
            return f"${price - least:.4f} an hour dearer{share}{of_volume}"
        if (other.reliability or 0.0) < (winner.reliability or 0.0):
            known = "not said" if other.reliability is None else f"{other.reliability:.3f}"
            return f"the same price, and less reliable ({known} against {winner.reliability:.3f})"
        if other.gpu_ram_gb * max(1.0, other.gpu_count) < winner.gpu_ram_gb * max(1.0, winner.gpu_count):
            return "the same price, and less GPU memory"
        return "the same in all that counts; the order of the names decides"

    def _why_later(self, winner: Offer, other: Offer) -> str:
        if self.query.rank == "value":
            per = self._per_speed(other)
            if per == UNKNOWN:
                return "nobody says how fast it is"
            return f"${per * 100:.4f} for an hour of 100 DLPerf, against ${self._per_speed(winner) * 100:.4f}"
        if self.query.rank == "distance":
            far = distance_km(other, self.query)
            if far == UNKNOWN:
                return "it is not known where it is"
            return f"{far:,.0f} km from the bucket, against {distance_km(winner, self.query):,.0f} km"
        return f"{winner.region} was named before {other.region}"
