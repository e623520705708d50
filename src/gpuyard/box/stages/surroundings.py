"""What a stage is told of where it runs, as environment variables.

Those that begin with ``GPUYARD_`` are facts. The others are what widely used tools read: the bucket, for
:mod:`gpuyard.cloud_sync` and the clouds' own tools, and a tag for Weights & Biases. What the user sets wins over them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from gpuyard.box.checkpoints.opening import LIBRARIES, libraries_for
from gpuyard.box.stages.spec import BoxSpec
from gpuyard.errors import UsageError
from gpuyard.formats.location import BUCKET_VARIABLES, Location

FACTS = {
    "node": "GPUYARD_NODE",
    "provider": "GPUYARD_PROVIDER",
    "id": "GPUYARD_INSTANCE_ID",
    "region": "GPUYARD_REGION",
    "market": "GPUYARD_MARKET",
    "price_per_hour_usd": "GPUYARD_PRICE_PER_HOUR_USD",
}
"""What is known of the box's instance, by its name in ``settings.json``, and the variable that tells it."""
USER_FILES = "files"
"""Below the run's own folder of the bucket, where no key of ours can be: what training code uploads itself."""


def facts(spec: BoxSpec) -> dict[str, str]:
    """Return the variables that say where a stage runs; of what is not known there is none."""
    bucket = _location(spec)
    known = {variable: _text(spec.instance[name]) for name, variable in FACTS.items() if name in spec.instance}
    pool = known.get("GPUYARD_NODE", "").rpartition("-")[0]
    found = {
        "GPUYARD_RUN": spec.run,
        "GPUYARD_WORKLOAD": spec.workload,
        **known,
        "GPUYARD_POOL": pool,
        "GPUYARD_BUCKET": bucket.url,
        "GPUYARD_BUCKET_ENDPOINT": bucket.endpoint,
        LIBRARIES: libraries_for(bucket),
    }
    return {name: value for name, value in found.items() if value}


def defaults(spec: BoxSpec, users: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that tools read, those left out that ``users``, the user's own variables, decide.

    Who names a bucket or an endpoint of their own gets no part of ours: the one would not fit the other.
    """
    bucket = _location(spec)
    if bucket:
        bucket = bucket.below(f"{spec.run}/{USER_FILES}")
    found = {} if users.keys() & set(BUCKET_VARIABLES) else bucket.variables()
    if provider := spec.instance.get("provider"):
        found["WANDB_TAGS"] = f"environment={provider}"
    return {name: value for name, value in found.items() if name not in users}


def _location(spec: BoxSpec) -> Location:
    # An address that is none is told by whoever publishes; a stage runs all the same.
    with contextlib.suppress(UsageError):
        return spec.location
    return Location()


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
