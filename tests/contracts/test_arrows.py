"""Arrows go down only: what may import what, in the core. `scripts/picture` draws what is."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRONTS = {"cli", "demo", "play", "testing"}
# What each part may not import, directly or by way of others.
FORBIDDEN = {
    "providers": FRONTS | {"api", "planning", "renting", "workload", "sandbox", "records", "config", "ssh"},
    "formats": {"box", "providers", "workload"},
    "workload": FRONTS | {"api", "planning", "renting", "sandbox", "config"},
    "renting": FRONTS | {"api", "planning"},
    "planning": FRONTS | {"api"},
    "sandbox": FRONTS | {"api", "planning", "renting", "workload", "records"},
    "api": {"cli", "demo"},
}


@pytest.fixture(scope="module")
def picture() -> ModuleType:
    """The script, which has no suffix that Python would import."""
    loader = importlib.machinery.SourceFileLoader("picture", str(ROOT / "scripts/picture"))
    spec = importlib.util.spec_from_loader("picture", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def graph(picture: ModuleType) -> dict[str, set[str]]:
    """Return what each part imports."""
    found: dict[str, set[str]] = picture.imports()
    return found


@pytest.mark.parametrize("name", FORBIDDEN)
def test_nothing_imports_what_is_above_it(picture: ModuleType, graph: dict[str, set[str]], name: str) -> None:
    assert not picture.reachable(graph, name) & FORBIDDEN[name]


def test_what_travels_to_a_box_imports_nothing_that_does_not(picture: ModuleType, graph: dict[str, set[str]]) -> None:
    travels = {"box", "formats", "errors", "files"}
    for name in travels:
        assert picture.reachable(graph, name) <= travels, name


def test_circles_get_no_more(picture: ModuleType, graph: dict[str, set[str]]) -> None:
    """The sandbox's start from the configuration is the one that is left."""
    assert picture.circles(graph) in ([], [("config", "sandbox", "ssh")])


def test_the_picture_shows_every_part_and_lines_go_down(picture: ModuleType, graph: dict[str, set[str]]) -> None:
    drawn = ElementTree.fromstring(picture.draw(graph))
    texts = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {name for text in texts for name in text.split(" + ")} == set(graph)
    lines = list(drawn.iter("{http://www.w3.org/2000/svg}line"))
    assert lines and all(float(line.get("y1", 0)) < float(line.get("y2", 0)) for line in lines)
