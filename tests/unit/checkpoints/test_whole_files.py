"""A set holds whole files only: what a program is writing to stays as the last set has it. With real programs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from gpuyard.box.checkpoints import LocalStore, latest_manifest, publish, publish_or_warn, restore
from gpuyard.box.checkpoints.stores import SINGLE_REQUEST_BYTES
from gpuyard.box.checkpoints.writers import Writing, file_id, open_for_writing
from gpuyard.cloud_sync import CloudSync

RUN = "miniprover-0"
WAIT = "print(flush=True)\nsys.stdin.read()"
Holding = Callable[..., "Program"]


class Program:
    """A program that does something, says so, and stays as it is until it is told to end."""

    def __init__(self, code: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import mmap, os, sys\n{code}\n{WAIT}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def holding() -> Iterator[Holding]:
    programs: list[Program] = []

    def start(code: str, *arguments: object) -> Program:
        programs.append(Program(code, *arguments))
        return programs[-1]

    yield start
    for program in programs:
        if program.process.poll() is None:
            program.end()


@pytest.fixture
def folder(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "bucket")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "box"
    (root / "models").mkdir(parents=True)
    (root / "models/w.bin").write_bytes(b"old weights")
    (root / "other").write_text("1")
    return root


def stored(store: LocalStore) -> dict[str, bytes]:
    manifest = latest_manifest(store, RUN)
    return {entry.path: store.get(entry.key) for entry in manifest.files} if manifest else {}


HALF_WAY = {
    "in place": "f = open(sys.argv[1], 'r+b', 0); f.write(b'new')",
    "from the start": "f = open(sys.argv[1], 'wb', 0); f.write(b'new')",
    "in memory": "f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); f.close(); m[:3] = b'new'; m.flush()",
    "to be closed": "f = os.open(sys.argv[1], os.O_RDWR); os.ftruncate(f, 5)",
}


@pytest.mark.parametrize("how", HALF_WAY)
def test_a_file_that_is_being_written_stays_as_the_last_set_has_it(
    folder: LocalStore, root: Path, holding: Holding, how: str
) -> None:
    publish(folder, RUN, root)
    program = holding(HALF_WAY[how], root / "models/w.bin")
    (root / "other").write_text("2")
    published = publish(folder, RUN, root)
    assert stored(folder) == {"models/w.bin": b"old weights", "other": b"2"}
    assert (published.held, published.left_out, published.skipped) == (["models/w.bin"], [], [])
    assert published.lacks == "as in the checkpoint before, because a program is writing to them: models/w.bin"
    assert publish(folder, RUN, root).unchanged, "a program that holds it open for hours makes no set a minute"
    program.end()
    assert publish(folder, RUN, root).held == []
    assert stored(folder)["models/w.bin"] == (root / "models/w.bin").read_bytes() != b"old weights"


def test_a_file_that_is_only_read_or_not_changed_is_no_news(folder: LocalStore, root: Path, holding: Holding) -> None:
    holding("f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)", root / "models/w.bin")
    published = publish(folder, RUN, root)
    assert published.lacks == "" and stored(folder)["models/w.bin"] == b"old weights"


def test_new_files_that_are_being_written_are_left_out_with_few_words(
    folder: LocalStore, root: Path, holding: Holding
) -> None:
    code = "files = [open(f'{sys.argv[1]}/part-{sys.argv[2]}{n}', 'wb', 0) for n in range(9)]; files[0].write(b'x')"
    program = holding(code, root, "a")
    warnings: list[str] = []
    published = publish_or_warn(lambda: folder, RUN, root, warn=warnings.append)
    assert published is not None and len(published.left_out) == 9
    assert warnings == [
        "Warning: not in the checkpoint yet, because a program is writing to them: "
        "part-a0, part-a1, part-a2, part-a3, part-a4 and 4 more"
    ]
    program.end()
    # Other temporary files a minute later are no news; a file that is now held back is.
    holding(code, root, "b")
    publish_or_warn(lambda: folder, RUN, root, warn=warnings.append)
    assert len(warnings) == 1
    holding(HALF_WAY["in place"], root / "models/w.bin")
    for _ in range(2):
        publish_or_warn(lambda: folder, RUN, root, warn=warnings.append)
    assert len(warnings) == 2 and "models/w.bin; not in the checkpoint yet" in warnings[1]


def test_lines_that_are_written_from_the_start_are_published_as_they_come(
    folder: LocalStore, root: Path, holding: Holding
) -> None:
    results = root / "results.jsonl"
    # As a program does that keeps its results open, and has begun under another name.
    first = holding(
        "f = open(sys.argv[1] + '.new', 'w'); os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
        "f.write('1\\n2\\n3'); f.flush()",
        results,
    )
    assert publish(folder, RUN, root).lacks == ""
    assert stored(folder)["results.jsonl"] == b"1\n2\n"
    with results.open("a") as stream:
        stream.write("33\n4")
    # Now the first writer no longer stands at the end.
    assert publish(folder, RUN, root).held == ["results.jsonl"]
    first.end()
    assert publish(folder, RUN, root).lacks == ""
    assert stored(folder)["results.jsonl"] == b"1\n2\n333\n4"
    # Written anew from the start, it holds less than it did: that is no progress.
    holding("f = open(sys.argv[1], 'w'); f.write('1\\n2\\n'); f.flush()", results)
    assert publish(folder, RUN, root, force=True).held == ["results.jsonl"]
    assert stored(folder)["results.jsonl"] == b"1\n2\n333\n4"


@pytest.mark.parametrize("size", [20, SINGLE_REQUEST_BYTES + 20])
def test_a_log_is_cut_at_its_last_whole_line(
    folder: LocalStore, root: Path, tmp_path: Path, holding: Holding, size: int
) -> None:
    whole = b"x" * (size - 1) + b"\n"
    (root / "log.jsonl").write_bytes(whole)
    program = holding("f = open(sys.argv[1], 'ab', 0); f.write(b'half a li')", root / "log.jsonl")
    assert publish(folder, RUN, root).lacks == ""
    assert stored(folder)["log.jsonl"] == whole
    fresh = tmp_path / "fresh"
    assert restore(lambda: folder, RUN, fresh, has_local=lambda _: False).warnings == []
    assert (fresh / "log.jsonl").read_bytes() == whole
    program.end()
    assert publish(folder, RUN, root).files_sent == 1
    assert stored(folder)["log.jsonl"] == whole + b"half a li"


def test_what_is_appended_without_lines_is_not_whole(folder: LocalStore, root: Path, holding: Holding) -> None:
    holding("f = open(sys.argv[1], 'ab', 0); f.write(b'binary')", root / "events.bin")
    assert publish(folder, RUN, root).left_out == ["events.bin"]


def test_a_log_that_is_opened_anew_for_each_line_is_not_held_back(folder: LocalStore, root: Path) -> None:
    log = root / "log.jsonl"
    log.write_text("1\n")
    ends = iter(["2\n", "half"])

    class Slow(LocalStore):
        def put(self, key: str, data: bytes) -> None:
            if key.endswith("log.jsonl"):
                with log.open("a") as stream:
                    stream.write(next(ends))
            super().put(key, data)

    slow = Slow(folder.folder)
    assert publish(slow, RUN, root).lacks == "" and stored(folder)["log.jsonl"] == b"1\n"
    assert publish(slow, RUN, root).lacks == "" and stored(folder)["log.jsonl"] == b"1\n2\n"
    log.write_text("half a line")
    ends = iter([" and more"])
    assert publish(slow, RUN, root).held == ["log.jsonl"] and stored(folder)["log.jsonl"] == b"1\n2\n"


@pytest.mark.parametrize("size", [11, SINGLE_REQUEST_BYTES + 11])
def test_a_file_that_changes_while_it_is_sent_is_not_in_the_set(
    folder: LocalStore, root: Path, size: int, holding: Holding
) -> None:
    file = root / "models/w.bin"
    file.write_bytes(b"o" * size)
    publish(folder, RUN, root)
    file.write_bytes(b"n" * size)

    class Slow(LocalStore):
        def put(self, key: str, data: bytes) -> None:
            self.change(key)
            super().put(key, data)

        def put_stream(self, key: str, stream: BinaryIO) -> None:
            self.change(key)
            super().put_stream(key, stream)

        @staticmethod
        def change(key: str) -> None:
            if key.endswith("w.bin"):
                holding("f = open(sys.argv[1], 'r+b', 0); f.write(b'later')", file)

    assert publish(Slow(folder.folder), RUN, root, force=True).held == ["models/w.bin"]
    assert stored(folder)["models/w.bin"] == b"o" * size
    # What had been sent of it is not left in the bucket.
    assert {item.key for item in folder.objects(f"{RUN}/checkpoints/000002/") if item.key.endswith("w.bin")} == set()


def test_a_file_that_is_replaced_while_it_is_sent_is_whole_in_this_set_and_the_next(
    folder: LocalStore, root: Path
) -> None:
    class Slow(LocalStore):
        def put(self, key: str, data: bytes) -> None:
            if key.endswith("w.bin") and data == b"old weights":
                (root / "w.new").write_bytes(b"new weights")
                (root / "w.new").replace(root / "models/w.bin")
            super().put(key, data)

    assert publish(Slow(folder.folder), RUN, root).lacks == ""
    assert stored(folder)["models/w.bin"] == b"old weights"
    publish(folder, RUN, root)
    assert stored(folder)["models/w.bin"] == b"new weights"


REWRITES = """
import threading
def rewrite():
    generation = 0
    while True:
        generation = (generation + 1) % 250
        file = os.open(sys.argv[1], os.O_RDWR)
        for _ in range(64):
            os.write(file, bytes([generation]) * 16384)
        os.close(file)
