"""The journal, whatever was written to it and wherever it was cut off: what it says has happened, and in that order."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gpuyard.box.stages import choice as choosing
from gpuyard.box.stages.choice import Choice
from gpuyard.box.stages.spec import order_of
from gpuyard.formats.journal import Journal, Position, fold, parse

EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
TEXTS = st.one_of(st.text(max_size=12), st.just('"event": "published"'), st.just("\n\x00é"))


@dataclass(frozen=True)
class Row:
    """A stage, as far as its place in the order goes."""

    name: str
    run: str
    after: Sequence[str] | None = None
    needed: bool = True


@dataclass(frozen=True)
class Staged:
    """Stages in iterations."""

    stages: Sequence[Row]
    iterations: int

    @property
    def order(self) -> list[Position]:
        return order_of(self.stages, self.iterations)


RUNS = st.sampled_from(["each", "each", "later", "first", "once"])
STAGED = st.builds(
    lambda runs, iterations: Staged([Row(f"s{number}", run) for number, run in enumerate(runs)], iterations),
    st.lists(RUNS, min_size=1, max_size=4),
    st.integers(1, 3),
).filter(lambda staged: bool(staged.order))

pytestmark = pytest.mark.long


@st.composite
def histories(draw: st.DrawFn) -> tuple[Staged, list[dict[str, Any]]]:
    """Return stages, and events as runners write them that are killed, told to stop, asked for another order."""
    staged = draw(STAGED)
    events: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        progress = fold(events, staged.order)
        if draw(st.booleans()):
            iteration, stage = draw(st.sampled_from(staged.order))
            choice = Choice(**{draw(st.sampled_from(["from_stage", "only"])): stage}, iteration=iteration)
            if fields := choosing.rewind(choice, staged, progress):
                events.append({"event": "rewind", **fields})
        events.append({"event": "run-start", "run": draw(TEXTS)})
        for iteration, stage in fold(events, staged.order).pending[: draw(st.integers(0, 5))]:
            place = {"iteration": iteration, "stage": stage}
            events.append({"event": "stage-start", **place, "token": draw(TEXTS), "began_ns": draw(st.integers(0))})
            outcome = draw(st.sampled_from(["done", "done", "done", "failed", "interrupted", None]))
            if outcome is None:
                break  # the runner was killed
            events.append({"event": "stage-end", **place, "outcome": outcome, "reason": draw(TEXTS)})
            if draw(st.booleans()):
                events.append({"event": "published", "sequence": len(events), "note": draw(TEXTS)})
            if outcome != "done":
                break
    return staged, events


def in_bytes(events: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


@EXAMPLES
@given(histories(), st.data())
def test_any_prefix_of_the_bytes_says_what_had_happened_by_then(
    history: tuple[Staged, list[dict[str, Any]]], data: st.DataObject
) -> None:
    staged, events = history
    written = in_bytes(events)
    cut = data.draw(st.integers(0, len(written)))
    left = parse(written[:cut])
    assert left == events[: len(left)]
    assert len(left) >= written[:cut].count(b"\n")
    progress, whole = fold(left, staged.order), fold(events[: len(left)], staged.order)
    assert progress == whole
    ended = [(one["iteration"], one["stage"]) for one in left if one.get("outcome") == "done"]
    skipped = [place for place in staged.order if progress.at(place).outcome == "skipped"]
    assert set(progress.done) <= {*ended, *skipped}
    assert sorted(progress.done + progress.pending) == sorted(staged.order)
    if skipped:
        assert any(one["event"] == "rewind" for one in left)


@EXAMPLES
@given(histories(), st.data())
def test_who_writes_after_a_line_that_was_cut_off_loses_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, history: tuple[Staged, list[dict[str, Any]]], data: st.DataObject
) -> None:
    """A writer is killed within a line, and others go on, again and again."""
    staged, events = history
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    expected: list[dict[str, Any]] = []
    for event in events:
        written = journal.append(**event)
        lost = data.draw(st.integers(0, 3)) == 0
        if lost:
            # At least the closing brace and the newline, so that the line is none.
            size = journal.file.stat().st_size
            line = len(json.dumps(written)) + 1
            os.truncate(journal.file, size - data.draw(st.integers(2, line)))
        else:
            expected.append(written)
    assert journal.read() == expected
    assert journal.progress(staged.order) == fold(expected, staged.order)


@settings(EXAMPLES, max_examples=15)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_lines_of_several_writers_are_all_whole(tmp_path_factory: pytest.TempPathFactory, counts: list[int]) -> None:
    file = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    file.write_bytes(b'{"event": "cut o')

    def write(who: int) -> None:
        for number in range(counts[who]):
            Journal(file).append("published", who=who, sequence=number, padding="x" * 5000)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(event["who"], event["sequence"]) for event in Journal(file).read()]
    assert sorted(found) == [(who, number) for who, count in enumerate(counts) for number in range(count)]
    for who in range(len(counts)):
        assert [number for one, number in found if one == who] == list(range(counts[who]))


@EXAMPLES
@given(st.lists(st.binary(max_size=30)), histories())
def test_what_is_no_event_is_passed_over(junk: list[bytes], history: tuple[Staged, list[dict[str, Any]]]) -> None:
    _, events = history
    lines = in_bytes(events).split(b"\n")
    for number, line in enumerate(junk):
        lines.insert(number * 2, line.replace(b"\n", b"") + b"{")
    assert parse(b"\n".join(lines)) == events


@EXAMPLES
@given(histories(), st.data())
def test_a_rewind_forgets_what_follows_and_nothing_else(
    history: tuple[Staged, list[dict[str, Any]]], data: st.DataObject
) -> None:
    staged, events = history
    before = fold(events, staged.order)
    iteration, stage = data.draw(st.sampled_from(staged.order))
    only = data.draw(st.booleans())
    choice = Choice(only=stage if only else None, from_stage=None if only else stage, iteration=iteration)
    fields = choosing.rewind(choice, staged, before)
    after = fold([*events, *([{"event": "rewind", **fields}] if fields else [])], staged.order)
    here = staged.order.index((iteration, stage))
    keeps = {row.name for row in staged.stages if row.run == "once"} - {stage}
    for number, place in enumerate(staged.order):
        done = before.at(place).outcome in ("done", "skipped")
        if place[1] in keeps and number != here:
            assert after.at(place) == before.at(place)
        elif number == here or (number > here and not only):
            assert place in after.pending
        elif only:
            assert after.at(place) == before.at(place)
        else:
            assert place in after.done
            assert not done or after.at(place) == before.at(place)
    runs = choosing.what_runs(choice, staged, after)
    assert runs == ([(iteration, stage)] if only else after.pending)
    if fields:
        twice = fold([*events, *[{"event": "rewind", **fields}] * 2], staged.order)
        assert twice == after


def test_a_checkpoint_whose_line_was_cut_off_leaves_the_one_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    for sequence in (1, 2):
        journal.append("published", sequence=sequence)
    os.truncate(journal.file, journal.file.stat().st_size - 3)
    last = journal.progress([]).last_published
    assert last is not None and last["sequence"] == 1
