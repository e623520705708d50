"""Puts the collection into the wheel, so that `pip install gpuyard` is the whole installation.

An editable install gets none of it: a copy would hide the checkout, which reaches sys.path through `dev-mode-dirs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PARTS = ("galaxy.yml", "meta", "playbooks", "plugins", "roles")
DESTINATION = "ansible_collections/gpuyard/cloud"


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the collection's parts to a standard wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Extend what the wheel carries; ``version`` is ``standard`` or ``editable``."""
        if version == "standard":
            for part in PARTS:
                build_data["force_include"][str(Path(self.root) / part)] = f"{DESTINATION}/{part}"
            build_data["force_include"][str(Path(self.root) / "workloads")] = "gpuyard/workloads"