threading.Thread(target=rewrite, daemon=True).start()
"""


def test_no_set_ever_holds_a_file_of_two_generations(folder: LocalStore, root: Path, holding: Holding) -> None:
    file = root / "models/w.bin"
    file.write_bytes(bytes(1024 * 1024))
    publish(folder, RUN, root)
    holding(REWRITES, file)
    for _ in range(12):
        publish(folder, RUN, root, force=True)
        assert len(set(stored(folder)["models/w.bin"])) == 1


def test_the_stages_own_log_is_cut_too(folder: LocalStore, root: Path, holding: Holding) -> None:
    log = root / ".gpuyard/logs/0-train.log"
    log.parent.mkdir(parents=True)
    log.write_text("## started\n")
    # Whatever way it is open: the runner itself writes it line by line.
    holding("f = open(sys.argv[1], 'r+b', 0); f.seek(0, 2); f.write(b'loss 0.1 st')", log)
    assert publish(folder, RUN, root).lacks == ""
    assert stored(folder)[".gpuyard/logs/0-train.log"] == b"## started\n"


def test_training_code_is_told_what_its_set_lacks(
    tmp_path: Path, root: Path, holding: Holding, caplog: pytest.LogCaptureFixture
) -> None:
    holding(HALF_WAY["in place"], root / "models/w.bin")
    assert CloudSync("local", str(tmp_path / "bucket")).sync_checkpoints(root, "mine")
    assert "not in the checkpoint yet, because a program is writing to them: models/w.bin" in caplog.messages[0]


def test_writers_are_found_by_name_and_by_what_they_do(tmp_path: Path, holding: Holding) -> None:
    files = {name: tmp_path / name for name in ("read", "append", "write", "other")}
    for file in files.values():
        file.write_text("x")
    modes = {"read": "rb", "append": "ab", "write": "wb", "other": "wb"}
    with contextlib.ExitStack() as opened:
        for name, mode in modes.items():
            opened.enter_context(files[name].open(mode))
        found = open_for_writing({"read", "append", "write"})
    ids = {name: file_id(file.stat()) for name, file in files.items()}
    assert {name: found.get(identity) for name, identity in ids.items()} == {
        "read": None,
        "append": Writing.APPENDED,
        "write": Writing.AT_ITS_END,
        "other": None,
    }
