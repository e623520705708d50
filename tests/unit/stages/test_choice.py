"""Which stages run, in which iteration, and what a stage is told there."""

from __future__ import annotations

import json

import pytest
from stage_box import Box, mark, until, wait_for

from gpuyard.box.stages import BoxSpec
from gpuyard.box.stages.choice import Choice, expected
from gpuyard.errors import UsageError
from gpuyard.formats.journal import Position
from gpuyard.workload import Workload, parse_workload

KINDS = """\
name: prover
repository: {path: x}
iterations: 3
stages:
  - {name: weights, command: x, run: once}
  - {name: warm, command: x, run: first}
  - {name: train, command: x}
  - {name: merge, command: x, run: later}
  - {name: embed, command: x, run: once}
"""
WHOLE = [
    (0, "weights"),
    (0, "warm"),
    (0, "train"),
    (0, "embed"),
    (1, "train"),
    (1, "merge"),
    (2, "train"),
    (2, "merge"),
]


@pytest.fixture
def workload() -> Workload:
    return parse_workload(KINDS, "w.yml")


def test_b20_each_kind_of_stage_has_its_iterations(workload: Workload) -> None:
    assert workload.order == WHOLE
    assert [stage.times(3) for stage in workload.stages] == [1, 1, 3, 2, 1]


