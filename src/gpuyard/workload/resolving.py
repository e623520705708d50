"""What a run is made of: the workload file, and the layers over it.

The layers, each over the one before: the file, the chosen profiles in their order, the options of the command
(``-e gpu_count=2``), and the overrides (``-e overrides=stages.train.grace_s=60``). They are put together and checked
before anything is asked or rented, and of every value that is not the file's own it is known where it comes from.

An override means one of three things, looked for in this order:

1. ``NAME=VALUE`` where NAME is a parameter of the workload (or ``parameters.NAME=VALUE``) sets that parameter;
2. ``KEY=VALUE`` where KEY, up to its first dot, is a key of a workload (``needs.gpu_count=2``) sets that key; a stage,
   window, pool or the like is named in the path: ``stages.finetune.timeout=2h``;
3. anything else, and whatever begins with ``+`` or ``~``, goes to the commands of the stages with ``overrides: true``
   as it is. Where no stage takes overrides, it is a mistake.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gpuyard.errors import UsageError, listed
from gpuyard.remedies import option
from gpuyard.workload.mistakes import Origins, Place, dotted, keys_at, line_of, place_of
from gpuyard.workload.reading import SCHEMA, Document, other_schema, parse, read
from gpuyard.workload.schema import MOST_PROFILES, Workload
from gpuyard.workload.values import OVERRIDE, show

_MOST_MISTAKES = 20
# What says which workload this is, so no layer changes it.
_FIXED = ("schema", "name", "profiles")
# What the options are called on the command line, where that is not the name of the need.
_OPTION_NAMES = {"gpu_names": "gpu_name", "regions": "region", "prefer": "rank"}
# What goes when a layer says that the code comes from elsewhere: a repository has one source.
_REPLACED_SOURCE = {"path": ("url", "commit", "credentials"), "url": ("path", "include")}
_NEXT = re.compile(r",(?=(?:\+\+?)?[A-Za-z_][\w./@:-]*=|~)")


@dataclass(frozen=True)
class Origin:
    """A value that is not the file's own: its key with dots, stages by name, and the layer that says it."""

    key: str
    value: object
    layer: str


@dataclass(frozen=True)
class Resolved:
    """A workload as a run has it, and what it was made of.

    ``file`` has the file's own values; ``options`` are those of the command, by the names of ``needs``, ``market``,
    ``max_price_per_hour`` and ``iterations``; ``overrides`` are all words as they were given.
    """

    workload: Workload
    file: Mapping[str, Any]
    profiles: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()


def load_workload(name_or_path: str, *, root: Path | None = None) -> Workload:
    """Return the workload of that name or file as its file has it, checked; see :func:`resolve`.

    Unlike a workload that is to run, it may have parameters without a value.
    """
    return _resolve(read(name_or_path, root)).workload


def parse_workload(content: str, source: str) -> Workload:
    """Return the workload that ``content`` describes; ``source`` is its name in messages."""
    return _resolve(parse(content, source)).workload


