"""The file with the logins of registries is read, and no password shows (B15, E10)."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from gpuyard import registry
from gpuyard.errors import UsageError


def written(folder: Path, auths: Any) -> dict[str, str]:
    file = folder / "auth.json"
    file.write_text(json.dumps({"auths": auths}))
    return {registry.VARIABLE: str(file)}


def entry(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("ghcr.io/me/prover:1", "ghcr.io"),
        ("localhost:5000/me/prover", "localhost:5000"),
        ("localhost/prover", "localhost"),
        ("pytorch/pytorch", "docker.io"),
        ("debian", "docker.io"),
    ],
)
def test_the_registry_of_a_name(image: str, name: str) -> None:
    assert registry.registry_of(image) == name


def test_the_login_of_the_longest_name_is_taken_and_its_password_does_not_show(tmp_path: Path) -> None:
    env = written(tmp_path, {"ghcr.io": entry("me:first"), "ghcr.io/team": entry("team:se:cond")})
    mine, team = (registry.login(f"ghcr.io/{who}/prover@sha256:{'0' * 64}", env) for who in ("me", "team"))
    assert mine and (mine.user, mine.password, mine.registry) == ("me", "first", "ghcr.io")
    assert team and (team.user, team.password) == ("team", "se:cond")
    assert "first" not in repr(mine) + str(mine)
    assert registry.login("quay.io/me/prover", env) is None
    assert registry.login("", env) is None and registry.login("ghcr.io/me/prover", {}) is None


def test_dockers_own_registry_has_a_name_of_its_own(tmp_path: Path) -> None:
    login = registry.login("me/prover", written(tmp_path, {"https://index.docker.io/v1/": entry("me:word")}))
    assert login and login.registry == "docker.io"


@pytest.mark.parametrize("auths", [{"ghcr.io": {}}, {"ghcr.io": {"auth": "%"}}, [], {"ghcr.io": "text"}])
def test_a_file_without_a_login_that_can_be_read_is_one_sentence(tmp_path: Path, auths: Any) -> None:
    if auths == []:
        assert registry.login("ghcr.io/me/prover", written(tmp_path, auths)) is None
        return
    with pytest.raises(UsageError, match=r"holds no login for ghcr\.io that can be read: write it with `podman login"):
        registry.login("ghcr.io/me/prover", written(tmp_path, auths))


def test_a_password_with_a_space_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no password, or one with a space"):
        registry.login("ghcr.io/me/prover", written(tmp_path, {"ghcr.io": entry("me:two words")}))
    with pytest.raises(UsageError, match=r"GPUYARD_REGISTRY_AUTH=/no/where is no file: write it with `podman login"):
        registry.login("ghcr.io/me/prover", {registry.VARIABLE: "/no/where"})


def test_an_image_that_no_machine_can_get_is_one_sentence() -> None:
    """U11"""
    said = "vast 7 will not start: it is failed (loading: pull access denied for ghcr.io/me/prover). It may still bill."
    words = registry.not_pulled("ghcr.io/me/prover", said)
    assert words.startswith("The image ghcr.io/me/prover cannot be pulled, so no other machine is rented: ")
    assert registry.VARIABLE in words
    assert registry.not_pulled("ghcr.io/me/prover", "vast 7 will not start: it is failed (no ports).") == ""
