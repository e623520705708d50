"""Labels and tags that any version has put onto a machine are read, and written as then (docs/formats/label.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuyard.formats.label import RunRef

ROWS = json.loads((Path(__file__).parent / "golden/label/labels.json").read_text())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["label"])
def test_what_was_written_is_read(row: dict[str, Any]) -> None:
    means = RunRef(*row["means"]) if row["means"] else None
    assert RunRef.from_label(row["label"]) == means
    if row["tags"]:
        assert RunRef.from_tags(row["tags"]) == means
        assert RunRef.from_tags(reversed(row["tags"])) == means, "the order of tags says nothing"


@pytest.mark.parametrize("row", [row for row in ROWS if row["written"]], ids=lambda row: row["label"])
def test_what_is_written_today_is_the_golden_file(row: dict[str, Any]) -> None:
    ref = RunRef(*row["means"])
    assert (ref.label, ref.tags) == (row["label"], row["tags"])
