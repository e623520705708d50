"""The clouds that the sandbox emulates, one folder each. A new one is a folder and a row here."""

from __future__ import annotations

from gpuyard.sandbox.clouds.emulated import EmulatedCloud
from gpuyard.sandbox.clouds.lambda_cloud.emulated import EmulatedLambda
from gpuyard.sandbox.clouds.runpod.emulated import EmulatedRunPod
from gpuyard.sandbox.clouds.vast.emulated import EmulatedVast
from gpuyard.sandbox.clouds.vultr.emulated import EmulatedVultr

EMULATED: dict[str, EmulatedCloud] = {
    cloud.name: cloud for cloud in (EmulatedVast(), EmulatedVultr(), EmulatedLambda(), EmulatedRunPod())
}
"""By name."""

BASE_PATHS = {name: cloud.base_path for name, cloud in EMULATED.items()}
"""What their clients are given below the server's address, by name."""
