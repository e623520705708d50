# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""CUDA on a box (B4, V6): decisions over recorded facts of machines, and the module with stand-ins for the programs."""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box, _cuda, _download
from ansible_collections.gpuyard.cloud.plugins.modules import cuda_toolkit

RunModule = Callable[..., dict[str, Any]]

WANTED = {"version": "", "minimum": "", "maximum": "", "source": "auto", "driver": "auto"}
OURS = "/opt/gpuyard/cuda/wheels-13.5/nvidia/cu13/bin/nvcc"
MACHINES: dict[str, dict[str, Any]] = {
    # A Vultr or AWS machine as its plain image comes.
    "ubuntu 22.04 VM, A100, no driver": {
        "system": "ubuntu2204",
        "kernel": "5.15.0-119-generic",
        "gpus": ["10de:20b5"],
    },
    "ubuntu 22.04 VM, A16, Vultr's driver": {
        "system": "ubuntu2204",
        "gpus": ["10de:25b6"],
        "gpu_names": ["NVIDIA A16-2Q"],
        "driver": "550.90.07",
        "capabilities": [8.6],
    },
    "ubuntu 24.04 VM, V100, no driver": {"system": "ubuntu2404", "kernel": "6.8.0-45-generic", "gpus": ["10de:1db6"]},
    "ubuntu 22.04 VM, Lambda Stack, H100": {
        "system": "ubuntu2204",
        "gpus": ["10de:2330"],
        "gpu_names": ["NVIDIA H100 PCIe"],
        "driver": "570.124.06",
        "capabilities": [9.0],
        "nvcc": {"/usr/bin/nvcc": "12.8.61"},
        "compiler": True,
    },
    "debian 12 VM, T4, old driver": {
        "system": "debian12",
        "kernel": "6.1.0-25-cloud-amd64",
        "gpus": ["10de:1eb8"],
        "gpu_names": ["Tesla T4"],
        "driver": "470.256.02",
        "capabilities": [7.5],
    },
    "Vast container, RTX 4090, CUDA image": {
        "container_signs": ["/.dockerenv", "the environment of process 1", "a driver that the host mounts"],
        "gpus": ["10de:2684"],
        "gpu_names": ["NVIDIA GeForce RTX 4090"],
        "driver": "560.35.03",
        "capabilities": [8.9],
        "nvcc": {"/usr/local/cuda/bin/nvcc": "12.4.131"},
        "compiler": True,
        "repository": True,
    },
    "Vast container, RTX 3090, runtime image": {
        "container_signs": ["/.dockerenv"],
        "gpus": ["10de:2204"],
        "gpu_names": ["NVIDIA GeForce RTX 3090"],
        "driver": "535.161.08",
        "capabilities": [8.6],
    },
    "Vast container, A100, old driver": {
        "container_signs": ["/.dockerenv"],
        "gpu_names": ["NVIDIA A100-SXM4-80GB"],
        "driver": "550.54.15",
        "capabilities": [8.0],
    },
    "RunPod container, A40, debian 13": {
        "system": "debian13",
        "container_signs": ["the environment of process 1"],
        "gpu_names": ["NVIDIA A40"],
        "driver": "580.65.06",
        "capabilities": [8.6],
    },
    "container without signs": {"may_load_modules": False, "kernel_modules": False, "gpu_names": ["Tesla T4"]},
}


def facts(name: str, **changes: Any) -> dict[str, Any]:
    """Return the facts of a machine: of an Ubuntu 22.04 VM where nothing else is said."""
    machine = MACHINES[name]
    vm = not machine.get("container_signs")
    return {
        "system": "ubuntu2204",
        "machine": "x86_64",
        "kernel": "5.15.0-119-generic",
        "container_signs": [],
        "may_load_modules": vm,
        "kernel_modules": vm,
        "gpus": [],
        "gpu_names": [],
        "driver": "",
        "capabilities": [],
        "stand_in": False,
        "nvcc": {},
        "wheels_nvcc": OURS,
        "compiler": True,
        "repository": False,
        **machine,
        **changes,
    }


