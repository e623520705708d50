# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Leases and budgets: what a launch makes of them, and who ends a run that is past them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuyard import pace
from gpuyard.api import end, follow, reap
from gpuyard.api.site import Site
from gpuyard.box.checkpoints import write_record
from gpuyard.cost import Span
from gpuyard.errors import GpuyardError, ProviderDownError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.formats.limits import Limits
from gpuyard.planning import PlanRequest, limited
from gpuyard.planning.limited import Limited
from gpuyard.providers.resources import Kind
from gpuyard.renting import ending, limits, ready, runs
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook
from gpuyard.renting.runs import Run
from gpuyard.workload import load_workload

from .conftest import Verb, World, instance, offer, resource
from .test_belongings import settled
from .test_run_end import ALL_SAVED, NOT_SAVED, Boxes, boxes, bucket, publish, store_of

__all__ = ["boxes", "bucket", "settled"]
HOUR = 3600.0


@pytest.fixture
def at_work(world: World, boxes: Boxes, bucket: str, tmp_path: Path, settled: list[str]) -> World:
    """Return a world with a run that has rented two machines an hour ago, one of which is gone."""
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0", created_at=time.time() - HOUR, price_per_hour_usd=2.0)
    boxes.answers["1"] = ALL_SAVED
    ledger = Ledger(Notebook(lambda: store_of(bucket)), now=lambda: time.time() - HOUR)
    lost = instance("vast", "0", "a-0", created_at=time.time() - 3 * HOUR, price_per_hour_usd=1.0)
    ledger.rented(lost)
    ledger.running(lost)
    ledger.ended(lost, time.time() - 2 * HOUR)
    return world


def limit(bucket: str, **values: Any) -> None:
    """Write the limits of run a-0."""
    limits.write(store_of(bucket), "a-0", Limits(**values))


def test_a_run_past_its_lease_is_saved_and_ended_with_all_that_it_has(
    at_work: World, verb: Verb, boxes: Boxes, bucket: str
) -> None:
    at_work.vultr.shelve(resource("vultr", Kind.VOLUME, "v1", "a-0"))
    limit(bucket, lease_end=time.time() + 60)
    assert verb("reap", bucket=bucket, limits=True)["reaped"] == []
    limit(bucket, lease_end=time.time() - 60)
    assert "its lease ended at 20" in verb("audit_info", bucket=bucket)["orphans"][0]["why"]
    planned = verb("reap", bucket=bucket, limits=True, check=True)
    assert (
        len(planned["planned_calls"]) == 2 and boxes.stops == [] and "Run a-0 would end: its lease" in planned["text"]
    )
    done = verb("reap", bucket=bucket, limits=True, format="json")
    assert done["changed"] and done["problems"] == [] and '"run": "a-0"' in done["text"]
    assert boxes.stops == [{"id": "1", "wait_s": None, "limit_s": None}]
    assert at_work.vast.held == {} and at_work.vultr.history == ["destroy v1"]
    # It was ended on purpose, so it goes on only when it is named.
    assert runs.stored(store_of(bucket)).records["a-0"].outcome == "cancelled"
    assert verb("reap", bucket=bucket, limits=True)["reaped"] == []


def test_what_cannot_be_saved_is_kept_past_its_lease_unless_told(
    at_work: World, verb: Verb, boxes: Boxes, bucket: str
) -> None:
    limit(bucket, lease_end=time.time() - 60)
    boxes.answers["1"] = NOT_SAVED
    kept = verb("reap", bucket=bucket, limits=True)
    assert (
        not kept["changed"]
        and "vast 1, RTX 4090" in kept["problems"][0]
        and "is kept, and bills" in kept["problems"][0]
    )
    assert verb("reap", bucket=bucket, limits=True, lose=True)["problems"] == []
    assert at_work.vast.held == {}


def test_without_a_bucket_the_label_says_when_a_lease_ends(
    world: World, verb: Verb, boxes: Boxes, settled: list[str]
) -> None:
    world.vast.held["1"] = instance("vast", "1", ref=RunRef("a-0", "x", lease_end=int(time.time()) - 5))
    world.vast.held["2"] = instance("vast", "2", ref=RunRef("b-0", "x", lease_end=int(time.time()) + 500))
    world.vast.held["3"] = instance("vast", "3")
    boxes.answers["1"] = ALL_SAVED
    assert verb("reap", bucket="", limits=True)["changed"]
    assert list(world.vast.held) == ["2", "3"]


