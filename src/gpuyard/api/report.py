"""The report of a run: plan against truth in hours and dollars, idleness, restarts, losses, bytes, and a timeline.

The timeline is an SVG that the standard library's XML writer makes: a few dozen rectangles need neither matplotlib nor
another dependency, and every name in it is escaped by the writer. The HTML page holds it, so that it is one file.
"""

from __future__ import annotations

import html
import json
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuyard.api.reports import check_file, keep
from gpuyard.api.site import Site
from gpuyard.cost import Span, dollars_text, hours_text
from gpuyard.errors import CheckpointError, UsageError
from gpuyard.formats.label import check_name
from gpuyard.providers.base import Progress
from gpuyard.remedies import option
from gpuyard.renting import account, record, runs, survey, watch
from gpuyard.renting.account import Account

FORMATS = ("markdown", "html", "json")
_WIDTH, _LEFT, _ROW, _TOP = 960, 210, 34, 34
_COLOURS = ("#4878a8", "#d88c3c", "#5a9e6f", "#9a6fb0", "#b5654d", "#6b8e9e", "#a8973c", "#8a6d5b")


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """Of which run, in which form (``""``: what the name of the file says, else Markdown), and into which file."""

    run: str
    form: str = ""
    file: str | None = None

    @property
    def shown_as(self) -> str:
        """The form that it has."""
        ending = Path(self.file or "").suffix.lower()
        return self.form or {".html": "html", ".htm": "html", ".json": "json"}.get(ending, "markdown")

    def check(self) -> None:
        """Raise :class:`UsageError` for a mistake that can be seen before anything is asked."""
        if self.run:
            check_name(self.run)
        if self.form not in ("", *FORMATS):
            raise UsageError(f"format={self.form} must be one of: {', '.join(FORMATS)}.")
        check_file(self.file)


def report(site: Site, request: ReportRequest, *, check: bool = False, progress: Progress) -> dict[str, Any]:
    """Return the report as a verb's result, after writing it where a file is named.

    Raises :class:`UsageError` for a run that neither a cloud nor the bucket knows.
    """
    request.check()
    made = reckon(site, request.run)
    form = request.shown_as
    if request.file and form == "markdown":
        picture = Path(request.file).with_suffix(".svg")
        beside = keep(str(picture), timeline(made), check=check, progress=progress)
        done = keep(request.file, markdown(made, picture=picture.name), check=check, progress=progress)
        return {**done, "changed": done["changed"] or beside["changed"], "report": to_dict(made)}
    return {**keep(request.file, render(made, form), check=check, progress=progress), "report": to_dict(made)}


def reckon(site: Site, run: str, *, now: float | None = None) -> Account:
    """Return the account of a run, as clouds and bucket know it."""
    clouds, store = site.clouds(), site.store()
    seen = survey.take(clouds)
    runs.check_answers(store)
    kept = runs.stored(store, run=run or None, costs=True)
    asked = [cloud.name for cloud in clouds if cloud.name not in seen.errors]
    found = runs.join(seen.instances, kept, asked)
    if not run:
        names = ", ".join(one.name for one in found) or "none"
        raise UsageError(f"Name the run to report on with {option('run')}; the runs there are: {names}.")
    chosen = watch.choose(found, run)
    try:
        made_of = record.read(store, run).made_of if store else None
        workload = record.resolved_of(made_of, run).workload if made_of else None
        trouble = []
    except CheckpointError as error:
        workload, trouble = None, [str(error)]
    made = account.of_run(chosen, workload, store, time.time() if now is None else now)
    made.notes.extend([*trouble, *kept.complaints, *seen.unanswered().values()])
    return made


def render(made: Account, form: str) -> str:
    """Return the report in a form: ``markdown`` (without a picture), ``html`` or ``json``."""
    if form == "json":
        return json.dumps(to_dict(made), indent=2)
    return page(made) if form == "html" else markdown(made)


def to_dict(made: Account) -> dict[str, Any]:
    """Return the report as plain values. Hours are hours, times seconds since 1970, money US dollars."""
    return {
        "run": made.run,
        "workload": made.workload,
        "state": made.state,
        "until": made.until,
        "hours": made.hours,
        "usd": made.usd,
        "stage_usd": made.stage_usd,
        "planned": {"hours": _span(made.planned[0]), "usd": _span(made.planned[1]), "without": made.unplanned},
        "idle_share": made.idle_share,
        "losses": made.losses,
        "restarts": made.restarts,
        "published_bytes": made.published_bytes,
        "checkpoints": made.checkpoints,
        "stages": [
            {
                "stage": one.name,
                "planned_hours": _span(one.planned_hours),
                "planned_usd": _span(one.planned_usd),
                "hours": one.hours,
                "usd": one.usd,
                "attempts": one.attempts,
                "cut_off": one.cut_off,
                "done": one.done,
                "wanted": one.wanted,
            }
            for one in made.stages
        ],
        "machines": [
            {
                "provider": one.entry.provider,
                "id": one.entry.id,
                "gpu_name": one.entry.gpu_name,
                "market": one.entry.market,
                "node": one.entry.node,
                "price_per_hour_usd": one.entry.price_per_hour_usd,
                "began": one.entry.began_at,
                "ended": one.ended,
                "lost": one.lost,
                "hours": one.hours,
                "resting_hours": one.resting_hours,
                "stage_hours": one.stage_hours,
                "idle_hours": one.idle_hours,
                "usd": one.usd,
            }
            for one in made.machines
        ],
        "notes": made.notes,
    }


