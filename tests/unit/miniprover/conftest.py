"""Makes the example's Python package importable, as it is on the box, where stages run in its folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "miniprover"
sys.path.insert(0, str(EXAMPLE))


@pytest.fixture
def example() -> Path:
    return EXAMPLE
