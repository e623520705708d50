"""The values that a workload holds: every rule in one place, every message in the same form."""

from __future__ import annotations

import posixpath
import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from gpuyard import repository
from gpuyard.box.stages.folders import why_not
from gpuyard.errors import UsageError
from gpuyard.formats.label import RUN_NAME, check_name

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VERSION = re.compile(r"\d+(\.\d+)*")
_EXTRA = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
COMMIT = re.compile(r"[0-9a-f]{40}")
_CONSTRAINT = re.compile(r"\s*(?:(?:==|!=|<=|>=|~=|<|>)\s*\d+(?:\.\d+)*(?:\.\*)?\s*(?:,\s*(?!$)|$))+")
_DURATION = re.compile(r"\d+(?:\.\d+)?|(?:\d+(?:\.\d+)?[smhd])+")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PARAMETER = re.compile(r"[a-z][a-z0-9_]*")
OVERRIDE = re.compile(r"(?P<name>(?:\+\+?)?[A-Za-z_][\w./@:-]*)=(?P<value>.*)|~[A-Za-z_][\w./@:=-]*", re.DOTALL)
"""``name=value``, as Hydra writes it: ``+name=value`` adds, ``~name`` removes."""
MOST_SHOWN = 60  # characters of a wrong value that go into a message
_MOST_ITERATIONS = 100_000


