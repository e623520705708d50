# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What has to be done for CUDA on a machine, from facts about it: no file is read and no program run here.

Private to this collection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

REPOSITORY = "https://developer.download.nvidia.com/compute/cuda/repos"
# The key of NVIDIA's package repository, "cudatools".
KEY_FINGERPRINT = "EB693B3035CD5710E231E123A4B469963BF863CC"
KEY_FILE = "/etc/apt/keyrings/gpuyard-nvidia.asc"
SOURCES_FILE = "/etc/apt/sources.list.d/gpuyard-nvidia.sources"
HOLD_FILE = "/etc/apt/apt.conf.d/52gpuyard-nvidia"
HOLD = (
    "// A driver that is replaced under running programs breaks them until the next boot.\n"
    'Unattended-Upgrade::Package-Blacklist { "nvidia-"; "libnvidia-"; "cuda-"; "linux-modules-nvidia"; };\n'
)
SYSTEMS = ("ubuntu2204", "ubuntu2404", "debian12")
"""For which NVIDIA's repository is used."""
DISTRIBUTION = {"ubuntu2204": "11.5", "ubuntu2404": "12.0", "debian12": "11.8", "debian13": "12.4"}
"""The CUDA of the package nvidia-cuda-toolkit."""
# In NVIDIA's repository for all of SYSTEMS, where the workload does not care.
USUAL = "12.8"
# The oldest driver branch for a major version, within which minor versions do not matter.
DRIVER_FOR = {11: 450, 12: 525, 13: 580}
# From this branch on a data-centre GPU runs CUDA 13 with the package cuda-compat.
COMPAT_FROM = 535
DATA_CENTRE: tuple[str, ...] = (
    "A2",
    "A10",
    "A10G",
    "A16",
    "A30",
    "A40",
    "A100",
    "A800",
    "B100",
    "B200",
    "B300",
    "GB200",
    "GH200",
)
DATA_CENTRE += ("H100", "H200", "H800", "H20", "L4", "L40", "L40S", "P4", "P40", "P100", "T4", "V100")
# The oldest CUDA that can compile for a GPU, by compute capability.
TOOLKIT_FOR_GPU = ((10.0, "12.8"), (8.9, "11.8"), (8.0, "11.0"))
# CUDA 13 compiles for nothing older.
OLDEST_GPU_OF_13 = 7.5
# PCI numbers from Turing on, for which NVIDIA's open kernel modules are; the last branch for what is older.
TURING = 0x1E00
OLD_DRIVER = "cuda-drivers-580"


@dataclass(frozen=True)
class Step:
    """Something to do: files to write, then programs to run. ``key`` is an address to get the repository's key from."""

    action: str
    commands: Sequence[Sequence[str]] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    wheels: bool = False
    driver: bool = False


@dataclass(frozen=True)
class Decision:
    """``nvcc`` is the one to use, which may be what the steps bring; ``version`` is its CUDA, as far as it is known."""

    container: bool
    nvcc: str
    version: str
    steps: Sequence[Step]
    left_alone: Sequence[str]


def is_container(facts: Mapping[str, Any]) -> bool:
    """Tell a container from a machine of its own: no fact alone is to be trusted.

    ``container_signs`` are things that only containers have, ``may_load_modules`` and ``kernel_modules`` what only a
    machine with a kernel of its own has. A container that may load modules (a privileged one) still is one.
    """
    return bool(facts["container_signs"]) or not (facts["may_load_modules"] or facts["kernel_modules"])


def fits(version: str, wanted: Mapping[str, str]) -> bool:
    """Tell whether a CUDA version is the wanted one, to as many numbers as the wish names."""
    found = _box.version_tuple(version)
    exact, least, most = (_box.version_tuple(wanted.get(name) or "") for name in ("version", "minimum", "maximum"))
    return (
        found[: len(exact)] == exact
        and found[: len(least)] >= least[: len(found)]
        and (not most or found[: len(most)] <= most)
    )


def wish(wanted: Mapping[str, str]) -> str:
    """Return what is wanted, in words."""
    if wanted.get("version"):
        return f"CUDA {wanted['version']}"
    least, most = wanted.get("minimum"), wanted.get("maximum")
    limits = [f"at least {least}" if least else "", f"at most {most}" if most else ""]
    return "CUDA " + (" and ".join(filter(None, limits)) or "of any version")


