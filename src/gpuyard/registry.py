"""Container registries: where an image is from, the file that holds the login, and what an engine says of a push.

A login comes from an auth file only, such as ``podman login --authfile`` writes: the one that the environment names.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuyard.errors import UsageError

VARIABLE = "GPUYARD_REGISTRY_AUTH"
"""The environment variable with the path of the auth file."""
_HUB = "docker.io"
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io")  # what Docker itself calls it
_REFUSED = ("unauthorized", "authentication required", "access denied", "denied:", "forbidden", "reading username")
_SILENT = (
    "connection refused",
    "no such host",
    "i/o timeout",
    "no route to host",
    "connection reset",
    "timeout exceeded",
)
_FULL = ("no space left on device", "disk quota exceeded")


@dataclass(frozen=True, slots=True)
class Login:
    """Who pulls or pushes, at which registry. The password shows in no representation."""

    user: str
    password: str
    registry: str

    def __repr__(self) -> str:
        return f"Login({self.user!r}, {self.registry!r})"


def registry_of(image: str) -> str:
    """Return the registry of an image's name: ``ghcr.io``, ``localhost:5000``, Docker's own where none is named."""
    first, slash, _rest = image.partition("/")
    return first if slash and (first == "localhost" or any(sign in first for sign in ".:")) else _HUB


def is_local(image: str) -> bool:
    """Tell whether the registry is one of this machine, which is reached without TLS."""
    return registry_of(image).startswith(("localhost:", "127.0.0.1:"))


def auth_file(env: Mapping[str, str]) -> Path | None:
    """Return the auth file that the environment names, or ``None``; raises :class:`UsageError` when it is not there."""
    named = env.get(VARIABLE, "").strip()
    if not named:
        return None
    file = Path(named).expanduser()
    if not file.is_file():
        raise UsageError(
            f"{VARIABLE}={named} is no file: write it with `podman login --authfile {named} <registry>`, or unset it."
        )
    return file


def login(image: str, env: Mapping[str, str]) -> Login | None:
    """Return the login for the registry of ``image`` that the auth file of the environment holds, or ``None``.

    Raises :class:`UsageError` for a file that cannot be read as one.
    """
    file = auth_file(env)
    if file is None or not image:
        return None
    registry = registry_of(image)
    try:
        kept = json.loads(file.read_bytes()).get("auths") or {}
        # Podman keeps logins for a part of a registry, too: the longest name that fits.
        words = image.partition("@")[0].split("/")
        names = ["/".join(words[:count]) for count in range(len(words), 0, -1)] + [registry]
        names += list(_HUB_KEYS) if registry == _HUB else []
        found = next((kept[name] for name in names if name in kept), None)
        if found is None:
            return None
        user, colon, password = base64.b64decode(found["auth"], validate=True).decode().partition(":")
    except (OSError, ValueError, AttributeError, KeyError, TypeError, binascii.Error):
        raise UsageError(
            f"{VARIABLE}={file} holds no login for {registry} that can be read: write it with "
            f"`podman login --authfile {file} {registry}`."
        ) from None
    if not colon or any(character.isspace() for character in user + password):
        raise UsageError(f"The login for {registry} in {VARIABLE}={file} has no password, or one with a space.")
    return Login(user, password, registry)


def is_silent(words: str) -> bool:
    """Tell whether an engine's ``words`` mean that the registry does not answer."""
    return any(sign in words.lower() for sign in _SILENT)


def explain(image: str, words: str, env: Mapping[str, str]) -> str:
    """Return the sentence for a user when an engine could not make, push or pull ``image`` and says ``words``."""
    registry, said = registry_of(image), words.lower()
    if any(sign in said for sign in _FULL):
        return f"The image {image} does not fit: {words.rstrip('.')}. Make room and try again."
    if any(sign in said for sign in _REFUSED):
        place = f"in {VARIABLE}={env[VARIABLE]}" if env.get(VARIABLE) else "of the container engine"
        file = env.get(VARIABLE) or "FILE"
        return (
            f"The registry {registry} does not take the login {place}: write a new one with "
            f"`podman login --authfile {file} {registry}`"
            + ("." if env.get(VARIABLE) else f", and name the file with {VARIABLE}=FILE.")
        )
    if is_silent(words):
        return f"The registry {registry} does not answer: {words.rstrip('.')}."
    return words


def says_full(words: str) -> bool:
    """Say whether a program's ``words`` mean that a disk is full."""
    return any(sign in words.lower() for sign in _FULL)


def not_pulled(image: str, words: str) -> str:
    """Return the sentence for a user when a cloud's ``words`` say that no machine can get ``image``, else ``""``."""
    if not any(sign in words.lower() for sign in ("pull access denied", "manifest unknown")):
        return ""
    return (
        f"The image {image} cannot be pulled, so no other machine is rented: its registry has no such image, or wants "
        f"a login, which {VARIABLE} names as a file."
    )
