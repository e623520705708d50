# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run goes on from any controller that has the keys, the bucket and the run's name (B26, E8, X15)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gpuyard.api.launch as launching
from gpuyard import tree
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import LocalStore
from gpuyard.errors import BucketError, CheckpointError, NoCapacityError
from gpuyard.renting import ready, record, runs
from gpuyard.workload import known_workloads, resolve

from .conftest import Verb, World, offer

RUN = "tiny-0"
WORKLOAD = """
name: tiny
repository: {path: code}
needs: {gpu_ram_gb: 8}
environment: {required: [TINY_TOKEN]}
stages: [{name: one, command: "python train.py"}]
"""
TOKEN = "canary-token-2b86d0f4a1c94e77"


@dataclass
class Yard:
    """A bucket, a controller with workload and source, and the way to an empty one."""

    world: World
    verb: Verb
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.folder / "bucket")

    @property
    def workload(self) -> Path:
        return self.folder / "first" / "workloads" / "tiny.yml"

    @property
    def code(self) -> Path:
        return self.folder / "first" / "code"

    def at(self, controller: str) -> None:
        """Work from here on at this controller: in a folder and with a home of its own."""
        place = self.folder / controller
        place.mkdir(exist_ok=True)
        self.monkeypatch.chdir(place)
        self.monkeypatch.setenv("GPUYARD_HOME", str(self.folder / f"home-{controller}"))

    def asked(self, mode: str, options: dict[str, Any]) -> dict[str, Any]:
        return {"mode": mode, "bucket": self.store.url, "run": RUN, "workload": "tiny", **options}

    def plan(self, mode: str = "launch", **options: Any) -> dict[str, Any]:
        return self.verb("run_plan", **self.asked(mode, options))

    def launch(self, mode: str = "launch", *, lines: list[str] | None = None, **options: Any) -> dict[str, Any]:
        return self.verb("run_launch", lines=lines, **self.asked(mode, options))

    def made_of(self) -> dict[str, bytes]:
        """Return what the bucket holds of what the run is made of."""
        keys = [item.key for item in self.store.objects(f"{RUN}/")]
        return {key: self.store.get(key) for key in keys if key.endswith("workload.json") or "/source/" in key}

    def begin(self) -> None:
        """Do what the box does: say that the run has begun, publish, and lose the machine."""
        checkpoints.write_record(self.store, RUN, "tiny")
        root = self.folder / "persistent"
        root.mkdir()
        (root / "weights").write_text("1")
        checkpoints.publish(self.store, RUN, root, progress=lambda _: {"iteration": 0, "stage": "one"})
        self.world.vast.held.clear()


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every machine runs and answers over SSH."""
    monkeypatch.setattr(ready, "wait_ssh", lambda *_args, **_options: "SHA256:x")


@pytest.fixture
def yard(world: World, verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    made = Yard(world, verb, tmp_path, monkeypatch)
    (tmp_path / "bucket").mkdir()
    made.workload.parent.mkdir(parents=True)
    made.workload.write_text(WORKLOAD)
    (made.code / "lib").mkdir(parents=True)
    (made.code / "train.py").write_text("print()\n")
    (made.code / "run.sh").write_text("#!/bin/sh\n")
    (made.code / "run.sh").chmod(0o755)
    (made.code / "lib" / "data").symlink_to("/mnt/persistent/data")
    monkeypatch.setenv("TINY_TOKEN", TOKEN)
    world.vast.market = [offer("vast", "1")]
    made.at("first")
    return made


@pytest.fixture
def begun(yard: Yard) -> Yard:
    """Return a yard where the run was launched, has published a checkpoint and lost its machine."""
    assert yard.launch()["changed"]
    yard.begin()
    return yard


def message(result: dict[str, Any]) -> str:
    assert result.get("failed") is True and "Traceback" not in str(result), result
    return str(result["msg"])


def test_what_a_run_is_made_of_is_in_the_bucket_before_anything_is_rented(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.plan()
    assert [*yard.store.objects("")] == []  # a plan writes nothing
    seen: list[list[str]] = []
    create = type(yard.world.vast).create

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        seen.append([item.key for item in yard.store.objects(f"{RUN}/")])
        return create(self, *args, **options)

    monkeypatch.setattr(type(yard.world.vast), "create", watched)
    assert yard.launch()["changed"]
    digest = tree.describe(yard.code).digest
    assert {f"{RUN}/run.json", f"{RUN}/workload.json", f"{RUN}/source/{digest}.tar.gz"} <= set(seen[0])
    assert any(key.startswith(f"{RUN}/claims/") for key in seen[0])
    assert not any(item.key.startswith(f"{RUN}/claims/") for item in yard.store.objects(""))
    kept = record.read(yard.store, RUN)
    assert kept.record.workload == "tiny" and kept.record.launched and kept.record.pools == {"main": 1}
    assert kept.record.created == ""  # no stage has begun
    for item in yard.store.objects(""):
        assert TOKEN.encode() not in yard.store.get(item.key)
    # The same again has nothing to write.
    before = yard.made_of()
    assert not yard.launch()["changed"] and yard.made_of() == before


def test_a_bucket_that_takes_no_record_ends_the_launch_before_it_rents(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise BucketError("The disk is full.")

    monkeypatch.setattr(LocalStore, "put", full)
    text = message(yard.launch())
    assert f"What run {RUN} is made of cannot be written into its bucket, so nothing was rented: " in text
    assert yard.world.vast.rented == []


def test_b26_a_stranger_resumes_with_the_runs_name_and_nothing_else(begun: Yard) -> None:
    first = begun.plan()["plan"]
    begun.at("second")
    # The plays name their default workload, whichever the run has.
    planned = begun.plan("resume", workload="miniprover")
    plan = planned["plan"]
    assert (plan["workload"], plan["fingerprint"]) == (first["workload"], first["fingerprint"])
    assert plan["tree"] != first["tree"]
    root = Path(plan["tree"])
    assert root.is_relative_to(begun.folder / "home-second" / "sources")
    assert tree.describe(root) == tree.describe(begun.code)
    assert (root / "lib" / "data").readlink() == Path("/mnt/persistent/data")
    assert f"Workload and source of run {RUN} come from the bucket, as it began with them." in planned["text"]
    before = begun.made_of()
    assert begun.launch("resume", workload="miniprover")["hosts"][0]["name"] == RUN
    assert begun.made_of() == before
    # What is here already is not brought again, but looked at.
    (root / "train.py").write_text("tampered")
    assert (Path(begun.plan("resume")["plan"]["tree"]) / "train.py").read_text() == "print()\n"


def test_a_git_folder_around_the_home_hides_nothing_of_an_unpacked_source(begun: Yard) -> None:
    import subprocess

    begun.at("second")
    subprocess.run(["git", "init", "-q", str(begun.folder)], check=True)
    (begun.folder / ".gitignore").write_text("*\n")
    assert (
        tree.describe(Path(begun.plan("resume")["plan"]["tree"])).files
        == tree.described(begun.code, ["lib/data", "run.sh", "train.py"]).files
    )


def test_what_differs_is_named_and_used_only_when_told_to(begun: Yard) -> None:
    for number in range(5):
        (begun.code / f"more{number}.py").write_text("")
    begun.workload.write_text(WORKLOAD.replace("train.py", "other.py"))
    planned = begun.plan()
    text = " ".join(planned["text"].split())
    assert (
        f"The workload's stages.0.command and the source's more0.py, more1.py, more2.py and 2 more (5 in all) are here "
        f"not as when run {RUN} began. It goes on as it began; with -e update=true it goes on with what is here."
        in text
    )
    assert planned["plan"]["workload"]["stages"][0]["command"] == "python train.py"
    assert not (Path(planned["plan"]["tree"]) / "more0.py").exists()

    planned = begun.plan(update=True)
    assert "not as when run tiny-0 began, and update=true takes what is here." in " ".join(planned["text"].split())
    assert planned["plan"]["workload"]["stages"][0]["command"] == "python other.py"
    assert planned["plan"]["tree"] == str(begun.code)
    old = record.read(begun.store, RUN).made_of
    assert begun.launch(update=True)["changed"]
    made_of = record.read(begun.store, RUN).made_of
    assert old and made_of and made_of.source.digest == tree.describe(begun.code).digest != old.source.digest
    # An old checkpoint may be gone back to, so the old source stays.
    kept = {item.key.rpartition("/")[2] for item in begun.store.objects(f"{RUN}/source/")}
    assert kept == {f"{made_of.source.digest}.tar.gz", f"{old.source.digest}.tar.gz"}
    # From here on this is what the run goes on with.
    begun.world.vast.held.clear()
    begun.at("second")
    assert begun.plan("resume")["plan"]["workload"]["stages"][0]["command"] == "python other.py"


def test_a_source_that_an_override_names_stays_that_of_the_run(yard: Yard) -> None:
    yard.workload.write_text(
        WORKLOAD.replace("{path: code}", f"{{url: https://forge.invalid/tiny.git, commit: {'a' * 40}}}")
    )
    assert yard.launch(overrides=[f"repository.path={yard.code}"])["changed"]
    yard.begin()
    (yard.code / "more.py").write_text("")
    planned = yard.plan("resume", overrides=["stages.one.grace_s=5"])
    text = " ".join(planned["text"].split())
    assert f"The source's more.py is here not as when run {RUN} began." in text
    assert not (Path(planned["plan"]["tree"]) / "more.py").exists()

    planned = yard.plan("resume", update=True)
    assert f"The source's more.py is not as when run {RUN} began, and update=true" in " ".join(planned["text"].split())
    assert planned["plan"]["tree"] == str(yard.code)
    yard.at("second")
    assert (Path(yard.plan("resume")["plan"]["tree"]) / "train.py").exists()


def test_a_run_that_has_not_begun_has_nothing_to_keep_to(yard: Yard) -> None:
    assert yard.launch()["changed"]
    yard.workload.write_text(WORKLOAD.replace("train.py", "other.py"))
    planned = yard.plan()
    assert "not as when" not in planned["text"]
    assert planned["plan"]["workload"]["stages"][0]["command"] == "python other.py"
    before = yard.made_of()
    yard.launch()
    assert yard.made_of() != before


def test_a_launch_that_rented_nothing_leaves_no_run(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_options: Any) -> Any:
        raise NoCapacityError("gone", provider="vast")

    with monkeypatch.context() as patch:
        patch.setattr(type(yard.world.vast), "create", refuse)
        message(yard.launch())
    assert yard.world.vast.rented == []
    assert record.read(yard.store, RUN).record.launched
    assert yard.verb("run_info", bucket=yard.store.url)["runs"] == []
    assert yard.plan(run=None)["plan"]["run"] == RUN


@pytest.mark.parametrize("damage", ["cut", "swapped", "gone", "hostile"])
def test_a_damaged_source_is_told_before_anything_is_rented(begun: Yard, damage: str) -> None:
    (item,) = begun.store.objects(f"{RUN}/source/")
    data = begun.store.get(item.key)
    if damage == "cut":
        begun.store.put(item.key, data[: len(data) // 2])
    elif damage == "gone":
        begun.store.delete(item.key)
    else:
        begun.store.put(item.key, archived({"train.py": "print(1)"} if damage == "swapped" else {"../../evil": "x"}))
    begun.at("second")
    text = message(begun.plan("resume"))
    assert text.startswith(f"The source of run {RUN} in the bucket (") and item.key in text
    assert ("is missing." if damage == "gone" else "is damaged") in text and "Nothing was rented." in text
    assert not [*begun.folder.rglob("evil")] and not [*(begun.folder / "home-second").rglob("train.py")]
    # The controller that has it needs none, and can put it back.
    begun.at("first")
    assert begun.launch(update=True)["changed"]
    begun.world.vast.held.clear()
    begun.at("second")
    assert begun.plan("resume")["plan"]["tree"]


def archived(files: dict[str, str]) -> bytes:
    """Return an archive with these files, whatever their names are."""
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content.encode()))
    return buffer.getvalue()


def test_a_damaged_or_newer_workload_record_is_told(begun: Yard) -> None:
    good = begun.store.get(f"{RUN}/workload.json")
    begun.store.put(f"{RUN}/workload.json", b"[")
    text = message(begun.plan("resume"))
    assert f"{RUN}/workload.json does not say what the run is made of" in text and "-e update=true" in text
    begun.store.put(f"{RUN}/workload.json", good.replace(b'"version": 1', b'"version": 7'))
    text = message(begun.plan("resume", update=True))
    assert "is of version 7, and this gpuyard reads version 1" in text
    begun.store.put(f"{RUN}/workload.json", good.replace(b'"stages"', b'"stagess"'))
    begun.at("second")
    text = message(begun.plan("resume"))
    assert "A stored workload cannot be used: " in text and "gpuyard 0.1.0 wrote it" in text
    assert begun.world.vast.rented == ["1"]


def test_a_source_that_is_too_large_is_told_in_the_plan(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MOST_SOURCE_BYTES", 3)
    planned = yard.plan()
    text = " ".join(planned["text"].split())
    assert "The source is not copied into the bucket (it has 0.0 GB, and no more than 3e-09 GB are copied)" in text
    assert "cannot be resumed from another controller" in text
    assert yard.launch()["changed"]
    assert [*yard.store.objects(f"{RUN}/source/")] == []
    yard.begin()
    assert yard.plan("resume")["plan"]["tree"] == str(yard.code)
    yard.at("second")
    assert "began with a source that is neither here nor in the bucket" in message(yard.plan("resume"))


def test_a_file_that_looks_like_a_secret_is_told_before_it_is_copied(yard: Yard) -> None:
    assert "may hold a secret" not in yard.plan()["text"]
    for name in (".env", ".env.example", "lib/deploy.pem", "monkey"):
        (yard.code / name).write_text("")
    text = " ".join(yard.plan()["text"].split())
    assert "The source's .env, lib/deploy.pem may hold a secret, and the source goes to the machine" in text


def test_without_a_bucket_the_plan_says_that_nobody_else_can_go_on(yard: Yard) -> None:
    planned = yard.verb("run_plan", bucket="", workload="tiny")
    assert "no other controller can go on with the run" in planned["text"]


def test_update_needs_something_to_go_on_with(begun: Yard) -> None:
    begun.at("second")
    assert "update=true needs a workload to go on with: " in message(begun.plan("resume", update=True))


def test_another_workloads_run_of_this_name_is_told(begun: Yard) -> None:
    other = begun.folder / "first" / "workloads" / "other.yml"
    other.write_text(WORKLOAD.replace("name: tiny", "name: other"))
    assert f"Run {RUN} belongs to workload tiny, not to other" in message(begun.plan(workload=str(other)))


def test_every_workload_here_survives_the_bucket() -> None:
    found = known_workloads()
    assert found
    for name in found:
        resolved = resolve(name)
        made_of = record.WorkloadRecord(record.document_of(resolved), record.SourceRef("git"))
        again = record.resolved_of(record.WorkloadRecord.from_bytes(made_of.to_bytes(), where="x"), "x")
        assert record.document_of(again) == record.document_of(resolved)


def test_what_a_run_was_launched_with_stays_and_more_comes_over_it(begun: Yard) -> None:
    planned = begun.plan("resume", iterations=3)
    assert planned["plan"]["workload"]["iterations"] == 3
    assert begun.launch("resume", iterations=3)["changed"]
    begun.world.vast.held.clear()
    for place in ("first", "second"):
        begun.at(place)
        assert begun.plan("resume")["plan"]["workload"]["iterations"] == 3
    begun.at("first")
    (begun.code / "more.py").write_text("")
    assert begun.plan("resume", update=True)["plan"]["workload"]["iterations"] == 3


def test_x4_two_controllers_that_launch_a_run_at_once_rent_once(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(ready, "wait_ready", lambda provider, instance, **_: instance)
    inside, go = threading.Event(), threading.Event()
    create = type(yard.world.vast).create

    def slow(self: Any, *args: Any, **options: Any) -> Any:
        inside.set()
        assert go.wait(60)
        return create(self, *args, **options)

    monkeypatch.setattr(type(yard.world.vast), "create", slow)
    results: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: results.append(yard.launch()))
    first.start()
    assert inside.wait(60)
    yard.at("second")  # whose lock file is another one
    lines: list[str] = []
    second = threading.Thread(target=lambda: results.append(yard.launch(lines=lines)))
    second.start()
    for _ in range(600):
        if any("rents for run tiny-0 at this moment" in line for line in lines):
            break
        second.join(0.1)
    go.set()
    first.join(60)
    second.join(60)
    assert results[0]["hosts"][0]["rented"] is True
    assert "Another command has just rented vast 91" in message(results[1])
    assert yard.world.vast.rented == ["1"]


# -- what a box has to ask the bucket ---------------------------------------------------------------------------------


@pytest.fixture
def shared(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> Yard:
    """Return a yard whose folder stands for a bucket that machines reach, too."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(runs, "open_store", lambda *_place, **_keys: yard.store)
    return yard


def test_the_new_machine_of_a_run_that_begins_need_not_look_for_a_checkpoint(shared: Yard) -> None:
    (host,) = shared.launch(bucket="s3://b")["hosts"]
    assert host["rented"] and host["restore"] is False
    (host,) = shared.launch(bucket="s3://b")["hosts"]
    assert not host["rented"] and host["restore"] is True, "one that is kept may be another controller's"
    shared.begin()
    (host,) = shared.launch(bucket="s3://b")["hosts"]
    assert host["rented"] and host["restore"] is True


def test_it_looks_where_somebody_was_quicker(shared: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between plan and renting, another controller's machine has come, published and gone."""
    written = record.write

    def write(store: LocalStore, *given: Any, **more: Any) -> None:
        written(store, *given, **more)
        shared.begin()

    monkeypatch.setattr(record, "write", write)
    (host,) = shared.launch(bucket="s3://b")["hosts"]
    assert host["rented"] and host["restore"] is True


def test_it_looks_where_the_controller_cannot(shared: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any) -> list[int]:
        raise CheckpointError("no answer")

    monkeypatch.setattr(launching, "sequences", silent)
    (host,) = shared.launch(bucket="s3://b")["hosts"]
    assert host["rented"] and host["restore"] is True
