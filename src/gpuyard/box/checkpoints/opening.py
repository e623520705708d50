"""From an address to the store behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gpuyard.box.checkpoints.local_store import LocalStore
from gpuyard.box.checkpoints.s3_store import S3Store
from gpuyard.box.checkpoints.stores import Store
from gpuyard.errors import UsageError
from gpuyard.formats.location import Location

LIBRARIES = "GPUYARD_LIBRARIES"
"""The variable that names the folder with boto3, for the training's own Python."""


def open_store(
    location: Location | str,
    *,
    access_key: str = "",
    secret_key: str = "",
    env: Mapping[str, str] | None = None,
) -> Store:
    """Return the store at a place or address. Nothing is asked of it yet.

    What is not given is taken from ``env`` (default: the process environment) under the names that Amazon's own tools
    use: ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
    ``AWS_DEFAULT_REGION``. Raises :class:`gpuyard.errors.UsageError` for what is no address.
    """
    values = os.environ if env is None else env
    place = (Location.parse(location) if isinstance(location, str) else location).completed(values)
    if place.scheme == "file":
        return LocalStore(Path(place.name))
    if not place:
        raise UsageError("An empty address is not an address of a bucket: use s3://name or file:///folder.")
    return S3Store(
        place,
        access_key=access_key or values.get("AWS_ACCESS_KEY_ID", ""),
        secret_key=secret_key or values.get("AWS_SECRET_ACCESS_KEY", ""),
        libraries=values.get(LIBRARIES, ""),
    )
