"""Everything that bills in all configured accounts and in the bucket, ours or not, and what has been forgotten."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gpuyard import records
from gpuyard.api.site import Site
from gpuyard.providers.base import Instance
from gpuyard.providers.resources import Resource
from gpuyard.remedies import option, remedy
from gpuyard.renting import everything
from gpuyard.renting.everything import Everything, Prefix
from gpuyard.renting.shelved import HOURS_A_MONTH

INSTANCE = "instance"
BUCKET = "bucket"


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """``everything``: also what costs nothing, such as SSH keys, and boxes of the user's own."""

    everything: bool = False


@dataclass(frozen=True, slots=True)
class Holding:
    """Something that an account or the bucket holds.

    ``run`` is whose it is, empty where it is labelled with none; ``ours`` whether gpuyard made it. ``state`` is in the
    provider's words where it is no instance. Prices are in US dollars, ``None`` where nobody says them. ``why`` says
    why it is ``orphaned``, or what else is to be known of it.
    """

    provider: str
    kind: str
    id: str
    name: str
    run: str
    ours: bool
    state: str = ""
    age_s: float | None = None
    size_gb: float | None = None
    price_per_hour_usd: float | None = None
    price_per_month_usd: float | None = None
    why: str = ""
    orphaned: bool = False

    @property
    def whose(self) -> str:
        """Whose it is, in words."""
        return self.run or ("gpuyard" if self.ours else "not ours")


@dataclass(frozen=True, slots=True)
class Audit:
    """All holdings by provider, kind and id, and a sentence for each cloud, shelf or bucket that did not answer."""

    holdings: list[Holding]
    unanswered: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def orphans(self) -> list[Holding]:
        """What is ours and has been forgotten."""
        return [one for one in self.holdings if one.orphaned]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "holdings": [asdict(one) for one in self.holdings],
            "orphans": [asdict(one) for one in self.orphans],
            "price_per_month_usd": _sum(self.holdings),
            "orphans_per_month_usd": _sum(self.orphans),
            "unanswered": dict(self.unanswered),
            "whole": not self.unanswered,
            "notes": list(self.notes),
        }

    def render(self, form: str) -> str:
        """Return it as text: ``table`` for people, ``json`` for programs."""
        if form == "json":
            return json.dumps(self.to_dict(), indent=2, sort_keys=True)
        if not self.holdings:
            return "\n".join(["Nothing that bills was found.", *self.notes, *self.unanswered.values()])
        rows = [["provider", "kind", "id", "name", "run", "state", "age", "size", "$/hour", "$/month", "why"]]
        rows += [_row(one) for one in self.holdings]
        unknown = sum(one.price_per_month_usd is None for one in self.holdings)
        more = f", without {unknown} whose price nobody says" if unknown else ""
        lines = [f"In all ${_sum(self.holdings):.2f} a month of {HOURS_A_MONTH:.0f} hours{more}."]
        if self.orphans:
            lines.append(
                f"{len(self.orphans)} forgotten, for ${_sum(self.orphans):.2f} a month: "
                f"{remedy('audit', reap=True)} ends what is ours of it, {option('run')} of a teardown one run."
            )
        return "\n".join([*records.table(rows), *lines, *self.notes, *self.unanswered.values()])


def audit(site: Site, request: AuditRequest, *, now: Callable[[], float] = time.time) -> Audit:
    """Return what all clouds of ``site`` and its bucket hold. Nothing is written anywhere.

    What does not answer is named in the result, which is not whole then.
    """
    return of(everything.gather(site.clouds(), site.shared_store(), now()), request)


def of(found: Everything, request: AuditRequest) -> Audit:
    """Return the audit of what was found."""
    now = found.now
    holdings = [
        *(_instance(found, one, now) for one in found.machines.instances if request.everything or not one.way),
        *(
            _resource(found, one, now)
            for one in found.shelves.resources
            # What bills no more than nothing may still be forgotten.
            if request.everything or one.kind.bills or one.price_per_month_usd or found.resource(one).orphaned
        ),
        *(_prefix(found, one, now) for one in found.prefixes),
    ]
    ordered = sorted(holdings, key=lambda one: (one.provider, one.kind, one.run, one.id))
    return Audit(ordered, dict(found.unanswered), list(found.notes))


def _instance(found: Everything, one: Instance, now: float) -> Holding:
    about = found.machine(one)
    price = 0.0 if one.way else one.cost_now_per_hour_usd
    return Holding(
        one.provider,
        INSTANCE,
        one.id,
        one.label,
        one.ref.run if one.ref else "",
        one.ref is not None,
        str(one.state),
        now - one.created_at if one.created_at else None,
        None,
        price,
        price * HOURS_A_MONTH,
        about.why,
        about.orphaned,
    )


def _resource(found: Everything, one: Resource, now: float) -> Holding:
    about = found.resource(one)
    price = one.price_per_month_usd
    return Holding(
        one.provider,
        one.kind.value,
        one.id,
        one.name,
        one.ref.run if one.ref else "",
        one.ours or one.ref is not None,
        one.status_text,
        now - one.created_at if one.created_at else None,
        one.size_gb,
        None if price is None else price / HOURS_A_MONTH,
        price,
        about.why,
        about.orphaned,
    )


def _prefix(found: Everything, one: Prefix, now: float) -> Holding:
    price = None if one.price_per_gb_month_usd is None else one.price_per_gb_month_usd * one.size_gb
    uploads = f", {one.unfinished} unfinished uploads" if one.unfinished else ""
    return Holding(
        BUCKET,
        "prefix",
        f"{found.bucket_url}/{one.name}",
        one.name,
        one.name if one.name in found.runs else "",
        True,
        f"{one.objects} objects{uploads}",
        now - one.oldest if one.oldest else None,
        one.size_gb,
        None if price is None else price / HOURS_A_MONTH,
        price,
    )


def _sum(holdings: Sequence[Holding]) -> float:
    return sum(one.price_per_month_usd or 0.0 for one in holdings)


def _row(one: Holding) -> list[str]:
    mark = "forgotten: " if one.orphaned else ""
    return [
        one.provider,
        one.kind,
        one.id,
        one.name or "-",
        one.whose,
        one.state or "-",
        _age(one.age_s),
        "-" if one.size_gb is None else f"{one.size_gb:.3g} GB",
        "-" if one.price_per_hour_usd is None else f"{one.price_per_hour_usd:.4f}",
        "-" if one.price_per_month_usd is None else f"{one.price_per_month_usd:.2f}",
        f"{mark}{one.why}" or "-",
    ]


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    hours = max(0.0, seconds) / 3600
    return f"{hours / 24:.0f} d" if hours >= 48 else f"{hours:.1f} h"
