# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is said before anything is rented: offers compared, a plan with all its costs, and what a launch needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuyard.errors import ProviderDownError
from gpuyard.providers.base import Offer

from .conftest import Cloud, Verb, World, offer

WORKLOAD = """
name: tiny
repository: {path: code}
needs: {gpu_ram_gb: 8}
market: any
iterations: 3
setup_hours: {expected: 0.5, worst: 1}
storage: {gb_per_iteration: 10, price_per_gb_month: 0.02}
environment: {optional: [WANDB_API_KEY]}
profiles: {large: {needs: {gpu_ram_gb: 48}}}
stages:
  - {name: tune, command: "true", hours: {expected: 1, worst: 2}, resumable: true}
  - {name: search, command: "true", hours: {expected: 2, worst: 4}}
"""


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print()")
    path = tmp_path / "workloads" / "tiny.yml"
    path.parent.mkdir()
    path.write_text(WORKLOAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return str(path)


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path / 'bucket'}"


def rentable(world: World, **values: Any) -> None:
    world.vast.market = [
        offer("vast", "1", price_per_hour_usd=2.0, reliability=0.99, **values),
        offer("vast", "2", price_per_hour_usd=3.0, **values),
    ]


# -- plan -------------------------------------------------------------------------------------------------------------


def test_b19_e12_costs_in_all_with_bucket_traffic_and_a_loss(
    world: World, verb: Verb, workload: str, bucket: str
) -> None:
    rentable(world, market="interruptible", traffic_price_per_gb_usd=0.01)
    costs = verb("run_plan", workload=workload, bucket=bucket)["costs"]
    # Set-up 0.5 h, and 3 iterations of 3 h, at $2; at worst 1 h and 3 of 6 h.
    assert costs["machines_usd"] == {"expected": pytest.approx(19.0), "worst": pytest.approx(38.0)}
    assert (costs["bucket_gb"], costs["bucket_usd_per_month"]) == (30, pytest.approx(0.6))
    assert (costs["traffic_gb"], costs["traffic_usd"]) == (30, pytest.approx(0.3))
    # Another set-up; at worst also the search, which begins again, and not the tuning, which goes on.
    assert costs["loss_usd"] == {"expected": pytest.approx(1.0), "worst": pytest.approx(10.0)}
    assert costs["all_usd"] == {"expected": pytest.approx(19.9), "worst": pytest.approx(48.9)}
    assert not costs["lower_bound"]


def test_b19_what_has_no_price_is_said_and_left_out(world: World, verb: Verb, workload: str, bucket: str) -> None:
    rentable(world)
    known = verb("run_plan", workload=workload, bucket=bucket)
    assert known["costs"]["traffic_usd"] is None and known["costs"]["loss_usd"] is None
    assert "no price for traffic" in known["text"]
    bare = verb("run_plan", workload=workload, bucket="")["costs"]
    assert bare["bucket_usd_per_month"] is None and bare["all_usd"] == bare["machines_usd"]
    assert bare["notes"] == ["There is no bucket, so none is paid for."]


def test_a_plan_says_runners_up_and_calls_and_rents_nothing(world: World, verb: Verb, workload: str) -> None:
    rentable(world)
    result = verb("run_plan", workload=workload, bucket="")
    assert "2. vast 2, on-demand, lost: $1.0000 an hour dearer, +50%." in result["text"]
    assert [(call["method"], call["url"]) for call in result["planned_calls"]] == [
        ("PUT", "https://cloud.invalid/asks/1")
    ]
    assert result["text"].splitlines()[-1].startswith("  PUT https://cloud.invalid/asks/1")
    assert (result["changed"], world.vast.rented) == (False, [])


def test_a_plan_for_programs_and_in_a_file(world: World, verb: Verb, workload: str, tmp_path: Path) -> None:
    rentable(world)
    kept = tmp_path / "plan.json"
    options: dict[str, Any] = {"workload": workload, "bucket": "", "format": "json", "report": str(kept)}
    assert verb("run_plan", check=True, **options)["changed"] and not kept.exists()
    result = verb("run_plan", **options)
    assert result["changed"] and json.loads(kept.read_text()) == json.loads(result["text"])
    assert json.loads(result["text"])["plan"]["run"] == "tiny-0"
    assert not verb("run_plan", **options)["changed"]


@pytest.mark.parametrize("name", ["run_plan", "offer_report", "readiness"])
def test_a_report_that_cannot_be_kept_is_refused_before_anything_is_asked(
    world: World, verb: Verb, workload: str, tmp_path: Path, name: str
) -> None:
    for path, words in ((tmp_path, "is a folder; name a file."), (tmp_path / "no" / "x", "there is no folder")):
        result = verb(name, workload=workload, bucket="", report=str(path))
        assert result["failed"] and f"report={path}" in result["msg"] and words in result["msg"]
    assert world.calls == []


