"""What a workload says of the container image that ``image.yml`` makes of it."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

from gpuyard.workload.values import Section, show

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*(?::\d+)?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+")
_REFERENCE = re.compile(
    rf"(?:{_NAME.pattern}|[a-z0-9]+(?:[._-]+[a-z0-9]+)*)(?::[\w][\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)


def _image_name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            "must be the name of an image with its registry and without a tag, such as ghcr.io/me/prover or "
            f"localhost/prover, not {show(value)}"
        )
    return value


def _reference(value: object) -> str:
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise ValueError(f"must be an image, such as docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04, not {show(value)}")
    return value


class Container(Section):
    """The container image that ``image.yml`` makes: a base, and everything that a machine gets."""

    base: Annotated[str, BeforeValidator(_reference)]
    """The image to begin with, a Debian or Ubuntu: ``docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04``."""
    name: Annotated[str, BeforeValidator(_image_name)]
    """What it is called, with its registry and without a tag: ``ghcr.io/me/prover``. The tag says the state that it
    holds; ``image`` names both, so that machines boot from it."""
