"""What a box is told to run is checked there as well: a role can be used without the plays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuyard.box.stages import load_spec
from gpuyard.errors import UsageError


def test_a_folder_of_the_system_is_no_persistent_root(tmp_path: Path) -> None:
    stage = {"name": "one", "command": "true"}
    (tmp_path / "settings.json").write_text(json.dumps({"run": "a-0"}))
    for root in ("/etc", "//etc/", "/mnt/../etc"):
        workload = {"name": "a", "persist": {"root": root}, "stages": [stage]}
        (tmp_path / "workload.json").write_text(json.dumps(workload))
        with pytest.raises(UsageError, match=r"workload\.json: persist\.root must not be /etc, which the system"):
            load_spec(tmp_path)
    workload = {"name": "a", "persist": {"root": str(tmp_path / "volume")}, "stages": [stage]}
    (tmp_path / "workload.json").write_text(json.dumps(workload))
    assert load_spec(tmp_path).root == tmp_path / "volume"
