# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""B7: the module's own decisions, against a stand-in for elan. The real one is in the molecule scenario ``lean``."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import platform
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAME = "leanprover/lean4:v4.27.0"
FOLDER = "elan/toolchains/leanprover--lean4---v4.27.0"
SYSTEM = {"x86_64": "linux", "aarch64": "linux_aarch64"}[platform.machine()]
RELEASE = f"leanprover/lean4/releases/download/v4.27.0/lean-4.27.0-{SYSTEM}.tar.zst"
ELAN_RELEASE = f"leanprover/elan/releases/download/v1.2.3/elan-{platform.machine()}-unknown-linux-gnu.tar.gz"
# Stands in for elan-init and, once installed, for elan and its proxies.
ELAN = """#!/bin/sh
# STAND-IN for elan
place="$ELAN_HOME/toolchains/$(echo "$3" | sed 's|/|--|; s|:|---|')"
case "${0##*/} $*" in
  "elan-init -y --no-modify-path --default-toolchain none")
    mkdir -p "$ELAN_HOME/bin"; for program in elan lean lake; do cp "$0" "$ELAN_HOME/bin/$program"; done ;;
  "elan --version") echo "elan 1.2.3 (STAND-IN)" ;;
  "elan toolchain install "*)
    mkdir -p "$place/bin"; cp "$SERVED" "$place/bin/lean"
    [ -e "$SERVED.fails" ] && { echo "error: no such release: '$3'" >&2; exit 1; }; true ;;
  "elan default "*) echo "default_toolchain = \\"$2\\"" > "$ELAN_HOME/settings.toml" ;;
  "elan run "*) exec "$ELAN_HOME/toolchains/$(echo "$2" | sed 's|/|--|; s|:|---|')/bin/lean" "$4" ;;
  lean*) echo "lean of $ELAN_HOME" ;;
  *) echo "unexpected: ${0##*/} $*" >&2; exit 2 ;;
esac
"""


def lean(version: str) -> bytes:
    """Return a program that stands in for Lean."""
    return f'#!/bin/sh\necho "Lean (version {version}, STAND-IN, Release)"\n'.encode()


