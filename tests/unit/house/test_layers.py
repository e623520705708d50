"""The arrows between the layers go down only."""

from __future__ import annotations

import ast
from pathlib import Path

import gpuyard

CORE = Path(gpuyard.__file__).parent
# How a client finds a sandbox that runs: one file, read without anything of the sandbox itself.
FOUND_BY = {"gpuyard.sandbox", "gpuyard.sandbox.info", "gpuyard.sandbox.info.SandboxInfo"}
FRONTS = {"api", "cli.py", "demo.py", "play.py", "sandbox", "testing"}


def imports(file: Path) -> set[str]:
    """Return the modules of gpuyard that ``file`` imports, functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return {name for name in found if name.startswith("gpuyard.")}


def test_nothing_below_the_api_knows_the_api_or_the_sandbox() -> None:
    wrong = [
        f"{file.relative_to(CORE)} imports {name}"
        for file in CORE.rglob("*.py")
        if file.relative_to(CORE).parts[0] not in FRONTS
        for name in imports(file)
        if name.startswith(("gpuyard.api", "gpuyard.sandbox")) and name not in FOUND_BY
    ]
    assert wrong == []
