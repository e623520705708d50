# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs a module as Ansible does, with its real argument parsing, inside the test's process."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible.plugins.loader import init_plugin_loader

ROOT = Path(__file__).resolve().parents[3]

# Only one finder can be installed in a process, and under ansible-test there is one already.
if not any(type(finder).__name__ == "_AnsibleCollectionFinder" for finder in sys.meta_path):
    init_plugin_loader([str(ROOT / "collections")])

RunModule = Callable[..., dict[str, Any]]
KillModule = Callable[..., None]
_IN_A_PROCESS = """
import importlib, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ansible.module_utils.testing import patch_module_args
plugins = "ansible_collections.gpuyard.cloud.plugins"
importlib.import_module(f"{plugins}.module_utils._box").WORK = Path(sys.argv[2])
with patch_module_args(json.loads(sys.argv[4])):
    importlib.import_module(f"{plugins}.modules.{sys.argv[3]}").main()
"""


@pytest.fixture(autouse=True)
def detached_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep what modules run detached out of this machine's own folders, and end what a test has left."""
    box = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._box")
    monkeypatch.setattr(box, "WORK", tmp_path / "detached")
    progress = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._progress")
    monkeypatch.setattr(progress, "FILE", tmp_path / "progress.json")
    yield box.WORK
    box.end_detached()


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> RunModule:
    """Return a function that runs a module of this collection and returns its result."""

    def run(name: str, *, check: bool = False, **options: Any) -> dict[str, Any]:
        module = importlib.import_module(f"ansible_collections.gpuyard.cloud.plugins.modules.{name}")
        capsys.readouterr()
        with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture
def killed_module(detached_work: Path) -> KillModule:
    """Return a function that runs a module in a process of its own, and kills that as soon as ``sign`` has ``text``."""

    def kill(name: str, sign: Path, text: str, **options: Any) -> None:
        words = [str(ROOT / "collections"), str(detached_work), name, json.dumps(options)]
        process = subprocess.Popen([sys.executable, "-c", _IN_A_PROCESS, *words], stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (sign.exists() and text in sign.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(process.communicate()[0])
            time.sleep(0.02)
        process.kill()
        process.communicate()

    return kill
