"""Offers and providers side by side: prices on both markets, for a GPU, and for what a GPU does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gpuyard import market, records
from gpuyard.cost import dollars_text, hours_text
from gpuyard.list_prices import CLOUDS, ListedCloud
from gpuyard.providers.base import Offer, Provider, Query
from gpuyard.ranking import Speed, Speeds
from gpuyard.renting.measured import Measured

SHOWN = {"table": 20, "markdown": 50}
"""How many offers each form shows; JSON has them all."""
_UNIT = 100  # DLPerf
_NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """An offer that fits, beside its price on the other market. Prices are US dollars an hour with the disk.

    ``speed`` is the whole machine's, ``None`` where there is no figure for this GPU.
    """

    offer: Offer
    on_demand: float | None
    interruptible: float | None
    speed: Speed | None

    @property
    def per_gpu_hour(self) -> float | None:
        """US dollars for an hour of one whole GPU; ``None`` for a box without one."""
        return self.offer.price_per_hour_usd / self.offer.gpu_count if self.offer.gpu_count else None

    @property
    def per_speed(self) -> float | None:
        """US dollars for an hour of 100 DLPerf; ``None`` where the speed is not known."""
        return self.offer.price_per_hour_usd / self.speed.dlperf * _UNIT if self.speed else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return records.offer_to_dict(self.offer) | {
            "on_demand_usd_per_hour": self.on_demand,
            "interruptible_usd_per_hour": self.interruptible,
            "usd_per_gpu_hour": self.per_gpu_hour,
            "usd_per_hour_of_100_dlperf": self.per_speed,
            "dlperf": self.speed.dlperf if self.speed else None,
            "dlperf_from": self.speed.source if self.speed else "",
        }


def _price(row: Row) -> float:
    return row.offer.price_per_hour_usd


ORDERS: Mapping[str, Callable[[Row], float | None]] = {
    "price": _price,
    "gpu_price": lambda row: row.per_gpu_hour,
    "value": lambda row: row.per_speed,
    "gpu_ram": lambda row: -row.offer.gpu_ram_gb,
    "reliability": lambda row: None if row.offer.reliability is None else -row.offer.reliability,
}
"""What offers can be shown by; what comes first is the best. An unknown value comes last."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A provider in short. ``problem`` says why it could not be asked. Prices are of what fits, but for the market."""

    name: str
    title: str
    seen: int = 0
    fitting: int = 0
    on_demand: float | None = None
    interruptible: float | None = None
    least_reliability: float | None = None
    most_reliability: float | None = None
    preinstalled: str = ""
    remark: str = ""
    problem: str = ""

    @property
    def reliability(self) -> str:
        """The span of what it publishes of the machines that fit."""
        if self.least_reliability is None or self.most_reliability is None:
            return "not said"
        return f"{self.least_reliability:.3f} to {self.most_reliability:.3f}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What fits, in the order of ``by``; why the next best lost; what each condition removed; and the providers."""

    rows: list[Row]
    removals: list[market.Removal]
    providers: list[Summary]
    conditions: Mapping[str, Any]
    by: str = "price"
    seen: int = 0
    nothing: str = ""  # the sentence for a market in which nothing fits
    notes: list[str] = field(default_factory=list)
    measured: Sequence[Measured] = ()
    listed: Sequence[Row] = ()
    """What fits by its list price, at clouds that are only compared; none of it can be rented by its id."""
    runners_up: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "by": self.by,
            "conditions": dict(self.conditions),
            "offers": [row.to_dict() for row in self.rows],
            "runners_up": self.runners_up,
            "removed": [asdict(removal) for removal in self.removals],
            "providers": [asdict(one) for one in self.providers],
            "unanswered": {one.name: one.problem for one in self.providers if one.problem},
            "notes": self.notes,
            "measured": [asdict(one) for one in self.measured],
            "list_prices": [row.to_dict() for row in self.listed],
        }

    def render(self, form: str) -> str:
        """Return it as text: ``table`` for a terminal, ``markdown`` for a page, ``json`` for programs."""
        if form == "json":
            return json.dumps(self.to_dict(), indent=2, sort_keys=True)
        shown = self.rows[: SHOWN[form]]
        more = len(self.rows) - len(shown)
        words = [f"{len(self.rows)} of {self.seen} offers fit, by {self.by}."]
        words += [f"The first {len(shown)} are shown, {more} more fit."] if more > 0 else []
        words += self.runners_up
        removed = [f"{removal}." for removal in self.removals]
        if removed:
            removed.append("An offer that can be had on both markets counts twice in that.")
        unanswered = [f"{one.title} could not be asked: {one.problem}" for one in self.providers if one.problem]
        notes = [self.nothing] if self.nothing else []
        notes += [*unanswered, *self.notes]
        listed = self.listed[: SHOWN[form]]
        title = f"List prices, without disk ({len(self.listed)} machines fit, each in its cheapest region)"
        title += f"; the first {len(listed)} are shown" if len(listed) < len(self.listed) else ""
        if form == "table":
            offers = records.table(_offer_cells(shown)) if shown else []
            catalogue = [f"{title}:", *records.table(_offer_cells(listed, disk=False))] if listed else []
            short = records.table(_provider_cells(self.providers))
            earlier = records.table(_measured_cells(self.measured)) if self.measured else []
            return "\n".join([*offers, *words, *removed, *catalogue, *short, *earlier, *notes])
        conditions = [f"- {name}: {_shown(value)}" for name, value in self.conditions.items()]
        return "\n".join(
            [
                *("# Offers", "", *words, ""),
                *(["Conditions:", "", *conditions, ""] if conditions else []),
                *([*_markdown(_offer_cells(shown)), ""] if shown else []),
                *(["## What the conditions removed", "", *(f"- {line}" for line in removed), ""] if removed else []),
                *([f"## {title}", "", *_markdown(_offer_cells(listed, disk=False)), ""] if listed else []),
                *("## Providers", "", *_markdown(_provider_cells(self.providers)), ""),
                *(
                    ["## What earlier runs measured", "", *_markdown(_measured_cells(self.measured)), ""]
                    if self.measured
                    else []
                ),
                *(f"- {note}" for note in notes),
            ]
        )


