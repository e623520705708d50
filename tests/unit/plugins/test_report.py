# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report of a run (X14): what the ledger and the journal say, beside what was planned."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gpuyard import cli
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import LocalStore
from gpuyard.formats.ledger import Change, Entry
from gpuyard.renting import record, watch
from gpuyard.renting.account import cost_between
from gpuyard.workload import resolve

from .conftest import Verb, World, instance

BEGAN = 1_790_000_000.0
WORKLOAD = """
name: tiny
repository: {url: "https://example.org/tiny.git", commit: "0123456789abcdef0123456789abcdef01234567"}
setup_hours: {expected: 0.5, worst: 1}
iterations: 2
stages:
  - {name: train, command: "true", hours: {expected: 1, worst: 2}}
  - {name: "<look>", command: "true"}
""".replace('"<look>"', "look")


def event(after_h: float, kind: str, **fields: Any) -> dict[str, Any]:
    time = datetime.fromtimestamp(BEGAN + after_h * 3600, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"time": time, "event": kind, **fields}


def stage(after_h: float, what: str, name: str, iteration: int, **fields: Any) -> dict[str, Any]:
    return event(after_h, f"stage-{what}", stage=name, iteration=iteration, **fields)


# The first machine is lost in the middle of the second iteration's training.
JOURNAL = [
    event(1, "run-start", version=1),
    stage(1, "start", "train", 0, attempt=1),
    event(2, "published", sequence=1, bytes_sent=3_000_000),
    stage(2, "end", "train", 0, outcome="done"),
    stage(2, "start", "train", 1, attempt=1),
    event(3, "published", sequence=2, bytes_sent=1_000_000),
    event(5, "run-start", version=1),
    stage(5, "start", "train", 1, attempt=2),
    stage(7, "end", "train", 1, outcome="done"),
    stage(7, "start", "look", 1, attempt=1),
    stage(7.5, "end", "look", 1, outcome="failed"),
    event(7.5, "run-end", outcome="failed"),
]


def entry(provider: str, number: str, *changes: tuple[float, str, float]) -> Entry:
    """Return what the ledger has of a machine: changes by hours since the beginning."""
    found = tuple(Change(BEGAN + hours * 3600, what, price) for hours, what, price in changes)
    price = max(one.price_per_hour_usd for one in found)
    return Entry("a-0", "tiny", provider, number, "RTX 4090", "SE", "on-demand", price, 0.1, found, found[-1].time)


LEDGER = [
    entry("vast", "1", (0, "rented", 0.1), (0.5, "running", 1.0), (3, "lost", 0.1), (4, "ended", 0.0)),
    entry("vultr", "2", (4, "running", 2.0), (8, "stopped", 0.5), (10, "ended", 0.0)),
]


