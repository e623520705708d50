# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a plan makes of profiles, overrides and the choice of stages, before anything is asked of a cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import LocalStore
from gpuyard.formats.journal import Position

from .conftest import Verb, World, offer

WORKLOAD = """
name: prover
repository: {path: code}
needs: {gpu_ram_gb: 8}
iterations: 2
parameters: {epochs: 3}
profiles:
  small: {parameters: {epochs: 1}, stages: {finetune: {hours: {expected: 0.5}}}}
stages:
  - {name: finetune, command: "true", hours: {expected: 1, worst: 2}, market: on-demand, resumable: partial}
  - {name: search, command: "true", hours: {expected: 2, worst: 4}, resumable: true, overrides: true}
  - {name: evaluate, command: "true", hours: {expected: 0, worst: 0}}
"""


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print()")
    path = tmp_path / "workloads" / "prover.yml"
    path.parent.mkdir()
    path.write_text(WORKLOAD)
    monkeypatch.chdir(tmp_path)
    return str(path)


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path / 'bucket'}"


@pytest.fixture
def market(world: World) -> World:
    world.vast.market = [
        offer("vast", "1", market="on-demand", price_per_hour_usd=1.0),
        offer("vast", "2", market="interruptible", price_per_hour_usd=0.5),
    ]
    return world


def publish(bucket: str, tmp_path: Path, done: list[Position], *, outcome: str | None = None) -> None:
    """Leave in the bucket what the run prover-0 leaves there when these stages are done."""
    store = LocalStore(Path(bucket.removeprefix("file://")))
    checkpoints.write_record(store, "prover-0", "prover", outcome=outcome)
    (tmp_path / "volume").mkdir()
    progress = {"iteration": 1, "stage": "search", "done": [list(place) for place in done]}
    finished = {"finished": outcome == "done", "outcome": outcome}
    checkpoints.publish(store, "prover-0", tmp_path / "volume", progress=lambda _journal: progress | finished)


def test_u3_the_plan_shows_where_each_value_comes_from(market: World, verb: Verb, workload: str) -> None:
    made = verb(
        "run_plan",
        check=True,
        workload=workload,
        bucket="",
        profiles=["small"],
        overrides="stages.search.grace_s=60,x.y=1",
        gpu_count=1.0,
        iterations=3,
    )
    table = made["text"].splitlines()[1:8]
    assert table == [
        "value                           is     from",
        "parameters.epochs               1      profile small",
        "stages.finetune.hours.expected  0.5    profile small",
        "needs.gpu_count                 1.0    -e gpu_count",
        "iterations                      3      -e iterations",
        "stages.search.grace_s           60     -e overrides",
        "overrides                       x.y=1  -e overrides",
    ]
    assert made["plan"]["origins"][0] == {"key": "parameters.epochs", "value": 1, "layer": "profile small"}
    box = made["plan"]["workload"]
    assert (box["parameters"], box["overrides"], box["iterations"]) == ({"EPOCHS": "1"}, ["x.y=1"], 3)
    assert made["plan"]["cost"]["run"]["hours"]["expected"] == pytest.approx(0.1 + 3 * 2.5)


