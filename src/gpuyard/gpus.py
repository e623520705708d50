"""GPU names: the same card is called ``NVIDIA_A16``, ``A16`` and ``Tesla A16`` by different providers."""

from __future__ import annotations

import re
from collections.abc import Iterable

_VENDOR_WORDS = {"nvidia", "amd", "tesla", "geforce", "quadro", "instinct", "radeon"}
_ADA = re.compile(r"(?<=\d)(?=ada\b)", re.IGNORECASE)


def normalise(name: str) -> str:
    """Return ``name`` without the vendor and with single spaces.

    ``NVIDIA_A16`` → ``A16``, ``RTX 6000Ada`` → ``RTX 6000 Ada``; ``""`` (the provider did not say) stays ``""``.
    """
    words = re.split(r"[\s_-]+", _ADA.sub(" ", name.strip()))
    kept = [word for word in words if word and word.lower() not in _VENDOR_WORDS]
    return " ".join(kept)


def matches(wanted: str, offered: str) -> bool:
    """Say whether ``offered`` is a ``wanted``: every word of the wish occurs, so ``A100`` takes an ``A100 SXM4``.

    ``L40`` does not take an ``L40S`` nor ``RTX 4090`` an ``RTX 4090D``: words are compared as a whole.
    """
    have = normalise(offered).lower().split()
    want = normalise(wanted).lower().split()
    return bool(want) and all(word in have for word in want)


def matches_any(wanted: Iterable[str], offered: str) -> bool:
    """Say whether ``offered`` is one of ``wanted``."""
    return any(matches(name, offered) for name in wanted)