def test_a_budget_counts_all_machines_and_ends_the_run(at_work: World, verb: Verb, bucket: str) -> None:
    limit(bucket, budget_usd=3.9)  # 1 $ for the machine that is gone, 2 $ for the other one
    assert verb("reap", bucket=bucket, limits=True)["notes"] == []
    limit(bucket, budget_usd=3.5)
    almost = verb("reap", bucket=bucket, limits=True)
    assert almost["notes"] == ["Run a-0 has cost $3.00, 86% of its budget of $3.50."] and not almost["changed"]
    assert "86% of its budget" in verb("run_info", bucket=bucket, ask_boxes=False)["text"]
    limit(bucket, budget_usd=2.9)
    assert "should have ended, since it has cost $3.00" in verb("run_info", bucket=bucket, ask_boxes=False)["text"]
    (one,) = verb("reap", bucket=bucket, limits=True)["reaped"]
    assert one["why"] == "it has cost $3.00, and its budget is $2.90" and at_work.vast.held == {}


def test_a_budget_counts_volumes_and_snapshots_too(at_work: World, verb: Verb, bucket: str) -> None:
    """They bill beside the machines, from when they were made."""
    made = {"price_per_month_usd": 730.0, "created_at": time.time() - HOUR}
    at_work.vultr.shelve(resource("vultr", Kind.VOLUME, "v1", "a-0", **made))
    at_work.vast.shelve(resource("vast", Kind.SNAPSHOT, "s1", "a-0", **made))
    at_work.vast.shelve(resource("vast", Kind.VOLUME, "another", "b-0", **made))
    limit(bucket, budget_usd=5.5)
    assert verb("reap", bucket=bucket, limits=True)["notes"] == ["Run a-0 has cost $5.00, 91% of its budget of $5.50."]
    limit(bucket, budget_usd=4.9)
    (one,) = verb("reap", bucket=bucket, limits=True)["reaped"]
    assert one["why"] == "it has cost $5.00, and its budget is $4.90"
    assert "v1" not in at_work.vultr.shelved[Kind.VOLUME].held  # type: ignore[attr-defined]


def test_whoever_follows_a_run_counts_its_volumes(at_work: World, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"price_per_month_usd": 730.0, "created_at": time.time() - HOUR}
    at_work.vultr.shelve(resource("vultr", Kind.VOLUME, "v1", "a-0", **made))
    limit(bucket, budget_usd=10.0)
    told: list[str] = []
    site = Site(bucket=bucket)
    assert follow.Real(site, told.append).run("a-0").spent_usd() == pytest.approx(4.0, abs=0.01)
    at_work.vultr.shelved[Kind.VOLUME].errors["all"] = ProviderDownError("Down.", provider="vultr")  # type: ignore[attr-defined]
    assert follow.Real(site, told.append).run("a-0").spent_usd() == pytest.approx(3.0, abs=0.01)
    assert "what is there is not seen, and may bill: Down." in told[-1]


@pytest.mark.parametrize("over", ["shutdown", "idle"])
def test_a_machine_that_has_written_that_it_is_over_is_ended_u9(
    at_work: World, verb: Verb, boxes: Boxes, bucket: str, over: str
) -> None:
    """U9: where the cloud gives a machine no key of its own, whoever reaps ends it, and a run that goes on is left."""
    store = store_of(bucket)
    write_record(store, "a-0", "x", outcome="done" if over == "shutdown" else "interrupted", over=over)
    born = at_work.vast.held["1"]
    at_work.vast.held["1"] = replace(born, created_at=time.time() + 60)
    assert verb("reap", bucket=bucket, limits=True)["reaped"] == [], "it has been launched again since"
    at_work.vast.held["1"] = born
    (one,) = verb("reap", bucket=bucket, limits=True)["reaped"]
    assert one["why"].endswith("and everything is saved") and at_work.vast.held == {}
    assert boxes.stops, "the machine itself has said once more that all is saved"
    assert write_record(store, "a-0", "x").over == "", "a run that goes on is not over"


def test_a_run_that_has_only_ended_is_left_to_its_user(at_work: World, verb: Verb, bucket: str) -> None:
    write_record(store_of(bucket), "a-0", "x", outcome="done")
    assert verb("reap", bucket=bucket, limits=True)["reaped"] == [] and "1" in at_work.vast.held


