"""Ways out are data, which each front words as its own commands look."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import gpuyard
from gpuyard import remedies
from gpuyard.planning.choose import ways_out
from gpuyard.remedies import Remedy, option, remedy
from gpuyard.renting.runs import Run

CORE = Path(gpuyard.__file__).parent
# The plays' own front, what shows plays, and what travels to boxes.
FRONTS = ("remedies.py", "options.py", "demo.py", "play.py", "play_process.py", "box/", "testing/")


class Commands:
    """A front with commands of its own."""

    def command(self, verb: str, options: Mapping[str, object]) -> str:
        return " ".join(["yard", verb, *(self.option(*item) for item in options.items())])

    def option(self, name: str, value: object) -> str:
        return f"--{name} {value}"


@pytest.fixture
def front() -> Iterator[None]:
    remedies.use(Commands())
    yield
    remedies.use(remedies.Plays())


def test_a_remedy_is_data_and_a_play_as_text() -> None:
    resume = remedy("resume", run="a-0", follow=True)
    assert resume == Remedy("resume", {"run": "a-0", "follow": True})
    assert f"{resume}" == "ansible-playbook resume_search.yml -e run=a-0 -e follow=true"
    assert (f"{remedy('status')}", option("restore", 6)) == ("ansible-playbook status.yml", "-e restore=6")


def test_another_front_has_its_own_words(front: None) -> None:
    words = ways_out(Run("a-0", "tiny"))
    assert words == "`yard resume --run a-0` goes on with it, `yard teardown --run a-0` gives it up."


def test_no_sentence_of_the_core_holds_a_command_of_ansible() -> None:
    wrong = [
        f"{name}:{number}"
        for file in CORE.rglob("*.py")
        if not (name := file.relative_to(CORE).as_posix()).startswith(FRONTS)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(r"ansible-playbook|[\"`( ]-e [a-z_]+=", line) and not re.match(r"\s*(\"\"\"|\(?``|#|[A-Z`])", line)
    ]
    assert wrong == []
