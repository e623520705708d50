# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What one play has packed, the next play of the same code need not pack."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from ansible import constants as C

ROOT = Path(__file__).resolve().parents[3]
FILE = "ansible_collections.gpuyard.cloud.plugins.modules.{}-ZIP_DEFLATED-none"


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that returns what a play of this name has, of code that is a copy."""
    module = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.plugin_utils._packed")
    for folder in ("modules", "module_utils"):
        shutil.copytree(ROOT / "plugins" / folder, tmp_path / "plugins" / folder)
    monkeypatch.setattr(module, "COLLECTION", tmp_path)

    def play(name: str) -> Any:
        monkeypatch.setattr(C, "DEFAULT_LOCAL_TMP", str(tmp_path / name))
        return module.Packed(tmp_path / "kept")

    return play


def pack(play: Path, name: str, content: str = "") -> None:
    (play / "ansiballz_cache").mkdir(parents=True, exist_ok=True)
    (play / "ansiballz_cache" / FILE.format(name)).write_text(content or name)


def test_the_next_play_gets_it(packed: Any, tmp_path: Path) -> None:
    first = packed("one")
    pack(tmp_path / "one", "rust_toolchain")
    first.keep()
    second = packed("two")
    assert not second.has("rust_toolchain")
    second.bring()
    assert second.has("rust_toolchain") and not second.has("rust")
    assert (tmp_path / "two/ansiballz_cache" / FILE.format("rust_toolchain")).read_text() == "rust_toolchain"


def test_what_is_half_written_or_another_collections_is_left(packed: Any, tmp_path: Path) -> None:
    first = packed("one")
    pack(tmp_path / "one", "rust_toolchain")
    folder = tmp_path / "one/ansiballz_cache"
    for name in (f"{FILE.format('base_system')}-part", f"{FILE.format('base_system')}.lock", "ansible.modules.apt-x"):
        (folder / name).touch()
    first.keep()
    (kept,) = (tmp_path / "kept").iterdir()
    assert [file.name for file in kept.iterdir()] == [FILE.format("rust_toolchain")]
    assert kept.stat().st_mode & 0o77 == 0, "what is unpickled is written by nobody else"


@pytest.mark.parametrize("file", ["modules/rust_toolchain.py", "module_utils/_box.py"])
def test_other_code_is_packed_anew(packed: Any, tmp_path: Path, file: str) -> None:
    first = packed("one")
    pack(tmp_path / "one", "rust_toolchain")
    first.keep()
    with (tmp_path / "plugins" / file).open("a") as code:
        code.write("# another line\n")
    second = packed("two")
    second.bring()
    assert not second.has("rust_toolchain")


def test_what_nobody_uses_goes(packed: Any, tmp_path: Path) -> None:
    for age_days, name in ((8, "old"), (6, "recent")):
        (tmp_path / "kept" / name).mkdir(parents=True)
        at = time.time() - age_days * 86_400
        os.utime(tmp_path / "kept" / name, (at, at))
    first = packed("one")
    pack(tmp_path / "one", "rust_toolchain")
    first.keep()
    assert len(names := {folder.name for folder in (tmp_path / "kept").iterdir()}) == 2 and "recent" in names
