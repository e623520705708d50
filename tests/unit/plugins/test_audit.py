# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everything that bills, what of it has been forgotten, and the end of that."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from gpuyard.errors import LeakError, ProviderDownError
from gpuyard.formats.limits import Limits
from gpuyard.formats.run_record import RunRecord
from gpuyard.providers.base import State
from gpuyard.providers.resources import Kind
from gpuyard.renting import limits, runs
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook

from .conftest import MemoryShelf, Verb, World, instance, resource
from .test_belongings import settled
from .test_run_end import ALL_SAVED, NOT_SAVED, Boxes, boxes, bucket, publish, store_of

__all__ = ["boxes", "bucket", "settled"]


def found(result: dict[str, Any], kind: str, identifier: str) -> dict[str, Any]:
    """Return one holding of an audit."""
    (one,) = [one for one in result["holdings"] if (one["kind"], one["id"]) == (kind, identifier)]
    return dict(one)


def why(result: dict[str, Any], kind: str, identifier: str) -> tuple[str, bool]:
    """Return what an audit says of one thing, and whether it calls it forgotten."""
    one = found(result, kind, identifier)
    return one["why"], one["orphaned"]


@pytest.fixture
def over(world: World, boxes: Boxes, bucket: str, tmp_path: Path, settled: list[str]) -> World:
    """Return a world with a run that was torn down, and of which a machine and a volume are still there."""
    publish(bucket, tmp_path, record="cancelled")
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.answers["1"] = ALL_SAVED
    world.vultr.shelve(resource("vultr", Kind.VOLUME, "v1", "a-0"), resource("vultr", Kind.VOLUME, "v9"))
    return world


def test_an_audit_lists_all_that_bills_ours_or_not(world: World, verb: Verb, bucket: str, tmp_path: Path) -> None:
    publish(bucket, tmp_path)
    (tmp_path / "bucket" / "stray").write_bytes(b"12345")
    world.vast.held["1"] = instance("vast", "1", "a-0", created_at=time.time() - 7200)
    world.vast.held["2"] = instance("vast", "2", state=State.STOPPED, idle_price_per_hour_usd=0.01)
    world.vultr.shelve(resource("vultr", Kind.SNAPSHOT, "s1", price_per_month_usd=None))
    world.vultr.shelve(resource("vultr", Kind.SSH_KEY, "k1"))
    result = verb("audit_info", bucket=bucket)
    assert result["whole"] and result["orphans"] == [] and not result["changed"]
    assert {(one["kind"], one["ours"]) for one in result["holdings"]} == {
        ("instance", True), ("instance", False), ("snapshot", False), ("prefix", True)
    }  # fmt: skip
    assert found(result, "instance", "1")["age_s"] == pytest.approx(7200, abs=60)
    assert found(result, "instance", "2")["price_per_month_usd"] == pytest.approx(7.3)
    prefix = found(result, "prefix", f"{bucket}/a-0")
    assert prefix["run"] == "a-0" and prefix["size_gb"] > 0 and "objects" in prefix["state"]
    assert result["price_per_month_usd"] == pytest.approx(0.41 * 730)
    assert "not ours" in result["text"] and "without 3 whose price nobody says" in result["text"]
    everything = verb("audit_info", bucket=bucket, everything=True, format="json")
    assert found(json.loads(everything["text"]), "ssh-key", "k1")["price_per_month_usd"] == 0.0


def test_what_belongs_to_a_run_that_has_ended_is_forgotten(over: World, verb: Verb, bucket: str) -> None:
    result = verb("audit_info", bucket=bucket)
    assert [(one["kind"], one["id"]) for one in result["orphans"]] == [("instance", "1"), ("volume", "v1")]
    assert "its run was torn down at 20" in why(result, "instance", "1")[0]
    assert "2 forgotten, for $392.00 a month: ansible-playbook audit.yml -e reap=true" in result["text"]


