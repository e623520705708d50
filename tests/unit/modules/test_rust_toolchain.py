# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module's own decisions, against a stand-in for rustup. The real one is in the molecule scenario ``rust``."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import platform
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TARGET = f"{platform.machine()}-unknown-linux-gnu"
# Stands in for rustup-init and, once installed, for rustup, cargo and rustc: it keeps its state in RUSTUP_HOME.
RUSTUP = """#!/bin/sh
# a stand-in for rustup
mkdir -p "$RUSTUP_HOME" "$CARGO_HOME/bin"
case "${0##*/} $*" in
  rustup-init*)
    cp "$0" "$CARGO_HOME/bin/rustup"
    for program in cargo rustc rustdoc; do ln -sf rustup "$CARGO_HOME/bin/$program"; done ;;
  "rustup --version") echo "rustup 1.2.3 (stand-in)" ;;
  "rustup component list --installed --toolchain "*) cat "$RUSTUP_HOME/$5" ;;
  "rustup toolchain install "*)
    echo begun >> "$CARGO_HOME/downloads"; while [ -e "$CARGO_HOME/hold" ]; do sleep 0.02; done
    shift 2; version=$1; shift; echo cargo > "$RUSTUP_HOME/$version"
    [ "$version" = 1.99.0 ] && { echo "error: no release found for 1.99.0" >&2; exit 1; }
    while [ $# -gt 0 ]; do [ "$1" = --component ] && echo "$2" >> "$RUSTUP_HOME/$version"; shift; done ;;
  "rustup default") cat "$RUSTUP_HOME/default" ;;
  "rustup default "*) echo "$2 (default)" > "$RUSTUP_HOME/default" ;;
  cargo*) read -r version rest < "$RUSTUP_HOME/default" 2>/dev/null; echo "cargo ${version:-1.96.0} (stand-in)" ;;
  rustc*) echo "rustc 1.96.0 (stand-in)" ;;
  *) echo "unexpected: ${0##*/} $*" >&2; exit 2 ;;
esac
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a log."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def options(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Return the module's options, with a distribution server on loopback."""
    program = tmp_path / f"server/rustup/archive/1.2.3/{TARGET}/rustup-init"
    program.parent.mkdir(parents=True)
    program.write_text(RUSTUP)
    handler = functools.partial(Quiet, directory=str(tmp_path / "server"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "version": "1.96.0",
            "root": str(tmp_path / "rust"),
            "bin_dir": str(tmp_path / "bin"),
            "dist_server": f"http://127.0.0.1:{server.server_address[1]}/",
            "rustup_version": "1.2.3",
            "rustup_sha256": {TARGET: ["0" * 64, hashlib.sha256(RUSTUP.encode()).hexdigest()]},
        }
        server.shutdown()


def test_installs_once(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    predicted = run_module("rust_toolchain", check=True, **options)
    assert predicted["changed"] and not (tmp_path / "rust").exists() and not (tmp_path / "bin").exists()
    first = run_module("rust_toolchain", **options)
    assert first["actions"] == predicted["actions"]
    assert first["actions"] == [
        "install rustup 1.2.3",
        "install toolchain 1.96.0",
        "make 1.96.0 the default",
        "write launchers",
    ]
    assert first["cargo"] == "cargo 1.96.0 (stand-in)" and first["rustc"] == "rustc 1.96.0 (stand-in)"
    second = run_module("rust_toolchain", **options)
    assert not second["changed"] and second["diff"]["before"] == second["diff"]["after"]


def test_a_killed_modules_download_is_taken_over(
    run_module: Any, killed_module: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """B6"""
    (tmp_path / "rust/cargo").mkdir(parents=True)
    hold, downloads = tmp_path / "rust/cargo/hold", tmp_path / "rust/cargo/downloads"
    hold.touch()
    killed_module("rust_toolchain", downloads, "begun", **options)
    hold.unlink()
    assert run_module("rust_toolchain", **options)["actions"] == ["make 1.96.0 the default", "write launchers"]
    assert downloads.read_text().count("begun") == 1


def test_an_installation_that_was_only_begun_is_followed_by_the_next_task(
    run_module: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "rust/cargo").mkdir(parents=True)
    hold, downloads = tmp_path / "rust/cargo/hold", tmp_path / "rust/cargo/downloads"
    hold.touch()
    begun = run_module("rust_toolchain", **options, wait=False)
    assert begun["under_way"] and begun["changed"] and "install toolchain 1.96.0" in begun["actions"]
    threading.Timer(0.3, hold.unlink).start()
    ended = run_module("rust_toolchain", **options)
    assert not ended["under_way"] and ended["actions"] == ["make 1.96.0 the default", "write launchers"]
    assert ended["cargo"] == "cargo 1.96.0 (stand-in)" and downloads.read_text().count("begun") == 1
    right = run_module("rust_toolchain", **options, wait=False)
    assert not right["changed"] and not right["under_way"], "what is there is not begun again"


def test_launchers_need_nothing_from_the_shell(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    run_module("rust_toolchain", **options)
    said = subprocess.check_output(
        [str(tmp_path / "bin/cargo"), "--version"], env={"PATH": os.environ["PATH"]}, text=True
    )
    assert said == "cargo 1.96.0 (stand-in)\n"


def test_a_launcher_replaces_a_link_and_does_not_write_through_it(
    run_module: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "other").write_text("another cargo")
    (tmp_path / "bin/cargo").symlink_to(tmp_path / "other")
    run_module("rust_toolchain", **options)
    assert (tmp_path / "other").read_text() == "another cargo"
    assert not (tmp_path / "bin/cargo").is_symlink()


def test_a_component_is_added(run_module: Any, options: dict[str, Any]) -> None:
    run_module("rust_toolchain", **options)
    added = run_module("rust_toolchain", **{**options, "components": ["clippy"]})
    assert added["actions"] == ["install toolchain 1.96.0"]
    assert not run_module("rust_toolchain", **{**options, "components": ["clippy"]})["changed"]


def test_a_version_below_the_minimum_is_refused_at_once(
    run_module: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    result = run_module("rust_toolchain", **{**options, "version": "1.84.1"})
    assert result["failed"] and "Rust 1.84.1 is older than the minimum 1.85" in result["msg"]
    assert not (tmp_path / "rust").exists()
    assert "failed" not in run_module("rust_toolchain", **{**options, "version": "1.100.0"})


def test_a_wrong_checksum_installs_nothing(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    result = run_module("rust_toolchain", **{**options, "rustup_sha256": {TARGET: ["f" * 64]}})
    assert result["failed"] and f"but {'f' * 64} is pinned: nothing was installed" in result["msg"]
    assert not (tmp_path / "rust").exists()


def test_failures_are_clear(run_module: Any, options: dict[str, Any]) -> None:
    foreign = run_module("rust_toolchain", **{**options, "rustup_sha256": {"riscv": ["0" * 64]}})
    assert f"no checksum for this machine's {TARGET}, only for: riscv" in foreign["msg"]
    gone = run_module("rust_toolchain", **{**options, "rustup_version": "9.9.9"})
    assert "cannot be fetched: the server answered 404" in gone["msg"]
    unknown = run_module("rust_toolchain", **{**options, "version": "1.99.0"})
    assert unknown["msg"].startswith("Installing Rust 1.99.0 from http://127.0.0.1")
    assert "no release found for 1.99.0" in unknown["msg"]
