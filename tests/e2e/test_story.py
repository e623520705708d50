"""Launch, lose the machine in the search, resume, tear down: with the same results as without the loss."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import pytest
from yard import Yard

RESULTS = r"trajectories/.*results\.jsonl"
SEARCH_RESULTS = "trajectories/iteration-0/results.jsonl"
SEARCH_LOG = "trajectories/iteration-0/search.log.jsonl"
CLOUDS = ["vast", "vultr"]


def lines(content: bytes) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file, without a last line that was cut off."""
    return [json.loads(line) for line in content.decode().splitlines(keepends=True) if line.endswith("\n")]


def outcome_of(yard: Yard, run: str) -> dict[str, Any]:
    """Return what a run found: every search result, in a fixed order, and the evaluations."""
    found: dict[str, Any] = {}
    for path, content in yard.published(run, rf"{RESULTS}|eval_results/.*\.json").items():
        text = content.decode()
        found[path] = sorted(text.splitlines()) if path.endswith("jsonl") else json.loads(text)
    return found


def finish(yard: Yard, run: str) -> None:
    """Follow the run to its end, as a user would."""
    said = yard.play("logs", run=run, follow="true")
    assert "The run is finished." in said.text
    assert "Ctrl-C ends the following only" in said.text


@pytest.fixture(scope="module")
def undisturbed(yard: Yard) -> dict[str, Any]:
    """What a run finds that loses no machine."""
    said = yard.play("launch", provider="vultr", run="undisturbed-0", shutdown="true", disk_gb="30")
    assert "The run is finished." in said.text
    found = outcome_of(yard, "undisturbed-0")
    assert len([path for path in found if path.startswith("eval_results/")]) >= 2, sorted(found)
    # A run that has ended is not begun again under its name.
    said = yard.play("launch", provider="vultr", run="undisturbed-0", ok=False)
    assert "has finished" in " ".join(said.text.split())
    assert yard.instances("undisturbed-0") == []
    return found


@pytest.mark.parametrize("first", CLOUDS)
def test_a_run_that_loses_its_machine_ends_like_one_that_does_not(
    yard: Yard, undisturbed: dict[str, Any], first: str
) -> None:
    """Also B22 and U12: the session's windows, and ssh by the run's name."""
    run = f"story-{first}"
    other = next(cloud for cloud in CLOUDS if cloud != first)
    launched = yard.play("launch", provider=first, run=run)
    assert "that fit" in launched.text and "is expected to take" in launched.text

    # The same again finds everything in place, and quickly.
    began = time.monotonic()
    again = yard.play("launch", provider=first, run=run)
    assert set(again.changed().values()) == {0}, again.text
    print(f"second launch: {time.monotonic() - began:.1f} s")

    graph = yard.run("ansible-inventory", "--graph").text
    groups = (f"provider_{first}", f"run_{run.replace('-', '_')}", "workload_miniprover", "state_running", "gpu_")
    for group in (*groups, "region_"):
        assert f"@{group}" in graph, graph
    assert f"--{run}" in graph

    # The run's name is enough for ssh, and for whatever else reads ssh's configuration.
    by_name = ["ssh", "-F", str(yard.home / "ssh_config"), run, "hostname; test -d /opt/gpuyard"]
    subprocess.run(by_name, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    windows = yard.on_machine(run, "tmux list-windows -t miniprover -F '#{window_index} #{window_name}'")
    assert windows.splitlines() == ["0 iteration", "1 gpu", "2 log", "3 disk"]

    def searched() -> list[dict[str, Any]]:
        return lines(yard.published(run, SEARCH_RESULTS).get(SEARCH_RESULTS, b""))

    yard.wait("the search's third flush", lambda: len(searched()) >= 30, seconds=600)
    yard.control.preempt(run=run)
    kept = {record["id"] for record in searched()}
    total = {json.loads(line)["id"] for line in undisturbed[SEARCH_RESULTS]}
    assert kept < total, "the machine was lost too late to prove anything"

    status = yard.play("status").text
    assert run in status and "can go on" in status
    # The log of a machine that is gone comes from the bucket.
    assert "search" in yard.play("logs", run=run, stage="search").text

    for cloud in (first, "lambda", "runpod"):
        yard.control.fault("no-capacity", cloud, 1000)
    try:
        resumed = yard.play("resume_search")
    finally:
        yard.control.clear_faults()
    assert f"Run {run} of workload miniprover goes on from" in resumed.text
    assert yard.machine(run).provider == other
    finish(yard, run)

    # Everything kept was not searched again, and nothing else was left out.
    attempts = [record["id"] for record in lines(yard.published(run, r".*search\.log\.jsonl")[SEARCH_LOG])]
    second = attempts[len(attempts) - len(total - kept) :]
    assert set(second) == total - kept
    assert not kept & set(second)
    assert outcome_of(yard, run) == undisturbed

    check = yard.play("teardown", "--check", "--diff", run=run)
    assert "would destroy" in check.text
    assert yard.machine(run)
    yard.play("teardown", run=run)
    assert yard.instances(run) == []
    assert set(yard.play("teardown", run=run).changed().values()) == {0}
    assert yard.control.status()["bill"]["billable"] == []


def test_learning_does_not_make_the_prover_worse(undisturbed: dict[str, Any]) -> None:
    reports = [undisturbed[path] for path in sorted(undisturbed) if path.startswith("eval_results/")]
    proved = [report["proved"] for report in reports if "proved" in report]
    assert len(proved) >= 2 and proved[1] >= proved[0], reports