class Section(BaseModel):
    """A mapping of the file; a key that is not listed is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def show(value: object) -> str:
    """Return a wrong value for a message; text in quotes, as in YAML."""
    if isinstance(value, int) and value.bit_length() > MOST_SHOWN * 4:
        return "a number that long"
    shown = {None: "nothing", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    shown = shown or (repr(value) if isinstance(value, str | int | float) else f"a {kind_of(value)}")
    return shown if len(shown) <= MOST_SHOWN else shown[:MOST_SHOWN] + "…"


def kind_of(value: object) -> str:
    return "list" if isinstance(value, list) else "mapping" if isinstance(value, dict) else type(value).__name__


def _number(value: object, wanted: str, *, least: float = 0.0, above: bool = False, most: float = 1e9) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be {wanted}, not {show(value)}")
    if not (value > least if above else value >= least) or value > most:
        raise ValueError(f"must be {wanted}, not {show(value)}")
    return float(value)


def _positive(value: object) -> float:
    return _number(value, "a positive number", above=True)


def _not_negative(value: object) -> float:
    return _number(value, "a number that is not negative")


def _share(value: object) -> float:
    return _number(value, "a number from 0 to 1", most=1.0)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"must be a whole number that is not negative, not {show(value)}")
    return value


def _positive_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number of at least 1, not {show(value)}")
    return value


def _iterations(value: object) -> int:
    count = _positive_count(value)
    if count > _MOST_ITERATIONS:
        raise ValueError(f"must be at most {_MOST_ITERATIONS}, not {show(value)}; more belong into a stage's own loop")
    return count


def _words(value: object) -> str:
    if not isinstance(value, str):
        # The number itself is no help here: YAML has already made 3.1 of an unquoted 3.10.
        hint = "; put it in quotes" if isinstance(value, int | float) else ""
        raise ValueError(f"must be text, not {show(value)}{hint}")
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


def _some_words(value: object) -> str:
    text = _words(value)
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {show(value)}")
    return value


def _version(value: object) -> str:
    text = _some_words(value)
    if not _VERSION.fullmatch(text):
        raise ValueError(f"must be a version such as '1.85', not {show(value)}")
    return text


def _duration(value: object) -> float:
    """Return seconds: a number of them, or a text such as ``90s``, ``15m``, ``2h``, ``1d`` or ``1h30m``."""
    if not isinstance(value, str):
        return _number(value, "a time such as 7200, '90s', '15m', '2h' or '1h30m'", above=True)
    text = value.strip()
    if not _DURATION.fullmatch(text):
        raise ValueError(f"must be a time such as 7200, '90s', '15m', '2h' or '1h30m', not {show(value)}")
    parts = re.findall(r"([\d.]+)([smhd]?)", text)
    return _number(sum(float(number) * _SECONDS[unit] for number, unit in parts), "a time above 0", above=True)


def _resumability(value: object) -> str:
    # YAML reads an unquoted yes and no as true and false.
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
    if not isinstance(text, str) or text not in ("yes", "partial", "no"):
        raise ValueError(f"must be true or false, or one of yes, partial and no, not {show(value)}")
    return text


def _parameter_name(value: object) -> str:
    text = _some_words(value)
    if not _PARAMETER.fullmatch(text):
        raise ValueError(f"must be lower-case letters, digits and _, beginning with a letter, not {show(value)}")
    return text


def _scalar(value: object) -> int | float | str | bool:
    if not isinstance(value, int | float | str):
        raise ValueError(f"must be a number, a text, true or false, not {show(value)}")
    return value


def _override(value: object) -> str:
    text = _some_words(value)
    if not OVERRIDE.fullmatch(text):
        raise ValueError(f"must be of the form name=value, not {show(value)}")
    return text


def _constraint(value: object) -> str:
    text = _some_words(value)
    if not _CONSTRAINT.fullmatch(text):
        raise ValueError(f"must be a version condition such as '>=3.10,<3.14', not {show(value)}")
    return text


def _variable(value: object) -> str:
    text = _some_words(value)
    if not _VARIABLE.fullmatch(text):
        raise ValueError(f"must be the name of an environment variable, not {show(value)}")
    return text


def _name(value: object) -> str:
    text = _some_words(value)
    try:
        return check_name(text, option="name")
    except UsageError:
        raise ValueError(
            f"must be 1 to 40 lower-case letters, digits and dashes, beginning with a letter, not {show(value)}"
        ) from None


def _absolute(value: object) -> str:
    text = _some_words(value)
    if not text.startswith("/") or ".." in text.split("/") or text.strip("/") == "":
        raise ValueError(f"must be an absolute path below /, without '..', not {show(value)}")
    return text.rstrip("/")


def _folder(value: object) -> str:
    path = PurePosixPath(_relative(value))
    if not path.parts:
        raise ValueError(f"must be a folder inside the repository, such as 'models', not {show(value)}")
    if path.parts[0] == ".gpuyard":
        raise ValueError("must not be .gpuyard, where gpuyard keeps its journal and logs")
    return str(path)


def _url(value: object) -> str:
    text = _some_words(value)
    if reason := repository.why_not(text):
        raise ValueError(reason)
    return text


def _persistent(value: object) -> str:
    text = _absolute(value)
    if reason := why_not(text, here=False):
        raise ValueError(reason)
    return posixpath.normpath("/" + text.lstrip("/"))


def _keep(value: object) -> object:
    # A workload that is stored in the bucket says null where its author said nothing.
    if value in (None, "latest", "all") or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be latest, all, or a whole number of at least 1, not {show(value)}")


def _relative(value: object) -> str:
    text = _some_words(value)
    if text.startswith(("/", "~")) or ".." in text.split("/"):
        raise ValueError(f"must be a relative path without '..', not {show(value)}")
    return text.rstrip("/")


def _commit(value: object) -> str:
    text = _words(value)
    if not COMMIT.fullmatch(text):
        raise ValueError(f"must be a commit of 40 hexadecimal digits, not {show(text)}")
    return text


def _extra(value: object) -> str:
    text = _some_words(value)
    if not _EXTRA.fullmatch(text):
        raise ValueError(f"must be the name of an extra, such as 'train', not {show(value)}")
    return text


def _pattern(value: object) -> str:
    text = _some_words(value)
    if text.startswith(("!", "#", "~")) or ".." in text.split("/"):
        raise ValueError(f"must be a pattern inside the repository, such as 'data/*.bin', not {show(value)}")
    return text


# What an editor is told of each value; the checks above are what counts.
_POSITIVE: JsonSchemaValue = {"type": "number", "exclusiveMinimum": 0}
_TEXT: JsonSchemaValue = {"type": "string", "minLength": 1}

Url = Annotated[str, BeforeValidator(_url), WithJsonSchema(_TEXT)]
Commit = Annotated[str, BeforeValidator(_commit), WithJsonSchema({"type": "string", "pattern": f"^{COMMIT.pattern}$"})]
Extra = Annotated[str, BeforeValidator(_extra), WithJsonSchema({"type": "string", "pattern": f"^{_EXTRA.pattern}$"})]
Pattern = Annotated[str, BeforeValidator(_pattern), WithJsonSchema(_TEXT)]
Folder = Annotated[str, BeforeValidator(_folder), WithJsonSchema(_TEXT)]
Positive = Annotated[float, BeforeValidator(_positive), WithJsonSchema(_POSITIVE)]
NotNegative = Annotated[float, BeforeValidator(_not_negative), WithJsonSchema({"type": "number", "minimum": 0})]
Share = Annotated[float, BeforeValidator(_share), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]
Count = Annotated[int, BeforeValidator(_count), WithJsonSchema({"type": "integer", "minimum": 0})]
PositiveCount = Annotated[int, BeforeValidator(_positive_count), WithJsonSchema({"type": "integer", "minimum": 1})]
Iterations = Annotated[
    int,
    BeforeValidator(_iterations),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": _MOST_ITERATIONS}),
]
Words = Annotated[str, BeforeValidator(_words)]
SomeWords = Annotated[str, BeforeValidator(_some_words), WithJsonSchema(_TEXT)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Version = Annotated[
    str, BeforeValidator(_version), WithJsonSchema({"type": "string", "pattern": f"^{_VERSION.pattern}$"})
]
Constraint = Annotated[str, BeforeValidator(_constraint), WithJsonSchema(_TEXT)]
Variable = Annotated[
    str, BeforeValidator(_variable), WithJsonSchema({"type": "string", "pattern": f"^{_VARIABLE.pattern}$"})
]
Name = Annotated[str, BeforeValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{RUN_NAME.pattern}$"})]
PersistentRoot = Annotated[str, BeforeValidator(_persistent), WithJsonSchema(_TEXT)]
RelativePath = Annotated[str, BeforeValidator(_relative), WithJsonSchema(_TEXT)]
AbsolutePath = Annotated[str, BeforeValidator(_absolute), WithJsonSchema(_TEXT)]
Keep = Annotated[Literal["latest", "all"] | int | None, BeforeValidator(_keep)]
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    WithJsonSchema({"anyOf": [_POSITIVE, {"type": "string", "pattern": f"^(?:{_DURATION.pattern})$"}]}),
]
"""Seconds."""
Resumability = Annotated[
    Literal["yes", "partial", "no"],
    BeforeValidator(_resumability),
    WithJsonSchema({"enum": [True, False, "yes", "partial", "no"]}),
]
ParameterName = Annotated[
    str, BeforeValidator(_parameter_name), WithJsonSchema({"type": "string", "pattern": f"^{_PARAMETER.pattern}$"})
]
Scalar = Annotated[
    int | float | str | bool,
    PlainValidator(_scalar),
    WithJsonSchema({"type": ["number", "string", "boolean"]}),
]
Override = Annotated[str, BeforeValidator(_override), WithJsonSchema(_TEXT)]
