# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A repository reaches the machine once, whole, and is built once for each state of it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from gpuyard import tree
from gpuyard.box import checkpoints


class Sender:
    """Does what the action plugin does, without a connection: describe, ask, pack, unpack."""

    def __init__(self, run_module: Any, tmp_path: Path) -> None:
        self.run_module = run_module
        self.action = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.action.work_tree")
        self.source = tmp_path / "source"
        self.dest = tmp_path / "box" / "code"
        self.archive = tmp_path / "archive.tar.gz"
        self.sent = 0
        self.packed: list[str] = []

    def __call__(self, *, check: bool = False, **options: Any) -> dict[str, Any]:
        found = tree.describe(self.source)
        options = {
            "src": str(self.source),
            "dest": str(self.dest),
            "tree": {"digest": found.digest, "files": found.files},
            **options,
        }
        result: dict[str, Any] = self.run_module("work_tree", check=check, **options)
        if wanted := result.pop("needs_archive", None):
            self.sent += 1
            self.action.pack(self.source, wanted, self.archive)
            self.packed = wanted
            result = self.run_module("work_tree", check=check, archive=str(self.archive), **options)
        return result

    def write(self, name: str, content: str) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def found(self) -> dict[str, str]:
        return {
            path.relative_to(self.dest).as_posix(): path.read_text() for path in self.dest.rglob("*") if path.is_file()
        }


@pytest.fixture
def send(run_module: Any, tmp_path: Path) -> Sender:
    sender = Sender(run_module, tmp_path)
    sender.write("src/main.rs", "fn main() {}")
    sender.write("run.sh", "echo hello").chmod(0o755)
    (sender.source / "link").symlink_to("run.sh")
    return sender


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_first_time_sends_everything_and_second_time_nothing(send: Sender) -> None:
    first = send()
    assert first["changed"] and first["actions"] == ["write 3 files"] and send.sent == 1
    assert send.found() == {"src/main.rs": "fn main() {}", "run.sh": "echo hello", "link": "echo hello"}
    assert (send.dest / "link").is_symlink() and os.access(send.dest / "run.sh", os.X_OK)
    second = send()
    assert not second["changed"] and second["actions"] == [] and send.sent == 1


def test_only_what_changed_is_written_and_what_is_gone_is_removed(send: Sender) -> None:
    send.write("old/deep/file", "x")
    send()
    untouched = (send.dest / "run.sh").stat().st_mtime_ns
    send.write("src/main.rs", "fn main() { changed }")
    (send.source / "old/deep/file").unlink()
    result = send()
    assert send.packed == ["src/main.rs"], "only what differs crosses the network"
    assert result["actions"] == ["write 1 file", "remove 1 file"]
    assert result["diff"]["after"]["write"] == ["src/main.rs"]
    assert not (send.dest / "old").exists()
    assert (send.dest / "run.sh").stat().st_mtime_ns == untouched


def test_what_the_source_never_had_stays(send: Sender, tmp_path: Path) -> None:
    send.write("models/README", "from the source")
    send()
    (send.dest / "target").mkdir()
    (send.dest / "target/program").write_text("built")
    volume = tmp_path / "volume"
    (send.dest / "models").rename(volume)
    (send.dest / "models").symlink_to(volume)
    (volume / "policy.bin").write_text("trained")
    (volume / "README").write_text("edited on the volume")
    assert not send()["changed"]
    send.write("models/README", "changed in the source")
    (send.source / "run.sh").unlink()
    (send.source / "link").unlink()
    send()
    (send.source / "models/README").unlink()
    send()
    assert (send.dest / "target/program").read_text() == "built"
    assert (send.dest / "models").is_symlink()
    assert {path.name: path.read_text() for path in volume.iterdir()} == {
        "policy.bin": "trained",
        "README": "edited on the volume",
    }


@pytest.fixture
def volume(send: Sender, tmp_path: Path) -> Path:
    """Return the folder on the volume that the tree's folder ``data`` has become a link to."""
    send.write("data/input.txt", "first")
    send.write("data/notes.txt", "first")
    send()
    place = tmp_path / "volume"
    (send.dest / "data").rename(place)
    (send.dest / "data").symlink_to(place)
    assert not send()["changed"]
    return place