def compare(
    verdicts: Sequence[market.Verdict],
    providers: Sequence[Provider],
    problems: Mapping[str, Exception],
    query: Query,
    *,
    by: str = "",
    measured: Sequence[Measured] = (),
    listed: Sequence[market.Verdict] = (),
    listed_problem: str = "",
) -> Comparison:
    """Return what ``verdicts`` say, which have the offers of both markets, side by side.

    They stand in the order of ``by`` (:data:`ORDERS`), or where it is empty in the one that ``query`` asks for.
    ``measured`` is what earlier runs measured; ``listed`` what is said of the list prices of clouds that are only
    compared, and ``listed_problem`` why there are none.
    """
    offers = [verdict.offer for verdict in verdicts]
    speeds = Speeds(offers)
    rows, list_rows = (_rows(found, query, speeds, by) for found in (verdicts, listed))
    nothing = ""
    if not rows and (verdicts or not problems):
        nothing = str(market.no_offer(verdicts)).removesuffix(" Nothing was rented.")
    sources = {row.speed.source for row in (*rows, *list_rows) if row.speed}
    notes = ["DLPerf is how fast a machine is by Vast.ai's own measure."] if sources else []
    notes += [_NOT_MEASURED[source] for source in sorted(sources & set(_NOT_MEASURED))]
    notes += [listed_problem] if listed_problem else []
    compared = [_summary(provider, verdicts, problems.get(provider.name)) for provider in providers]
    named = {verdict.offer.provider for verdict in listed}
    compared += [_summary(cloud, listed, None) for cloud in CLOUDS if cloud.name in named]
    return Comparison(
        rows,
        market.removals(verdicts),
        compared,
        records.query_to_dict(query),
        by or query.rank,
        len({(offer.provider, offer.id) for offer in offers}),
        nothing,
        notes,
        measured,
        list_rows,
        [] if by else market.runners_up([row.offer for row in rows], query, verdicts),
    )


def _rows(verdicts: Sequence[market.Verdict], query: Query, speeds: Speeds, by: str) -> list[Row]:
    """Return what fits in the order of ``by``, each offer once; where that is empty, as ``query`` asks for."""
    offers = [verdict.offer for verdict in verdicts]
    prices = {(offer.provider, offer.id, offer.market): offer.price_per_hour_usd for offer in offers}
    rows: dict[tuple[str, str], Row] = {}
    ranked = market.rank(verdicts, query)
    for offer in ranked:  # the better market of an offer comes first
        rows.setdefault(
            (offer.provider, offer.id),
            Row(
                offer,
                prices.get((offer.provider, offer.id, "on-demand")),
                prices.get((offer.provider, offer.id, "interruptible")),
                speeds.of(offer),
            ),
        )
    shown = list(rows.values())
    if order := ORDERS.get(by):

        def place(row: Row) -> tuple[bool, float]:
            value = order(row)
            return value is None, value or 0.0

        shown.sort(key=place)  # stable, so that what is equal stays in the market's order
    return shown


