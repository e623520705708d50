#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_toolkit
short_description: Have CUDA on a box, and prove it by compiling a kernel
description:
  - Finds GPUs, driver and toolkits, tells a container from a machine of its own by several facts, and does what is
    missing.
  - In a container never touches the driver. On a machine of its own brings one from NVIDIA's package repository, and
    keeps it from being upgraded unattended.
  - Compiles a small kernel with the C(nvcc) that is used, and where there is a GPU runs it.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  version:
    description: The CUDA version, such as V(12.4); any that begins with these numbers will do.
    type: str
    default: ""
  minimum:
    description: The oldest CUDA that will do.
    type: str
    default: ""
  maximum:
    description: The newest CUDA that will do.
    type: str
    default: ""
  source:
    description:
      - Where the toolkit comes from. V(image) takes only what is there. V(auto) takes what is there where it fits, else
        the first that has it of NVIDIA's V(repository), the V(distribution) and NVIDIA's V(wheels).
    type: str
    choices: [auto, repository, distribution, wheels, image]
    default: auto
  driver:
    description: Whether a driver may be installed on a machine of its own.
    type: str
    choices: [auto, keep]
    default: auto
  wheels:
    description: The pinned requirements, a line with its hashes each, of the toolkit that comes from wheels.
    type: list
    elements: str
    default: []
  wheels_version:
    description: The CUDA version of O(wheels).
    type: str
    default: ""
  root:
    description: The folder for the toolkit from wheels, and for what was verified.
    type: path
    default: /opt/gpuyard/cuda
  bin_dir:
    description: The folder on PATH for the launcher of C(nvcc).
    type: path
    default: /usr/local/bin
  rebooted:
    description: Whether the machine was rebooted for its new driver, so that a driver that does not run is an error.
    type: bool
    default: false
attributes:
  check_mode:
    description: Can predict what would change, without changing anything.
    support: full
  diff_mode:
    description: Reports what there is before and after.
    support: full
"""

EXAMPLES = r"""
- name: Have CUDA 12.4 wherever it can come from
  gpuyard.cloud.cuda_toolkit:
    version: "12.4"

- name: Take what the image brings, if it is new enough
  gpuyard.cloud.cuda_toolkit:
    minimum: "12.1"
    source: image
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be.
  type: list
  elements: str
  returned: success
cuda:
  description: The CUDA version of the C(nvcc) that is used; that of the plan in check mode.
  type: str
  returned: success
nvcc:
  description: The path of the C(nvcc) that is used, or in check mode would be.
  type: str
  returned: success
driver:
  description: The version of the driver; empty where there is none.
  type: str
  returned: success
gpus:
  description: The names of the GPUs.
  type: list
  elements: str
  returned: success
container:
  description: Whether the box is a container.
  type: bool
  returned: success
signs:
  description: The facts that speak for a container.
  type: list
  elements: str
  returned: success
left_alone:
  description: What was left alone, and why, a sentence each.
  type: list
  elements: str
  returned: success
kernel:
  description: How far the small kernel was proved, V(ran), V(compiled) or V(no).
  type: str
  returned: success
reboot_required:
  description: Whether the driver runs only after a reboot.
  type: bool
  returned: success