@pytest.fixture
def bucket(world: World, tmp_path: Path) -> str:
    """Return the bucket of a run that has lost its first machine, and whose second one has ended."""
    store = LocalStore(tmp_path / "bucket")
    (tmp_path / "bucket").mkdir()
    file = tmp_path / "workloads" / "tiny.yml"
    file.parent.mkdir()
    file.write_text(WORKLOAD)
    begun = checkpoints.write_record(store, "a-0", "tiny", outcome="failed")
    store.put("a-0/run.json", replace(begun, pools={"main": 1}).to_bytes())
    resolved = resolve(str(file))
    made_of = record.WorkloadRecord(record.document_of(resolved), record.SourceRef("git"))
    store.put(record.workload_key("a-0"), made_of.to_bytes())
    for one in LEDGER:
        store.put(one.key, one.to_bytes())
    root = tmp_path / "root"
    (root / ".gpuyard").mkdir(parents=True)
    (root / ".gpuyard/journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in JOURNAL))
    checkpoints.publish(store, "a-0", root, progress=lambda _journal: {"outcome": "failed", "stage": "look"})
    return f"file://{tmp_path / 'bucket'}"


def test_plan_and_truth_agree_with_the_ledger_x14(verb: Verb, bucket: str) -> None:
    """X14: hours, dollars, idle share, restarts, losses and bytes; every sum is the ledger's."""
    made: Mapping[str, Any] = verb("run_report", run="a-0", bucket=bucket)["report"]
    # 0.5 h at 0.1, 2.5 h at 1, 1 h lost at 0.1; 4 h at 2, 2 h stopped at 0.5.
    assert made["usd"] == pytest.approx(2.65 + 9.0) == pytest.approx(sum(one.cost_usd(BEGAN + 36000) for one in LEDGER))
    assert [one["hours"] for one in made["machines"]] == pytest.approx([3, 4])
    assert [one["resting_hours"] for one in made["machines"]] == pytest.approx([1, 2])
    # The attempt that the loss cut off is known until the last checkpoint of its machine.
    assert [one["stage_hours"] for one in made["machines"]] == pytest.approx([2, 2.5])
    assert made["idle_share"] == pytest.approx(2.5 / 7)
    assert (made["losses"], made["restarts"], made["machines"][0]["lost"]) == (1, 1, BEGAN + 3 * 3600)
    train, look = made["stages"]
    assert (train["hours"], train["usd"], train["attempts"], train["cut_off"], train["done"]) == (
        pytest.approx(4),
        pytest.approx(2 * 1.0 + 2 * 2.0),
        3,
        1,
        2,
    )
    assert (look["planned_hours"], look["wanted"], look["done"]) == (None, 2, 0)
    # Set-up and two iterations, at the first machine's price.
    assert train["planned_hours"] == {"expected": 2, "worst": 4}
    assert made["planned"]["hours"] == {"expected": 2.5, "worst": 5} == made["planned"]["usd"]
    assert made["planned"]["without"] == ["look"]
    # The set that holds the journal has sent that file.
    assert made["checkpoints"] == 2 and made["published_bytes"] >= 4_000_000


def test_it_is_kept_as_markdown_with_a_picture_as_one_page_and_as_json(
    verb: Verb, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"run": "a-0", "bucket": bucket}
    assert verb("run_report", **options, report=str(tmp_path / "a.md"), check=True)["changed"]
    assert not (tmp_path / "a.md").exists()
    assert verb("run_report", **options, report=str(tmp_path / "a.md"))["changed"]
    text = (tmp_path / "a.md").read_text()
    assert "| USD | 2.50 at least | 5.00 | 11.65 |" in text and "](a.svg)" in text
    svg = ET.fromstring((tmp_path / "a.svg").read_text())
    titles = [one.text or "" for one in svg.iter() if one.tag.endswith("title")]
    assert any(one.startswith("iteration 1, train, attempt 1: cut off") for one in titles)
    assert any(one.startswith("lost, last seen alive 2026-09-2") for one in titles)
    # Every bar lies inside the picture.
    for box in (one for one in svg.iter() if one.tag.endswith("rect")):
        assert float(box.get("x", "-1")) >= 0 and float(box.get("x", "0")) + float(box.get("width", "0")) <= 961
    verb("run_report", **options, report=str(tmp_path / "a.html"))
    page = (tmp_path / "a.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "<svg" in page and "11.65" in page
    assert "src=" not in page and "<script" not in page and "<link" not in page
    assert json.loads(verb("run_report", **options, format="json")["text"])["losses"] == 1
    # The command says the same.
    assert cli.main(["report", "a-0", "--bucket", bucket]) == 0
    assert "| USD | 2.50 at least | 5.00 | 11.65 |" in capsys.readouterr().out
    assert cli.main(["report", "b-0", "--bucket", bucket]) == 2
    assert "run='b-0' is not known" in capsys.readouterr().err


def test_a_teardown_writes_it_and_refuses_before_it_ends_anything(
    world: World, verb: Verb, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vast.held["3"] = instance("vast", "3", "a-0", created_at=BEGAN)
    answer = {"ended": True, "saved": {"state": True, "sequence": None, "why": "Nothing has begun on this box."}}
    monkeypatch.setattr(watch, "stop", lambda *_args, **_more: answer)
    file = tmp_path / "report.html"
    assert "and there is no bucket" in verb("run_end", run="a-0", bucket="", report=str(file))["msg"]
    assert (
        "there is no folder" in verb("run_end", run="a-0", bucket=bucket, report=str(tmp_path / "x" / "r.html"))["msg"]
    )
    assert list(world.vast.held) == ["3"]
    done = verb("run_end", run="a-0", bucket=bucket, report=str(file))
    assert done["changed"] and world.vast.held == {}
    total = float(done["text"].partition("Run a-0 has cost $")[2].split()[0])
    made = verb("run_report", run="a-0", bucket=bucket)["report"]
    assert made["usd"] == pytest.approx(total, abs=0.005) and "vast 3, RTX 4090" in file.read_text()


def test_what_cannot_be_read_is_told_and_the_rest_is_reported(verb: Verb, bucket: str, world: World) -> None:
    store = LocalStore(Path(bucket.removeprefix("file://")))
    store.delete(record.workload_key("a-0"))
    made = verb("run_report", run="a-0", bucket=bucket)
    assert "The bucket does not say what it is made of" in made["text"] and made["report"]["usd"] == pytest.approx(
        11.65
    )
    assert "the runs there are: a-0" in verb("run_report", bucket=bucket)["msg"]
    assert "report=/ is a folder" in verb("run_report", run="a-0", bucket=bucket, report="/")["msg"]
    # A run that lives and has no bucket: what its machine costs is known, and nothing else.
    world.vast.held["9"] = instance("vast", "9", "c-0", created_at=BEGAN)
    made = verb("run_report", run="c-0", bucket="")
    assert "so what its stages took is not known" in made["text"] and len(made["report"]["machines"]) == 1


def test_what_a_machine_cost_in_between() -> None:
    first = LEDGER[0]
    assert cost_between(first, BEGAN, BEGAN + 36000) == pytest.approx(first.cost_usd(BEGAN + 36000))
    assert cost_between(first, BEGAN + 1800, BEGAN + 7200) == pytest.approx(1.5)
    assert cost_between(first, BEGAN + 7200, BEGAN + 1800) == 0.0