_NOT_MEASURED = {
    "same GPU at Vast.ai": "With ~ it is the median of Vast.ai's offers with that GPU, since the cloud names none.",
    "data sheet": "With ? it is reckoned from the GPU's data sheet, since nobody offers one that was measured.",
}
_ABOUT = {"this machine": "", "same GPU at Vast.ai": "~", "data sheet": "?"}


def _summary(
    provider: Provider | ListedCloud, verdicts: Sequence[market.Verdict], problem: Exception | None
) -> Summary:
    own = [verdict for verdict in verdicts if verdict.offer.provider == provider.name]
    # The market is what is compared here, so that condition says nothing.
    fitting = [one.offer for one in own if all(condition.words.startswith("market ") for condition in one.against)]
    reliabilities = [offer.reliability for offer in fitting if offer.reliability is not None]

    def cheapest(kind: str) -> float | None:
        return min((offer.price_per_hour_usd for offer in fitting if offer.market == kind), default=None)

    return Summary(
        provider.name,
        provider.title,
        len({one.offer.id for one in own}),
        len({one.offer.id for one in own if one.fits}),
        cheapest("on-demand"),
        cheapest("interruptible"),
        min(reliabilities, default=None),
        max(reliabilities, default=None),
        provider.preinstalled,
        provider.remark,
        str(problem) if problem else "",
    )


def _offer_cells(rows: Sequence[Row], *, disk: bool = True) -> list[list[str]]:
    cells = [
        [
            *("", "cloud", "offer", "GPU", "GPU memory", "cores", "RAM", "disk", "region", "reliability", "market"),
            *("$/hour", "on demand", "spot", "$/GPU-hour", "$/100 DLPerf"),
        ]
    ]
    for place, row in enumerate(rows, start=1):
        offer = row.offer
        about = _ABOUT[row.speed.source] if row.speed else ""
        cells.append(
            [
                str(place),
                offer.provider + (" (emulated)" if offer.emulated else ""),
                offer.id,
                f"{market.count_of(offer.gpu_count)} × {offer.gpu_name or '?'}",
                f"{offer.gpu_ram_gb:g} GB",
                f"{offer.cpu_cores:g}",
                f"{offer.ram_gb:g} GB",
                f"{offer.disk_gb:g} GB" if disk else _NOTHING,
                offer.region or "?",
                _NOTHING if offer.reliability is None else f"{offer.reliability:.3f}",
                offer.market,
                _dollars(offer.price_per_hour_usd),
                _dollars(row.on_demand),
                _dollars(row.interruptible),
                _dollars(row.per_gpu_hour),
                _NOTHING if row.per_speed is None else f"{about}{_dollars(row.per_speed)}",
            ]
        )
    return cells


def _provider_cells(providers: Sequence[Summary]) -> list[list[str]]:
    cells = [["cloud", "fit", "of", "on demand from", "spot from", "reliability", "preinstalled", "to know"]]
    for one in providers:
        cells.append(
            [
                one.title,
                *(["?", "?"] if one.problem else [str(one.fitting), str(one.seen)]),
                _dollars(one.on_demand),
                _dollars(one.interruptible),
                one.reliability,
                one.preinstalled or _NOTHING,
                one.remark or _NOTHING,
            ]
        )
    return cells


def _measured_cells(measured: Sequence[Measured]) -> list[list[str]]:
    cells = [["earlier runs", "GPU", "machines", "set-up, minutes", "stage", "times", "hours", "USD"]]
    for one in measured:
        kind = [one.provider, one.gpu_name or "?", str(one.machines), f"{one.setup_minutes:.1f}"]
        stages = [
            [f"{at.workload} {at.stage}", str(at.times), hours_text(at.hours), dollars_text(at.usd)]
            for at in one.stages
        ]
        cells += [[*kind, *stage] for stage in stages or [[_NOTHING] * 4]]
    return cells


def _dollars(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.4f}"


def _shown(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return [lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]]
