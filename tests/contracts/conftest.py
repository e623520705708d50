from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated import Emulated, Wire, emulated_on, served


@pytest.fixture(scope="session")
def wire_and_port() -> Iterator[tuple[Wire, int]]:
    with served() as made:
        yield made


@pytest.fixture
def emulated(wire_and_port: tuple[Wire, int], tmp_path: Path) -> Emulated:
    return emulated_on(*wire_and_port, tmp_path)