def _span(one: Span | None) -> dict[str, float] | None:
    return None if one is None else {"expected": one.expected, "worst": one.worst}


# --- tables ----------------------------------------------------------------------------------------------------------

Table = tuple[str, list[list[str]]]


def tables(made: Account) -> list[Table]:
    """Return the tables of the report, each with its title; the first row of a table is its heading."""
    hours, usd = made.planned
    least = " at least" if made.unplanned else ""
    idle_usd = made.usd - made.stage_usd
    total = [
        ["", "planned", "at worst", "in truth"],
        ["hours of machines", f"{hours_text(hours.expected)}{least}", hours_text(hours.worst), hours_text(made.hours)],
        ["USD", f"{dollars_text(usd.expected)}{least}", dollars_text(usd.worst), dollars_text(made.usd)],
        ["USD without a stage at work", "", "", dollars_text(idle_usd)],
        ["share of the hours without a stage at work", "", "", f"{made.idle_share:.0%}"],
        ["machines", "1", "", str(len(made.machines))],
        ["machines lost", "0", "", str(made.losses)],
        ["stages that began again", "0", "", str(made.restarts)],
        ["checkpoints published", "", "", str(made.checkpoints)],
        ["MB published", "", "", f"{made.published_bytes / 1e6:.2f}"],
    ]
    stages = [["stage", "hours planned", "in truth", "USD planned", "in truth", "done", "attempts", "cut off"]]
    for one in made.stages:
        stages.append(
            [
                one.name,
                "not said" if one.planned_hours is None else hours_text(one.planned_hours.expected),
                hours_text(one.hours),
                "" if one.planned_usd is None else dollars_text(one.planned_usd.expected),
                dollars_text(one.usd),
                f"{one.done} of {one.wanted}" if one.wanted else str(one.done),
                str(one.attempts),
                str(one.cut_off),
            ]
        )
    machines = [["machine", "node", "from", "to", "$/hour", "hours", "with a stage", "stopped", "USD", "end"]]
    for box in made.machines:
        entry = box.entry
        machines.append(
            [
                f"{entry.provider} {entry.id}, {entry.gpu_name or 'GPU'}, {entry.market}",
                entry.node,
                _time(entry.began_at),
                "" if box.ended is None else _time(box.ended),
                f"{entry.price_per_hour_usd:.4f}",
                hours_text(box.hours),
                hours_text(box.stage_hours),
                hours_text(box.resting_hours),
                dollars_text(box.usd),
                "lost" if box.lost is not None else "ended" if box.ended is not None else "lives",
            ]
        )
    machines.append(["in all", "", "", "", "", hours_text(made.hours), "", "", dollars_text(made.usd), ""])
    return [("Plan and truth", total), ("Stages", stages), ("Machines", machines)]


def remarks(made: Account) -> list[str]:
    """Return what has to be known of the numbers, in sentences."""
    words = [
        "Dollars are the ledger's; the clouds' own bills count. What was planned is the workload's hours at the first "
        "machine's price, with set-up, without traffic and the bucket."
    ]
    if made.losses:
        words.append(
            "No cloud says when it took a machine away: a lost one counts until it was last seen alive, and so does "
            "the stage on it."
        )
    if made.unplanned:
        words.append(f"The workload gives no hours for {', '.join(made.unplanned)}, so the plan is a lower bound.")
    return [*words, *made.notes]