def test_a_newer_file_on_the_volume_is_brought_unless_the_run_changed_it(
    send: Sender, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text: warnings.append(text))
    (volume / "notes.txt").write_text("the run's")
    send.write("data/input.txt", "second")
    send.write("data/notes.txt", "second")
    result = send()
    assert result["actions"] == ["write 1 file"] and result["kept"] == ["data/notes.txt"]
    assert len(warnings) == 1 and "another version of data/notes.txt. What is on the persistent volume" in warnings[0]
    assert (volume / "input.txt").read_text() == "second" and (volume / "notes.txt").read_text() == "the run's"
    # The same again, and of yet another version, until the run's file is removed.
    again = send()
    assert not again["changed"] and again["kept"] == ["data/notes.txt"]
    send.write("data/notes.txt", "third")
    assert send()["kept"] == ["data/notes.txt"]
    (volume / "notes.txt").unlink()
    assert send()["actions"] == ["write 1 file"] and (volume / "notes.txt").read_text() == "third"
    assert send()["kept"] == [] and (send.dest / "data").is_symlink()


def test_what_is_brought_through_a_link_is_noted_on_the_volume(send: Sender, run_module: Any, tmp_path: Path) -> None:
    """The restore of a checkpoint goes by that, see tests/unit/checkpoints/test_brought.py."""
    for name in ("data/input.txt", "data/deep/notes.txt", "other/x"):
        send.write(name, "first")
    send()
    links = {"root": str(tmp_path / "volume"), "repository": str(send.dest), "directories": ["data"]}
    assert run_module("persistent_links", **links)["changed"]
    # A link that has nothing to do with the volume.
    (tmp_path / "elsewhere").mkdir()
    (send.dest / "other").rename(tmp_path / "elsewhere/other")
    (send.dest / "other").symlink_to(tmp_path / "elsewhere/other")
    record = tmp_path / "volume/.gpuyard/brought.json"
    first, second = (hashlib.sha256(text).hexdigest() for text in (b"first", b"second"))
    assert json.loads(record.read_text()) == {"data/input.txt": first, "data/deep/notes.txt": first}
    (tmp_path / "volume/data/deep/notes.txt").write_text("the run's")
    for name in ("data/input.txt", "data/deep/notes.txt", "data/deep/new.txt", "other/x"):
        send.write(name, "second")
    before = record.read_bytes()
    assert send(check=True)["changed"] and record.read_bytes() == before
    assert send()["kept"] == ["data/deep/notes.txt"]
    expected = {"data/input.txt": second, "data/deep/notes.txt": first, "data/deep/new.txt": second}
    assert json.loads(record.read_text()) == expected
    assert not send()["changed"] and not run_module("persistent_links", **links)["changed"]
    assert json.loads(record.read_text()) == expected and not (tmp_path / "elsewhere/.gpuyard").exists()


def test_a_newer_file_is_not_lost_to_the_checkpoint_on_a_new_machine(run_module: Any, tmp_path: Path) -> None:
    store = checkpoints.LocalStore(tmp_path / "bucket")

    def machine(number: int, content: str) -> Path:
        """Bring the tree to a new machine, as its roles do, and return the volume."""
        send, volume = Sender(run_module, tmp_path), tmp_path / f"volume-{number}"
        send.dest = tmp_path / f"box-{number}/code"
        for name in ("input.txt", "notes.txt"):
            send.write(f"data/{name}", content)
        send()
        links = {"root": str(volume), "repository": str(send.dest), "directories": ["data"]}
        assert run_module("persistent_links", **links)["changed"]
        return volume

    first = machine(1, "first")
    (first / "data/notes.txt").write_text("the run's")
    (first / ".gpuyard/journal.jsonl").write_text("{}\n")
    checkpoints.publish(store, "tiny-1", first)
    second = machine(2, "second")
    restored = checkpoints.restore(lambda: store, "tiny-1", second)
    assert (second / "data/input.txt").read_text() == "second"
    assert (second / "data/notes.txt").read_text() == "the run's"
    assert len(restored.warnings) == 1 and "another version of data/notes.txt" in restored.warnings[0]


def test_what_the_run_made_of_a_file_is_no_matter_while_the_source_is_as_it_was(send: Sender, volume: Path) -> None:
    (volume / "notes.txt").write_text("the run's")
    send.write("run.sh", "echo changed")
    result = send()
    assert result["actions"] == ["write 1 file"] and result["kept"] == []


