"""The stand-in for static.rust-lang.org has the formats that rustup reads; molecule's ``rust`` installs from it."""

from __future__ import annotations

import hashlib
import tarfile
import tomllib
from pathlib import Path

import pytest

from gpuyard.sandbox import rust_mirror, rust_mirror_build

TOP = "cargo-1.2.3-x86_64-unknown-linux-gnu"


def packed(tmp_path: Path, name: str) -> tuple[Path, str]:
    (tmp_path / "program").write_text("#!/bin/sh\n")
    (tmp_path / "library").write_text("a library")
    files = [("lib/deep/library.so", tmp_path / "library"), ("bin/cargo", tmp_path / "program")]
    (tmp_path / name).mkdir()
    target = tmp_path / name / f"{TOP}.tar.gz"
    return target, rust_mirror_build.pack(target, "cargo", files, "1.2.3 (a stand-in)")


def test_a_component_is_a_rust_installer_archive(tmp_path: Path) -> None:
    target, digest = packed(tmp_path, "once")
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest()
    with tarfile.open(target) as archive:
        members = {member.name: member for member in archive}

        def text(name: str) -> str:
            stream = archive.extractfile(members[f"{TOP}/{name}"])
            assert stream is not None
            return stream.read().decode()

        assert text("rust-installer-version") == "3\n" and text("components") == "cargo\n"
        assert text("cargo/manifest.in") == "file:bin/cargo\nfile:lib/deep/library.so\n"
        assert text("version") == "1.2.3 (a stand-in)\n"
        assert members[f"{TOP}/cargo/bin/cargo"].mode == 0o755 and members[f"{TOP}/cargo/lib/deep"].isdir()
    assert packed(tmp_path, "again")[1] == digest, "the same input gives the same bytes"


def test_the_manifest_is_version_2(tmp_path: Path) -> None:
    packages = {"rustc": ("dist/rustc.tar.gz", "aa"), "cargo": ("dist/cargo.tar.gz", "bb")}
    found = tomllib.loads(rust_mirror_build.manifest("2026-05-25", "1.2.3 (a stand-in)", packages))
    assert found["manifest-version"] == "2" and found["profiles"]["minimal"] == ["rustc", "cargo"]
    target = found["pkg"]["cargo"]["target"]["x86_64-unknown-linux-gnu"]
    assert target == {"available": True, "url": "https://static.rust-lang.org/dist/cargo.tar.gz", "hash": "bb"}
    parts = found["pkg"]["rust"]["target"]["x86_64-unknown-linux-gnu"]["components"]
    assert [part["pkg"] for part in parts] == ["rustc", "cargo"]


@pytest.mark.parametrize(
    ("name", "of_the_box"),
    [
        ("libc.so.6", True),
        ("libm.so.6", True),
        ("ld-linux-x86-64.so.2", True),
        ("libcurl.so.4", False),
        ("libcap.so.2", False),
    ],
)
def test_only_the_c_library_is_left_to_the_box(name: str, of_the_box: bool) -> None:
    assert bool(rust_mirror_build.BOX_LIBRARIES.fullmatch(name)) is of_the_box


def test_a_mirror_that_is_there_is_used(tmp_path: Path) -> None:
    mirror = rust_mirror.folder(tmp_path)
    mirror.mkdir()
    said: list[str] = []
    assert rust_mirror.build(tmp_path, said.append) == mirror
    assert said == []
    assert mirror.name.startswith(f"rust-mirror-{rust_mirror.RUST_VERSION}-")
