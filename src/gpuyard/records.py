"""The neutral records as plain values, for results that leave Python (modules, the CLI's JSON), and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any

from gpuyard import market
from gpuyard.errors import UsageError
from gpuyard.providers.base import Instance, Offer, PlannedCall, Query
from gpuyard.renting import machine, runs, watch


def query_to_dict(query: Query) -> dict[str, Any]:
    """Return the conditions of a query under the names of the options, without those that are not asked for."""
    values = asdict(query)
    values["max_price_per_hour"] = values.pop("max_price_per_hour_usd")
    return {name: value for name, value in values.items() if value not in (None, (), [])}


def query_from_dict(values: Mapping[str, Any]) -> Query:
    """Return the query with the conditions of ``values``, by the names of the options."""
    market.check_conditions(values)
    renamed = dict(values)
    limit = renamed.pop("max_price_per_hour", None)
    return Query(**renamed, max_price_per_hour_usd=limit)


def offer_to_dict(offer: Offer) -> dict[str, Any]:
    """Return an offer as plain values."""
    return asdict(offer)


def offer_from_dict(values: Mapping[str, Any]) -> Offer:
    """Return the offer that :func:`offer_to_dict` rendered; raises :class:`UsageError` when it is not one."""
    known = {entry.name: entry for entry in fields(Offer)}
    missing = [name for name, entry in known.items() if entry.default is MISSING and name not in values]
    strange = [name for name in values if name not in known]
    if missing or strange:
        trouble = f"lacks {', '.join(missing)}" if missing else f"has the unknown {', '.join(strange)}"
        raise UsageError(f"An offer {trouble}; pass offers on as offer_info or run_plan return them.")
    # Ansible's templates may have made a text of a number, and nothing else.
    numbers = {
        name: _number(name, values[name])
        for name, entry in known.items()
        if str(entry.type).startswith("float") and values.get(name) is not None
    }
    return Offer(**{**values, **numbers})


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"An offer has {name}={value!r}, which is not a number.") from None


def instance_to_dict(instance: Instance) -> dict[str, Any]:
    """Return an instance as plain values; ``run`` and ``workload`` are empty when gpuyard did not rent it."""
    values = asdict(instance)
    del values["ref"]
    return values | {
        "state": str(instance.state),
        "run": instance.ref.run if instance.ref else "",
        "workload": instance.ref.workload if instance.ref else "",
        "host_key_alias": instance.host_key_alias,
        "idle_price_per_hour_usd": instance.idle_price,
        "cost_now_per_hour_usd": instance.cost_now_per_hour_usd,
    }


def call_to_dict(call: PlannedCall) -> dict[str, Any]:
    """Return a planned API call as plain values."""
    return {"method": call.method, "url": call.url, "body": dict(call.body) if call.body is not None else None}


def planned_text(actions: Sequence[str], planned: Sequence[PlannedCall]) -> list[str]:
    """Return what check mode would have done, as lines for people."""
    calls = [f"  {call.method} {call.url} {json.dumps(call.body or {})}" for call in planned]
    return [*(f"would {action}" for action in actions), *calls]


def run_to_dict(one: runs.Run) -> dict[str, Any]:
    """Return a run as plain values. Costs are what prices and hours say; ``spent_usd`` is of all its machines."""
    return {
        "run": one.name,
        "workload": one.workload,
        "state": one.state,
        "resumable": one.resumable,
        "progress": dict(one.progress),
        "problem": one.problem,
        "checkpoint": {"sequence": one.manifest.sequence, "time": one.manifest.time} if one.manifest else {},
        "provider": one.instances[0].provider if one.instances else "",
        "price_per_hour_usd": one.price_per_hour_usd,
        "hours": one.hours(),
        "cost_usd": one.cost_usd(),
        "spent_usd": one.spent_usd(),
        "instances": [instance_to_dict(instance) for instance in one.instances],
        "stages": dict(one.stages),
    }


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return ``rows`` (the first is the heading) as lines of aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def offer_table(offers: Sequence[Offer], *, limit: int = 8) -> list[str]:
    """Return the first ``limit`` offers as a table for people, prices in US dollars an hour with everything."""
    rows = [["", "cloud", "offer", "GPU", "GPU memory", "cores", "RAM", "region", "market", "$/hour"]]
    for place, offer in enumerate(offers[:limit], start=1):
        rows.append(
            [
                str(place),
                offer.provider + (" (emulated)" if offer.emulated else ""),
                offer.id,
                f"{market.count_of(offer.gpu_count)} × {offer.gpu_name or '?'}",
                f"{offer.gpu_ram_gb:g} GB",
                f"{offer.cpu_cores:g}",
                f"{offer.ram_gb:g} GB",
                offer.region or "?",
                offer.market,
                f"{offer.price_per_hour_usd:.4f}",
            ]
        )
    more = len(offers) - limit
    return table(rows) + ([f"and {more} more that fit"] if more > 0 else [])


def run_table(found: Sequence[runs.Run]) -> list[str]:
    """Return runs as a table for people; one that ended and still has a machine is pointed out, since it bills."""
    if not found:
        return ["There are no runs."]
    rows = [["run", "state", "at", "machine", "$/hour", "hours", "$ so far", "checkpoint"]]
    notes = []
    for one in found:
        held = one.instances[0] if one.instances else None
        rows.append(
            [
                one.name,
                one.state.replace("-", " "),
                runs.place_text(one),
                machine.describe(held) if held else "-",
                f"{one.price_per_hour_usd:.4f}" if held else "-",
                f"{one.hours():.2f}" if held else "-",
                f"{one.spent_usd():.4f}" if held or one.entries else "-",
                f"{one.manifest.sequence} of {one.manifest.time}" if one.manifest else "-",
            ]
        )
        notes += [
            f"{one.name} also has {machine.describe(more)}, which may bill as well." for more in one.instances[1:]
        ]
        if one.problem:
            notes.append(f"{one.name} has a checkpoint that cannot be read: {one.problem}")
        if one.resumable and not one.problem:
            notes.append(f"{one.name} can go on: ansible-playbook resume_search.yml -e run={one.name}")
        else:
            notes += _what_bills(one)
    total, now = sum(one.spent_usd() for one in found), sum(one.price_per_hour_usd for one in found)
    sums = f"In all ${total:.4f} so far, and ${now:.4f} an hour now, for GPU and disk; the clouds' own bills count."
    return [*table(rows), *notes, sums]


def _what_bills(one: runs.Run) -> list[str]:
    """Return what a person has to know of a machine that bills and on which nothing is at work."""
    end = f"ansible-playbook teardown.yml -e run={one.name}"
    again = f"ansible-playbook launch.yml -e run={one.name}"
    if not one.instances or one.state in ("running", "pending", "stopped", "preempted", "unknown"):
        return []
    match one.state:
        case "finished":
            return [f"{one.name} has ended and still bills: {end}"]
        case "failed":
            return [f"{one.name} has failed{watch.failure_text(one.stages)}, and still bills: {end}"]
        case "not-started":
            return [f"No stage has begun on {one.name}, and its machine bills: {again} starts them, {end} ends it"]
        case "unreachable":
            return [f"The machine of {one.name} does not answer, and bills: {end} ends what can be ended safely"]
        case _:  # idle, interrupted
            return [f"Nothing runs on {one.name} ({one.state}), and it bills: {again} goes on, {end} ends it"]