def test_without_layers_no_table_is_shown(market: World, verb: Verb, workload: str) -> None:
    assert "from" not in verb("run_plan", workload=workload, bucket="")["text"].split()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stage": "serch"}, "There is no stage 'serch'; the stages are finetune, search, evaluate."),
        ({"from_stage": "x"}, "There is no stage 'x'"),
        ({"iteration": 2}, "iteration=2: there is no such iteration; the workload has the iterations 0 to 1."),
        ({"iteration": 2, "iterations": 2}, "iteration=2: there is no such iteration"),
        ({"iteration": -1}, "iteration=-1: there is no such iteration"),
        ({"iterations": 0}, "-e iterations: iterations: must be a whole number of at least 1, not 0"),
        ({"stage": "search", "from_stage": "search"}, "stage=search runs that stage only, and from_stage=search every"),
        (
            {"from_stage": "evaluate", "until_stage": "search"},
            "from_stage=evaluate comes after until_stage=search, so no",
        ),
        ({"stage": "search", "until_stage": "search"}, "stage=search runs that stage only, and until_stage=search all"),
        ({"until_stage": "x"}, "There is no stage 'x'; the stages are finetune, search, evaluate."),
        ({"profiles": ["big"]}, "profile='big' is not known to "),
        ({"overrides": "epochs=x"}, "-e overrides=epochs=x: parameters.epochs: must have a value of type int"),
        ({"overrides": 3}, "overrides must be a text such as 'a=1 b=2' or a list of such words, not 3."),
    ],
)
def test_a_mistake_is_one_sentence_before_a_cloud_is_asked(
    world: World, verb: Verb, workload: str, options: dict[str, Any], said: str
) -> None:
    result = verb("run_plan", workload=workload, bucket="", **options)
    assert result["failed"] and said in result["msg"] and "\n" not in result["msg"], result["msg"]
    assert world.vast.asked == 0


def test_v12_one_stage_is_reckoned_and_rented_for_alone(market: World, verb: Verb, workload: str) -> None:
    made = verb("run_plan", workload=workload, bucket="", stage="search", iteration=1)
    assert made["plan"]["choice"] == {"stage": "search", "from_stage": "", "until_stage": "", "iteration": 1}
    assert "Only search of iteration 1 is to run." in made["text"]
    assert [stage["name"] for stage in made["plan"]["cost"]["stages"]] == ["search"]
    assert made["plan"]["offers"][0]["market"] == "interruptible", "the other stages have no say"
    whole = verb("run_plan", workload=workload, bucket="")
    assert whole["plan"]["choice"] == {"stage": "", "from_stage": "", "until_stage": "", "iteration": -1}
    assert whole["plan"]["offers"][0]["market"] == "on-demand"


def test_what_comes_after_the_last_wanted_stage_is_not_reckoned(market: World, verb: Verb, workload: str) -> None:
    made = verb("run_plan", workload=workload, bucket="", until_stage="search")
    assert made["plan"]["choice"] == {"stage": "", "from_stage": "", "until_stage": "search", "iteration": -1}
    assert "To run are 2 stages, up to search." in made["text"]
    assert [stage["name"] for stage in made["plan"]["cost"]["stages"]] == ["finetune", "search"]


def test_x1_a_run_that_goes_on_costs_what_is_left(
    market: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, tmp_path, [(0, "finetune"), (0, "search"), (0, "evaluate"), (1, "finetune")])
    made = verb("run_plan", mode="resume", workload=workload, bucket=bucket)
    assert made["plan"]["cost"]["run"]["hours"]["expected"] == pytest.approx(0.1 + 2)
    assert "for what is to run, 2 of 6 stages" in made["text"]
    assert "This interruptible machine may be taken away. What then begins again: evaluate.\n" in made["text"]


def test_b27_what_the_loss_of_the_machine_costs_each_stage(market: World, verb: Verb, workload: str) -> None:
    text = verb("run_plan", workload=workload, bucket="", market="interruptible")["text"]
    assert (
        "This interruptible machine may be taken away. What then begins again: evaluate. "
        "What goes on from its own last save: finetune."
    ) in text


def test_more_iterations_let_a_finished_run_go_on(
    market: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    done = [(iteration, stage) for iteration in (0, 1) for stage in ("finetune", "search", "evaluate")]
    publish(bucket, tmp_path, done, outcome="done")
    assert "has finished" in verb("run_plan", workload=workload, bucket=bucket, run="prover-0")["msg"]
    more = verb("run_plan", workload=workload, bucket=bucket, run="prover-0", iterations=3)
    assert more["plan"]["cost"]["run"]["hours"]["expected"] == pytest.approx(0.1 + 3)
    again = verb("run_plan", workload=workload, bucket=bucket, run="prover-0", stage="search")
    assert "Only search of iteration 1 is to run." in again["text"]
