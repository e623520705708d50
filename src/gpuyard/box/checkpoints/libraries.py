"""The packages that open a bucket, for a Python that has none of its own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from gpuyard.errors import CheckpointError

VARIABLE = "GPUYARD_LIBRARIES"
"""The variable that names the folder with the packages, for the training's own Python."""


def load(package: str, url: str, folder: str, module: str = "") -> Any:
    """Return the package that opens the bucket ``url``, from ``folder`` where this Python has none of its own.

    With ``module`` it is that module, which comes with the package.

    The folder comes last on the path: whatever the program brings itself stays what it gets. Raises
    :class:`CheckpointError` where it is nowhere, or is for another Python.
    """
    try:
        return _imported(module or package, folder)
    except ImportError as error:
        raise CheckpointError(
            f"The bucket {url} needs the Python package {package}, which this Python lacks: add {package} to the "
            f"requirements, or pip install {package}."
        ) from error


def _imported(module: str, folder: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        if not folder:
            raise
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    return importlib.import_module(module)


def folder_of(package: str) -> str:
    """Return the folder that this Python has the package in, ``""`` where it has none."""
    found = importlib.util.find_spec(package)
    return str(Path(found.origin).parents[1]) if found and found.origin else ""