@pytest.mark.parametrize(
    ("choice", "done", "runs"),
    [
        (Choice(), [], WHOLE),
        (Choice(), WHOLE[:5], WHOLE[5:]),
        # Going back repeats what belongs to the iterations, and not what runs once in the run.
        (Choice(iteration=0), WHOLE, [place for place in WHOLE if place[1] not in ("weights", "embed")]),
        (Choice(from_stage="train", iteration=2), WHOLE, WHOLE[6:]),
        # A run that begins later passes over what its iterations have left out, but not over what runs once.
        (Choice(iteration=2), [], [(0, "weights"), (0, "embed"), *WHOLE[6:]]),
        (Choice(from_stage="weights"), WHOLE, [(0, "weights"), *WHOLE[1:3], *WHOLE[4:]]),
        (Choice(only="embed"), WHOLE, [(0, "embed")]),
        (Choice(only="train"), WHOLE, [(2, "train")]),
        (Choice(only="train"), WHOLE[:4], [(1, "train")]),
        (Choice(only="warm"), WHOLE, [(0, "warm")]),
        (Choice(only="merge"), [], [(1, "merge")]),
        (Choice(only="train", iteration=1), [], [(1, "train")]),
    ],
)
def test_v12_what_a_choice_runs(workload: Workload, choice: Choice, done: list[Position], runs: list[Position]) -> None:
    assert expected(choice, workload, done) == runs


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(only="trian"), "There is no stage 'trian'; the stages are weights, warm, train, merge, embed."),
        (Choice(iteration=3), "iteration=3: there is no such iteration; the workload has the iterations 0 to 2."),
        (Choice(only="warm", iteration=1), "iteration=1: stage warm does not run in that iteration."),
        (Choice(from_stage="merge", iteration=0), "iteration=0: stage merge does not run in that iteration."),
    ],
)
def test_a_choice_of_nothing_is_one_sentence(workload: Workload, choice: Choice, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        expected(choice, workload, [])
    assert str(caught.value) == said


def test_a_stage_that_never_runs_is_named() -> None:
    workload = parse_workload(KINDS.replace("iterations: 3", "iterations: 1"), "w.yml")
    with pytest.raises(UsageError, match="Stage merge does not run in a run of 1 iteration"):
        expected(Choice(only="merge"), workload, [])


def test_more_iterations_repeat_nothing(box: Box) -> None:
    stages = [mark("weights", run="once"), mark("warm", run="first"), mark("train"), mark("merge", run="later")]
    box.describe(stages)
    assert box.run() == 0
    assert box.marks == ["0-weights", "0-warm", "0-train"]
    box.describe(stages, iterations=2)
    assert box.status()["state"] != "finished"
    assert box.run() == 0
    assert box.marks[3:] == ["1-train", "1-merge"]
    assert box.run("--iteration", "0") == 0
    assert box.marks[5:] == ["0-warm", "0-train", "1-train", "1-merge"]


def test_one_stage_that_was_cut_off_goes_on(box: Box) -> None:
    command = "echo 0 >> marks; test $(wc -l < marks) -gt 1"  # fails at first
    box.describe([mark("a", command=command, resumable=True, resume_command="echo on >> marks")])
    assert box.run() == 1
    (box.root / "models").mkdir(exist_ok=True)
    (box.root / "models/step").write_text("1")
    assert box.run("--only", "a") == 0
    assert box.marks == ["0", "on"]
    assert box.run("--only", "a") == 0, "once it is done, it runs again"
    assert box.marks == ["0", "on", "0"]


SAY = 'echo "$STAGE-$ITERATION epochs=$EPOCHS mode=$MODE colour=$COLOUR rate=$RATE" >> marks'


def test_b20_parameters_and_what_differs_in_iteration_0(box: Box) -> None:
    box.describe(
        [
            {
                "name": "train",
                "command": SAY,
                "environment": {"EPOCHS": "1", "MODE": "later"},
                "first": {"environment": {"EPOCHS": "3"}, "command": f"{SAY}; echo begun >> marks"},
            },
            {"name": "test", "command": SAY},
        ],
        iterations=2,
        parameters={"RATE": "0.1", "COLOUR": "blue"},
        environment={"set": {"COLOUR": "red"}},
    )
    assert box.run() == 0
    assert box.marks == [
        "train-0 epochs=3 mode=later colour=red rate=0.1",
        "begun",
        "test-0 epochs= mode= colour=red rate=0.1",
        "train-1 epochs=1 mode=later colour=red rate=0.1",
        "test-1 epochs= mode= colour=red rate=0.1",
    ]


def test_f6_overrides_follow_the_commands_of_the_stages_that_take_them(box: Box) -> None:
    command = "printf '%s|' train >> marks; printf '%s|' >> marks\n"
    box.describe(
        [{"name": "train", "command": command, "overrides": True}, mark("test")],
        overrides=["training.batch_size=4", "+prompt=it's $HOME"],
    )
    assert box.run() == 0
    assert box.marks == ["train|training.batch_size=4|+prompt=it's $HOME|0-test"]


def test_a_stage_is_ended_at_its_timeout(box: Box) -> None:
    stage = mark("slow", command=f"trap 'echo saved >> marks; exit 0' TERM; {until('false')}", timeout=1, grace_s=20)
    box.describe([stage, mark("next")])
    assert box.run() == 1
    assert box.marks == ["saved"], "it has its grace, and what comes after it does not run"
    failure = box.status()["failure"]
    assert (failure["stage"], failure["reason"]) == ("slow", "slow was ended after 1 s, its timeout.")
    assert "slow was ended after 1 s, its timeout; it has 20 s to save its work" in box.screen


def test_a_stage_that_says_nothing_is_ended_and_may_try_again(box: Box) -> None:
    talks = "for i in $(seq 30); do echo $i; sleep 0.1; done; echo talked >> marks"
    falls_silent = f"echo once; echo tried >> marks; {until('false')}"
    box.describe([mark("talks", command=talks, silent=2), mark("hangs", command=falls_silent, silent=1, retries=1)])
    assert box.run() == 1
    assert box.marks == ["talked", "tried", "tried"]
    assert box.status()["failure"]["reason"] == "hangs was ended because it had printed nothing for 1 s."


def test_stages_can_be_chosen_only_where_nothing_runs(box: Box) -> None:
    box.describe([mark("wait", command=until("[ -e go ]"))])
    runner = box.start("run")
    wait_for(lambda: box.root.joinpath(".gpuyard/logs/0-wait.log").exists())
    answer = box.call("start", "--only", "wait")
    assert answer.returncode == 2
    assert answer.stderr.startswith(
        "canyon-0 is at work on wait (iteration 0), and its stages can be chosen only where"
    )
    (box.repository / "go").touch()
    assert runner.wait(timeout=60) == 0


def test_the_box_has_the_defaults_of_the_schema(box: Box) -> None:
    """One schema: what the box takes for a value that is left out is what the controller would have written."""
    workload = parse_workload("name: a\nrepository: {path: x}\nstages: [{name: b, command: c}]\n", "w.yml").to_box()
    box.describe([])

    def read(values: dict[str, object]) -> BoxSpec:
        (box.settings / "workload.json").write_text(json.dumps({**values, "persist": {"root": str(box.root)}}))
        return box.spec

    assert read(workload) == read({"name": "a", "stages": [{"name": "b", "command": "c"}]})