"""

import base64
import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box, _cuda
from ansible_collections.gpuyard.cloud.plugins.module_utils import _download

KERNEL = """
#include <cstdio>
__global__ void triple(int *out) { out[threadIdx.x] = 3 * threadIdx.x; }
int main() {
    int *out, back[32];
    cudaError_t error = cudaMalloc(&out, sizeof back);
    if (error == cudaSuccess) {
        triple<<<1, 32>>>(out);
        error = cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost);
    }
    if (error != cudaSuccess) { std::puts(cudaGetErrorString(error)); return 1; }
    for (int i = 0; i < 32; i++)
        if (back[i] != 3 * i) { std::puts("a result is wrong"); return 2; }
    return 0;
}
"""
NVIDIA = "0x10de"
CAP_SYS_MODULE = 1 << 16
# Where other tools than a package manager's put it.
PLACES = ("/usr/local/cuda*/bin/nvcc", "/usr/bin/nvcc", "/usr/lib/cuda/bin/nvcc")
_RELEASE = re.compile(r"release \d+\.\d+, V(\d+(?:\.\d+)*)")


def read(path: str) -> str:
    """Return a file's text, ``""`` when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def container_signs(module: AnsibleModule) -> list[str]:
    """Return what speaks for a container, each in a few words."""
    environment = read("/proc/1/environ")
    found = {
        "/.dockerenv": Path("/.dockerenv").exists(),
        "/run/.containerenv": Path("/run/.containerenv").exists(),
        "control group": bool(re.search(r"docker|kubepods|libpod|lxc|containerd", read("/proc/1/cgroup"))),
        "the environment of process 1": bool(
            re.search(r"(?:^|\0)(?:container|VAST_CONTAINERLABEL|RUNPOD_POD_ID)=", environment)
        ),
        "a driver that the host mounts": " /usr/lib/x86_64-linux-gnu/libcuda.so" in read("/proc/mounts"),
    }
    said = ask(module, "systemd-detect-virt", "--container").strip()
    return [*(name for name, there in found.items() if there), *([f"systemd-detect-virt says {said}"] if said else [])]


def ask(module: AnsibleModule, *command: str) -> str:
    """Return what a program prints, ``""`` when it fails or is not there."""
    try:
        code, output, _errors = _box.execute(module, command)
    except OSError:
        return ""
    return output if code == 0 else ""


def nvcc_version(module: AnsibleModule, path: str) -> str:
    """Return the CUDA version that an ``nvcc`` says, ``""`` when it does not run."""
    match = _RELEASE.search(ask(module, path, "--version"))
    return match[1] if match else ""


def own_nvcc(root: Path, wheels_version: str) -> Path:
    """Return where the ``nvcc`` of the wheels is."""
    return root / f"wheels-{wheels_version}/nvidia/cu{wheels_version.split('.', maxsplit=1)[0]}/bin/nvcc"


def gather(module: AnsibleModule) -> dict[str, Any]:
    """Return the facts on which :func:`_cuda.decide` decides."""
    release = platform.freedesktop_os_release()
    number = release.get("VERSION_ID", "").replace(".", "")
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", read("/proc/self/status"), re.MULTILINE)
    kernel = platform.release()
    cards = []
    for device in sorted(Path("/sys/bus/pci/devices").glob("*")):
        if read(f"{device}/vendor").strip() == NVIDIA and read(f"{device}/class").startswith("0x03"):
            cards.append("10de:" + read(f"{device}/device").strip().removeprefix("0x"))
    rows = [
        [cell.strip() for cell in line.split(",")]
        for line in ask(
            module, "nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"
        ).splitlines()
    ]
    rows = [row for row in rows if len(row) == 3]
    found = sorted(path for pattern in PLACES for path in map(str, Path("/").glob(pattern.lstrip("/"))))
    ours = str(own_nvcc(Path(module.params["root"]), module.params["wheels_version"]))
    found += [ours, *filter(None, [shutil.which("nvcc")])]
    launcher = str(Path(module.params["bin_dir"], "nvcc"))
    versions = {path: nvcc_version(module, path) for path in dict.fromkeys(found) if path != launcher}
    sources = Path("/etc/apt/sources.list.d").glob("*")
    return {
        "system": release.get("ID", "") + number,
        "machine": platform.machine(),
        "kernel": kernel,
        "container_signs": container_signs(module),
        "may_load_modules": bool(capabilities and int(capabilities[1], 16) & CAP_SYS_MODULE),
        "kernel_modules": Path(f"/lib/modules/{kernel}").is_dir(),
        "gpus": cards,
        "gpu_names": [row[0] for row in rows],
        "driver": rows[0][1] if rows else "",
        "capabilities": sorted({float(row[2]) for row in rows if re.fullmatch(r"\d+\.\d+", row[2])}),
        "stand_in": "STAND-IN" in ask(module, "nvidia-smi", "-L"),
        "nvcc": {path: version for path, version in versions.items() if version},
        "wheels_nvcc": ours,
        "compiler": shutil.which("g++") is not None,
        "repository": any("/compute/cuda/repos/" in read(str(file)) for file in sources),
    }


