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


@lru_cache(maxsize=4096)
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


@lru_cache(maxsize=4096)
def facts(name: str) -> tuple[str, float] | None:
    """Return a model's compute capability (``""`` for AMD's) and the 16-bit speed of one, in 10^12 operations a second.

    ``None`` for a model that :data:`_FACTS` does not have.
    """
    fitting = [(known, values) for known, values in _FACTS.items() if matches(known, name)]
    return max(fitting, key=lambda item: len(_parts(item[0])[1]))[1] if fitting else None


# From NVIDIA's CUDA documentation (compute capability) and the makers' data sheets: dense matrix products in 16 bits
# with sums in 32, without sparsity. It stands for a GPU's speed only where nobody has measured one.
_FACTS: dict[str, tuple[str, float]] = {
    "B300": ("10.3", 2500),
    "B200": ("10.0", 2250),
    "GH200": ("9.0", 989),
    "H200": ("9.0", 989),
    "H100": ("9.0", 989),
    "H100 NVL": ("9.0", 835),
    "H100 PCIE": ("9.0", 756),
    "A100": ("8.0", 312),
    "A40": ("8.6", 150),
    "A30": ("8.0", 165),
    "A16": ("8.6", 18),
    "A10": ("8.6", 125),
    "A10G": ("8.6", 70),
    "L40S": ("8.9", 362),
    "L40": ("8.9", 181),
    "L4": ("8.9", 121),
    "V100": ("7.0", 125),
    "T4": ("7.5", 65),
    "P100": ("6.0", 19),
    "RTX PRO 6000": ("12.0", 503),
    "RTX 6000 Ada": ("8.9", 364),
    "RTX A6000": ("8.6", 155),
    "RTX A5000": ("8.6", 111),
    "RTX A4000": ("8.6", 77),
    "RTX 6000": ("7.5", 130),
    "RTX 5090": ("12.0", 210),
    "RTX 5080": ("12.0", 113),
    "RTX 4090": ("8.9", 165),
    "RTX 4080": ("8.9", 97),
    "RTX 3090": ("8.6", 71),
    "RTX 3080": ("8.6", 60),
    "RTX 3070": ("8.6", 41),
    "RTX 3060": ("8.6", 26),
    "RTX 2080 Ti": ("7.5", 54),
    "MI300X": ("", 1307),
    "MI325X": ("", 1307),
    "MI355X": ("", 2300),
}
