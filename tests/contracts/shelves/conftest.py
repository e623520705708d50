from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .emulated import Emulated, Wire, emulated_on, served


@pytest.fixture(scope="session")
def wire_and_port() -> Iterator[tuple[Wire, int]]:
    """A wire for all tests, one after the other, and its port."""
    with served() as made:
        yield made


@pytest.fixture
def emulated(wire_and_port: tuple[Wire, int], tmp_path: Path) -> Emulated:
    """Clouds with nothing in them."""
    return emulated_on(*wire_and_port, tmp_path)