def driver_needed(version: str) -> int:
    """Return the oldest driver branch for a CUDA version."""
    major = (_box.version_tuple(version) or (12,))[0]
    known = [needed for cuda, needed in DRIVER_FOR.items() if cuda <= major]
    return max(known, default=min(DRIVER_FOR.values()))


def is_data_centre(names: Sequence[str]) -> bool:
    """Tell whether all GPUs are of a kind for which NVIDIA keeps newer CUDA going on an older driver."""
    words = [set(name.replace("-", " ").split()) for name in names]
    return bool(words) and all(
        not one & {"RTX", "GTX", "GeForce", "Quadro"} and one & set(DATA_CENTRE) for one in words
    )


def decide(facts: Mapping[str, Any], wanted: Mapping[str, str], wheels: str) -> Decision:
    """Return what has to be done; raises :class:`BoxError` with one sentence where nothing can be.

    ``wanted`` has ``version``, ``minimum``, ``maximum``, ``source`` and ``driver``. ``wheels`` is the CUDA of the
    pinned wheels, whose compiler is, or will be, ``facts["wheels_nvcc"]``.
    """
    container = is_container(facts)
    if not facts["gpus"] and not facts["driver"]:
        raise _box.BoxError("There is no NVIDIA GPU here: neither the bus nor a driver shows one.", unfit=True)
    source, version, nvcc = _toolkit(facts, wanted, wheels)
    _check_gpu(facts, version)
    steps: list[Step] = []
    left_alone: list[str] = []
    if source == "repository" and not facts["repository"]:
        steps.append(_repository(facts))
    driver = _driver(facts, wanted, version, container, source)
    if driver:
        if driver.driver and not facts["repository"] and not any(step.key for step in steps):
            steps.append(_repository(facts))
        steps.append(driver)
    elif container:
        left_alone.append(f"The driver is the host's ({facts['driver']}), and stays as it is in a container.")
    else:
        left_alone.append(f"The driver {facts['driver']} will do.")
    if not facts["compiler"]:
        steps.append(Step("install g++", [_apt("install", "g++")]))
    if nvcc in facts["nvcc"]:
        left_alone.append(f"CUDA {version} is there: {nvcc}.")
    elif source == "wheels":
        steps.append(Step(f"install CUDA {version} from NVIDIA's wheels", wheels=True))
    else:
        package = f"cuda-toolkit-{_minor(version)}" if source == "repository" else "nvidia-cuda-toolkit"
        steps.append(Step(f"install {package}", [_apt("install", package)]))
    # Lists that are there may be of another day, or of before the repository was added.
    if any(step.commands for step in steps):
        first = next(at for at, step in enumerate(steps) if step.commands)
        steps.insert(first, Step("fetch package lists", [_apt("update")]))
    return Decision(container, nvcc, version, steps, left_alone)


def _toolkit(facts: Mapping[str, Any], wanted: Mapping[str, str], wheels: str) -> tuple[str, str, str]:
    """Return where the toolkit comes from, its version, and the nvcc that is there already."""
    source = wanted["source"]
    there = {path: version for path, version in facts["nvcc"].items() if fits(version, wanted)}
    # Newer ones first; one that the driver cannot run only where nothing else is there.
    ready = sorted(there, key=lambda path: (_runs(facts, there[path]), _box.version_tuple(there[path])), reverse=True)
    if ready and source in ("auto", "image"):
        return "image", there[ready[0]], ready[0]
    if source == "image":
        found = ", ".join(sorted(set(facts["nvcc"].values()))) or "none"
        raise _box.BoxError(f"The image has no nvcc of {wish(wanted)} (found: {found}): let source be auto.")
    system = facts["system"]
    offers = {}
    if system in SYSTEMS:
        # A maximum and a minimum name versions that there are; between them nothing is known.
        named = wanted.get("version") or wanted.get("maximum") or wanted.get("minimum") or USUAL
        usual = USUAL if fits(USUAL, wanted) else named
        offers["repository"] = ".".join(usual.split(".")[:2])
    if system in DISTRIBUTION:
        offers["distribution"] = DISTRIBUTION[system]
    if facts["machine"] in ("x86_64", "aarch64"):
        offers["wheels"] = wheels
    names = ["repository", "distribution", "wheels"] if source == "auto" else [source]
    for name in names:
        if name in offers and fits(offers[name], wanted):
            place = {"distribution": "/usr/bin/nvcc", "wheels": facts["wheels_nvcc"]}
            return name, offers[name], place.get(name, f"/usr/local/cuda-{_dotted(offers[name])}/bin/nvcc")
    has = "; ".join(f"{name} has {version}" for name, version in offers.items() if name in names) or "it has none"
    raise _box.BoxError(f"{wish(wanted)} cannot be had for {system} ({facts['machine']}) from {source}: {has}.")


