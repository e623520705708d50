"""The mistakes of a workload file, each with its line and key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_origin

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
                key_path = dotted((*place, name))
                yield line, f"{source}:{line}: {key_path}: is here a second time, first in line {seen[name]}"
            seen.setdefault(name, line)
            yield from named_twice(value, source, (*place, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from named_twice(value, source, (*place, index))


def place_of(location: Place) -> Place:
    return location[:-1] if location and location[-1] == "[key]" else location


@dataclass(frozen=True)
class Origins:
    """Where each value of a workload comes from: the file with its lines, and the layers over it.

    ``layers`` has, by place, what a layer is called (``profile small``, ``-e overrides=x=1``) and where in the file
    it says so, ``None`` for what no file says.
    """

    source: str
    lines: Mapping[Place, int]
    layers: dict[Place, tuple[str, Place | None]] = field(default_factory=dict)

    def layer(self, place: Place) -> tuple[str, Place | None] | None:
        """Return the layer that says what is at ``place``, or the last that says something in it.

        ``None`` for what is the file's own altogether.
        """
        for length in range(len(place), 0, -1):
            if place[:length] in self.layers:
                label, at = self.layers[place[:length]]
                return label, None if at is None else (*at, *place[length:])
        for inner, (label, at) in reversed(self.layers.items()):
            if inner[: len(place)] == place:
                return label, None if at is None else at[: len(at) - (len(inner) - len(place))]
        return None

    def sentence(self, item: ErrorDetails) -> tuple[int, str]:
        """Return one mistake of the model as its line (0: no file's) and the sentence that tells it."""
        place = place_of(item["loc"])
        layer = self.layer(place)
        if layer is None and item["type"] == "missing" and (around := self.layer(place[:-1])):
            layer = around[0], None if around[1] is None else (*around[1], place[-1])
        if layer and layer[1] is None:
            return 0, f"{layer[0]}: {dotted(place)}: {_wrong(item)}"
        shown = layer[1] if layer and layer[1] is not None else place
        line = line_of(shown[:-1] if item["type"] == "missing" else shown, self.lines)
        return line, f"{self.source}:{line}: {dotted(shown)}: {_wrong(item)}"


def _wrong(item: ErrorDetails) -> str:
    """Return what is wrong with a value, without saying where it is."""
    kind, value, place = item["type"], item["input"], place_of(item["loc"])
    if kind == "extra_forbidden":
        siblings = keys_at(place[:-1])
        guess = difflib.get_close_matches(str(place[-1])[:MOST_SHOWN], siblings, n=1)
        return "is not a key here" + (
            f"; did you mean {guess[0]!r}?" if guess else f"; known are: {', '.join(sorted(siblings))}"
        )
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        # In the model's own order: "'on-demand', 'interruptible' or 'any'".
        return f"must be {item['ctx']['expected'].replace(chr(39), '')}, not {show(value)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a mapping of keys, not {show(value)}"
    if kind == "list_type":
        return f"must be a list, not {show(value)}"
    return item["msg"].removeprefix("Value error, ")


def line_of(place: Place, lines: Mapping[Place, int]) -> int:
    """Return the line of ``place`` or of the nearest thing around it that the file has."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def dotted(place: Iterable[str | int]) -> str:
    """Return a place as people write it: ``stages[0].command``."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "the file"


def keys_at(place: Sequence[str | int]) -> list[str]:
    """Return the keys that the model knows at ``place``."""
    model: type[BaseModel] = Workload
    names = False  # whether the next step is a name of the user's, such as that of a pool
    for step in place:
        if isinstance(step, int) or names:
            names = False
            continue
        entry = next((one for name, one in model.model_fields.items() if (one.alias or name) == step), None)
        inner = next(_parts(entry.annotation), None) if entry else None
        if entry is None or inner is None:
            return []
        model = inner
        names = get_origin(entry.annotation) is dict
    return [entry.alias or name for name, entry in model.model_fields.items()]


def _parts(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the model classes in a field's type: ``Rust | None``, ``list[Stage]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _parts(argument)
