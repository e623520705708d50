"""A machine that is finished with ends its own rental, with no controller anywhere (U9)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from test_promises import CANARY, tiny
from yard import BETWEEN_LOOKS_S, Yard

from gpuyard.renting.runs import stored

SHORT = "date > $GPUYARD_PERSIST/models/x && sleep 1"


@pytest.mark.parametrize("provider", ["vast", "runpod"])
def test_a_machine_ends_its_own_rental_when_its_stages_have_ended(yard: Yard, tmp_path: Path, provider: str) -> None:
    """X8: with the key of that one machine, which is not the account's. The bill stops, and nothing is left."""
    run, file = f"alone-{provider}", Path(tiny(tmp_path))
    file.write_text(file.read_text().replace("date > $GPUYARD_PERSIST/models/x && sleep 600", SHORT))
    options = {"provider": provider, "run": run, "workload": str(file), "shutdown": "true", "follow": "false"}
    said = yard.play("launch", env={"TINY_TOKEN": CANARY}, **options)
    assert "it ends by itself at Vast and RunPod" in " ".join(said.text.split())
    # From here on there is no controller.
    yard.wait("the end of the rental", lambda: not yard.instances(run), seconds=400)
    kept = stored(yard.store, costs=True)
    assert kept.records[run].outcome == "done" and kept.records[run].over == "shutdown"
    assert yard.published(run, "models/x"), "its results are in the bucket"
    (entry,) = kept.entries[run]
    bill = [line for line in yard.control.status()["bill"]["lines"] if line["id"] == entry.id]
    billed = sum(line["amount_usd"] for line in bill)
    time.sleep(2)
    again = [line for line in yard.control.status()["bill"]["lines"] if line["id"] == entry.id]
    assert sum(line["amount_usd"] for line in again) == billed, "nothing bills any more"
    assert entry.ended_by_us
    # The machine writes down its end before it asks for it; a loaded one takes some seconds from the one to the other.
    assert entry.cost_usd(time.time()) == pytest.approx(
        billed, abs=3 * BETWEEN_LOOKS_S / 3600 * entry.price_per_hour_usd
    )
    report = tmp_path / "audit.json"
    yard.play("audit", format="json", report=str(report))
    audited = json.loads(report.read_text())
    left = [one for one in audited["holdings"] if one["run"] == run and one["provider"] != "bucket"]
    assert left == [] and audited["orphans"] == [], "the audit shows nothing"
