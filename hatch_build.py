"""Puts the collection into the wheel, so that `pip install gpuyard` is the whole installation.

An editable install gets none of it: a copy would hide the checkout, which reaches sys.path through `dev-mode-dirs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PARTS = ("galaxy.yml", "meta", "playbooks", "plugins", "roles", "workloads", "examples")
DESTINATION = "ansible_collections/gpuyard/cloud"
BUILT = {"__pycache__", "target", ".venv"}


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the collection's parts to a standard wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Extend what the wheel carries; ``version`` is ``standard`` or ``editable``."""
        if version != "standard":
            return
        root = Path(self.root)
        for part in PARTS:
            top = root / part
            for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
                name = file.relative_to(root)
                if file.is_file() and not BUILT & set(name.parts):
                    build_data["force_include"][str(file)] = f"{DESTINATION}/{name}"