def fingerprint(key: str) -> str:
    """Return the fingerprint of an armoured OpenPGP key: the SHA-1 of its first packet, as version 4 has it."""
    lines = key.strip().splitlines()
    body = [line for line in lines[lines.index("") + 1 :] if line and line[0] not in "-="]
    data = base64.b64decode("".join(body))
    # An old or a new header; keys of this kind are between 256 bytes and 64 kB long.
    if data[0] & 0x40:
        first, second = data[1], data[2]
        size, start = ((first - 192) * 256 + second + 192, 3) if first >= 192 else (first, 2)
    else:
        start = 2 + (data[0] & 3 or 0) if data[0] & 3 != 2 else 5
        size = int.from_bytes(data[1:start], "big")
    packet = data[start : start + size]
    return hashlib.sha1(b"\x99" + len(packet).to_bytes(2, "big") + packet, usedforsecurity=False).hexdigest().upper()


def add_key(address: str) -> None:
    """Fetch the repository's key, and keep it when it has the pinned fingerprint."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "key")
        _download.fetch(address, target)
        text = read(str(target))
        try:
            found = fingerprint(text)
        except (ValueError, IndexError):
            found = "no key"
    if found != _cuda.KEY_FINGERPRINT:
        raise _box.BoxError(f"{address} is {found}, but {_cuda.KEY_FINGERPRINT} is pinned: nothing was installed.")
    _box.write_file(Path(_cuda.KEY_FILE), text)


def install_wheels(module: AnsibleModule) -> None:
    """Bring the pinned wheels into a folder that has its name only when it is whole."""
    root, version = Path(module.params["root"]), module.params["wheels_version"]
    root.mkdir(parents=True, exist_ok=True)
    whole, part = root / f"wheels-{version}", root / f"wheels-{version}.part"
    for old in (part, whole):
        if old.exists():
            shutil.rmtree(old)
    with tempfile.TemporaryDirectory() as scratch:
        # pip comes from an environment of its own: Debian's Python has none, and lets none install.
        _box.run(module, ["python3", "-m", "venv", f"{scratch}/pip"], purpose="Making an environment for pip")
        lines = Path(scratch, "requirements.txt")
        lines.write_text("\n".join(module.params["wheels"]) + "\n", encoding="utf-8")
        command = [f"{scratch}/pip/bin/pip", "install", "-q", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--target", str(part), "-r", str(lines)]
        _box.run(module, command, purpose=f"Fetching CUDA {version} from the package index")
    part.rename(whole)


def carry_out(module: AnsibleModule, step: _cuda.Step) -> None:
    """Do one step of the decision."""
    if step.key:
        add_key(step.key)
    for path, content in step.files.items():
        _box.write_file(Path(path), content)
    environment = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": "l", "LC_ALL": "C.UTF-8"}
    for command in step.commands:
        _box.run(module, command, purpose=step.action.capitalize(), environment=environment)
    if step.wheels:
        install_wheels(module)


def launcher(nvcc: str) -> str:
    """Return the text of the launcher that lies on PATH."""
    return (
        "#!/bin/sh\n"
        "# Made by gpuyard.cloud.cuda_toolkit.\n"
        f': "${{CUDA_HOME:={Path(nvcc).parents[1]}}}"\n'
        "export CUDA_HOME\n"
        f'exec "{nvcc}" "$@"\n'
    )


def prove(module: AnsibleModule, nvcc: str, facts: dict[str, Any]) -> str:
    """Compile the small kernel and, where there is a GPU, run it; return ``ran`` or ``compiled``."""
    with tempfile.TemporaryDirectory() as scratch:
        source, program = Path(scratch, "kernel.cu"), Path(scratch, "kernel")
        source.write_text(KERNEL, encoding="utf-8")
        kinds = [f"{capability:.1f}".replace(".", "") for capability in facts["capabilities"]]
        targets = [f"-gencode=arch=compute_{kind},code=sm_{kind}" for kind in kinds]
        command = [nvcc, *targets, "-o", str(program), str(source)]
        _box.run(module, command, purpose=f"Compiling a kernel with {nvcc}")
        if facts["stand_in"]:
            return "compiled"
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            [str(program)], capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            said = done.stdout.strip() or f"it ended with {done.returncode}"
            raise _box.BoxError(
                f"A kernel that {nvcc} compiled does not run on {', '.join(facts['gpu_names'])}: {said}.", unfit=True
            )
    return "ran"


def driver_runs(module: AnsibleModule) -> bool:
    """Load a new driver's modules, and tell whether it answers."""
    ask(module, "modprobe", "nvidia")
    return bool(ask(module, "nvidia-smi", "-L"))


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring CUDA to the wanted state, or in check mode say what that would take."""
    options = module.params
    before = gather(module)
    if options["rebooted"] and not before["driver"]:
        raise _box.BoxError(
            "The driver that was installed does not answer after the reboot: see dmesg, and nvidia-smi."
        )
    wanted = {name: options[name] for name in ("version", "minimum", "maximum", "source", "driver")}
    decision = _cuda.decide(before, wanted, options["wheels_version"])
    actions = [step.action for step in decision.steps]
    record_file = Path(options["root"], "verified.json")
    if not module.check_mode:
        for step in decision.steps:
            carry_out(module, step)
    reboot = not module.check_mode and any(step.driver for step in decision.steps) and not driver_runs(module)
    after = gather(module) if decision.steps and not module.check_mode else before
    nvcc = decision.nvcc
    if nvcc not in after["nvcc"] and not module.check_mode:
        raise _box.BoxError(f"{_cuda.wish(wanted)} was installed, but {nvcc} does not run.")
    left_alone, kernel = list(decision.left_alone), "no"
    on_path = Path(options["bin_dir"], "nvcc")
    # What the system's package manager puts there is on PATH already.
    if nvcc != "/usr/bin/nvcc" and read(str(on_path)) != launcher(nvcc):
        actions.append("write the launcher of nvcc")
        if not module.check_mode:
            _box.write_file(on_path, launcher(nvcc), 0o755)
    # What was proved with this compiler and driver need not be proved again.
    state = {"nvcc": nvcc, "version": after["nvcc"].get(nvcc), "driver": after["driver"], "gpus": after["gpu_names"]}
    record = _box.read_record(record_file)
    if reboot:
        left_alone.append("The kernel is proved after the reboot that the new driver needs.")
    elif record and {**record, "kernel": ""} == {**state, "kernel": ""}:
        kernel = str(record["kernel"])
    else:
        actions.append("prove it by a kernel")
        if not module.check_mode:
            kernel = prove(module, nvcc, after)
            _box.write_record(record_file, {**state, "kernel": kernel})
    if after["stand_in"]:
        left_alone.append("The kernel is not run: this box is the sandbox's, which has no GPU.")
    return {
        "changed": bool(actions),
        "actions": actions,
        "cuda": after["nvcc"].get(nvcc, decision.version),
        "nvcc": nvcc,
        "driver": after["driver"],
        "gpus": after["gpu_names"] or after["gpus"],
        "container": decision.container,
        "signs": before["container_signs"],
        "left_alone": left_alone,
        "kernel": kernel,
        "reboot_required": reboot,
        "diff": {
            "before": {"driver": before["driver"], "nvcc": before["nvcc"]},
            "after": {"driver": after["driver"], "nvcc": after["nvcc"], "to do": actions if module.check_mode else []},
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "default": ""},
            "minimum": {"type": "str", "default": ""},
            "maximum": {"type": "str", "default": ""},
            "source": {
                "type": "str",
                "choices": ["auto", "repository", "distribution", "wheels", "image"],
                "default": "auto",
            },
            "driver": {"type": "str", "choices": ["auto", "keep"], "default": "auto"},
            "wheels": {"type": "list", "elements": "str", "default": []},
            "wheels_version": {"type": "str", "default": ""},
            "root": {"type": "path", "default": "/opt/gpuyard/cuda"},
            "bin_dir": {"type": "path", "default": "/usr/local/bin"},
            "rebooted": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
