"""The prover as a program: flushes, signals, resumption, and answers that two checkers accept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "miniprover"
INTERRUPTED = 130
THEOREMS = 40
PACE_MS = 150  # slow enough to look at what it does, and to be far from its end after that


class Search:
    """`prover search` over the first training theorems in one folder, each taking its time, with a flush every 5."""

    def __init__(self, prover: Path, folder: Path) -> None:
        self.prover = prover
        self.folder = folder
        lines = (EXAMPLE / "data" / "train.txt").read_text().splitlines()[: THEOREMS + 1]
        self.theorems = folder / "theorems.txt"
        self.theorems.write_text("\n".join(lines) + "\n")
        self.results = folder / "results.jsonl"
        self.traces = folder / "traces.jsonl"
        self.journal = folder / "search.log.jsonl"

    def start(self, *extra: str | Path, pace_ms: int = 0) -> subprocess.Popen[str]:
        command = [self.prover, "search", "--theorems", self.theorems, "--output", self.results, "--nodes", "50"]
        command += ["--flush-every", "5", "--pace-ms", str(pace_ms), *extra]
        # A session of its own, so that a test can signal its process group, as a terminal's Ctrl-C does.
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(self, *extra: str | Path) -> tuple[int, str]:
        process = self.start(*extra)
        out, err = process.communicate(timeout=300)
        return process.returncode, out + err

    def files(self) -> tuple[str, str]:
        return self.results.read_text(), self.traces.read_text()

    def ids(self) -> list[str]:
        return [record["id"] for record in read(self.results)]

    def begun(self) -> list[str]:
        return [record["id"] for record in read(self.journal)]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; its last line may be just being written."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "this should have happened long ago"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(prover: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    search = Search(prover, tmp_path_factory.mktemp("undisturbed"))
    code, said = search.run()
    assert code == 0, said
    assert f"search finished at {THEOREMS}/{THEOREMS}" in said
    return search


@pytest.fixture
def search(prover: Path, tmp_path: Path) -> Search:
    return Search(prover, tmp_path)


def test_every_theorem_is_searched_once_in_order(undisturbed: Search) -> None:
    assert undisturbed.ids() == undisturbed.begun() == [f"train-{i:03d}" for i in range(1, THEOREMS + 1)]
    outcomes = {record["outcome"] for record in read(undisturbed.results)}
    assert outcomes == {"proved", "refuted", "unknown"}


def test_the_same_search_gives_the_same_bytes(search: Search, undisturbed: Search) -> None:
    search.run()
    assert search.files() == undisturbed.files()


def test_sigint_finishes_the_theorem_flushes_and_leaves_a_resumable_state(search: Search, undisturbed: Search) -> None:
    process = search.start(pace_ms=PACE_MS)
    wait_for(lambda: len(search.begun()) % 5 == 1 and len(search.begun()) > 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, err
    assert "search interrupted at" in out
    first = search.begun()
    assert search.ids() == first, "what was begun was finished and flushed, although it is no multiple of 5"
    assert len(first) < THEOREMS

    code, said = search.run("--resume-from", search.results)
    assert (code, f"resuming: {len(first)} of {THEOREMS}" in said) == (0, True), said
    assert search.files() == undisturbed.files()
    assert search.begun() == undisturbed.begun(), "nothing was searched twice"


def test_sigterm_kills_without_a_flush_and_only_the_unflushed_is_repeated(search: Search, undisturbed: Search) -> None:
    process = search.start(pace_ms=PACE_MS)
    wait_for(lambda: len(search.begun()) % 5 == 1 and len(search.begun()) > 5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM
    flushed, first = search.ids(), search.begun()
    assert len(flushed) % 5 == 0 < len(flushed) < len(first)

    assert search.run("--resume-from", search.results)[0] == 0
    assert search.files() == undisturbed.files()
    assert search.begun()[len(first) :] == undisturbed.begun()[len(flushed) :]


def test_a_torn_last_line_is_searched_again(search: Search, undisturbed: Search) -> None:
    results, traces = undisturbed.files()
    lines = results.splitlines(keepends=True)
    search.results.write_text("".join(lines[:12]) + lines[12][:-9])
    search.traces.write_text(traces)
    assert search.run("--resume-from", search.results)[0] == 0
    assert search.files() == undisturbed.files()
    assert search.begun() == undisturbed.begun()[12:]


def test_a_copy_with_results_newer_than_traces_is_repaired(search: Search, undisturbed: Search) -> None:
    results, traces = undisturbed.files()
    search.results.write_text(results)
    *whole, last = traces.splitlines(keepends=True)
    # Cut where a step ends: what is left looks like the end of a line, too.
    search.traces.write_text("".join(whole) + last[: last.index("}") + 1])
    assert search.run("--resume-from", search.results)[0] == 0
    assert len(search.begun()) == 1
    assert sorted(search.results.read_text().splitlines()) == sorted(results.splitlines())
    assert sorted(search.traces.read_text().splitlines()) == sorted(traces.splitlines())


def test_resuming_from_nothing_is_a_fresh_start_and_no_resumption_starts_afresh(
    search: Search, undisturbed: Search
) -> None:
    assert search.run("--resume-from", search.results)[0] == 0
    assert search.run()[0] == 0
    assert search.files() == undisturbed.files()
    assert len(search.begun()) == 2 * THEOREMS


def test_the_flush_command_runs_after_each_flush_and_is_waited_for(search: Search) -> None:
    log = search.folder / "flushes"
    code, _ = search.run("--on-flush", f"wc -l < {search.results} >> {log}; sleep 0.05; echo done >> {log}")
    assert code == 0
    assert log.read_text().split() == [word for n in range(5, THEOREMS + 1, 5) for word in (str(n), "done")]


def test_sigint_to_the_process_group_does_not_reach_the_flush_command(search: Search) -> None:
    log = search.folder / "flushes"
    told = search.folder / "told"
    waits = f"for i in $(seq 1200); do [ -e {told} ] && break; sleep 0.1; done"
    process = search.start("--on-flush", f"echo begun >> {log}; {waits}; echo done >> {log}", pace_ms=5)
    wait_for(log.exists)
    os.killpg(process.pid, signal.SIGINT)
    told.touch()
    process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    words = log.read_text().split()
    assert words == ["begun", "done"] * (len(words) // 2)


def test_a_failing_flush_command_warns_and_the_search_goes_on(search: Search, undisturbed: Search) -> None:
    code, said = search.run("--on-flush", "exit 7")
    assert code == 0
    assert said.count("warning: the flush command failed") == THEOREMS // 5
    assert search.files() == undisturbed.files()


def test_both_checkers_accept_the_answers_and_refuse_corrupted_ones(undisturbed: Search, tmp_path: Path) -> None:
    checkers = {
        "rust": [str(undisturbed.prover), "check"],
        "python": [sys.executable, "-m", "miniprover.check"],
    }
    records = read(undisturbed.results)
    proved = next(record for record in records if record["outcome"] == "proved" and record["cuts"] > 0)
    refuted = next(record for record in records if record["outcome"] == "refuted")
    without_cut = " ".join(token for token in proved["proof"].split() if not token.startswith("c"))
    flipped = refuted["countermodel"].replace("~", "") + " nonsense"
    for name, command in checkers.items():
        command = [*command, "--theorems", str(undisturbed.theorems), "--results"]
        good = subprocess.run([*command, undisturbed.results], cwd=EXAMPLE, capture_output=True, text=True, check=False)
        assert good.returncode == 0, (name, good.stderr)
        for bad in ({**proved, "proof": without_cut}, {**refuted, "outcome": "proved", "proof": "x1"}):
            path = tmp_path / f"{name}.jsonl"
            path.write_text(json.dumps(bad, separators=(",", ":")) + "\n")
            answer = subprocess.run([*command, path], cwd=EXAMPLE, capture_output=True, text=True, check=False)
            assert answer.returncode == 1, (name, bad, answer.stdout)
            assert bad["id"] in answer.stderr
    path.write_text(json.dumps({**refuted, "countermodel": flipped}, separators=(",", ":")) + "\n")
    answer = subprocess.run([*command, path], cwd=EXAMPLE, capture_output=True, text=True, check=False)
    assert answer.returncode == 1


def test_the_dry_run_writes_nothing(search: Search) -> None:
    before = set(search.folder.iterdir())
    code, said = search.run("--dry-run")
    assert (code, "dry run: 40 theorems read" in said) == (0, True), said
    assert set(search.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command given"),
        (["prove"], "unknown command 'prove'"),
        (["search", "--theorems", "missing.txt", "--output", "o"], "missing.txt: No such file"),
        (["search", "--output", "o"], "--theorems is required"),
        (["search", "--theorems", "bad.txt", "--output", "o"], "bad.txt:2: the formula ends too early"),
        (["search", "--theorems", "good.txt"], "--output is required"),
        (["search", "--theorems", "good.txt", "--output", "o", "--nodes", "0"], "--nodes must be a positive number"),
        (["search", "--theorems", "good.txt", "--output", "o", "--policy", "good.txt"], "good.txt: expected"),
        (["search", "--theorems", "good.txt", "--colour"], "unknown option --colour"),
    ],
)
def test_wrong_use_gets_one_sentence(prover: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "good.txt").write_text("a\ttheorem\tp -> p\n")
    (tmp_path / "bad.txt").write_text("a\ttheorem\tp -> p\nb\ttheorem\tp ->\n")
    done = subprocess.run([prover, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "o").exists()