def test_a_run_that_is_launched_again_is_not_over(over: World, verb: Verb, bucket: str) -> None:
    """Its end stands in the bucket until the first stage begins, which may be hours after the rental."""
    over.vast.held["2"] = instance("vast", "2", "a-0", created_at=time.time() + 5)
    assert verb("audit_info", bucket=bucket)["orphans"] == []
    assert not verb("reap", bucket=bucket, orphans=True)["changed"]
    # Lambda does not say how old a machine is, so the ledger has to.
    over.vast.held["2"] = instance("vast", "2", "a-0", created_at=None)
    assert verb("audit_info", bucket=bucket)["orphans"] == []


def test_what_a_teardown_has_kept_is_not_forgotten(over: World, verb: Verb, bucket: str) -> None:
    del over.vast.held["1"]
    limits.write(store_of(bucket), "a-0", Limits(kept=("vultr/volume/v1",)))
    result = verb("audit_info", bucket=bucket)
    assert why(result, "volume", "v1") == ("kept on purpose", False)
    assert not verb("reap", bucket=bucket, orphans=True)["changed"]


def test_what_is_left_of_a_lost_machine_is_forgotten_and_a_run_of_another_bucket_is_not(
    world: World, verb: Verb, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0", state=State.PREEMPTED)
    world.vast.held["2"] = instance("vast", "2", "a-0")
    world.vast.held["3"] = instance("vast", "3", "elsewhere-0")
    world.vultr.shelve(resource("vultr", Kind.VOLUME, "v1", "elsewhere-1"), resource("vultr", Kind.VOLUME, "v2", "a-0"))
    result = verb("audit_info", bucket=bucket)
    assert why(result, "instance", "1") == (
        "what is left of a lost machine of its node, which has another one now",
        True,
    )
    assert why(result, "instance", "3") == ("this bucket does not know its run", False)
    unknown = "attached to nothing, and its run has no machine; this bucket does not know its run"
    assert why(result, "volume", "v1") == (unknown, False)
    assert why(result, "volume", "v2") == ("", False)
    # One whose end was confirmed, and which is there all the same.
    Ledger(Notebook(lambda: store_of(bucket))).ended(world.vast.held["2"], time.time())
    result = verb("audit_info", bucket=bucket)
    assert why(result, "instance", "2") == ("a command has ended it, and it is still there", True)


def test_a_launch_whose_controller_is_gone_is_forgotten_after_a_day(world: World, verb: Verb, bucket: str) -> None:
    store_of(bucket).put("a-0/run.json", RunRecord("a-0", "x", launched="2026-03-01T11:50:00Z").to_bytes())
    for hours, orphaned in ((23, False), (25, True)):
        world.vast.held["1"] = instance("vast", "1", "a-0", created_at=time.time() - hours * 3600)
        text, forgotten = why(verb("audit_info", bucket=bucket), "instance", "1")
        assert forgotten is orphaned and text.startswith("no stage of its run has begun")
    # Of a run of another bucket that is not known.
    world.vast.held["1"] = instance("vast", "1", "b-0", created_at=0.0)
    assert why(verb("audit_info", bucket=bucket), "instance", "1") == ("this bucket does not know its run", False)


def test_what_cannot_be_asked_is_named(over: World, verb: Verb, bucket: str) -> None:
    over.vast.error = ProviderDownError("502", provider="vast")
    volumes = over.vultr.shelved[Kind.VOLUME]
    assert isinstance(volumes, MemoryShelf)
    volumes.errors["all"] = ProviderDownError("503", provider="vultr")
    result = verb("audit_info", bucket=bucket)
    assert not result["whole"] and set(result["unanswered"]) == {"vast", "vultr volume"}
    assert "vast could not be asked" in result["text"]
    # No bucket: nobody knows whose runs are over, so nothing is forgotten for certain.
    over.vast.error, volumes.errors = None, {}
    assert verb("audit_info", bucket="")["orphans"] == []


def test_a_request_that_nobody_has_seen_answered_is_told(world: World, verb: Verb, bucket: str) -> None:
    store_of(bucket).put("a-0/requests/vast-00ff.json", b"{}")
    (note,) = verb("audit_info", bucket=bucket)["notes"]
    assert note == "A request of run a-0 to vast is not known to be answered: a machine may have come of it."


def test_unfinished_uploads_are_counted_and_left_alone(world: World, verb: Verb, bucket: str, tmp_path: Path) -> None:
    publish(bucket, tmp_path)
    part = tmp_path / "bucket" / "a-0" / ".gpuyard-part-x"
    part.write_bytes(b"1")
    result = verb("audit_info", bucket=bucket)
    assert found(result, "prefix", f"{bucket}/a-0")["state"].endswith(", 1 unfinished uploads") and part.exists()


def test_reaping_ends_what_is_forgotten_and_nothing_else(over: World, verb: Verb, bucket: str) -> None:
    over.vast.held["2"] = instance("vast", "2")
    over.vultr.held["3"] = instance("vultr", "3", "b-0")
    planned = verb("reap", bucket=bucket, orphans=True, check=True)
    assert sorted(call["url"].rpartition("invalid/")[2] for call in planned["planned_calls"]) == [
        "instances/1", "volumes/v1"
    ]  # fmt: skip
    assert over.vast.history == [] and "would destroy vast 1" in planned["text"]
    done = verb("reap", bucket=bucket, orphans=True)
    assert done["changed"] and done["problems"] == []
    assert (list(over.vast.held), list(over.vultr.held)) == (["2"], ["3"])
    shelf = over.vultr.shelved[Kind.VOLUME]
    assert isinstance(shelf, MemoryShelf) and list(shelf.held) == ["v9"]
    assert not verb("reap", bucket=bucket, orphans=True)["changed"]
    assert not verb("reap", bucket=bucket)["changed"]


def test_reaping_keeps_the_only_copy_and_names_what_it_could_not_end(
    over: World, verb: Verb, boxes: Boxes, bucket: str
) -> None:
    boxes.answers["1"] = NOT_SAVED
    (problem,) = verb("reap", bucket=bucket, orphans=True)["problems"]
    assert "vast 1, RTX 4090" in problem and "is kept, and bills 0.4000 USD an hour" in problem
    assert "1" in over.vast.held and over.vultr.history == []

    boxes.answers["1"] = ALL_SAVED
    volumes = over.vultr.shelved[Kind.VOLUME]
    assert isinstance(volumes, MemoryShelf)
    volumes.errors["destroy"] = LeakError("volume v1 could not be confirmed destroyed.", instance_id="v1")
    result = verb("reap", bucket=bucket, orphans=True)
    assert "vultr volume v1, 1000 GB in ewr could not be ended" in result["problems"][0]
    assert "1" not in over.vast.held


def test_what_is_left_of_a_lost_machine_goes_alone(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0", state=State.PREEMPTED)
    world.vast.held["2"] = instance("vast", "2", "a-0")
    world.vultr.shelve(resource("vultr", Kind.VOLUME, "v1", "a-0", attached_to=("2",)))
    assert verb("reap", bucket=bucket, orphans=True)["changed"]
    assert list(world.vast.held) == ["2"] and boxes.stops == [] and world.vultr.history == []
    # The run goes on, so it was not given up.
    assert runs.stored(store_of(bucket)).records["a-0"].outcome is None


def test_a_machine_that_comes_between_the_look_and_the_end_saves_its_run(
    over: World, verb: Verb, boxes: Boxes, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = over.vast.instances

    def launched_meanwhile() -> list[Any]:
        answer = listed()
        over.vast.held.setdefault("2", instance("vast", "2", "a-0"))
        return answer

    monkeypatch.setattr(over.vast, "instances", launched_meanwhile)
    (problem,) = verb("reap", bucket=bucket, orphans=True)["problems"]
    assert "Run a-0 has got vast 2" in problem and "launched again: nothing of it was ended" in problem
    assert set(over.vast.held) == {"1", "2"} and over.vultr.history == []
