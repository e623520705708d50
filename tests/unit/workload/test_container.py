"""What a workload says of its container image, and which values are refused (B15)."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gpuyard.workload.images import Container

BASE = "docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04"


@pytest.mark.parametrize(
    "base", [BASE, "debian:12", "localhost/gpuyard-box-ml:latest", f"quay.io/a/b@sha256:{'0' * 64}"]
)
@pytest.mark.parametrize("name", ["ghcr.io/me/prover", "localhost/g-tiny", "localhost:5000/a/b_c"])
def test_images_are_named_as_engines_name_them(base: str, name: str) -> None:
    assert Container(base=base, name=name).base == base


@pytest.mark.parametrize(
    ("base", "name", "sentence"),
    [
        (BASE, "prover", "must be the name of an image with its registry and without a tag, such as ghcr.io/me/prover"),
        (BASE, "ghcr.io/me/prover:1", "without a tag"),
        (BASE, "--privileged/x", "without a tag"),
        (
            "--privileged",
            "localhost/x",
            "must be an image, such as docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04, not",
        ),
        ("a b", "localhost/x", "must be an image"),
        (12, "localhost/x", "must be an image"),
    ],
)
def test_what_is_no_image_is_refused_in_a_sentence(base: object, name: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Container.model_validate({"base": base, "name": name})
