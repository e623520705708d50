# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What training code uploads from a rented machine is in the run's bucket (E2, E5), and what it is told there (V11)."""

from __future__ import annotations

import json
import re

import yaml

from gpuyard import config
from gpuyard.box.checkpoints import latest_manifest
from gpuyard.renting import runs

from .conftest import Yard

SANDBOX = ("-e", "sandbox=true")
TRAIN = """
import importlib.util, json, os
from pathlib import Path
assert importlib.util.find_spec("boto3") is None, "the training's own Python must have none for this test"
from gpuyard.cloud_sync import download_checkpoints, sync_checkpoints, sync_logs, upload_file
assert download_checkpoints("policy", "work")
for generation in range(1, 13):
    Path("work/model").write_text(str(generation))
    if generation % 5 == 0:
        assert sync_checkpoints("work", "policy")
assert sync_checkpoints("work", "policy")
Path("runs").mkdir()
Path("runs/events").write_text("curve")
assert sync_logs("runs", "policy")
Path("told.json").write_text(json.dumps({name: os.environ.get(name) for name in os.environ["WANTED"].split()}))
assert upload_file("told.json", "told.json")
"""
WANTED = "GPUYARD_RUN GPUYARD_NODE GPUYARD_PROVIDER GPUYARD_INSTANCE_ID WANDB_TAGS"
WORKLOAD = {
    "name": "uploads",
    "repository": {"path": "uploading"},
    "needs": {"gpu_count": 1, "gpu_ram_gb": 8, "disk_gb": 20},
    "environment": {"set": {"WANTED": WANTED}},
    "python": {"version": ">=3.10"},
    "persist": {"directories": ["models", "cache"], "rules": [{"path": "cache", "kind": "cache"}]},
    "stages": [{"name": "train", "command": "echo 1 | tee cache/x models/m; python train.py"}],
}


def test_e5_a_stage_uploads_from_its_machine(yard: Yard) -> None:
    (yard.folder / "uploading").mkdir()
    (yard.folder / "uploading/train.py").write_text(TRAIN)
    workload = yard.folder / "workloads/uploads.yml"
    workload.write_text(yaml.safe_dump(WORKLOAD))
    launch = ("ansible-playbook", "launch.yml", *SANDBOX, "-e", f"workload={workload}", "-e", "provider=vast")
    said = yard.ansible(*launch, "-e", "follow=true")
    assert "The run is finished." in said, said
    assert "Not in checkpoints, by persist.rules: cache (cache)." in " ".join(said.split())

    state = yard.folder / "home" / "sandbox"
    store = runs.open_bucket(config.s3_settings(sandbox=True, sandbox_state=state))
    assert store is not None
    files = "uploads-0/files/"
    keys = {found.key.removeprefix(files) for found in store.objects(files)}
    sets = {
        f"policy/checkpoints/00000{number}/{name}" for number in (1, 2, 3) for name in ("manifest.json", "files/model")
    }
    assert keys == {*sets, "policy/logs/events", "told.json"}
    assert store.get(f"{files}policy/checkpoints/000003/files/model") == b"12"
    (machine,) = yard.rented()
    assert json.loads(store.get(f"{files}told.json")) == {
        "GPUYARD_RUN": "uploads-0",
        "GPUYARD_NODE": "main-0",
        "GPUYARD_PROVIDER": "vast",
        "GPUYARD_INSTANCE_ID": str(machine["id"]),
        "WANDB_TAGS": "environment=vast",
    }
    newest = latest_manifest(store, "uploads-0")
    assert newest is not None
    paths = {entry.path for entry in newest.files}
    assert "models/m" in paths and not any(path.startswith("cache") for path in paths)

    # What the machine is told of itself is the same each time, so the same again changes nothing there.
    again = yard.ansible(*launch, "-e", "run=uploads-0")
    assert set(re.findall(r"^\S+\s+: ok=\d+\s+changed=(\d+)", again, re.MULTILINE)) == {"0"}, again
