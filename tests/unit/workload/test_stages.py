"""What a stage may say of its restarts, its order and its progress, and every mistake as one sentence."""

from __future__ import annotations

import pytest

from gpuyard.errors import UsageError
from gpuyard.workload import Workload, parse_workload

TEXT = """name: tiny
repository: {path: .}
stages:
  - {name: one, command: 'true'}
  - {name: two, command: 'true', %s}
"""


def read(said: str, more: str = "") -> Workload:
    return parse_workload(TEXT % said + more, "w.yml")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("retries: -1", "retries: must be a whole number that is not negative, not -1"),
        ("retries: 1, retry_wait_s: -2", "retry_wait_s: must be a number that is not negative, not -2"),
        ("retries: 1, retry_wait_s: soon", "retry_wait_s: must be a number that is not negative, not 'soon'"),
        ("retry_wait_s: 2", "has retry_wait_s but no retries: say how many"),
        ("restart_on: [75]", "has restart_on but no retries: say how many"),
        ("retries: 1, restart_on: [0]", "must be an exit code from 1 to 255, a signal such as SIGSEGV, timeout or"),
        ("retries: 1, restart_on: [256]", "must be an exit code from 1 to 255"),
        ("retries: 1, restart_on: [true]", "must be an exit code from 1 to 255"),
        ("retries: 1, restart_on: [SIGNOTHING]", "timeout or silent, not 'SIGNOTHING'"),
        ("retries: 1, restart_on: 75", "restart_on: must be a list"),
        ("after: [three]", "has stage two after 'three', which is no stage; they are: one, two"),
        ("after: [two]", "has a circle. The stages two wait for each other"),
        ("after: one", "after: must be a list"),
        ("needed: maybe", "needed: must be true or false, not 'maybe'"),
        ("progress: {}", "progress: must have either pattern (over the log) or file"),
        ("progress: {pattern: 'a(1)', file: x, total: 3}", "must have either pattern (over the log) or file"),
        ("progress: {pattern: '(', total: 3}", "has a pattern that is no regular expression"),
        ("progress: {pattern: 'a', total: 3}", "must have a pattern with a group (?P<done>…), or with one group only"),
        ("progress: {pattern: '(a)(b)', total: 3}", "must have a pattern with a group (?P<done>…), or with one group"),
        ("progress: {pattern: '(a)'}", "must say the total once: as total, or as a group (?P<total>…)"),
        ("progress: {pattern: '(?P<done>1)/(?P<total>2)', total: 3}", "must say the total once"),
        ("progress: {pattern: '(a)', total_lines: 3}", "must not have total_lines with pattern, but total"),
        ("progress: {pattern: '(a)', total: 0}", "total: must be a positive number, not 0"),
        ("progress: {file: x}", "must have with file just one of total_bytes, total_lines, total_files"),
        ("progress: {file: x, total_lines: 3, total_files: 2}", "must have with file just one of"),
        ("progress: {file: x, total: 3}", "must have with file just one of"),
        ("progress: {file: /etc/x, total_lines: 3}", "file: must be a relative path without '..', not '/etc/x'"),
    ],
)
def test_a_mistake_is_one_sentence(said: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(said)
    assert sentence in str(refused.value)


def test_a_needed_stage_never_hangs_on_one_that_may_fail() -> None:
    text = TEXT.replace("command: 'true'}", "command: 'true', needed: false}", 1)
    with pytest.raises(UsageError, match=r"has stage two after one, which may fail \(needed: false\), so two has"):
        parse_workload(text % "after: [one]", "w.yml")


def test_stages_that_wait_for_each_other() -> None:
    text = TEXT.replace("command: 'true'}", "command: 'true', after: [two]}", 1)
    with pytest.raises(UsageError, match=r"has a circle\. The stages one, two wait for each other"):
        parse_workload(text % "after: [one]", "w.yml")


@pytest.mark.parametrize(
    ("said", "sentence"), [("-1", "not negative"), ("much", "not negative"), ("true", "not negative")]
)
def test_a_size_of_logs_that_is_none(said: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read("retries: 1", f"logs: {{rotate_mb: {said}}}\n")


def test_all_of_it_reaches_the_box() -> None:
    said = (
        "retries: 2, retry_wait_s: 30, restart_on: [75, SIGSEGV, timeout], after: [], needed: false, "
        "progress: {file: 'out/*.jsonl', total_lines: 500}"
    )
    box = read(said, "logs: {rotate_mb: 5}\n").to_box()
    [_, two] = box["stages"]
    assert (two["retry_wait_s"], two["restart_on"], two["after"], two["needed"]) == (
        30,
        [75, "SIGSEGV", "timeout"],
        [],
        False,
    )
    assert {name: value for name, value in two["progress"].items() if value is not None} == {
        "file": "out/*.jsonl",
        "total_lines": 500,
    }
    assert box["logs"] == {"rotate_mb": 5}
