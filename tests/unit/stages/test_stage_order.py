from __future__ import annotations

from typing import Any

import pytest
from stage_box import Box, mark

from gpuyard.box.stages.choice import Choice, check, what_runs
from gpuyard.box.stages.spec import Stage, arranged, order_of, waits_on
from gpuyard.errors import UsageError
from gpuyard.formats.journal import fold
from gpuyard.renting import watch


def stage(name: str, **fields: Any) -> Stage:
    return Stage(name, "true", **fields)


def test_a_stage_waits_for_the_last_needed_one_before_it() -> None:
    stages = [stage("data"), stage("check", needed=False), stage("train"), stage("plot", after=("data", "elsewhere"))]
    assert waits_on(stages) == {"data": [], "check": ["data"], "train": ["data"], "plot": ["data"]}
    assert [one.name for one in arranged(stages)] == ["data", "check", "train", "plot"]


def test_the_order_is_the_files_own_but_each_behind_what_it_waits_for() -> None:
    stages = [stage("a", after=("c",)), stage("b", after=()), stage("c", after=()), stage("d", after=("a",))]
    assert order_of(stages, 2) == [(0, "b"), (0, "c"), (0, "a"), (0, "d"), (1, "b"), (1, "c"), (1, "a"), (1, "d")]
    with pytest.raises(UsageError, match=r"The stages a, b, c wait for each other"):
        arranged([stage("a", after=("b",)), stage("b", after=("a",)), stage("c")])


def test_what_may_fail_does_not_end_the_run_and_what_comes_after_it_is_passed_over(box: Box) -> None:
    box.describe(
        [
            mark("train"),
            {"name": "download", "command": "exit 5", "needed": False, "retries": 1},
            mark("evaluate", after=["download"], needed=False),
            mark("plot", after=["evaluate"], needed=False),
            mark("export", after=["train"]),
        ],
        iterations=2,
    )
    assert box.run() == 0
    assert box.marks == ["0-train", "0-export", "1-train", "1-export"]
    assert [(event["stage"], event["reason"]) for event in box.events("pass-over")][:2] == [
        ("evaluate", "it comes after download, which has failed"),
        ("plot", "it comes after evaluate, which did not run"),
    ]
    assert watch.tell(box.events("pass-over")[0]).startswith("» iteration 0, evaluate is passed over: it comes after")
    status = box.status()
    assert (status["state"], status["failure"], status["stages_done"]) == ("finished", None, 10)
    assert [row["outcome"] for row in status["stages"]][:5] == ["done", "failed", "passed-over", "passed-over", "done"]
    # A finished run does not try it again, unless it is asked for.
    assert box.run() == 0 and len(box.events("stage-start")) == 8
    assert box.run("--only", "evaluate", "--iteration", "0") == 0
    assert box.marks[-1] == "0-evaluate"


def test_nothing_is_run_after_the_last_stage_that_is_wanted(box: Box) -> None:
    box.describe([mark("a"), mark("b"), mark("c")], iterations=2)
    assert box.run("--until", "b") == 0
    assert (box.marks, box.status()["state"]) == (["0-a", "0-b"], "idle")
    assert box.run("--until", "b") == 0
    assert box.marks == ["0-a", "0-b", "0-c", "1-a", "1-b"]
    assert box.run("--from", "a", "--iteration", "0", "--until", "a") == 0
    assert box.marks[-1] == "0-a"
    for words, said in (
        (
            ("--from", "c", "--until", "a"),
            "from_stage=c comes after until_stage=a, so no stage would run; the",
        ),
        (("--only", "c", "--until", "a"), "stage=c runs that stage only, and until_stage=a all up to that one: leave"),
        (("--until", "x"), "There is no stage 'x'; the stages are a, b, c."),
    ):
        answer = box.call("run", *words)
        assert answer.returncode == 2 and answer.stderr.startswith(said)


def test_a_last_stage_that_is_behind_the_run_is_refused() -> None:
    class Two:
        stages = [stage("a"), stage("b")]
        iterations = 1
        order = order_of(stages, 1)

    done = [{"event": "stage-end", "iteration": 0, "stage": "a", "outcome": "done"}]
    with pytest.raises(UsageError, match=r"until_stage=a does not come any more: the run begins at b of iteration 0\."):
        what_runs(Choice(until="a"), Two(), fold(done, Two.order))
    check(Choice(until="b"), Two())
