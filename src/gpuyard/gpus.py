"""GPU names: the same card is called ``NVIDIA_A16``, ``A16`` and ``Tesla A16`` by different providers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_VENDOR_WORDS = {"nvidia", "amd", "tesla", "geforce", "quadro", "instinct", "radeon"}
_ADA = re.compile(r"(?<=\d)(?=ada\b)", re.IGNORECASE)
# What tells two builds of one model apart: how the card is connected, how much memory it has, for which case it is.
_BUILD = re.compile(r"sxm\d*|pcie|nvl|hgx|oam|hbm\d\w?|\d+gb?|max|q|ws?|s", re.IGNORECASE)
_MEMORY = re.compile(r"(?<=\d)[\s_-]+(?=GB?\b)", re.IGNORECASE)


def normalise(name: str) -> str:
    """Return ``name`` without the vendor and with single spaces.

    ``NVIDIA_A16`` → ``A16``, ``RTX 6000Ada`` → ``RTX 6000 Ada``; ``""`` (the provider did not say) stays ``""``.
    """
    words = re.split(r"[\s_-]+", _ADA.sub(" ", name.strip()))
    kept = [word for word in words if word and word.lower() not in _VENDOR_WORDS]
    return " ".join(kept)


def matches(wanted: str, offered: str) -> bool:
    """Say whether ``offered`` is a ``wanted``: the same whole model, in the wanted build where one is named.

    ``A100`` takes an ``A100 SXM4``, but not the other way round. A piece of a name is no model: ``RTX`` takes nothing,
    nor does ``RTX 6000`` take an ``RTX 6000 Ada``, ``L40`` an ``L40S`` or ``RTX 4090`` an ``RTX 4090D``.
    """
    model, build = _parts(wanted)
    offered_model, offered_build = _parts(offered)
    return bool(model) and model == offered_model and build <= offered_build


def matches_any(wanted: Iterable[str], offered: str) -> bool:
    """Say whether ``offered`` is one of ``wanted``."""
    return any(matches(name, offered) for name in wanted)


def names_a_model(name: str) -> bool:
    """Say whether ``name`` may be a whole model: all but a few have a number (``A16``, ``RTX 4090``, not ``RTX``)."""
    return any(character.isdigit() for word in _parts(name)[0] for character in word)


# A few names are compared again and again: with every offer, and for every iteration of a plan.
@lru_cache(maxsize=4096)
def _parts(name: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the words of the model in their order, and those that say which build of it this is."""
    words = normalise(_MEMORY.sub("", name)).lower().split()
    # The first words name the model, whatever they look like.
    first = next((at for at, word in enumerate(words) if any(map(str.isdigit, word))), len(words))
    build = frozenset(word for word in words[first + 1 :] if _BUILD.fullmatch(word))
    return tuple(word for at, word in enumerate(words) if at <= first or word not in build), build
