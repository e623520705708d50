"""A machine whose stages run is not changed; an update is prepared beside, and the next stage takes it."""

from __future__ import annotations

from pathlib import Path

from yard import Yard

WORKLOAD = """\
name: beside
repository: {path: code}
needs: {gpu_count: 1, gpu_ram_gb: 8, cpu_cores: 2, ram_gb: 4}
python: {version: ">=3.10"}
build: ["cat word > built"]
persist: {directories: [models]}
checkpoints: {every_s: 5}
stages:
  - name: first
    command: >-
      cat word built; mkdir cache; echo made > cache/x; touch $GPUYARD_PERSIST/began;
      while test ! -e $GPUYARD_PERSIST/go; do sleep 0.2; done; cat word built
  - name: second
    command: cat word built cache/x
"""
LIST = "find /opt/gpuyard/src /opt/gpuyard/envs /opt/gpuyard/box.zip -newermt @{since} -print"


def test_x9_an_update_beside_a_running_stage_is_the_next_ones(yard: Yard, tmp_path: Path) -> None:
    """X9: re-converging a running machine changes only what differs and does not touch training."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "word").write_text("old\n")
    (tmp_path / "beside.yml").write_text(WORKLOAD)
    launch = {"provider": "vast", "run": "beside-0", "workload": str(tmp_path / "beside.yml")}
    yard.play("launch", **launch)
    yard.wait("the first stage", lambda: "began" in yard.on_machine("beside-0", "ls /mnt/persistent"), seconds=300)
    since = yard.on_machine("beside-0", "sleep 1.1; date +%s").strip()
    settings = yard.on_machine("beside-0", "cat /opt/gpuyard/run/settings.json /opt/gpuyard/run/workload.json")

    (code / "word").write_text("new\n")
    said = yard.play("launch", **launch)
    assert "The source's word is here not as when run beside-0 began. It goes on as it began" in said.text
    assert "with -e update=true it goes on with what is here" in said.text and said.changed()["beside-0"] == 0
    assert yard.on_machine("beside-0", LIST.format(since=since)) == ""
    assert yard.on_machine("beside-0", "cat /opt/gpuyard/run/settings.json /opt/gpuyard/run/workload.json") == settings

    said = yard.play("launch", **launch, update="true")
    assert "Prepared beside what the running stage uses: the repository." in said.text
    used = yard.on_machine("beside-0", "readlink /proc/$(pgrep -of 'while test')/cwd").strip()
    assert yard.on_machine("beside-0", f"cat {used}/word {used}/built") == "old\nold\n"
    yard.on_machine("beside-0", "touch /mnt/persistent/go")
    yard.wait(
        "the end", lambda: '"run-end"' in yard.on_machine("beside-0", "cat /mnt/persistent/.gpuyard/journal.jsonl")
    )
    lines = yard.on_machine("beside-0", "grep -hv '^##' /mnt/persistent/.gpuyard/logs/0-first.log").split()
    assert lines == ["old"] * 4
    lines = yard.on_machine("beside-0", "grep -hv '^##' /mnt/persistent/.gpuyard/logs/0-second.log").split()
    assert lines == ["new", "new", "made"]

    # One more state, when nothing runs: what nobody needs any more goes.
    (code / "word").write_text("newer\n")
    said = yard.play("launch", **launch, update="true")
    assert "gpuyard.cloud.base" not in said.text and "gpuyard.cloud.checkpoints" not in said.text
    folders = yard.on_machine("beside-0", "ls -d /opt/gpuyard/src/beside/*").split()
    assert len(folders) == 2 and used not in folders
    yard.play("teardown", run="beside-0")