def markdown(made: Account, *, picture: str = "") -> str:
    """Return the report as Markdown; ``picture`` is the name of a file with the timeline beside it."""
    lines = [f"# Run {made.run}", "", _headline(made), ""]
    for title, rows in tables(made):
        head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines += [f"## {title}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        lines += [*(f"| {' | '.join(row)} |" for row in rest), ""]
    if picture:
        lines += ["## Timeline", "", f"![Machines, stages and losses over time]({picture})", ""]
    return "\n".join([*lines, *remarks(made)])


def page(made: Account) -> str:
    """Return the report as one HTML page that needs nothing else."""
    parts = []
    for title, rows in tables(made):
        head, *rest = [[html.escape(cell) for cell in row] for row in rows]
        body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>\n" for row in rest)
        parts.append(f"<h2>{title}</h2>\n<table>\n<tr><th>{'</th><th>'.join(head)}</th></tr>\n{body}</table>\n")
    notes = "".join(f"<p>{html.escape(words)}</p>\n" for words in remarks(made))
    name = html.escape(made.run)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Run {name}</title>\n<style>'
        "body{font:15px/1.45 sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:left}"
        "td:not(:first-child){font-variant-numeric:tabular-nums}svg{max-width:100%}</style></head>\n"
        f"<body><h1>Run {name}</h1>\n<p>{html.escape(_headline(made))}</p>\n"
        f"<h2>Timeline</h2>\n{timeline(made)}\n{''.join(parts)}{notes}</body></html>"
    )


def _headline(made: Account) -> str:
    return f"Workload {made.workload}, {made.state} when this was written, {_time(made.until)}."


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# --- the picture -----------------------------------------------------------------------------------------------------


def timeline(made: Account) -> str:
    """Return an SVG: a row a machine, in it when it was up, stopped or lost, and which stage ran on it."""
    begin = min((one.entry.began_at for one in made.machines), default=made.until)
    ends = [one.ended if one.ended is not None else made.until for one in made.machines]
    end = max([begin + 1.0, *ends, *(one.ended for one in made.attempts)])
    scale = (_WIDTH - _LEFT - 20) / (end - begin)
    names = list(dict.fromkeys([one.name for one in made.stages]))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    height = _TOP + _ROW * max(1, len(made.machines)) + 62
    svg = ET.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH} {height}", width=str(_WIDTH), role="img"
    )
    svg.set("style", "font:12px sans-serif")

    def at(moment: float) -> float:
        return round(_LEFT + (moment - begin) * scale, 2)

    def bar(y: float, high: float, since: float, until: float, fill: str, title: str) -> None:
        wide = max(1.0, at(until) - at(since))
        box = ET.SubElement(svg, "rect", x=str(at(since)), y=str(y), width=f"{wide:.2f}", height=str(high), fill=fill)
        ET.SubElement(box, "title").text = title

    def words(x: float, y: float, text: str, anchor: str = "start") -> None:
        ET.SubElement(svg, "text", {"x": str(x), "y": str(y), "fill": "#333", "text-anchor": anchor}).text = text

    for row, one in enumerate(made.machines):
        y = _TOP + row * _ROW
        entry = one.entry
        words(4, y + 17, f"{entry.provider} {entry.id[:14]}")
        for since, until, what in account.spans(entry, made.until):
            if until > since and what not in ("ended", "gone"):
                shade = "#dde3e8" if what in ("rented", "running") else "#f3d9d4" if what == "lost" else "#f0f0f0"
                bar(
                    y, 24, since, until, shade, f"{entry.provider} {entry.id}: {what}, {_time(since)} to {_time(until)}"
                )
        for attempt in made.attempts:
            if attempt.place == entry.place:
                title = f"iteration {attempt.iteration}, {attempt.stage}, attempt {attempt.number}: {attempt.outcome}"
                bar(y + 4, 16, attempt.began, attempt.ended, colours.get(attempt.stage, "#888"), title)
        if one.lost is not None:
            x = at(one.lost)
            mark = ET.SubElement(svg, "path", d=f"M{x - 6},{y + 6}l12,12m0,-12l-12,12", stroke="#b00", fill="none")
            mark.set("stroke-width", "3")
            ET.SubElement(mark, "title").text = f"lost, last seen alive {_time(one.lost)}"
    base = _TOP + _ROW * max(1, len(made.machines))
    for number in range(5):
        moment = begin + (end - begin) * number / 4
        anchor = "start" if number == 0 else "end" if number == 4 else "middle"
        words(at(moment), base + 14, f"{(moment - begin) / 3600:.2f} h", anchor)
    words(_LEFT, _TOP - 16, f"from {_time(begin)}")
    x = float(_LEFT)
    for name in names:
        ET.SubElement(svg, "rect", x=str(x), y=str(base + 30), width="12", height="12", fill=colours[name])
        words(x + 16, base + 41, name)
        x += 30 + 7.5 * len(name)
    return ET.tostring(svg, encoding="unicode")


def check_beside_an_end(site: Site, file: str | None) -> None:
    """Refuse, before a run is ended, a report that could not be written then."""
    check_file(file)
    if file and not site.bucket_settings().url:
        raise UsageError(
            f"report={file} is written from the ledger and the journal in the bucket, and there is no bucket: leave it "
            "out. Nothing was ended."
        )