def decide(name: str, wanted: dict[str, str] | None = None, **changes: Any) -> _cuda.Decision:
    return _cuda.decide(facts(name, **changes), WANTED | (wanted or {}), "13.5")


def packages(decision: _cuda.Decision) -> list[str]:
    """Return what apt is asked to install, in order."""
    commands = [command for step in decision.steps for command in step.commands if "install" in command]
    return [name for command in commands for name in command[command.index("--") + 1 :]]


@pytest.mark.parametrize(
    ("name", "wanted", "installed", "cuda"),
    [
        (
            "ubuntu 22.04 VM, A100, no driver",
            {},
            ["linux-headers-5.15.0-119-generic", "nvidia-open", "cuda-toolkit-12-8"],
            "12.8",
        ),
        ("ubuntu 22.04 VM, A16, Vultr's driver", {"version": "12.4"}, ["cuda-toolkit-12-4"], "12.4"),
        ("ubuntu 22.04 VM, A16, Vultr's driver", {"source": "distribution"}, ["nvidia-cuda-toolkit"], "11.5"),
        (
            "ubuntu 24.04 VM, V100, no driver",
            {"maximum": "12.6"},
            ["linux-headers-6.8.0-45-generic", "cuda-drivers-580", "cuda-toolkit-12-6"],
            "12.6",
        ),
        ("ubuntu 22.04 VM, Lambda Stack, H100", {"minimum": "12.1"}, [], "12.8.61"),
        (
            "debian 12 VM, T4, old driver",
            {"version": "12"},
            ["linux-headers-6.1.0-25-cloud-amd64", "nvidia-open", "cuda-toolkit-12-8"],
            "12.8",
        ),
        ("Vast container, RTX 4090, CUDA image", {}, [], "12.4.131"),
        ("Vast container, RTX 4090, CUDA image", {"version": "12.6"}, ["cuda-toolkit-12-6"], "12.6"),
        ("Vast container, RTX 3090, runtime image", {}, ["cuda-toolkit-12-8"], "12.8"),
        # Forward compatibility: on a data-centre GPU newer CUDA runs on an older driver.
        ("Vast container, A100, old driver", {"version": "13.0"}, ["cuda-compat-13-0", "cuda-toolkit-13-0"], "13.0"),
        ("RunPod container, A40, debian 13", {}, ["nvidia-cuda-toolkit"], "12.4"),
        ("RunPod container, A40, debian 13", {"minimum": "13"}, [], "13.5"),
    ],
)
def test_b4_v6_what_is_installed(name: str, wanted: dict[str, str], installed: list[str], cuda: str) -> None:
    decision = decide(name, wanted)
    assert (packages(decision), decision.version) == (installed, cuda)
    container = bool(MACHINES[name].get("container_signs"))
    assert decision.container is container
    assert (
        not container
        or any("and stays as it is in a container" in why for why in decision.left_alone)
        or "compat" in str(installed)
    )
    # Never a driver, headers or settings of the system in a container.
    assert not container or not any(step.driver or _cuda.HOLD_FILE in step.files for step in decision.steps)
    updates = [step.action for step in decision.steps].count("fetch package lists")
    assert updates == bool(installed)


def test_b4_the_commands_of_a_whole_installation() -> None:
    decision = decide("ubuntu 22.04 VM, A100, no driver", {"version": "12.4"}, compiler=False)
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3"]
    install = [*apt, "install", "--no-install-recommends", "--"]
    assert [(step.action, list(step.commands)) for step in decision.steps] == [
        ("add NVIDIA's package repository", []),
        ("fetch package lists", [[*apt, "update"]]),
        ("install the driver (nvidia-open)", [[*install, "linux-headers-5.15.0-119-generic", "nvidia-open"]]),
        ("install g++", [[*install, "g++"]]),
        ("install cuda-toolkit-12-4", [[*install, "cuda-toolkit-12-4"]]),
    ]
    place = "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/x86_64/"
    assert decision.steps[0].key == f"{place}3bf863cc.pub"
    assert decision.steps[0].files == {
        _cuda.SOURCES_FILE: f"Types: deb\nURIs: {place}\nSuites: /\nSigned-By: {_cuda.KEY_FILE}\n"
    }
    # Held against unattended upgrades.
    assert '"nvidia-";' in decision.steps[2].files[_cuda.HOLD_FILE] and decision.steps[2].driver
    assert decision.nvcc == "/usr/local/cuda-12.4/bin/nvcc"
    # An image may have the repository already, with a key of its own; on Arm it is another folder.
    there = decide("ubuntu 22.04 VM, A100, no driver", repository=True)
    assert not any(step.key for step in there.steps)
    arm = decide("ubuntu 22.04 VM, A100, no driver", machine="aarch64")
    assert arm.steps[0].key.endswith("/ubuntu2204/sbsa/3bf863cc.pub")


