"""Names that any version has given to a volume are read, and written as then (docs/formats/label.md)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gpuyard.errors import UsageError
from gpuyard.formats.label import RunRef

ROWS = json.loads((Path(__file__).parent / "golden/label/names.json").read_text())
LAMBDA = re.compile(r"[a-zA-Z]+[0-9a-zA-Z-]*")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_what_was_written_is_read(row: dict[str, Any]) -> None:
    means = RunRef(*row["means"]) if row["means"] else None
    assert RunRef.from_name(row["name"]) == means
    if row["underscores"]:
        assert RunRef.from_name(row["underscores"]) == means


@pytest.mark.parametrize("row", [row for row in ROWS if row["written"]], ids=lambda row: row["name"])
def test_what_is_written_today_is_the_golden_file(row: dict[str, Any]) -> None:
    ref = RunRef(*row["means"])
    assert (ref.name(60), ref.name(64, "_")) == (row["name"], row["underscores"])
    assert LAMBDA.fullmatch(row["name"]) and re.fullmatch(r"\w+", row["underscores"])


def test_a_name_that_does_not_fit_is_refused_and_never_cut() -> None:
    longest = RunRef("a" * 24, "b" * 25)
    assert RunRef.from_name(longest.name(60)) == longest
    with pytest.raises(UsageError, match=r"run=a{25} is too long here: .* has 61 characters, and 60 are allowed"):
        RunRef("a" * 25, "b" * 25).name(60)
