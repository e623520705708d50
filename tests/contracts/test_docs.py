"""What the documentation names is there: files, pages, decisions, and the programs of the hooks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

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


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs/decisions"
    listed = re.findall(r"^[\w-]+$", (folder / "index.md").read_text().split(":maxdepth: 1")[1], re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in folder.glob("*.md") if path.stem != "index")


def test_hooks_are_programs_of_the_environment_and_fetch_nothing() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    for hook in repositories[0]["hooks"]:
        assert hook["language"] == "system" and (ROOT / hook["entry"].split()[0]).exists(), hook["id"]
