"""The neutral records as plain values, for results that leave Python (modules, the CLI's JSON), and back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from typing import Any

from gpuyard import market
from gpuyard.box.stages.expected import bar
from gpuyard.box.stages.sign_of_life import LATE_S
from gpuyard.errors import UsageError
from gpuyard.hosts import host_name
from gpuyard.providers.base import OWN, Instance, Offer, PlannedCall, Query
from gpuyard.remedies import remedy
from gpuyard.renting import limits, machine, runs, watch

# What a question to the market says beside the options' values.
_NOT_SHOWN = ("traffic_gb_per_hour", "near", "alternatives")


def query_to_dict(query: Query) -> dict[str, Any]:
    """Return the conditions of a query under the names of the options, without those that are not asked for.

    Of an alternative only what it has in place of the query's own is there.
    """
    values = {entry.name: getattr(query, entry.name) for entry in fields(query) if entry.name not in _NOT_SHOWN}
    values["max_price_per_hour"] = values.pop("max_price_per_hour_usd")
    plain = _PLAIN | {"disk_gb": None, "market": None}
    shown = {name: value for name, value in values.items() if value not in (None, (), []) and value != plain.get(name)}
    if query.alternatives:
        own = dict(values)
        shown["alternatives"] = [
            {name: value for name, value in query_to_dict(one).items() if value != own[name]}
            for one in query.alternatives
        ]
    return shown


_PLAIN = {entry.name: entry.default for entry in fields(Query)}


def query_from_dict(values: Mapping[str, Any]) -> Query:
    """Return the query with the conditions of ``values``, by the names of the options."""
    return with_conditions(Query(), values)


def with_conditions(query: Query, values: Mapping[str, Any]) -> Query:
    """Return ``query`` with the conditions of ``values``, by the names of the options, in place of its own.

    They count for its alternatives as well, and alternatives that are then the same are one.
    """
    market.check_conditions(values)
    said: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if "max_price_per_hour" in said:
        said["max_price_per_hour_usd"] = said.pop("max_price_per_hour")
    first, *others = dict.fromkeys(replace(choice, **said) for choice in query.choices)
    return replace(first, alternatives=tuple(others))


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
    del values["ref"], values["way"]
    return values | {
        "state": str(instance.state),
        "run": instance.ref.run if instance.ref else "",
        "workload": instance.ref.workload if instance.ref else "",
        "node": instance.ref.node if instance.ref else "",
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
    """Return a run as plain values. Costs are what prices and hours say; ``spent_usd`` is of all its machines.

    ``progress``, ``checkpoint`` and ``stages`` are those of its first node, ``nodes`` has them of each.
    """
    nodes = [_node_to_dict(node) for node in one.nodes]
    return {
        **nodes[0],
        "run": one.name,
        "workload": one.workload,
        "state": one.state,
        "resumable": one.resumable,
        "provider": one.instances[0].provider if one.instances else "",
        "price_per_hour_usd": one.price_per_hour_usd,
        "hours": one.hours(),
        "cost_usd": one.cost_usd(),
        "spent_usd": one.spent_usd(),
        "lease_end": one.lease_end,
        "budget_usd": one.limits.budget_usd,
        "instances": [instance_to_dict(instance) for instance in one.instances],
        "nodes": nodes,
    }


def _node_to_dict(node: runs.Node) -> dict[str, Any]:
    now = time.time()
    return {
        "node": node.name,
        "state": node.state,
        "resumable": node.resumable,
        "progress": dict(node.progress),
        "problem": node.problem,
        "checkpoint": {"sequence": node.manifest.sequence, "time": node.manifest.time} if node.manifest else {},
        "price_per_hour_usd": node.price_per_hour_usd,
        "hours": node.hours(now),
        "spent_usd": node.spent_usd(now),
        "machines": [
            {"provider": entry.provider, "id": entry.id, "spent_usd": entry.cost_usd(now), "ended": entry.ended}
            for entry in node.accounts(now)
        ],
        "instances": [instance_to_dict(instance) for instance in node.instances],
        "stages": dict(node.stages),
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
    """Return runs as a table for people; one that ended and still has a machine is pointed out, since it bills.

    A run of several nodes has a line for their sum, and one for each.
    """
    if not found:
        return ["There are no runs."]
    rows = [["run", "state", "at", "machine", "GPU", "disk", "load", "$/hour", "hours", "$ so far", "checkpoint"]]
    notes = []
    for one in found:
        if len(one.nodes) == 1:
            rows.append(_row(one.name, one.nodes[0]))
        else:
            names = [node.name for node in one.nodes]
            alive = sum(node.machine is not None for node in one.nodes)
            rows.append(
                [
                    one.name,
                    one.state.replace("-", " "),
                    "-",
                    f"{alive} of {len(names)} nodes",
                    *_use({}),
                    *_money(one, held=bool(one.instances)),
                    "-",
                ]
            )
            rows += [_row(host_name(one.name, node.name, names), node) for node in one.nodes]
        notes += [
            f"{one.name} also has {machine.describe(more)}{'' if more.way else ', which may bill as well'}."
            for node in one.nodes
            for more in node.instances[1:]
        ]
        notes += [
            f"{one.name} has something in the bucket that cannot be read: {node.problem}"
            for node in one.nodes
            if node.problem
        ]
        for node in one.nodes:
            notes += _seen(host_name(one.name, node.name, [node.name for node in one.nodes]), node.stages)
        notes += _limits(one)
        if one.resumable and not any(node.problem for node in one.nodes):
            notes.append(f"{one.name} can go on: {remedy('resume', run=one.name)}")
        else:
            notes += _what_bills(one)
    total, now = sum(one.spent_usd() for one in found), sum(one.price_per_hour_usd for one in found)
    bills = "" if _cost_nothing(found) else ", for GPU and disk; the clouds' own bills count"
    sums = f"In all ${total:.4f} so far, and ${now:.4f} an hour now{bills}."
    return [*table(rows), *notes, sums]


def _limits(one: runs.Run) -> list[str]:
    """Return until when a run with machines is rented, and how much of its budget is left."""
    now = time.time()
    if not one.instances:
        return []
    if why := limits.over(one, now):
        return [f"{one.name} should have ended, since {why}: {remedy('reap')}"]
    return limits.told(one, now)


def _cost_nothing(found: Sequence[runs.Run]) -> bool:
    """Tell whether these runs have had boxes of the user's own only."""
    instances = [one.way is not None for run in found for one in run.instances]
    return all([*instances, *(entry.provider == OWN for run in found for node in run.nodes for entry in node.entries)])


