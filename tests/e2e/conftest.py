"""The whole product as a user types it; each file has a sandbox, and so a bucket, of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from yard import Yard


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """A controller with a running sandbox."""
    home = tmp_path_factory.mktemp("e2e")
    keep = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GPUYARD_", "ANSIBLE_", "VAST", "VULTR"))
    }
    environment = keep | {"GPUYARD_HOME": str(home), "ANSIBLE_NOCOLOR": "1", "GPUYARD_HEARTBEAT": "20"}
    os.environ["GPUYARD_HOME"] = str(home)
    made = Yard(home, environment)
    up = made.run("gpuyard", "sandbox", "up", "--boot-seconds", "2")
    assert up.code == 0, up.text
    try:
        yield made
    finally:
        down = made.run("gpuyard", "sandbox", "down")
        del os.environ["GPUYARD_HOME"]
        assert down.code == 0, down.text
