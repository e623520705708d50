"""Files of ``NAME=value`` lines, such as ``.env``: read without a shell, and without a value in any message."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from gpuyard.errors import UsageError, listed

NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
"""A variable's name. Vast.ai stores names in upper case, so one with other letters would come back as another one."""
_LINE = re.compile(
    r"(?:export\s+)?(?P<name>[^\s=]+)\s*=\s*"
    r"(?:'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<plain>[^'\"\s#].*?)?)"
    r"(?:\s+#.*|\s*)"
)
_MOST_BYTES = 100_000


def read(path: Path) -> dict[str, str]:
    """Return the variables that a file sets, in its order; of one that is set twice the last value.

    Lines are ``NAME=value``, with ``export`` before and quotes around the value where one likes; ``#`` begins a comment
    at the beginning of a line, and after a space behind a value. Nothing is replaced in a value. Raises
    :class:`UsageError`, without any of the file's values, for a file that others may read, and for a line that is
    something else.
    """
    content = read_secret(path)
    found: dict[str, str] = {}
    mistakes = []
    for number, line in enumerate(content.splitlines(), start=1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        match = _LINE.fullmatch(words)
        if match is None:
            mistakes.append(f"{path}: line {number} is not NAME=value.")
        elif not NAME.fullmatch(match["name"]):
            mistakes.append(f"{path}: line {number} has a name that is not upper-case letters, digits and _.")
        else:
            found[match["name"]] = match["single"] or match["double"] or match["plain"] or ""
    if mistakes:
        raise UsageError(listed(mistakes))
    return found


def read_secret(path: Path) -> str:
    """Return the content of a file that nobody else may read; raises :class:`UsageError` for any other one."""
    try:
        # Of the file that is read, not of what may stand under its name a moment later.
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise UsageError(f"{path} is not a file.")
            if mode & 0o077:
                raise UsageError(f"Others may read {path}, which holds secrets: chmod 600 {path}")
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}.") from None
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{path} is larger than {_MOST_BYTES // 1000} kB, so it is no file of variables.")
    return content