@pytest.mark.parametrize(
    ("name", "wanted", "changes", "sentence"),
    [
        (
            "Vast container, RTX 3090, runtime image",
            {"version": "13.0"},
            {},
            "CUDA 13.0 needs a driver of at least 580, and the driver 535.161.08 is too old: in a container",
        ),
        (
            "Vast container, RTX 3090, runtime image",
            {"version": "12.4"},
            {"driver": "470.57.02"},
            r"needs a driver of at least 525, .*take another machine \(needs.cuda: '12.4'\), or ask for an",
        ),
        ("container without signs", {}, {"gpus": ["10de:1eb8"]}, "there is no driver: in a container it is the host's"),
        ("container without signs", {}, {}, r"There is no NVIDIA GPU here: neither the bus nor a driver shows one\."),
        ("ubuntu 22.04 VM, A100, no driver", {"driver": "keep"}, {}, "there is no driver: driver=keep forbids one"),
        (
            "ubuntu 22.04 VM, A100, no driver",
            {},
            {"system": "debian13"},
            "gpuyard installs one on ubuntu2204, ubuntu2404, debian12, not on debian13",
        ),
        (
            "RunPod container, A40, debian 13",
            {"version": "12.8"},
            {},
            r"CUDA 12\.8 cannot be had for debian13 \(x86_64\) from auto: distribution has 12\.4; wheels has 13\.5\.",
        ),
        (
            "Vast container, RTX 4090, CUDA image",
            {"source": "image", "minimum": "12.6", "maximum": "12.9"},
            {},
            r"no nvcc of CUDA at least 12\.6 and at most 12\.9 \(found: 12\.4\.131\)",
        ),
        (
            "ubuntu 22.04 VM, A16, Vultr's driver",
            {"version": "11.5"},
            {
                "capabilities": [9.0],
                "gpu_names": ["H100"],
                "system": "ubuntu2204",
                "nvcc": {"/usr/bin/nvcc": "11.5.119"},
            },
            r"H100 needs CUDA 11\.8 or newer, and CUDA 11\.5\.119 is what there is",
        ),
        (
            "RunPod container, A40, debian 13",
            {"source": "wheels"},
            {"capabilities": [7.0], "gpu_names": ["Tesla V100"]},
            r"CUDA 13\.5 does not compile for Tesla V100 any more: ask for a maximum of 12\.9\.",
        ),
    ],
)
def test_b4_what_cannot_be_is_one_sentence(
    name: str, wanted: dict[str, str], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(_box.BoxError, match=sentence) as caught:
        decide(name, wanted, **changes)
    # Only another machine can help where there is no GPU, or the driver is the host's.
    said = str(caught.value)
    unfit = "in a container it is the host's" in said or "There is no NVIDIA GPU" in said
    assert caught.value.details == ({"unfit": True} if unfit else {})


def test_a_container_is_told_by_several_facts() -> None:
    vm = {"container_signs": [], "may_load_modules": True, "kernel_modules": True}
    assert not _cuda.is_container(vm)
    # A hardened machine drops the right, and a small kernel has no modules: one of the two is no container yet.
    assert not _cuda.is_container(vm | {"may_load_modules": False})
    assert not _cuda.is_container(vm | {"kernel_modules": False})
    assert _cuda.is_container(vm | {"may_load_modules": False, "kernel_modules": False})
    # A privileged container has all that a machine has.
    assert _cuda.is_container(vm | {"container_signs": ["/.dockerenv"]})


def test_versions_fit_by_the_numbers_that_are_named() -> None:
    for version, wanted, right in [
        ("12.4.131", {"version": "12.4"}, True),
        ("12.4.131", {"version": "12"}, True),
        ("12.14.1", {"version": "12.1"}, False),
        ("12.4.131", {"maximum": "12.4"}, True),
        ("12.5", {"maximum": "12.4"}, False),
        ("12.4.99", {"minimum": "12.4.131"}, False),
        ("13.0", {"minimum": "12.4", "maximum": "13"}, True),
    ]:
        assert _cuda.fits(version, wanted) is right, (version, wanted)


def test_forward_compatibility_is_for_data_centre_gpus_only() -> None:
    assert _cuda.is_data_centre(["NVIDIA A100-SXM4-80GB", "Tesla T4"])
    for name in ("NVIDIA GeForce RTX 4090", "NVIDIA RTX A6000", "Quadro RTX 4000", "NVIDIA TITAN V"):
        assert not _cuda.is_data_centre(["Tesla T4", name]), name
    assert not _cuda.is_data_centre([])


def test_the_fingerprint_of_the_repositorys_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packet = b"\x04" + bytes(range(256)) + b"rest"
    right = hashlib.sha1(b"\x99" + len(packet).to_bytes(2, "big") + packet).hexdigest().upper()
    old = b"\x99" + len(packet).to_bytes(2, "big") + packet
    new = b"\xc6" + bytes([192 + (len(packet) - 192) // 256, (len(packet) - 192) % 256]) + packet
    for data in (old, new):
        lines = base64.encodebytes(data + b"\xb4\x02me").decode()
        text = f"-----BEGIN PGP PUBLIC KEY BLOCK-----\nVersion: x\n\n{lines}=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"
        assert cuda_toolkit.fingerprint(text) == right
    monkeypatch.setattr(_download, "fetch", lambda _url, target: target.write_text(text))
    monkeypatch.setattr(_cuda, "KEY_FILE", str(tmp_path / "key.asc"))
    with pytest.raises(_box.BoxError, match=f"is {right}, but EB69.* is pinned: nothing was installed"):
        cuda_toolkit.add_key("https://example.org/key")
    monkeypatch.setattr(_download, "fetch", lambda _url, target: target.write_text("<html>"))
    with pytest.raises(_box.BoxError, match="is no key, but"):
        cuda_toolkit.add_key("https://example.org/key")
    assert not (tmp_path / "key.asc").exists()
    monkeypatch.setattr(_cuda, "KEY_FINGERPRINT", right)
    monkeypatch.setattr(_download, "fetch", lambda _url, target: target.write_text(text))
    cuda_toolkit.add_key("https://example.org/key")
    assert (tmp_path / "key.asc").read_text() == text


# -- the module, with a stand-in for nvcc ------------------------------------------------------------------------------


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The facts of a container with a stand-in for nvcc, whose program ends with the number in ``ends``."""
    nvcc = tmp_path / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f'#!/bin/sh\n# STAND-IN\necho "$@" >> {tmp_path}/calls\n'
        f'while [ "$1" != -o ]; do shift; done\nprintf "#!/bin/sh\\necho no GPU; exit $(cat {tmp_path}/ends)" > $2\n'
        "chmod +x $2\n"
    )
    nvcc.chmod(0o755)
    (tmp_path / "ends").write_text("0")
    found = facts("Vast container, RTX 4090, CUDA image", nvcc={str(nvcc): "12.4.131"})
    monkeypatch.setattr(cuda_toolkit, "gather", lambda _module: found)
    return found


def test_b4_nvcc_is_on_path_and_proved_once(box: dict[str, Any], tmp_path: Path, run_module: RunModule) -> None:
    options = {"version": "12.4", "root": str(tmp_path / "root"), "bin_dir": str(tmp_path / "bin")}
    planned = run_module("cuda_toolkit", check=True, **options)
    assert planned["actions"] == ["write the launcher of nvcc", "prove it by a kernel"]
    assert not (tmp_path / "bin").exists() and not (tmp_path / "calls").exists()
    done = run_module("cuda_toolkit", **options)
    assert (done["changed"], done["kernel"], done["cuda"], done["container"]) == (True, "ran", "12.4.131", True)
    assert "-gencode=arch=compute_89,code=sm_89" in (tmp_path / "calls").read_text()
    assert f'exec "{tmp_path}/cuda/bin/nvcc" "$@"' in (tmp_path / "bin/nvcc").read_text()
    again = run_module("cuda_toolkit", **options)
    assert (again["changed"], again["kernel"], again["reboot_required"]) == (False, "ran", False)
    box["driver"] = "570.86.15"
    assert run_module("cuda_toolkit", **options)["actions"] == ["prove it by a kernel"]


def test_b4_a_kernel_that_does_not_run_is_told(box: dict[str, Any], tmp_path: Path, run_module: RunModule) -> None:
    (tmp_path / "ends").write_text("1")
    options = {"root": str(tmp_path / "root"), "bin_dir": str(tmp_path / "bin")}
    failed = run_module("cuda_toolkit", **options)
    assert failed["msg"].endswith("compiled does not run on NVIDIA GeForce RTX 4090: no GPU.")
    assert not (tmp_path / "root/verified.json").exists()
    # A box of the sandbox has no GPU: compiled is all that can be proved there, and it says so.
    box["stand_in"] = True
    done = run_module("cuda_toolkit", **options)
    assert done["kernel"] == "compiled" and "this box is the sandbox's" in done["left_alone"][-1]
    assert json.loads((tmp_path / "root/verified.json").read_text())["kernel"] == "compiled"


def test_v6_a_new_driver_that_does_not_answer_asks_for_one_reboot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_module: RunModule
) -> None:
    found = facts("ubuntu 22.04 VM, A100, no driver", nvcc={"/usr/bin/nvcc": "12.4.1"})
    done: list[str] = []
    monkeypatch.setattr(cuda_toolkit, "gather", lambda _module: found)
    monkeypatch.setattr(cuda_toolkit, "carry_out", lambda _module, step: done.append(step.action))
    monkeypatch.setattr(cuda_toolkit, "driver_runs", lambda _module: False)
    options = {"root": str(tmp_path / "root"), "bin_dir": str(tmp_path / "bin")}
    result = run_module("cuda_toolkit", **options)
    assert result["reboot_required"] and result["kernel"] == "no"
    assert "install the driver (nvidia-open)" in done
    failed = run_module("cuda_toolkit", rebooted=True, **options)
    assert failed["msg"].startswith("The driver that was installed does not answer after the reboot")


PYTHON = """#!/bin/sh
# STAND-IN for the Python that makes an environment with pip, and for this pip, which is cut off at its first call.
mkdir -p "$3/bin"
cat > "$3/bin/pip" <<'PIP'
#!/bin/sh
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/nvidia"
if [ ! -e {folder}/pip ]; then
  touch "$2/nvidia/half"; echo $$ > {folder}/pip.new; mv {folder}/pip.new {folder}/pip; exec sleep 600
fi
touch "$2/nvidia/whole"
PIP
chmod +x "$3/bin/pip"
"""


def test_b4_a_toolkit_of_which_the_download_was_killed_is_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/python3"
    program.write_text(PYTHON.replace("{folder}", str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    root, sign = tmp_path / "cuda", tmp_path / "pip"

    class Module:
        """STAND-IN for Ansible's module: its options, and real programs."""

        params: ClassVar = {"root": str(root), "wheels_version": "13.0", "wheels": ["nvcc==13.0"]}

        def run_command(self, words: list[str], **_options: Any) -> tuple[int, str, str]:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout, done.stderr

    first = multiprocessing.get_context("fork").Process(target=cuda_toolkit.install_wheels, args=(Module(),))
    first.start()
    deadline = time.monotonic() + 60
    while not sign.exists():
        assert first.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.join()
    os.kill(int(sign.read_text()), signal.SIGKILL)
    assert [path.name for path in root.iterdir()] == ["wheels-13.0.part"]
    cuda_toolkit.install_wheels(Module())
    assert [path.name for path in root.iterdir()] == ["wheels-13.0"]
    assert [path.name for path in (root / "wheels-13.0/nvidia").iterdir()] == ["whole"]