def test_a_damaged_limit_is_told(at_work: World, verb: Verb, bucket: str) -> None:
    store_of(bucket).put("a-0/limits.json", b'{"lease_end": "soon"}')
    result = verb("reap", bucket=bucket, limits=True)
    (told,) = result["unanswered"].values()
    assert "Until when run a-0 is rented and what it may cost is not known" in told and not result["changed"]
    assert "1" in at_work.vast.held
    shown = verb("run_info", bucket=bucket, ask_boxes=False)
    assert "Until when run a-0 is rented" in shown["text"] and shown["runs"][0]["lease_end"] is None


class Followed:
    """A run whose stages go on until it is ended."""

    def __init__(self, run: Run) -> None:
        self.now = run
        self.orders: list[ending.Order] = []
        self.over = threading.Event()

    def run(self, name: str) -> Run:
        return self.now

    def records(self, one: Any) -> Iterator[Mapping[str, Any]]:
        self.over.wait(20)
        yield {"event": "end", "state": "interrupted"}

    def how_it_ended(self, whose: str, one: Any, state: str) -> str:
        return f"{whose} is {state}."

    def last_checkpoint(self, name: str) -> None:
        return None

    def launch(self, options: Mapping[str, Any]) -> None:
        raise AssertionError

    def end(self, order: ending.Order) -> end.Change:
        self.orders.append(order)
        self.over.set()
        return end.Change(True, text=["Run a-0 has cost $3.0000 in all."])


@pytest.mark.parametrize(
    ("limit", "told", "why"),
    [
        (Limits(budget_usd=2.0), "has cost $1.70, 85% of its budget of $2.00", "it has cost $2.10, and its budget"),
        (Limits(lease_end=HOUR * 1.0), "", "its lease ended at 1970-01-01 01:00 UTC"),
    ],
)
def test_who_follows_a_run_warns_and_ends_it(
    monkeypatch: pytest.MonkeyPatch, limit: Limits, told: str, why: str
) -> None:
    monkeypatch.setattr(follow, "LIMITS_S", 0.02)
    moments = iter([0.5, 0.85, 0.86, 1.05])
    times: list[float] = [0.0]

    def date() -> float:
        times.append(HOUR * next(moments, 1.05))
        return times[-1]

    box = instance("vast", "1", "a-0", created_at=0.0, price_per_hour_usd=2.0)
    world = Followed(Run("a-0", "x", (box,), limits=limit))
    lines: list[str] = []
    with pytest.raises(GpuyardError) as ended:
        follow.follow_in(world, follow.Follow("a-0"), progress=lines.append, clock=pace.Clock(date=date))
    assert why in str(ended.value) and "Run a-0 has cost $3.0000 in all." in str(ended.value)
    assert world.orders == [ending.Order("a-0")]
    assert not told or len([line for line in lines if told in line]) == 1


# -- what a launch makes of them ---------------------------------------------------------------------------------------


def decide(run: Run, bucket: str, workload: Any = None, now: float = 1000.0, **request: Any) -> Limited:
    """Return the limits of a run that is planned."""
    made = workload or load_workload("miniprover")
    return limited.decide(run, made, PlanRequest(**request), store_of(bucket) if bucket else None, now=lambda: now)


def test_what_is_asked_counts_then_what_was_launched_with_then_the_workload(bucket: str) -> None:
    plain = load_workload("miniprover")
    said = plain.model_copy(update={"budget": plain.budget.model_copy(update={"usd": 9.0, "lease_hours": 2.0})})
    run = Run("a-0", "miniprover")
    assert decide(run, bucket) == Limited()
    first = decide(run, bucket, said)
    assert first == Limited(Limits(1000.0 + 2 * HOUR, 9.0), new=True)
    assert "It is rented until 1970-01-01 02:16 UTC" in first.text()[0]
    assert decide(run, bucket, said, lease_hours=0.0, budget_usd=0.0) == Limited(Limits(), new=True)
    limit(bucket, lease_end=5000.0, budget_usd=3.0, kept=("x",))
    assert decide(run, bucket, said) == Limited(Limits(5000.0, 3.0, ("x",)))
    assert decide(run, bucket, said, lease_hours=1.0).limits == Limits(4600.0, 3.0, ("x",))
    with pytest.raises(UsageError, match=r"lease of run a-0 ended at .*another one with -e lease_hours=…, or none"):
        decide(run, bucket, said, now=6000.0)
    assert decide(run, bucket, said, now=6000.0, lease_hours=0.0).limits.lease_end is None


