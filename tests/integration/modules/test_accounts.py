# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Volumes, keys and stored variables of the emulated clouds, through ansible-playbook (V1, V5, U2)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpuyard import config
from gpuyard.api.resources import DISKS
from gpuyard.providers.resources import Kind

from .conftest import Yard

CANARIES = ["canary-9b1f6c02d7e84a53b0c6f7e2a1d94c38x", "canary-5e70d2b8a9c14f6fb1e3d8c7a0f25964y"]
VOLUMES: dict[str, dict[str, Any]] = {
    "vultr": {"region": "ewr", "size_gb": 50, "options": {"block_type": "high_perf"}},
    "lambda": {"region": "us-east-1"},
    "runpod": {"region": "EU-RO-1", "size_gb": 20},
}
"""What a volume needs at each cloud; of Vast's, which belongs to one machine, only a launch knows that."""


def clouds_with(*kinds: Kind) -> list[str]:
    """Return the clouds that have one of these kinds."""
    return [cloud.name for cloud in config.known_clouds() if any(kind in cloud.shelves() for kind in kinds)]


@pytest.mark.parametrize("provider", [name for name in clouds_with(*DISKS) if name in VOLUMES])
def test_v1_the_grid_of_volumes(yard: Yard, provider: str) -> None:
    module, info = "gpuyard.cloud.volume", "gpuyard.cloud.volume_info"
    wanted = {"provider": provider, "name": "grid", **VOLUMES[provider]}
    absent = {"provider": provider, "name": "grid", "state": "absent"}
    planned, made, again, listed, predicted, gone, gone_again, left = yard.play(
        [
            {module: wanted, "check_mode": True},
            {module: wanted},
            {module: wanted},
            {info: {"provider": provider}},
            {module: absent, "check_mode": True},
            {module: absent},
            {module: absent},
            {info: {"provider": provider}},
        ],
        "--diff",
    )
    assert planned["changed"] and planned["planned_calls"][-1]["method"] == "POST", planned
    assert made["changed"] and made["resources"][0]["ready"], made
    assert not again["changed"] and again["resources"][0]["id"] == made["resources"][0]["id"]
    assert [one["id"] for one in listed["resources"]] == [made["resources"][0]["id"]]
    assert predicted["changed"] and predicted["planned_calls"][-1]["method"] == "DELETE"
    assert gone["changed"] and not gone_again["changed"] and left["resources"] == []


@pytest.mark.parametrize("provider", clouds_with(Kind.SSH_KEY))
def test_v1_the_grid_of_ssh_keys(yard: Yard, provider: str) -> None:
    module = "gpuyard.cloud.ssh_key"
    wanted = {"provider": provider, "name": "grid-key", "public_key": "ssh-ed25519 " + "A" * 67 + "B me@laptop"}
    absent = {**wanted, "state": "absent"}
    planned, made, again, shown, gone, gone_again = yard.play(
        [
            {module: wanted, "check_mode": True},
            {module: wanted},
            {module: wanted},
            {"gpuyard.cloud.account_info": {"provider": provider}},
            {module: absent},
            {module: absent},
        ]
    )
    assert planned["changed"] and planned["planned_calls"], planned
    assert made["changed"] and not again["changed"], made
    assert shown["accounts"][0]["key_valid"] and "grid-key" in shown["accounts"][0]["ssh_keys"], shown
    assert gone["changed"] and not gone_again["changed"], gone


def test_u2_setup_env_stores_a_file_and_shows_no_secret(yard: Yard) -> None:
    env = yard.folder / "training.env"
    env.write_text(f"WANDB_API_KEY={CANARIES[0]}\nexport B2_APP_KEY='{CANARIES[1]}'\nB2_BUCKET=models\n")
    env.chmod(0o644)
    log = yard.folder / "setup-env.log"
    words = ["ansible-playbook", "setup_env.yml", "-vvv", "--diff", "-e", "sandbox=true"]
    named = ["-e", f"env_file={env}"]
    assert "Others may read" in yard.ansible(*words, *named, status=2, ANSIBLE_LOG_PATH=str(log))
    env.chmod(0o600)
    assert "would make stored variable WANDB_API_KEY" in yard.ansible(*words, *named, "--check")
    yard.ansible(*words, *named, ANSIBLE_LOG_PATH=str(log))
    listed = yard.ansible(*words, "-e", "list=true", ANSIBLE_LOG_PATH=str(log))
    assert all(name in listed for name in ("WANDB_API_KEY", "B2_APP_KEY", "B2_BUCKET"))
    assert "stored already, and kept" in yard.ansible(*words, *named)
    yard.ansible(*words, *named, "-e", "overwrite=true", "-e", "env_names=WANDB_API_KEY")
    shown = yard.task("account_info", provider="vast")["accounts"][0]
    assert set(shown["variables"]) >= {"WANDB_API_KEY", "B2_APP_KEY", "B2_BUCKET"}
    said = "".join(yard.printed) + log.read_text() + json.dumps(shown)
    assert not any(canary in said for canary in CANARIES)
