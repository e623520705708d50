"""A followed run moves from pool to pool at its stage boundaries, also when its controller dies in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from yard import PROGRAMS, ROOT, Yard

from gpuyard.renting.runs import stored

# A slice of a GPU that only one cloud has, on demand, and anything interruptible that is larger: no machine is both
# cheap and good enough for all stages.
WORKLOAD = """\
name: turns
repository: {path: tree}
pools:
  train: {needs: {gpu_names: [A16], cpu_cores: 2, ram_gb: 4}, market: on-demand}
  search: {needs: {gpu_ram_gb: 8, cpu_cores: 2, ram_gb: 4}, market: interruptible}
persist: {directories: [models]}
checkpoints: {every_s: 2}
setup_hours: {expected: 0.01, worst: 0.05}
stages:
  - name: finetune
    pool: train
    command: echo $ITERATION-$STAGE >> models/done
    hours: {expected: 1, worst: 2}
  - name: search
    pool: search
    command: wc -l < models/done >> models/seen; echo $ITERATION-$STAGE >> models/done
    hours: {expected: 1, worst: 2}
  - name: evaluate
    pool: train
    command: wc -l < models/done >> models/seen; echo $ITERATION-$STAGE >> models/done
    hours: {expected: 1, worst: 2}
"""


def workload(folder: Path) -> Path:
    """Write the workload, and return its path."""
    (folder / "tree").mkdir()
    (folder / "tree" / "README").write_text("A repository.\n")
    file = folder / "workloads" / "turns.yml"
    file.parent.mkdir()
    file.write_text(WORKLOAD)
    return file


def on_one_machine(folder: Path) -> dict[str, str]:
    """Run the stages one after another right here, and return what they leave."""
    (folder / "models").mkdir(parents=True)
    for stage, command in re.findall(r"- name: (\S+)\n.*\n +command: (.*)\n", WORKLOAD):
        environment = os.environ | {"ITERATION": "0", "STAGE": stage}
        subprocess.run(["bash", "-ec", command], cwd=folder, env=environment, check=True)
    return {file.name: file.read_text() for file in (folder / "models").iterdir()}


def kill(play: subprocess.Popen[str]) -> None:
    """Kill a play with everything that it has started, as a controller dies that loses its power."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
    doomed = {play.pid}
    while more := {child for child, parent in parents.items() if parent in doomed} - doomed:
        doomed |= more
    for process in sorted(doomed):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    play.wait()


def journal(yard: Yard, run: str) -> list[dict[str, Any]]:
    """Return the run's journal from its newest checkpoint."""
    (content,) = yard.published(run, r"\.gpuyard/journal\.jsonl").values()
    return [json.loads(line) for line in content.decode().splitlines()]


def moment(text: str) -> float:
    """Return a time of a journal in seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def test_a_followed_run_moves_from_pool_to_pool_and_survives_its_controller_b2(yard: Yard, tmp_path: Path) -> None:
    """B2: the market and the machine by stage, with the results of a run that never moves, and nothing left to bill."""
    options = {"workload": str(workload(tmp_path)), "run": "turns-0"}
    planned = yard.play("launch", "--check", **options, follow="true").text
    assert re.search(
        r"The run moves between machines: 2 hand-overs cost \$\S+ and \S+ h, and in all it saves \$", planned
    )
    assert re.search(r"^\s+in all +3\.03 ", planned, re.M)
    alone = yard.play("launch", "--check", **options).text
    assert "One machine runs the stages of all pools, since nobody follows the run" in alone

    # The controller dies when the second machine is rented, and the first one has not gone.
    given = [word for name, value in options.items() for word in ("-e", f"{name}={value}")]
    play = subprocess.Popen(
        [str(PROGRAMS / "ansible-playbook"), "launch.yml", "-e", "sandbox=true", *given, "-e", "shutdown=true"],
        cwd=ROOT,
        env=yard.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        held = yard.wait("a second machine", lambda: len(yard.instances("turns-0")) == 2 and yard.instances("turns-0"))
    finally:
        kill(play)
    assert {one.ref.node: one.provider for one in held if one.ref} == {"train-0": "vultr", "search-0": "vast"}
    waiting = yard.manifest("turns-0")
    assert waiting is not None and (waiting.progress["outcome"], waiting.progress["stage"]) == ("waiting", "search")

    # The next command goes on with the second machine, ends the first one, and follows the run to its end.
    said = yard.play("launch", **options, shutdown="true").text
    first = next(one.id for one in held if one.provider == "vultr")
    second = next(one.id for one in held if one.provider == "vast")
    assert f"Run turns-0 has vast {second}" in said and f"The run leaves vultr {first}" in said
    assert said.count("handing it over") == 1 and said.count("Renting ") == 1

    assert yard.instances("turns-0") == []
    bill = yard.control.status()["bill"]
    assert bill["billable"] == [] and len({line["id"] for line in bill["lines"]}) == 3
    found = yard.published("turns-0", r"models/.*")
    assert {Path(name).name: content.decode() for name, content in found.items()} == on_one_machine(tmp_path / "here")
    # No machine had a stage before the one before it was gone.
    entries = sorted(stored(yard.store, costs=True).entries["turns-0"], key=lambda one: one.began_at)
    starts = [moment(event["time"]) for event in journal(yard, "turns-0") if event["event"] == "stage-start"]
    assert [one.provider for one in entries] == ["vultr", "vast", "vultr"] and len(starts) == 3
    for entry, start in zip(entries, starts[1:], strict=False):
        # A journal's times are whole seconds.
        assert entry.ended and entry.changes[-1].time <= start + 1
    assert yard.play("status", run="turns-0").text.count("finished") == 1
