"""Reads the JSON files of a sandbox's state folder, whichever version wrote them. The format: docs/formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from gpuyard.errors import UsageError

VERSION = 1
"""The major version of the files. Fields may be added without a new one: readers pass over what they do not know."""
# What reading a document of somebody else's making may raise, whatever is in it.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def read_document(file: Path, what: str) -> dict[str, Any] | None:
    """Return the JSON object in ``file``, ``None`` when there is no file.

    Raises :class:`UsageError` for what cannot be read as a sandbox's ``what``, and for a newer major version, in which
    the same words may mean other things.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
        version = int(document.get("version", VERSION))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from None
    except MALFORMED as error:
        raise damaged(file, what, error) from None
    if version > VERSION:
        raise UsageError(
            f"{file} was written by a newer gpuyard (format {version}, this one reads {VERSION}): use that version, or "
            "take the sandbox down with it first."
        )
    return document


def damaged(file: Path, what: str, error: Exception) -> UsageError:
    """Return the error that says that ``file`` is not what it should be, and what to do."""
    return UsageError(
        f"{file} cannot be read as a sandbox's {what} ({type(error).__name__}: {error}): run `gpuyard sandbox down`, "
        "then up."
    )


def known(kind: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of ``document`` that are fields of the data class ``kind``."""
    names = {item.name for item in fields(kind)}
    return {name: value for name, value in document.items() if name in names}
