"""The format of a workload: what editors are told of it, and what a later version has to go on reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from gpuyard.workload import Workload, from_document, resolve, to_document
from gpuyard.workload.schema import json_schema

ROOT = Path(__file__).resolve().parents[2]
HELD = Path(__file__).parent / "workload"
FILES = [*sorted((ROOT / "workloads").glob("*.yml")), HELD / "whole.yml"]


def test_the_schema_in_the_repository_is_the_models() -> None:
    held = (ROOT / "workloads" / "schema.json").read_text()
    assert held == json_schema(), "write it anew: gpuyard schema > workloads/schema.json"


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a model and all that its fields hold."""
    yield model
    for entry in model.model_fields.values():
        pending = [entry.annotation]
        while pending:
            part = pending.pop()
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from models(part)
            pending += getattr(part, "__args__", ())


def test_every_key_is_described() -> None:
    """The descriptions become the reference and what an editor shows."""
    found = {
        f"{model.__name__}.{name}"
        for model in models(Workload)
        for name, entry in model.model_fields.items()
        if not entry.description
    }
    assert found == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_editor_accepts_what_gpuyard_accepts(file: Path) -> None:
    jsonschema.validate(yaml.safe_load(file.read_text()), json.loads(json_schema()))
    comment = next(line for line in file.read_text().splitlines() if line.startswith("# yaml-language-server: "))
    schema = file.parent / comment.partition("$schema=")[2]
    assert schema.resolve() == ROOT / "workloads" / "schema.json"


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"nam": "x"},
        {"market": "spot"},
        {"iterations": 0},
        {"stages": [{"name": "a"}]},
        {"stages": [{"name": "a", "command": "b", "run": "never"}]},
        {"stages": [{"name": "a", "command": "b", "timeout": "soon"}]},
        {"stages": [{"name": "a", "command": "b", "resumable": "maybe"}]},
        {"needs": {"reliability": 2}},
        {"parameters": {"x": [1]}},
    ],
    ids=str,
)
def test_an_editor_refuses_what_gpuyard_refuses(change: dict[str, Any]) -> None:
    values = yaml.safe_load((HELD / "whole.yml").read_text()) | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, json.loads(json_schema()))
    with pytest.raises(ValueError, match="validation error"):
        Workload.model_validate(values)


LAYERS: dict[str, Any] = {
    "profiles": ["small"],
    "options": {"gpu_count": 2.0},
    "overrides": ["rounds=2", "stages.search.grace_s=90", "training.batch_size=8"],
}


def test_a_workload_that_an_earlier_version_has_stored_is_read_as_it_was() -> None:
    stored = from_document(json.loads((HELD / "resolved.json").read_text()), source=HELD / "whole.yml")
    now = resolve(str(HELD / "whole.yml"), **LAYERS)
    assert stored.workload == now.workload
    assert stored.workload.to_box() == now.workload.to_box()
    assert stored == now


def test_what_is_stored_now_has_all_that_was_stored_before() -> None:
    held = json.loads((HELD / "resolved.json").read_text())
    now = json.loads(json.dumps(to_document(resolve(str(HELD / "whole.yml"), **LAYERS))))
    assert held.keys() <= now.keys() and held["workload"].keys() <= now["workload"].keys()
    assert held["schema"] == now["schema"] == 1