def _runs(facts: Mapping[str, Any], version: str) -> bool:
    branch = (_box.version_tuple(facts["driver"]) or (0,))[0]
    return branch >= driver_needed(version)


def _check_gpu(facts: Mapping[str, Any], version: str) -> None:
    """Raise :class:`BoxError` when a CUDA version cannot compile for the GPUs that are there."""
    name = (facts["gpu_names"] or ["this GPU"])[0]
    for capability in facts["capabilities"]:
        least = next((cuda for oldest, cuda in TOOLKIT_FOR_GPU if capability >= oldest), "0")
        if _box.version_tuple(version) < _box.version_tuple(least):
            raise _box.BoxError(f"{name} needs CUDA {least} or newer, and CUDA {version} is what there is: ask for it.")
        if _box.version_tuple(version) >= (13,) and capability < OLDEST_GPU_OF_13:
            raise _box.BoxError(f"CUDA {version} does not compile for {name} any more: ask for a maximum of 12.9.")


def _driver(
    facts: Mapping[str, Any], wanted: Mapping[str, str], version: str, container: bool, source: str
) -> Step | None:
    """Return how the driver gets to where CUDA ``version`` runs, ``None`` where it does already."""
    if facts["driver"] and _runs(facts, version):
        return None
    needed = driver_needed(version)
    state = f"the driver {facts['driver']} is too old" if facts["driver"] else "there is no driver"
    branch = (_box.version_tuple(facts["driver"]) or (0,))[0]
    if source == "repository" and branch >= COMPAT_FROM and is_data_centre(facts["gpu_names"]):
        package = f"cuda-compat-{_minor(version)}"
        return Step(f"install {package}, with which the driver {facts['driver']} will do", [_apt("install", package)])
    if container:
        raise _box.BoxError(
            f"CUDA {version} needs a driver of at least {needed}, and {state}: in a container it is the host's, so "
            f"take another machine (needs.cuda: '{_dotted(version)}'), or ask for an older CUDA.",
            unfit=True,
        )
    if wanted["driver"] == "keep":
        raise _box.BoxError(
            f"CUDA {version} needs a driver of at least {needed}, and {state}: driver=keep forbids one."
        )
    if facts["system"] not in SYSTEMS:
        raise _box.BoxError(
            f"CUDA {version} needs a driver of at least {needed}, and {state}: gpuyard installs one on "
            f"{', '.join(SYSTEMS)}, not on {facts['system']}."
        )
    turing = all(int(card.rpartition(":")[2], 16) >= TURING for card in facts["gpus"])
    package = "nvidia-open" if turing else OLD_DRIVER
    headers = f"linux-headers-{facts['kernel']}"
    return Step(f"install the driver ({package})", [_apt("install", headers, package)], {HOLD_FILE: HOLD}, driver=True)


def _repository(facts: Mapping[str, Any]) -> Step:
    place = f"{REPOSITORY}/{facts['system']}/{'sbsa' if facts['machine'] == 'aarch64' else facts['machine']}/"
    sources = f"Types: deb\nURIs: {place}\nSuites: /\nSigned-By: {KEY_FILE}\n"
    return Step("add NVIDIA's package repository", files={SOURCES_FILE: sources}, key=f"{place}3bf863cc.pub")


def _apt(verb: str, *packages: str) -> list[str]:
    more = ["--no-install-recommends", "--", *packages] if packages else []
    return ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3", verb, *more]


def _minor(version: str) -> str:
    return "-".join([*version.split("."), "0"][:2])


def _dotted(version: str) -> str:
    return ".".join([*version.split("."), "0"][:2])