def test_on_a_volume_that_nothing_is_known_of_equal_is_fine_and_different_stays(send: Sender, volume: Path) -> None:
    """As after a restore on a new machine, or when the machine's own disk was lost."""
    (volume / "notes.txt").write_text("older")
    (volume / "input.txt").chmod(0o755)  # a mode that did not survive makes no other file of it
    send.dest.with_name(f".{send.dest.name}.json").unlink()
    result = send()
    assert result["kept"] == ["data/notes.txt"] and (volume / "notes.txt").read_text() == "older"
    send.write("data/input.txt", "second")
    assert send()["kept"] == ["data/notes.txt"] and (volume / "input.txt").read_text() == "second"


def test_a_file_edited_on_the_machine_is_put_right(send: Sender) -> None:
    send()
    (send.dest / "src/main.rs").write_text("meddled with")
    assert send()["actions"] == ["write 1 file"]
    assert (send.dest / "src/main.rs").read_text() == "fn main() {}"


def test_git_decides_what_belongs_to_the_tree(send: Sender) -> None:
    git(send.source.parent, "init", "-q", str(send.source))
    send.write(".gitignore", "target/\n*.log\n")
    send.write("target/program", "built here")
    send.write("noise.log", "noise")
    git(send.source, "add", "src", ".gitignore")
    send.write("removed.txt", "")
    git(send.source, "add", "removed.txt")
    (send.source / "removed.txt").unlink()
    assert sorted(tree.names(send.source)) == [".gitignore", "link", "run.sh", "src/main.rs"]


def test_without_git_caches_are_left_out(send: Sender) -> None:
    send.write("target/program", "built here")
    send.write("__pycache__/x.pyc", "")
    assert tree.names(send.source) == ["link", "run.sh", "src/main.rs"]


def test_the_archive_depends_on_the_content_only(send: Sender, tmp_path: Path) -> None:
    names = tree.names(send.source)
    packed = []
    for number in range(2):
        for name in names:
            os.utime(send.source / name, (number, number), follow_symlinks=False)
        send.action.pack(send.source, names, tmp_path / f"{number}.tar.gz")
        packed.append((tmp_path / f"{number}.tar.gz").read_bytes())
    assert packed[0] == packed[1]
    assert tree.describe(send.source) == tree.describe(send.source)


def test_build_runs_once_for_each_state(send: Sender) -> None:
    build = ["echo run >> built", 'echo "$GREETING $(command -v tool)" > greeting']
    tools = send.dest.parent / "tools"
    tools.mkdir(parents=True)
    (tools / "tool").write_text("#!/bin/sh\n")
    (tools / "tool").chmod(0o755)
    options = {"build": build, "environment": {"GREETING": "hello"}, "path": [str(tools)]}
    assert send(**options)["actions"] == ["write 3 files", "run 2 build commands"]
    assert (send.dest / "greeting").read_text() == f"hello {tools}/tool\n"
    assert not send(**options)["changed"]
    send.write("src/main.rs", "changed")
    assert send(**options)["changed"]
    assert send(**{**options, "environment": {"GREETING": "hi"}})["actions"] == ["run 2 build commands"]
    assert send(**{**options, "environment": {"GREETING": "hi"}, "rebuild": True})["changed"]
    assert (send.dest / "built").read_text().count("run") == 4


def test_a_failing_build_shows_the_end_of_its_log_and_is_tried_again(send: Sender) -> None:
    build = ["for i in $(seq 40); do echo line $i; done; test -e allowed"]
    failed = send(build=build)
    assert failed["failed"] and "failed with exit code 1" in failed["msg"]
    assert "line 40" in failed["msg"] and "line 20\n" not in failed["msg"]
    assert "line 1\n" in Path(failed["log"]).read_text()
    (send.dest / "allowed").touch()
    assert send(build=build)["actions"] == ["run 1 build command"]


def test_the_log_of_a_build_grows_while_it_runs(send: Sender) -> None:
    log = send.dest.with_name(".code.build.log")
    built = send(build=[f"echo early; echo problem >&2; grep early {log} | wc -l; grep -c problem {log}", "echo late"])
    assert "failed" not in built, built
    lines = [line for line in log.read_text().splitlines() if not line.startswith("$ ")]
    assert lines == ["early", "problem", "2", "2", "late"], "twice: the line itself, and the command that begins with $"