# -- offers -----------------------------------------------------------------------------------------------------------


class Down(Cloud):
    """A cloud that does not answer."""

    def offers(self, query: Any) -> list[Offer]:
        raise ProviderDownError("Vultr cannot be reached.", provider=self.name)


def test_offers_of_a_workload_or_of_options(world: World, verb: Verb, workload: str) -> None:
    world.vast.market = [offer("vast", "1", gpu_ram_gb=4.0), offer("vast", "2"), offer("vast", "3", gpu_ram_gb=80.0)]
    options: dict[str, Any] = {"bucket": ""}
    assert [one["id"] for one in verb("offer_report", **options)["offers"]] == ["3", "2", "1"]
    assert [one["id"] for one in verb("offer_report", workload=workload, **options)["offers"]] == ["3", "2"]
    large = verb("offer_report", workload=workload, profiles=["large"], **options)
    assert [one["id"] for one in large["offers"]] == ["3"]
    assert large["removed"] == [
        {"condition": "gpu_ram_gb >= 48", "removed": 2, "total": 3, "best_seen": "24"},
    ]
    nothing = verb("offer_report", gpu_ram_gb=900.0, **options)
    assert not nothing.get("failed") and "No offer fits." in nothing["text"]


def test_list_prices_stand_beside_the_offers_when_they_are_asked_for(
    world: World, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gpuhunt")  # the extra catalogue, which the oldest Ansible is tested without
    world.vast.market = [offer("vast", "1", price_per_hour_usd=2.0)]
    monkeypatch.setenv("GPUHUNT_CATALOG_DIR", str(Path(__file__).parents[1] / "api" / "list_prices"))
    assert verb("offer_report", bucket="")["list_prices"] == []
    result = verb("offer_report", bucket="", list_prices=True, gpu_names=["A100"])
    assert [one["id"] for one in result["list_prices"]] == ["a2-highgpu-1g", "p4d.24xlarge", "a2-highgpu-8g"]
    assert result["offers"] == [] and "a2-highgpu-8g" in result["text"]


def test_a_cloud_that_is_silent_hides_no_other(world: World, verb: Verb) -> None:
    world.vast.market = [offer("vast", "1")]
    world.vultr = Down("vultr")
    result = verb("offer_report", bucket="")
    assert [one["id"] for one in result["offers"]] == ["1"]
    assert result["unanswered"] == {"vultr": "Vultr cannot be reached."}
    assert "Vultr could not be asked: Vultr cannot be reached." in result["text"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu_ram_gb": -1.0}, "gpu_ram_gb=-1 must be a number above 0."),
        ({"gpu_names": ["RTX"]}, "gpu_name='RTX' is no GPU model"),
        ({"profiles": ["large"]}, "profile=large is a workload's, and none is named: add -e workload=…."),
        ({"workload": "nosuch"}, "nosuch"),
    ],
)
def test_wrong_conditions_are_one_sentence(world: World, verb: Verb, options: dict[str, Any], words: str) -> None:
    world.vast.market = [offer("vast", "1")]
    result = verb("offer_report", bucket="", **options)
    assert result["failed"] and words in result["msg"]


# -- check ------------------------------------------------------------------------------------------------------------


def test_f9_each_thing_is_named_with_its_state(world: World, verb: Verb, workload: str) -> None:
    world.vultr.error = ProviderDownError("Vultr cannot be reached.", provider="vultr")
    result = verb("readiness", workload=workload, bucket="")
    levels = {one["what"]: one["level"] for one in result["checks"]}
    assert levels["Vast"] == "ok" and levels["Vultr"] == "failed"
    assert levels["bucket"] == "warning" and levels["clock"] == "skipped"
    assert levels["environment"] == levels["ssh"] == "ok"
    assert levels["Weights & Biases"] == "skipped"  # the workload does not require the key
    assert result["failed_checks"] == ["Vultr"]
    assert result["text"].splitlines()[0].split() == ["what", "state", "found", "what", "to", "do"]


def test_f9_a_missing_variable_fails(world: World, verb: Verb, workload: str) -> None:
    path = Path(workload)
    path.write_text(path.read_text().replace("optional: [WANDB_API_KEY]", "required: [WANDB_API_KEY]"))
    result = verb("readiness", workload=workload, bucket="")
    assert result["failed_checks"] == ["environment", "Weights & Biases"]
    assert "WANDB_API_KEY" in result["text"]


def test_f9_an_unknown_provider_and_a_wrong_workload_are_sentences(world: World, verb: Verb) -> None:
    assert "provider='nosuch' is not known" in verb("readiness", provider="nosuch", bucket="")["msg"]
    assert "nosuch" in verb("readiness", workload="nosuch", bucket="")["msg"]
    assert verb("readiness", bucket="ftp://x")["failed_checks"] == ["bucket"]
