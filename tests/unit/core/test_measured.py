"""V18: what earlier runs measured of clouds: set-up time, and how long stages took for how much."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from gpuyard import comparison
from gpuyard.box.checkpoints import LocalStore, publish, write_record
from gpuyard.formats.ledger import Change, Entry
from gpuyard.providers.base import Query
from gpuyard.providers.vast import Vast
from gpuyard.renting import measured

BEGAN = 1_800_000_000.0


def entry(run: str, provider: str, began: float, price: float, node: str = "main-0") -> Entry:
    where = (provider, f"{provider}1", "RTX 4090", "SE", "on-demand")
    return Entry(run, "prover", *where, price, 0.0, (Change(began, "running", price),), began, node)


def event(at: float, name: str, **fields: object) -> str:
    return json.dumps({"time": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "event": name, **fields})


def a_run(store: LocalStore, root: Path, run: str, entries: list[Entry], events: list[str]) -> None:
    write_record(store, run, "prover")
    for one in entries:
        store.put(one.key, one.to_bytes())
    (root / run / ".gpuyard").mkdir(parents=True)
    (root / run / ".gpuyard" / "journal.jsonl").write_text("\n".join(events) + "\n")
    publish(store, run, root / run, progress=lambda _: {"iteration": 0})


def ended(at: float, stage: str, seconds: object, **fields: object) -> str:
    values = {"stage": stage, "iteration": 0, "attempt": 1, "outcome": "done", "seconds": seconds}
    return event(at, "stage-end", **{**values, **fields})


def test_v18_machines_of_a_run_are_told_apart_by_when_they_were_rented(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    store = LocalStore(tmp_path / "bucket")
    second = BEGAN + 36000
    a_run(
        store,
        tmp_path,
        "prover-0",
        [entry("prover-0", "vast", BEGAN, 0.5), entry("prover-0", "vultr", second, 2.0)],
        [
            event(BEGAN + 600, "stage-start", stage="tune"),
            ended(BEGAN + 7800, "tune", 7200),
            ended(BEGAN + 9000, "search", 900, outcome="interrupted"),
            event(second + 120, "stage-start", stage="search"),
            ended(second + 4000, "search", 3600, attempt=2),  # of what was cut off only the rest is known
            ended(second + 8000, "score", 1800),
            ended(second + 9000, "score", "long"),
        ],
    )
    a_run(
        store,
        tmp_path,
        "prover-1",
        [entry("prover-1", "vast", BEGAN, 0.5)],
        [event(BEGAN + 1200, "stage-start", stage="tune"), ended(BEGAN + 9999, "tune", 3600)],
    )
    nodes = [entry("prover-2", "vast", BEGAN, 0.5), entry("prover-2", "vast", BEGAN, 0.5, "search-1")]
    a_run(store, tmp_path, "prover-2", nodes, [event(BEGAN + 9, "stage-start", stage="tune")])
    vast, vultr = measured.read(store, "prover", lambda _: None)
    assert (vast.provider, vast.machines, vast.setup_minutes) == ("vast", 2, 15.0)
    assert vast.stages == (measured.StageFigures("prover", "tune", 2, 1.5, 0.75),)
    assert (vultr.provider, vultr.setup_minutes) == ("vultr", 2.0)
    assert vultr.stages == (measured.StageFigures("prover", "score", 1, 0.5, 1.0),)
    assert measured.read(store, "another", lambda _: None) == []
    made = comparison.compare([], [Vast("k")], {}, Query(), measured=[vast, vultr])
    assert "prover tune" in made.render("table") and "## What earlier runs measured" in made.render("markdown")
    assert json.loads(made.render("json"))["measured"][0]["setup_minutes"] == 15.0


def test_a_run_whose_journal_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    store = LocalStore(tmp_path / "bucket")
    a_run(store, tmp_path, "prover-0", [entry("prover-0", "vast", BEGAN, 0.5)], [])
    store.put("prover-0/checkpoints/000002/manifest.json", b"{")
    said: list[str] = []
    assert measured.read(store, None, said.append) == []
    assert said and "prover-0" in said[0]
