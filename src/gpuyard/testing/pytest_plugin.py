"""The fixtures of ``pytest-gpuyard``. They come with gpuyard: nothing has to be imported or configured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gpuyard.testing.kit import Kit


def _start(factory: pytest.TempPathFactory) -> Iterator[Kit]:
    # Imported on the first use: every session of pytest loads this file.
    from gpuyard.testing import kit

    if lacking := kit.missing():
        pytest.skip(f"There is no sandbox: {lacking}")
    with kit.running(factory.mktemp("gpuyard")) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def _gpuyard_shared_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    yield from _start(tmp_path_factory)


@pytest.fixture
def gpuyard_sandbox(_gpuyard_shared_sandbox: Kit) -> Iterator[Kit]:
    """Emulated clouds with nothing rented and an empty bucket: one sandbox for the session, as at first in each test.

    Skips where no container engine answers.
    """
    yield _gpuyard_shared_sandbox
    _gpuyard_shared_sandbox.reset()


@pytest.fixture
def gpuyard_own_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    """Emulated clouds for one test alone. It takes some seconds more than ``gpuyard_sandbox``."""
    yield from _start(tmp_path_factory)