def test_a_build_that_asks_gets_no_answer(send: Sender) -> None:
    """Not even from a terminal: what waits for one would wait for ever."""
    reading, writing = os.pipe()
    kept = os.dup(0)
    try:
        os.write(writing, b"typed\n")
        os.dup2(reading, 0)
        assert "failed" not in send(build=["! read -r answer"])
    finally:
        os.dup2(kept, 0)
        for descriptor in (reading, writing, kept):
            os.close(descriptor)


def test_a_machine_without_bash_is_told_so(send: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tree.describe(send.source)
    monkeypatch.setattr(tree, "describe", lambda source: found)  # which needs git
    monkeypatch.setenv("PATH", str(tmp_path))
    assert send(build=["true"])["msg"] == "The build failed: bash: No such file or directory."


def test_an_archive_with_something_else_in_it_is_refused(send: Sender) -> None:
    found = tree.describe(send.source)
    with tarfile.open(send.archive, "w") as archive:
        folder = tarfile.TarInfo("run.sh")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    described = {"digest": found.digest, "files": found.files}
    options = {"src": str(send.source), "dest": str(send.dest), "tree": described, "archive": str(send.archive)}
    result = send.run_module("work_tree", **options)
    assert result["failed"] and result["msg"] == f"run.sh in {send.archive} is neither a file nor a link."


def test_check_mode_predicts_and_touches_nothing(send: Sender) -> None:
    predicted = send(check=True, build=["true"])
    assert predicted["actions"] == ["write 3 files", "run 1 build command"] and not send.dest.parent.exists()
    assert send(build=["true"])["actions"] == predicted["actions"]
    assert not send(check=True, build=["true"])["changed"]


def test_a_path_that_leaves_the_folder_is_refused(run_module: Any, tmp_path: Path) -> None:
    escaping = {"digest": "0", "files": {"../escape": "0"}}
    result = run_module("work_tree", src="x", dest=str(tmp_path / "d"), tree=escaping)
    assert result["failed"] and "'../escape' would lie outside" in result["msg"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a git repository with a submodule and two commits."""
    part = tmp_path / "part"
    whole = tmp_path / "whole"
    for folder in (part, whole):
        git(tmp_path, "init", "-q", str(folder))
        git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
        (folder / "file").write_text(folder.name)
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", "first")
    git(whole, "submodule", "add", "-q", f"file://{part}", "sub")
    git(whole, "commit", "-q", "-m", "second")
    return whole


def test_a_git_commit_with_submodules(
    run_module: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # git takes submodules from the local file system only when it is told that this is meant.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.file.allow")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "always")
    dest = tmp_path / "box" / "code"
    second = git(repository, "rev-parse", "HEAD")
    first = git(repository, "rev-parse", "HEAD~1")
    options: dict[str, Any] = {"url": f"file://{repository}", "dest": str(dest), "submodules": True}
    assert run_module("work_tree", check=True, commit=second, **options)["changed"] and not dest.exists()
    result = run_module("work_tree", commit=second, **options)
    assert result["actions"] == [f"check out {second[:12]}"] and result["digest"] == second
    assert (dest / "file").read_text() == "whole" and (dest / "sub/file").read_text() == "part"
    assert not run_module("work_tree", commit=second, **options)["changed"]
    (dest / "file").write_text("meddled with")
    (dest / "output").write_text("a result")
    assert run_module("work_tree", commit=second, **options)["changed"]
    assert (dest / "file").read_text() == "whole" and (dest / "output").read_text() == "a result"
    assert run_module("work_tree", commit=first, **{**options, "submodules": False})["changed"]
    assert git(dest, "rev-parse", "HEAD") == first


def test_a_killed_modules_build_is_taken_over(
    run_module: Any, killed_module: Any, repository: Path, tmp_path: Path
) -> None:
    """B10: the commands that follow are not forgotten, and none runs twice."""
    build = ["echo first >> made", f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo second >> made"]
    commit = git(repository, "rev-parse", "HEAD")
    options = {"url": f"file://{repository}", "commit": commit, "dest": str(tmp_path / "box/code"), "build": build}
    killed_module("work_tree", tmp_path / "box/code/made", "first", **options)
    (tmp_path / "go").touch()
    assert run_module("work_tree", **options)["actions"] == ["run 2 build commands"]
    assert (tmp_path / "box/code/made").read_text() == "first\nsecond\n"
    assert not run_module("work_tree", **options)["changed"]


def test_a_tree_is_not_changed_under_a_build(
    run_module: Any, killed_module: Any, repository: Path, tmp_path: Path
) -> None:
    code = tmp_path / "box/code"
    options = {"url": f"file://{repository}", "dest": str(code)}
    first, second = git(repository, "rev-parse", "HEAD~1"), git(repository, "rev-parse", "HEAD")
    build = ["echo begun >> made; sleep 60; echo ended >> made"]
    killed_module("work_tree", code / "made", "begun", **options, commit=first, build=build)
    assert run_module("work_tree", **options, commit=second, build=["cat made > seen"])["changed"]
    assert (code / "seen").read_text() == "begun\n" and (code / ".gitmodules").exists()


def test_git_failures_are_one_clear_text(run_module: Any, repository: Path, tmp_path: Path) -> None:
    options = {"url": f"file://{repository}", "dest": str(tmp_path / "code")}
    short = run_module("work_tree", commit="main", **options)
    assert short["failed"] and "commit='main' must be a full commit" in short["msg"]
    unknown = run_module("work_tree", commit="0" * 40, **options)
    assert unknown["failed"] and unknown["msg"].startswith(f"Fetching file://{repository} at 000000000000 failed")


def test_an_address_that_git_would_take_for_something_else_is_refused(run_module: Any, tmp_path: Path) -> None:
    options = {"dest": str(tmp_path / "code"), "commit": "0" * 40}
    for url in (f"--upload-pack=touch {tmp_path}/run", f"ext::touch {tmp_path}/run", "fd::17", "relative", "-x@h:y"):
        result = run_module("work_tree", **options, url=url)
        assert result["failed"] and "must be an address such as" in result["msg"]
    for url in ("https://user:canary-9b1e44@h/x", "https://canary-9b1e44@h/x", "https://h/x?token=canary-9b1e44"):
        result = run_module("work_tree", **options, url=url)
        assert result["failed"] and "must not hold" in result["msg"] and "canary" not in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_a_token_in_a_submodules_address_is_not_shown(run_module: Any, repository: Path, tmp_path: Path) -> None:
    url = "http://user:canary-9b1e44@127.0.0.1:9/part"
    git(repository, "config", "-f", ".gitmodules", "submodule.sub.url", url)
    git(repository, "commit", "-q", "-a", "-m", "third")
    options = {"url": f"file://{repository}", "dest": str(tmp_path / "code"), "submodules": True}
    result = run_module("work_tree", commit=git(repository, "rev-parse", "HEAD"), **options)
    assert result["failed"] and "//…@127.0.0.1:9/part" in result["msg"] and "canary" not in result["msg"], result


def test_a_newer_commit_brings_files_on_the_volume_unless_the_run_changed_them(
    run_module: Any, repository: Path, tmp_path: Path
) -> None:
    dest, volume = tmp_path / "box" / "code", tmp_path / "volume"
    links = {"root": str(volume), "repository": str(dest), "directories": ["data"]}

    def bring(content: bytes) -> dict[str, Any]:
        (repository / "data").mkdir(exist_ok=True)
        for name in ("input", "notes"):
            (repository / "data" / name).write_bytes(content)
        git(repository, "add", "data")
        git(repository, "commit", "-q", "-m", "data")
        commit = git(repository, "rev-parse", "HEAD")
        assert run_module("work_tree", url=f"file://{repository}", dest=str(dest), commit=commit)["changed"]
        linked: dict[str, Any] = run_module("persistent_links", **links)
        return linked

    assert bring(b"first\0\xff")["conflicts"] == []
    (volume / "data/notes").write_text("the run's")
    assert bring(b"second\0\xff")["conflicts"] == [str(volume / "data/notes.from-repository")]
    assert (volume / "data/input").read_bytes() == b"second\0\xff"
    assert (volume / "data/notes").read_text() == "the run's"
    assert (dest / "data").is_symlink()
    noted = json.loads((volume / ".gpuyard/brought.json").read_text())
    contents = {"data/input": b"second\0\xff", "data/notes": b"first\0\xff"}
    assert noted == {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def test_each_state_of_the_tree_has_a_folder_of_its_own(send: Sender) -> None:
    """X9: what is prepared never changes what is in use, and only what differs is sent."""
    options = {"by_content": True, "build": ["cat src/main.rs > built"]}
    first = Path(send(**options)["path"])
    assert first.parent == send.dest and (first / "built").read_text() == "fn main() {}"
    assert not send(**options)["changed"] and send(**options)["path"] == str(first)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    send.write("src/main.rs", "fn main() { changed }")
    (send.source / "link").unlink()
    second = Path(send(**options)["path"])
    assert second != first and send.packed == ["src/main.rs"]
    assert (second / "built").read_text() == "fn main() { changed }"
    assert sorted(path.name for path in second.iterdir()) == ["built", "run.sh", "src"]
    # Build tools go by times, so what is the same has the same.
    assert (second / "run.sh").stat().st_mtime_ns == before[first / "run.sh"] and os.access(second / "run.sh", os.X_OK)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()} == before
    assert send(**options | {"build": []})["path"] not in (str(first), str(second)), "another build is another state"
    assert send(**options | {"variant": ["python 3.12"]})["path"] not in (str(first), str(second))
    assert send(**options)["path"] == str(second) and send.sent == 2, "and nothing of it was sent again"


def test_a_folder_in_use_is_left_as_its_stages_have_made_it(send: Sender) -> None:
    options = {"by_content": True}
    used = Path(send(**options)["path"])
    (used / "run.sh").write_text("a stage wrote this")
    assert not send(**options, beside=True)["changed"]
    assert (used / "run.sh").read_text() == "a stage wrote this"
    assert send(**options)["changed"] and (used / "run.sh").read_text() == "echo hello"


def test_a_copied_file_that_was_edited_next_door_is_sent(send: Sender) -> None:
    used = Path(send(by_content=True)["path"])
    (used / "run.sh").write_text("a stage wrote this")
    send.write("src/main.rs", "second")
    new = Path(send(by_content=True)["path"])
    assert sorted(send.packed) == ["run.sh", "src/main.rs"] and (new / "run.sh").read_text() == "echo hello"


def test_a_new_folder_has_the_links_and_the_cargo_cache_of_its_neighbour(send: Sender, tmp_path: Path) -> None:
    """A file on the volume is brought where the run has not changed it, as it is without a folder of its own."""
    for name in ("input", "notes"):
        send.write(f"data/{name}", "first")
    build = {
        "by_content": True,
        "build": ["mkdir -p target other; touch target/made-$(cat src/main.rs | wc -c) other/x"],
    }
    old = Path(send(**build)["path"])
    (old / "target/CACHEDIR.TAG").touch()
    links = {"root": str(tmp_path / "volume"), "directories": ["data"]}
    send.run_module("persistent_links", repository=str(old), **links)
    (tmp_path / "volume/data/notes").write_text("the run's")
    for name in ("data/input", "data/notes", "src/main.rs"):
        send.write(name, "second")
    result = send(**build)
    new = Path(result["path"])
    assert result["kept"] == ["data/notes"] and (new / "data").readlink() == tmp_path / "volume/data"
    assert (tmp_path / "volume/data/input").read_text() == "second"
    assert (tmp_path / "volume/data/notes").read_text() == "the run's"
    assert send.run_module("persistent_links", repository=str(new), **links)["actions"] == []
    assert sorted(path.name for path in (new / "target").iterdir()) == ["CACHEDIR.TAG", "made-12", "made-6"]


def test_bringing_first_and_building_later_is_one_folder(send: Sender) -> None:
    options = {"by_content": True, "build": ["touch built"]}
    brought = send(**options, skip_build=True)
    assert brought["actions"] == ["write 3 files"] and not Path(brought["path"], "built").exists()
    assert not send(**options, skip_build=True)["changed"]
    built = send(**options)
    assert built["path"] == brought["path"] and built["actions"] == ["run 1 build command"]


def test_a_commit_in_a_folder_of_its_own_fetches_only_what_the_neighbour_lacks(
    run_module: Any, repository: Path, tmp_path: Path
) -> None:
    options = {"url": f"file://{repository}", "dest": str(tmp_path / "box"), "by_content": True}
    first = Path(run_module("work_tree", commit=git(repository, "rev-parse", "HEAD~1"), **options)["path"])
    (first / "file").write_text("a stage wrote this")
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    result = run_module("work_tree", commit=git(repository, "rev-parse", "HEAD"), **options)
    second = Path(result["path"])
    assert second != first and (second / "file").read_text() == "whole" and (second / ".gitmodules").is_file()
    assert (first / "file").read_text() == "a stage wrote this" and not (first / ".gitmodules").exists()
    assert git(second, "cat-file", "-t", git(first, "rev-parse", "HEAD")) == "commit"
    assert not run_module("work_tree", commit=git(repository, "rev-parse", "HEAD"), **options)["changed"]