def resolve(
    name_or_path: str,
    *,
    profiles: Sequence[str] = (),
    overrides: str | Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> Resolved:
    """Return the workload of that name or file with its layers, checked.

    A path is what holds a slash or ends in ``.yml``; a name is looked for in ``workloads/`` below ``root`` (when
    given), the working directory, gpuyard's home and the collection, in this order. Raises :class:`UsageError` that
    lists what is known, or every mistake with its file, line and key.
    """
    resolved = _resolve(read(name_or_path, root), profiles, words(overrides), options or {})
    _check_parameters(resolved.workload)
    return resolved


def again(
    resolved: Resolved,
    *,
    profiles: Sequence[str] = (),
    overrides: str | Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Resolved:
    """Return ``resolved`` with further layers: other profiles in place of its own, more options, more overrides.

    Without any, it is ``resolved`` itself, so that a later version of gpuyard changes nothing about a run.
    """
    more = words(overrides)
    if not (profiles or more or options):
        return resolved
    document = Document(dict(resolved.file), resolved.workload.name, resolved.workload.source)
    merged = _resolve(
        document,
        profiles or resolved.profiles,
        (*resolved.overrides, *more),
        {**resolved.options, **(options or {})},
    )
    _check_parameters(merged.workload)
    return merged


def words(overrides: str | Iterable[str]) -> tuple[str, ...]:
    """Return the overrides of an option: a list, or a text in which they are apart by spaces or commas."""
    if not isinstance(overrides, str):
        if not isinstance(overrides, list | tuple) or not all(isinstance(word, str) for word in overrides):
            raise UsageError(
                f"overrides must be a text such as 'a=1 b=2' or a list of such words, not {show(overrides)}."
            )
        given: list[str] = list(overrides)
    else:
        try:
            given = shlex.split(overrides)
        except ValueError as error:
            raise UsageError(f"overrides={overrides!r} cannot be taken apart: {str(error).lower()}.") from None
        # A list's own commas are no end of an override.
        given = [word for piece in given for word in _NEXT.split(piece)]
    for word in given:
        if not OVERRIDE.fullmatch(word):
            raise UsageError(f"overrides: {word!r} is not of the form name=value.")
    return tuple(given)


def to_document(resolved: Resolved) -> dict[str, Any]:
    """Return a resolved workload as JSON-able values, from which :func:`from_document` makes it again."""
    return {
        "schema": SCHEMA,
        "workload": resolved.workload.model_dump(mode="json", by_alias=True),
        "file": dict(resolved.file),
        "profiles": list(resolved.profiles),
        "options": dict(resolved.options),
        "overrides": list(resolved.overrides),
        "origins": [dataclasses.asdict(origin) for origin in resolved.origins],
    }


def from_document(document: Mapping[str, Any], *, source: Path | None = None) -> Resolved:
    """Return what :func:`to_document` rendered; ``source`` becomes the workload's file.

    Keys that a later version of the same schema has added are passed over. Raises :class:`UsageError` for a newer
    schema, and for what is no such document.
    """
    version = document.get("schema")
    if version != SCHEMA:
        raise UsageError(f"A stored workload cannot be used: {other_schema(version)}")
    values = document.get("workload")
    try:
        if not isinstance(values, dict):
            raise TypeError("it has no workload")
        workload = _tolerant(values)
        found = Resolved(
            workload,
            dict(document.get("file") or values),
            tuple(document.get("profiles") or ()),
            dict(document.get("options") or {}),
            tuple(document.get("overrides") or ()),
            tuple(Origin(item["key"], item["value"], item["layer"]) for item in document.get("origins") or ()),
        )
    except ValidationError as error:
        text = Origins("workload", {}).sentence(error.errors(include_url=False)[0])[1]
        raise UsageError(f"A stored workload cannot be used: {text}") from None
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(f"A stored workload cannot be used: it is damaged ({error}).") from None
    workload._source = source or Path()
    return found


def _tolerant(values: dict[str, Any]) -> Workload:
    """Return the workload without the keys that only a later version knows."""
    try:
        return Workload.model_validate(values)
    except ValidationError as error:
        strange = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
        if not strange:
            raise
    kept = copy.deepcopy(values)
    for place in strange:
        inner: Any = kept
        for step in place[:-1]:
            inner = inner[step]
        del inner[place[-1]]
    return Workload.model_validate(kept)


# --- putting the layers together --------------------------------------------------------------------------------------


class _Layered:
    """The values of a workload while layers are put over them, with the origin of each value that changes."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.values: dict[str, Any] = copy.deepcopy(document.values)
        self.layers: dict[Place, tuple[str, Place | None]] = {}
        self.raw: dict[Place, str] = {}  # the text of an override, which YAML may have taken for a number

    def put(self, overlay: Mapping[str, Any], layer: str, at: Place | None = None) -> None:
        """Put a layer over the values; ``at`` is where the file has it, ``None`` for what is no part of the file."""
        for key in _FIXED:
            if key in overlay:
                raise UsageError(f"{self._where(layer, at, key)}: must not change in a run; it is the file's own.")
        self.values = self._over(self.values, overlay, (), layer, at)

    def _over(self, base: Any, value: Any, place: Place, layer: str, at: Place | None) -> Any:
        is_parameter = len(place) == 2 and place[0] == "parameters" and base is not None
        if is_parameter and not isinstance(base, Mapping):
            base = {"default": base}
        if isinstance(value, Mapping):
            if isinstance(base, list) and all(isinstance(item, Mapping) and "name" in item for item in base):
                return self._over_items(base, value, place, layer, at)
            inner = dict(base) if isinstance(base, Mapping) else {}
            if not value:
                self.layers[place] = layer, at
            if place == ("repository",):
                named = [key for key, said in value.items() if said is not None]
                replaced = {other for key in named for other in _REPLACED_SOURCE.get(key, ())} - set(named)
                for other in replaced:
                    inner.pop(other, None)
                    self.layers.pop((*place, other), None)
            for key, said in value.items():
                inner[key] = self._over(inner.get(key), said, (*place, key), layer, None if at is None else (*at, key))
            return inner
        if is_parameter:
            self.layers[*place, "value"] = layer, None if at is None else (*at, "value")
            return {**base, "value": value}
        self.layers = {other: known for other, known in self.layers.items() if other[: len(place)] != place}
        self.layers[place] = layer, at
        return value

    def _over_items(
        self, base: list[Any], value: Mapping[str, Any], place: Place, layer: str, at: Place | None
    ) -> list[Any]:
        items = list(base)
        names = [str(item["name"]) for item in items]
        for name, said in value.items():
            if name not in names:
                hint = _did_you_mean(str(name), names)
                raise UsageError(
                    f"{self._where(layer, at, name)}: there is no such {str(place[-1]).rstrip('s')}; "
                    f"known are: {', '.join(names)}.{hint}"
                )
            index = names.index(name)
            items[index] = self._over(
                items[index], said, (*place, index), layer, None if at is None else (*at, str(name))
            )
        return items

    def _where(self, layer: str, at: Place | None, key: object) -> str:
        if at is None:
            return layer
        place = (*at, str(key))
        return f"{self.document.source}:{line_of(place, self.document.lines)}: {dotted(place)}"

    def validate(self) -> tuple[Workload | None, list[ErrorDetails]]:
        """Return the workload, or what is wrong with it."""
        try:
            workload = Workload.model_validate(self.values)
        except ValidationError as error:
            # The type checker knows the context of no error, and the sentences take what they need of it.
            return None, error.errors(include_url=False)
        workload._source = self.document.path
        return workload, []

    def take_as_text(self, found: Sequence[ErrorDetails]) -> bool:
        """Take the overrides that are wrong for the text that they were written as; tell whether there was any."""
        wrong = [place_of(item["loc"]) for item in found]
        # A parameter is checked as a whole, so what is wrong with its value is said of the parameter.
        places = [place for place in self.raw if any(place in (other, (*other, "value")) for other in wrong)]
        for place in places:
            inner: Any = self.values
            for step in place[:-1]:
                inner = inner[step]
            inner[place[-1]] = self.raw.pop(place)
        return bool(places)

    def sentences(self, found: Sequence[ErrorDetails]) -> list[tuple[int, str]]:
        """Return what was found as sentences with their lines."""
        origins = Origins(self.document.source, self.document.lines, self.layers)
        # Guessing what was meant takes its time, so only what is shown is worded.
        places = sorted(found, key=lambda item: line_of(place_of(item["loc"]), self.document.lines))
        return [origins.sentence(item) for item in places[:_MOST_MISTAKES]]


def _resolve(
    document: Document,
    profiles: Sequence[str] = (),
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Resolved:
    own = _check_file(document)
    layered = _Layered(document)
    known = own.profiles
    for name in profiles:
        if name not in known:
            there = f"its profiles are: {', '.join(known)}" if known else "it has no profiles"
            raise UsageError(
                f"profile={name!r} is not known to {document.source}; {there}.{_did_you_mean(name, known)}"
            )
        layered.put(known[name], f"profile {name}", ("profiles", name))
    for name, value in (options or {}).items():
        _put_option(layered, name, value)
    passed: dict[str, str] = {_passed_name(word): word for word in layered.values.get("overrides", ())}
    for word in overrides:
        _put_override(layered, word, passed)
    if passed:
        layered.values["overrides"] = list(passed.values())
    workload, found = layered.validate()
    if found and layered.take_as_text(found):
        workload, left = layered.validate()
        # What is wrong as a text, too, is shown as what it looked like at first.
        found = [item for item in found if item["loc"] in [other["loc"] for other in left]] or left
    if workload is None:
        raise _refusal(layered.sentences(found), len(found))
    return Resolved(
        workload, document.values, tuple(profiles), dict(options or {}), tuple(overrides), _origins(layered)
    )


def _check_file(document: Document) -> Workload:
    """Return the workload without any layer; refuse it with every mistake, its profiles' included."""
    plain = _Layered(document)
    workload, found = plain.validate()
    texts = [*document.doubles, *plain.sentences(found)]
    count = len(document.doubles) + len(found)
    profiles = document.values.get("profiles")
    for name, overlay in list(profiles.items())[:MOST_PROFILES] if isinstance(profiles, Mapping) else ():
        if not isinstance(overlay, Mapping):
            continue
        layered = _Layered(document)
        try:
            layered.put(overlay, f"profile {name}", ("profiles", name))
        except UsageError as error:
            texts.append((line_of(("profiles", name), document.lines), str(error)))
            count += 1
            continue
        _, wrong = layered.validate()
        origins = Origins(document.source, document.lines, layered.layers)
        # What is wrong with the file itself has been said.
        said = {(item["loc"], item["type"]) for item in found}
        wrong = [item for item in wrong if (item["loc"], item["type"]) not in said]
        texts += [origins.sentence(item) for item in wrong[:_MOST_MISTAKES]]
        count += len(wrong)
    if workload is None or texts:
        raise _refusal(texts, count)
    return workload


def _refusal(texts: Sequence[tuple[int, str]], count: int) -> UsageError:
    return UsageError(listed([text for _, text in sorted(texts)], _MOST_MISTAKES, of=count))


def _put_option(layered: _Layered, name: str, value: Any) -> None:
    layer = option(_OPTION_NAMES.get(name, name), "").removesuffix("=")
    if name == "iterations":
        layered.put({"iterations": value}, layer)
    elif name == "max_price_per_hour":
        limit = (layered.values.get("budget") or {}).get("max_price_per_hour")
        # Of two limits the lower one counts.
        if limit is None or value < limit:
            layered.put({"budget": {"max_price_per_hour": value}}, layer)
    elif name == "market":
        # What the command asks for counts for every stage and pool.
        stages = {stage["name"]: {"market": value} for stage in layered.values["stages"] if stage.get("market")}
        pools = {
            pool: {"market": value} for pool, said in (layered.values.get("pools") or {}).items() if said.get("market")
        }
        layered.put({"market": value} | _not_empty(stages=stages, pools=pools), layer)
    else:
        pools = {
            pool: {"needs": _need(said["needs"], name, value)}
            for pool, said in (layered.values.get("pools") or {}).items()
            if said.get("needs")
        }
        needs = _need(layered.values.get("needs") or {}, name, value)
        layered.put({"needs": needs} | _not_empty(pools=pools), layer)


def _need(needs: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Return the layer that gives a need this value, for its alternatives as well."""
    others = needs.get("alternatives") or []
    if not any(name in other for other in others):
        return {name: value}
    rest = [{key: said for key, said in other.items() if key != name} for other in others]
    return {name: value, "alternatives": rest}


def _not_empty(**overlays: Mapping[str, Any]) -> dict[str, Any]:
    return {key: overlay for key, overlay in overlays.items() if overlay}


def _put_override(layered: _Layered, word: str, passed: dict[str, str]) -> None:
    key, _, text = word.partition("=")
    parameters: Mapping[str, Any] = layered.values.get("parameters") or {}
    path = key.split(".")
    if path[0] == "parameters" and len(path) == 2 and path[1] not in parameters:
        raise UsageError(f"overrides={word}: {_unknown_parameter(path[1], parameters)}")
    if len(path) == 1 and key in parameters:
        path = ["parameters", key]
    if path[0] not in keys_at(()):
        stages = layered.values["stages"]
        if not any(stage.get("overrides") for stage in stages):
            known = [*parameters, *(name for name in keys_at(()) if name not in _FIXED)]
            raise UsageError(
                f"overrides={word}: {key} is neither a parameter nor a key of the workload, and no stage of it takes "
                f"other overrides with `overrides: true`.{_did_you_mean(key, known)} "
                f"Its parameters are: {', '.join(parameters) or 'none'}."
            )
        passed[_passed_name(word)] = word
        layered.layers["overrides",] = option("overrides", "").removesuffix("="), None
        return
    value = _value(text)
    overlay: Any = value
    for step in reversed(path):
        overlay = {step: overlay}
    layer = option("overrides", word)
    layered.put(overlay, layer)
    if not isinstance(value, str):
        layered.raw.update(dict.fromkeys((place for place, said in layered.layers.items() if said[0] == layer), text))


def _passed_name(word: str) -> str:
    """Return by what an override is known, so that a later one of the same name takes its place."""
    return word.partition("=")[0].lstrip("+~")


def _value(text: str) -> Any:
    """Return the value of an override as YAML reads it."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    return text if value is None and text else value


def _unknown_parameter(name: str, known: Iterable[str]) -> str:
    there = ", ".join(known) or "none"
    return f"{name} is no parameter of the workload; its parameters are: {there}.{_did_you_mean(name, known)}"


def _check_parameters(workload: Workload) -> None:
    without = [name for name, entry in workload.parameters.items() if entry.current is None]
    if without:
        raise UsageError(
            f"Workload {workload.name} has no value for {', '.join(without)}: "
            f"set it with {option('overrides', f'{without[0]}=…')}, or give the parameter a default."
        )


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    guess = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {guess[0]}?" if guess else ""


def _origins(layered: _Layered) -> tuple[Origin, ...]:
    """Return where the values that are not the file's own come from, in the order of the layers."""
    found = []
    for place, (layer, _) in layered.layers.items():
        value: Any = layered.values
        names = []
        for step in place:
            value = value[step]
            names.append(str(value["name"]) if isinstance(step, int) and isinstance(value, Mapping) else str(step))
        if names[0] == "parameters" and names[-1] == "value":
            names.pop()
        found.append(Origin(".".join(names), value, layer.partition("=")[0]))
    return tuple(found)