def test_without_a_bucket_a_lease_stands_on_the_label_and_nothing_counts(bucket: str) -> None:
    run = Run("a-0", "miniprover")
    assert decide(run, "", lease_hours=1.0) == Limited(label_end=4600)
    with pytest.raises(UsageError, match=r"^budget_usd=3 needs a bucket"):
        decide(run, "", budget_usd=3.0)
    leased = replace(run, instances=(instance("vast", "1", ref=RunRef("a-0", "x", lease_end=9000)),))
    assert decide(leased, "").label_end == 9000
    with pytest.raises(UsageError, match=r"^lease_hours=1 cannot change the lease of a machine that lives"):
        decide(leased, "", lease_hours=1.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"lease_hours": -1.0}, "lease_hours=-1 must be a number of hours above 0, or 0 for no such limit."),
        ({"lease_hours": float("nan")}, "lease_hours=nan must be"),
        ({"lease_hours": 1e9}, "lease_hours=1e+09 is more than ten years"),
        ({"budget_usd": float("inf")}, "budget_usd=inf must be a number of US dollars above 0"),
    ],
)
def test_a_wrong_limit_is_one_sentence_before_anything_is_asked(
    world: World, verb: Verb, wrong: dict[str, float], says: str
) -> None:
    result = verb("run_plan", workload="miniprover", bucket="", **wrong)
    assert result["failed"] and result["msg"].startswith(says)
    assert world.vast.asked == 0


def test_a_launch_that_costs_more_than_its_budget_is_refused() -> None:
    tight = Limited(Limits(budget_usd=5.0), spent_usd=2.0)
    with pytest.raises(UsageError, match=r"budget_usd=5: \$2\.00 are spent, and \$4\.00 are still to come\."):
        limited.refuse_cost(tight, "a-0", Span(4.0, 8.0), renting=True, lower_bound=False)
    (told,) = limited.refuse_cost(tight, "a-0", Span(4.0, 8.0), renting=False, lower_bound=False)
    assert "is expected to cost more than budget_usd=5" in told
    (worst,) = limited.refuse_cost(tight, "a-0", Span(2.0, 8.0), renting=True, lower_bound=False)
    assert worst.startswith("At worst run a-0 costs more")
    (unknown,) = limited.refuse_cost(tight, "a-0", None, renting=True, lower_bound=True)
    assert "some stages have no hours" in unknown
    assert limited.refuse_cost(Limited(), "a-0", Span(4.0, 8.0), renting=True, lower_bound=False) == []
    with pytest.raises(UsageError, match="Nothing was rented"):
        spent_up = Limited(Limits(budget_usd=5.0), spent_usd=5.0)
        limited.refuse_cost(spent_up, "a-0", None, renting=True, lower_bound=True)


def test_a_launch_writes_the_limits_before_it_rents(
    world: World, verb: Verb, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vast.market = [offer("vast", "7", price_per_hour_usd=0.4)]
    create = world.vast.create
    seen: list[Limits] = []
    monkeypatch.setattr(ready, "wait_ssh", lambda *_args, **_options: "SHA256:x")

    def spy(*words: Any, **more: Any) -> Any:
        seen.append(limits.read(store_of(bucket), "a-0"))
        return create(*words, **more)

    monkeypatch.setattr(world.vast, "create", spy)
    given = {"workload": "miniprover", "run": "a-0", "bucket": bucket, "lease_hours": 2.0}
    refused = verb("run_launch", **given, budget_usd=0.01)
    assert "is expected to cost more than budget_usd=0.01" in refused["msg"] and world.vast.rented == []
    checked = verb("run_launch", **given, budget_usd=50.0, check=True)
    assert checked["plan"]["budget_usd"] == 50.0 and seen == []
    verb("run_launch", **given, budget_usd=50.0)
    assert world.vast.rented == ["7"] and seen[0].budget_usd == 50.0
    assert seen[0].lease_end == pytest.approx(time.time() + 2 * HOUR, abs=120)
    assert next(iter(world.vast.held.values())).ref == RunRef("a-0", "miniprover")
    assert reap.ReapRequest().limits is False
