# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plays that are run before anything is rented, on the sandbox's two clouds and its bucket."""

from __future__ import annotations

import json
from pathlib import Path

from gpuyard import config
from gpuyard.renting import runs

from .conftest import Yard

SANDBOX = ("-e", "sandbox=true")


def test_b1_v18_offers_are_compared_and_kept(yard: Yard, tmp_path: Path) -> None:
    page, values = tmp_path / "market.md", tmp_path / "market.json"
    words = ("ansible-playbook", "offers.yml", *SANDBOX, "-e", "workload=", "-e", "gpu_ram_gb=16", "-e", "by=value")
    said = yard.ansible(*words, "-e", "format=markdown", "-e", f"report={page}")
    assert "gpu_ram_gb >= 16 removed" in said and "| Vast.ai |" in said and "| Vultr |" in said and "| RunPod |" in said
    assert page.read_text().startswith("# Offers\n")
    yard.ansible(*words, "-e", "format=json", "-e", f"report={values}")
    assert {one["provider"] for one in json.loads(values.read_text())["offers"]} == {
        "vast",
        "vultr",
        "lambda",
        "runpod",
    }


def test_b19_a_plan_names_costs_and_calls_and_rents_nothing(yard: Yard, tmp_path: Path) -> None:
    kept = tmp_path / "plan.json"
    words = ("-e", f"workload={yard.workload}", "-e", "provider=vast", "-e", "format=json", "-e", f"report={kept}")
    yard.ansible("ansible-playbook", "plan.yml", *SANDBOX, *words)
    made = json.loads(kept.read_text())
    assert made["costs"]["all_usd"]["worst"] > made["costs"]["all_usd"]["expected"] > 0
    assert made["planned_calls"][-1]["method"] == "PUT"
    assert [secret for secret in yard.secrets if secret in kept.read_text()] == []
    assert yard.rented() == []
    refused = yard.ansible("ansible-playbook", "plan.yml", *SANDBOX, "-e", "format=xml", status=2)
    assert "format='xml' must be one of: table, json." in " ".join(refused.split())


def test_f9_the_check_of_a_yard_that_is_fine_and_of_one_that_is_not(yard: Yard) -> None:
    words = ("ansible-playbook", "check.yml", *SANDBOX, "-e", f"workload={yard.workload}")
    said = yard.ansible(*words)
    for what in ("Vast.ai", "Vultr", "bucket", "clock", "environment", "ssh"):
        assert any(line.split()[:2] == [what, "ok"] for line in said.splitlines()), what
    settings = config.s3_settings(sandbox=True, sandbox_state=yard.folder / "home" / "sandbox")
    store = runs.open_bucket(settings)
    assert store and not list(store.objects("_check/"))
    said = yard.ansible(*words, "-e", "bucket=s3://nosuch", status=2)
    assert "Not ready: bucket." in said and "does not exist" in said