def archive(top: str, files: dict[str, bytes]) -> bytes:
    """Return a gzipped archive; ``tar`` goes by what is in it, so it may be called ``.tar.zst``, as a real one is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{top}{name}")
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A mirror on loopback that knows ranges, and cuts ``cuts`` answers off in their middle."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.cuts = 0
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    """Serves what the server holds."""

    server: Server

    def do_GET(self) -> None:
        content, wanted = self.server.files.get(self.path.lstrip("/")), self.headers["Range"]
        self.server.asked.append((self.path.lstrip("/"), wanted))
        if content is None:
            self.send_error(404)
            return
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if begin >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        end = len(content)
        if self.server.cuts:
            self.server.cuts -= 1
            end = begin + (end - begin) // 2
        self.wfile.write(content[begin:end])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        server.files[ELAN_RELEASE] = archive("", {"elan-init": ELAN.encode()})
        server.files[RELEASE] = archive("lean-4.27.0-linux/", {"bin/lean": lean("4.27.0"), "bin/lake": b"lake"})
        yield server
        server.shutdown()


@pytest.fixture
def options(server: Server, tmp_path: Path) -> dict[str, Any]:
    return {
        "toolchain": NAME,
        "mirror": server.address,
        "elan_version": "1.2.3",
        "elan_sha256": {platform.machine(): [sha256(server.files[ELAN_RELEASE])]},
        "known_sha256": {NAME: {platform.machine(): [sha256(server.files[RELEASE])]}},
        "root": str(tmp_path / "lean"),
        "bin_dir": str(tmp_path / "bin"),
    }


def test_installs_once(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    predicted = run_module("lean_toolchain", check=True, **options)
    assert predicted["changed"] and not (tmp_path / "lean").exists() and not (tmp_path / "bin").exists()
    first = run_module("lean_toolchain", **options)
    assert first["actions"] == predicted["actions"]
    assert first["actions"] == ["install elan 1.2.3", f"install {NAME}", f"make {NAME} the default", "write launchers"]
    assert first["lean"] == "Lean (version 4.27.0, STAND-IN, Release)" and first["elan"] == "1.2.3"
    assert not list((tmp_path / "lean/downloads").iterdir())
    second = run_module("lean_toolchain", **options)
    assert not second["changed"] and second["diff"]["before"] == second["diff"]["after"]


def test_launchers_need_nothing_from_the_shell(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    run_module("lean_toolchain", **options)
    command, env = [str(tmp_path / "bin/lean"), "x"], {"PATH": os.environ["PATH"]}
    assert subprocess.check_output(command, env=env, text=True) == f"lean of {tmp_path}/lean/elan\n"


def test_the_toolchain_of_a_file_is_installed(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "lean-toolchain"
    file.write_text("v4.27.0\n")
    of_file = {**options, "file": str(file)}
    del of_file["toolchain"]
    assert run_module("lean_toolchain", **of_file)["toolchain"] == NAME
    file.write_text("the newest one, please\n")
    result = run_module("lean_toolchain", **of_file)
    assert result["msg"] == (
        f"{file} is 'the newest one, please', which is no exact toolchain; write one such as leanprover/lean4:v4.27.0."
    )
    file.unlink()
    assert (
        f"There is no file {file}: file must name the lean-toolchain" in run_module("lean_toolchain", **of_file)["msg"]
    )


@pytest.mark.parametrize("name", ["stable", "leanprover/lean4:nightly", "lean4:v4.27.0", "a/b:v1; rm -rf /"])
def test_what_is_no_exact_toolchain_is_refused(
    run_module: Any, options: dict[str, Any], tmp_path: Path, name: str
) -> None:
    result = run_module("lean_toolchain", **{**options, "toolchain": name})
    assert f"toolchain is {name!r}, which is no exact toolchain" in result["msg"]
    assert not (tmp_path / "lean").exists()


def test_a_download_that_is_cut_off_goes_on(run_module: Any, options: dict[str, Any], server: Server) -> None:
    # elan is there, so the only file that is fetched is the toolchain.
    run_module("lean_toolchain", **{**options, "sha256": "0" * 64})
    server.cuts, server.asked = 2, []
    assert "failed" not in run_module("lean_toolchain", **options)
    whole = len(server.files[RELEASE])
    ranges = [wanted for _path, wanted in server.asked]
    assert ranges == [None, f"bytes={whole // 2}-", f"bytes={whole // 2 + (whole - whole // 2) // 2}-"]


def test_a_killed_download_goes_on(run_module: Any, options: dict[str, Any], server: Server, tmp_path: Path) -> None:
    """What an earlier run has left is used; what is of another file is not."""
    part = tmp_path / f"lean/downloads/{RELEASE.rsplit('/', 1)[1]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files[RELEASE][:100])
    assert "failed" not in run_module("lean_toolchain", **options)
    assert (RELEASE, "bytes=100-") in server.asked and (RELEASE, None) not in server.asked
    (tmp_path / FOLDER.replace("elan/", "lean/elan/") / "bin/lean").unlink()
    part.write_bytes(b"x" * 100)
    assert run_module("lean_toolchain", **options)["actions"] == [f"install {NAME}"]
    assert (RELEASE, None) in server.asked


def test_a_wrong_checksum_leaves_nothing(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    result = run_module("lean_toolchain", **{**options, "sha256": "f" * 64})
    assert f"but {'f' * 64} is pinned: nothing was installed" in result["msg"]
    assert not list((tmp_path / "lean").rglob("*lean4*")) and not list((tmp_path / "lean/downloads").iterdir())
    wrong = {**options, "elan_sha256": {platform.machine(): ["e" * 64]}, "root": str(tmp_path / "other")}
    assert f"but {'e' * 64} is pinned" in run_module("lean_toolchain", **wrong)["msg"]
    assert not (tmp_path / "other").exists()


def test_an_archive_is_installed_without_a_network(
    run_module: Any, options: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "lean.tar.gz"
    file.write_bytes(archive("any/", {"bin/lean": lean("4.29.0")}))
    digest = sha256(file.read_bytes())
    of_archive = {**options, "toolchain": "v4.29.0", "archive": str(file)}
    assert f"archive={file} needs sha256" in run_module("lean_toolchain", **of_archive)["msg"]
    assert not (tmp_path / "lean").exists()
    assert f"{file} has the SHA-256 {digest}, but" in run_module("lean_toolchain", **of_archive, sha256="a" * 64)["msg"]
    assert "version 4.29.0," in run_module("lean_toolchain", **of_archive, sha256=digest)["lean"]
    assert file.exists() and (RELEASE, None) not in server.asked
    other = {**of_archive, "toolchain": "v4.30.0", "sha256": digest}
    result = run_module("lean_toolchain", **other)
    assert result["msg"].startswith(
        f"{file} holds Lean (version 4.29.0, STAND-IN, Release), not leanprover/lean4:v4.30.0"
    )
    assert not (tmp_path / "lean/elan/toolchains/leanprover--lean4---v4.30.0").exists()
    gone = run_module("lean_toolchain", **{**other, "archive": "/none.tar"})
    assert gone["msg"] == "There is no file /none.tar, which archive names."


def test_elan_installs_what_has_no_known_checksum(
    run_module: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Lean's own servers only. A part that a killed elan has left is not taken for a toolchain."""
    served = tmp_path / "served"
    served.write_bytes(lean("4.31.0"))
    served.chmod(0o755)
    monkeypatch.setenv("SERVED", str(served))
    unknown = {**options, "toolchain": "v4.31.0"}
    result = run_module("lean_toolchain", **unknown)
    assert "needs sha256, the checksum of the archive of leanprover/lean4:v4.31.0, which is not known" in result["msg"]
    assert not (tmp_path / "lean").exists()
    run_module("lean_toolchain", **options)
    official = {**unknown, "mirror": "https://github.com"}
    (tmp_path / "served.fails").touch()
    failed = run_module("lean_toolchain", **official)
    assert failed["msg"].startswith("Installing leanprover/lean4:v4.31.0 with elan failed with exit code 1:")
    assert "no such release: 'leanprover/lean4:v4.31.0'" in failed["msg"]
    (tmp_path / "served.fails").unlink()
    done = run_module("lean_toolchain", **official)
    assert done["actions"] == ["install leanprover/lean4:v4.31.0", "make leanprover/lean4:v4.31.0 the default"]
    assert not run_module("lean_toolchain", **official)["changed"]


