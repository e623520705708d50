"""The mistakes of a workload file, each with its line and key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import yaml
from pydantic import (
    BaseModel,
)
from pydantic_core import ErrorDetails

from gpuyard.workload.schema import Workload
from gpuyard.workload.values import MOST_SHOWN, show

Place = tuple[str | int, ...]


def lines_of(node: yaml.Node, place: Place = ()) -> Iterator[tuple[Place, int]]:
    """Yield the line (from 1) of every key and list item; a mapping's own entry is the line of its key."""
    if not place:
        yield place, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            yield inner, key.start_mark.line + 1
            yield from lines_of(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            inner = (*place, index)
            yield inner, value.start_mark.line + 1
            yield from lines_of(value, inner)


def named_twice(node: yaml.Node, source: str, place: Place = ()) -> Iterator[tuple[int, str]]:
    """Yield a mistake for every key that a mapping has twice: YAML would silently keep the last one."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                dotted = _dotted((*place, name))
                yield line, f"{source}:{line}: {dotted}: is here a second time, first in line {seen[name]}"
            seen.setdefault(name, line)
            yield from named_twice(value, source, (*place, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from named_twice(value, source, (*place, index))


def place_of(location: Place) -> Place:
    return location[:-1] if location and location[-1] == "[key]" else location


def mistake(item: ErrorDetails, lines: Mapping[Place, int], source: str) -> tuple[int, str]:
    """Return one mistake of the model as its line and the sentence that tells it."""
    kind, value = item["type"], item["input"]
    place = place_of(item["loc"])
    line = line_of(place, lines)
    if kind == "extra_forbidden":
        siblings = _keys_at(place[:-1])
        guess = difflib.get_close_matches(str(place[-1])[:MOST_SHOWN], siblings, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else f"; known are: {', '.join(sorted(siblings))}"
        said = f"is not a key here{hint}"
    elif kind == "missing":
        said = "is missing"
        line = line_of(place[:-1], lines)
    elif kind == "literal_error":
        said = f"must be on-demand, interruptible or any, not {show(value)}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        said = f"must be a mapping of keys, not {show(value)}"
    elif kind == "list_type":
        said = f"must be a list, not {show(value)}"
    else:
        said = item["msg"].removeprefix("Value error, ")
    return line, f"{source}:{line}: {_dotted(place)}: {said}"


def line_of(place: Place, lines: Mapping[Place, int]) -> int:
    """Return the line of ``place`` or of the nearest thing around it that the file has."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _dotted(place: Iterable[str | int]) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "the file"


def _keys_at(place: Sequence[str | int]) -> list[str]:
    """Return the keys that the model knows at ``place``."""
    model: type[BaseModel] = Workload
    for step in place:
        if isinstance(step, int):
            continue
        field = model.model_fields.get(str(step))
        inner = list(_parts(field.annotation)) if field else []
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _parts(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the model classes in a field's type: ``Rust | None``, ``list[Stage]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _parts(argument)
