"""What the documentation names is there: files, pages, decisions, and the programs of the hooks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from gpuyard.cli import parser
from gpuyard.options import OPTIONS
from gpuyard.workload import load_workload

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"_build", "collection", "generated"}
PAGES = [path for path in (ROOT / "docs").rglob("*.md") if not GENERATED & set(path.relative_to(ROOT / "docs").parts)]
PAGES += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "workloads/README.md")]
FOLDERS = (
    "benchmarks|changelogs|docs|examples|extensions|playbooks|plugins|requirements|roles|scripts|src|tests|workloads"
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
    # What is made by hand, or by a command that the page names.
    assert set(missing) <= {"workloads/mine.yml", "docs/_build/html"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_that_a_page_points_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        written_by_make_docs = target.split("/")[0] in GENERATED or target.startswith("../generated/")
        assert written_by_make_docs or (page.parent / target).exists(), target


def test_every_page_of_the_clouds_that_the_code_points_to_is_there() -> None:
    pages = set()
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text()
        assert "provider-apis" not in text, file
        pages |= set(re.findall(r"docs/reference/\w+\.md", text))
    assert pages and all((ROOT / page).is_file() for page in pages)


def test_the_workload_of_the_tutorial_is_one(tmp_path: Path) -> None:
    block = (ROOT / "docs/tutorial.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "my/workloads").mkdir(parents=True)
    (tmp_path / "my/my-training").mkdir()
    (tmp_path / "my/workloads/mine.yml").write_text(block)
    workload = load_workload(str(tmp_path / "my/workloads/mine.yml"))
    assert (workload.name, workload.stages[0].resume_if) == ("mine", "checkpoints/*.pt")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_play_and_option_that_a_page_shows_is_one(page: Path) -> None:
    for play, words in re.findall(r"ansible-playbook (?:gpuyard\.cloud\.)?(\w+)(?:\.yml)?( .*)?", page.read_text()):
        assert (ROOT / f"playbooks/{play}.yml").is_file(), play
        for option in re.findall(r"-e (\w+)=", words.split("#")[0]):
            assert play in OPTIONS[option], f"{play} does not take {option}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_a_page_shows_is_one(page: Path) -> None:
    for line in re.findall(r"^ {4}gpuyard (.*)", page.read_text(), re.MULTILINE):
        words = shlex.split(line.split("#")[0])
        if not {"|", "…"} & set(words):
            parser().parse_args(words)


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs/decisions"
    listed = re.findall(r"^[\w-]+$", (folder / "index.md").read_text().split(":maxdepth: 1")[1], re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in folder.glob("*.md") if path.stem != "index")


def test_hooks_are_programs_of_the_environment_and_fetch_nothing() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    for hook in repositories[0]["hooks"]:
        assert hook["language"] == "system" and (ROOT / hook["entry"].split()[0]).exists(), hook["id"]