def test_the_elan_of_a_package_is_used(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    package = {key: value for key, value in options.items() if not key.startswith("elan")}
    program = tmp_path / "usr/elan"
    package["elan"] = str(program)
    assert (
        run_module("lean_toolchain", **package)["msg"] == f"There is no elan at {program}: have the package elan first."
    )
    program.parent.mkdir()
    program.write_text(ELAN)
    program.chmod(0o755)
    assert run_module("lean_toolchain", **package)["actions"][0] == f"install {NAME}"
    assert not run_module("lean_toolchain", **package)["changed"]
    assert f'exec "{program.parent}/lake" "$@"' in (tmp_path / "bin/lake").read_text()


def test_failures_are_clear(run_module: Any, options: dict[str, Any], server: Server, tmp_path: Path) -> None:
    foreign = run_module("lean_toolchain", **{**options, "elan_sha256": {"riscv": ["0" * 64]}})
    assert f"no checksum for this machine's {platform.machine()}, only for: riscv" in foreign["msg"]
    fork = run_module("lean_toolchain", **{**options, "toolchain": "me/fork:v1.0.0", "sha256": "0" * 64})
    assert fork["msg"] == "sha256 needs archive, because me/fork:v1.0.0 is no release of leanprover/lean4."
    del server.files[RELEASE]
    unknown = run_module("lean_toolchain", **options)
    assert unknown["msg"] == f"{server.address}/{RELEASE} cannot be fetched: the server answered 404 Not Found."
    assert not (tmp_path / "lean" / FOLDER).exists()
    server.files[RELEASE] = b"not an archive"
    digest = {"sha256": sha256(b"not an archive")}
    assert "Unpacking" in run_module("lean_toolchain", **options, **digest)["msg"]
    server.shutdown()
    server.server_close()
    silent = run_module("lean_toolchain", **{**options, "sha256": "0" * 64})
    assert "cannot be fetched after 4 attempts: " in silent["msg"]