def _row(name: str, node: runs.Node) -> list[str]:
    held = node.instances[0] if node.instances else None
    return [
        name,
        node.state.replace("-", " "),
        runs.place_text(node),
        machine.describe(held) if held else "-",
        *_use(node.stages.get("machine") or {}),
        *_money(node, held=held is not None),
        f"{node.manifest.sequence} of {node.manifest.time}" if node.manifest else "-",
    ]


def _use(facts: Mapping[str, Any]) -> list[str]:
    """Return how much of its GPUs, its disk and its processors a machine uses, as it says it itself."""
    gpus, disk = facts.get("gpus") or [], facts.get("disk")
    used = [gpu["use_percent"] for gpu in gpus if gpu["use_percent"] is not None]
    memory = [gpu["memory_used_gb"] for gpu in gpus if gpu["memory_used_gb"] is not None]
    words = [f"{len(gpus)}×"] if len(gpus) > 1 else []
    words += [f"{sum(used) / len(used):.0f}%"] if used else []
    words += [f"{max(memory):.0f}G"] if memory else []
    return [
        " ".join(words) or "-",
        f"{disk['used_percent']:.0f}%" if disk else "-",
        f"{facts['load']:.1f}/{facts['cores']}" if "load" in facts else "-",
    ]


def _seen(name: str, stages: Mapping[str, Any]) -> list[str]:
    """Return how far a machine's stage is, the alerts that it has, and where experiment trackers show the run."""
    alerts = stages.get("alerts") or []
    count = f"{len(alerts)} alert" + ("s" if len(alerts) > 1 else "")
    told = [f"{name} has {count}: {'; '.join(str(alert['text']) for alert in alerts)}"] if alerts else []
    if progress := stages.get("progress"):
        told.insert(0, f"{name}, {progress['stage']} of iteration {progress['iteration']}: {bar(progress)}")
    if (sign := stages.get("sign_of_life")) and sign["age_s"] > LATE_S:
        told.insert(0, f"{name}: its runner has given no sign of life for {sign['age_s']:.0f} s")
    return told + [f"{name} at {tracker}: {address}" for tracker, address in (stages.get("links") or {}).items()]


def _money(one: runs.Run | runs.Node, *, held: bool) -> list[str]:
    return [
        f"{one.price_per_hour_usd:.4f}" if held else "-",
        f"{one.hours():.2f}" if held else "-",
        f"{one.spent_usd():.4f}" if held or one.entries else "-",
    ]


def _what_bills(one: runs.Run) -> list[str]:
    """Return what a person has to know of machines that bill and on which nothing is at work."""
    names = [node.name for node in one.nodes]
    return [line for node in one.nodes for line in _node_bills(one.name, host_name(one.name, node.name, names), node)]


def _own_box(name: str, node: runs.Node, box: str, again: str, end: str) -> list[str]:
    """Return what a person has to know of an own box that a run keeps, and on which nothing is at work."""
    assert node.machine is not None  # it is an own box
    if node.state == "running":
        return []
    if node.state == "unreachable":
        why = node.machine.status_text if node.machine.silent else "does not answer"
        return [f"{name} is on own box {box}, which {why}; it is not lost, and costs nothing"]
    why = watch.failure_text(node.stages) if node.state == "failed" else ""
    return [f"{name} is {node.state}{why}, and own box {box} stays its own: {again} goes on, {end} frees the box"]


def _node_bills(run: str, name: str, node: runs.Node) -> list[str]:
    end = f"{remedy('teardown', run=run)}"
    again = f"{remedy('launch', run=run)}"
    if node.machine and node.machine.way:
        return _own_box(name, node, node.machine.way.name, again, end)
    if not node.instances or node.state in ("running", "pending", "stopped", "preempted", "unknown"):
        return []
    match node.state:
        case "finished":
            return [f"{name} has ended and still bills: {end}"]
        case "failed":
            return [f"{name} has failed{watch.failure_text(node.stages)}, and still bills: {end}"]
        case "not-started":
            return [f"No stage has begun on {name}, and its machine bills: {again} starts them, {end} ends it"]
        case "waiting":
            pool = node.stages.get("waits_for")
            return [f"{name} waits for a machine of pool {pool}, and bills: {again} moves it there, {end} ends it"]
        case "unreachable":
            return [f"The machine of {name} does not answer, and bills: {end} ends what can be ended safely"]
        case _:  # idle, interrupted
            return [f"Nothing runs on {name} ({node.state}), and it bills: {again} goes on, {end} ends it"]
