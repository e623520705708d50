"""The two box images: what a rented machine looks like before any role has touched it.

``localhost/gpuyard-box-vm``: minimal Debian with systemd and sshd, as a Vultr machine. ``localhost/gpuyard-box-ml``:
the same without systemd as process 1 and with compilers, git and tmux, as Vast's machine-learning images.

Another Debian than this machine's is there only where it is asked for (``python -m gpuyard.sandbox.images NEXT_IMAGE``,
for the tests of roles): one image that is used in both ways, see :func:`ways`.

They are made with mmdebstrap from the package sources of this machine and cached twice: in the engine's storage, under
a label with the recipe's hash, and as a tarball in :func:`gpuyard.paths.cache`. Where mmdebstrap is missing but the
engine can pull images, a Containerfile on ``debian`` is used instead. That second way has been tried with Docker on a
Debian tree under the registry image's name; no registry was in reach.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpuyard import paths
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.providers.base import Progress
from gpuyard.sandbox.engine import Engine, EngineError, find

VM_IMAGE = "localhost/gpuyard-box-vm"
ML_IMAGE = "localhost/gpuyard-box-ml"
NEXT_IMAGE = "localhost/gpuyard-box-trixie"
NEXT_VM_IMAGE = f"{NEXT_IMAGE}-vm"  # the same one, with systemd
_NEXT_SUITE = "trixie"
RECIPE_LABEL = "gpuyard.recipe"

_BOX = Path(__file__).parent / "box"
_COMMON_PACKAGES = (
    *("openssh-server", "python3", "python3-apt", "sudo", "curl", "ca-certificates", "dbus", "iproute2", "procps"),
    *("less", "systemd", "systemd-sysv"),
)
_ML_PACKAGES = ("build-essential", "git", "tmux", "python3-venv", "rsync")
# Documentation is left out, and dpkg does not wait for the disk after every file: a box lives for minutes.
_DPKG_OPTIONS = ["force-unsafe-io", "path-exclude=/usr/share/man/*", "path-exclude=/usr/share/doc/*"]
_FINISH = "rm -f /etc/ssh/ssh_host_* /etc/machine-id /var/lib/dbus/machine-id; touch /etc/machine-id"
_VM_FINISH = (
    "systemctl set-default multi-user.target && systemctl enable ssh.service gpuyard-user-data.service && "
    "systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer "
    "console-getty.service getty@tty1.service systemd-udevd.service systemd-logind.service "
    "systemd-networkd-wait-online.service dpkg-db-backup.timer"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one box image is made."""

    image: str
    layers: tuple[str, ...]  # folders below box/, later ones win
    packages: tuple[str, ...]
    finish: str  # a shell command run in the finished root file system
    command: str  # the image's default command, as a Containerfile instruction
    suite: str = ""  # the release's code name; "": this machine's

    @property
    def changes(self) -> list[str]:
        """The Containerfile instructions that turn the root file system into the image."""
        # The signal that ends systemd is given with the container: `docker import` takes no STOPSIGNAL.
        return [f"LABEL {RECIPE_LABEL}={self.digest}", self.command]

    @property
    def digest(self) -> str:
        """A hash of everything that decides the content, short enough for a file name."""
        parts = [self.image, *self.packages, self.finish, self.command, *_DPKG_OPTIONS, *_suite(), platform.machine()]
        parts += [self.suite] if self.suite else []
        return hashlib.sha256("\0".join(parts).encode() + self.overlay()).hexdigest()[:16]

    def overlay(self) -> bytes:
        """Return the files below ``box/`` as a tar archive with the same bytes every time."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for layer in self.layers:
                root = _BOX / layer
                for file in sorted(path for path in root.rglob("*") if path.is_file()):
                    name = file.relative_to(root).as_posix()
                    program = name.startswith(("usr/local/bin/", "usr/local/sbin/"))
                    add_file(archive, name, file.read_bytes(), 0o755 if program else 0o644)
        return buffer.getvalue()


VM = Recipe(VM_IMAGE, ("common", "vm"), _COMMON_PACKAGES, f"{_FINISH}; {_VM_FINISH}", 'CMD ["/lib/systemd/systemd"]')
ML = Recipe(
    ML_IMAGE,
    ("common", "ml"),
    (*_COMMON_PACKAGES, *_ML_PACKAGES),
    _FINISH,
    'CMD ["/usr/local/sbin/gpuyard-init"]',
)
RECIPES = (VM, ML)
NEXT = Recipe(
    NEXT_IMAGE,
    ("common", "ml", "vm"),
    (*_COMMON_PACKAGES, *_ML_PACKAGES),
    f"{_FINISH}; {_VM_FINISH}",
    'CMD ["/usr/local/sbin/gpuyard-init"]',
    suite=_NEXT_SUITE,
)


def ways(image: str) -> tuple[str, bool]:
    """Return the image that a rental's ``image`` is made of, and whether systemd is its process 1."""
    return (NEXT_IMAGE, True) if image == NEXT_VM_IMAGE else (image, image == VM_IMAGE)


def add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    """Add one file, owned by root and with a fixed time, to an open archive."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(content))


def ensure(engine: Engine, progress: Progress, recipes: tuple[Recipe, ...] = RECIPES) -> None:
    """Make the images that are missing or out of date. The first time takes one or two minutes."""
    if all(engine.image_label(recipe.image, RECIPE_LABEL) == recipe.digest for recipe in recipes):
        return
    folder = paths.cache() / "boxes"
    folder.mkdir(parents=True, exist_ok=True)
    # Images of different releases are made side by side.
    with _lock(folder / f"lock{recipes[0].suite}"):
        for recipe in recipes:
            if engine.image_label(recipe.image, RECIPE_LABEL) != recipe.digest:
                _make(engine, recipe, folder, progress)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Keep two builds of the same images apart; the second then finds the first one's result."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make(engine: Engine, recipe: Recipe, folder: Path, progress: Progress) -> None:
    name = recipe.image.rpartition("/")[2]
    tarball = folder / f"{name}-{recipe.digest}.tar"
    if not tarball.exists():
        if not shutil.which("mmdebstrap"):
            _build_from_registry(engine, recipe, progress)
            return
        progress(
            f"Building the box image {name} with mmdebstrap (once, {len(recipe.packages)} packages and Debian's base)"
        )
        _mmdebstrap(recipe, tarball)
        for old in folder.glob(f"{name}-*.tar"):
            if old != tarball:
                old.unlink()
    progress(f"Importing the box image {name} into {engine.kind}")
    engine.import_image(tarball, recipe.image, recipe.changes)


def _suite() -> tuple[str, ...]:
    """Return the release's code name and the files that say where this machine gets its packages."""
    release = platform.freedesktop_os_release()
    apt = Path("/etc/apt")
    files = [apt / "sources.list.d" / "debian.sources", apt / "sources.list.d" / "ubuntu.sources", apt / "sources.list"]
    found = [str(file) for file in files if file.is_file() and file.stat().st_size]
    return (release.get("VERSION_CODENAME", ""), *found)


def _sources(recipe: Recipe, folder: Path) -> tuple[str, list[str]]:
    """Return the code name of the recipe's release, and the files that say where its packages are."""
    own, *files = _suite()
    if not recipe.suite or recipe.suite == own:
        return own, files
    copies = []
    for file in map(Path, files):
        copy = folder / file.name
        copy.write_text(file.read_text(encoding="utf-8").replace(own, recipe.suite), encoding="utf-8")
        copies.append(str(copy))
    return recipe.suite, copies


def _mmdebstrap(recipe: Recipe, tarball: Path) -> None:
    suite, *sources = _suite()
    if not suite or not sources:
        raise UsageError(
            "The box image cannot be built here: mmdebstrap needs Debian or Ubuntu package sources below /etc/apt."
        )
    with tempfile.TemporaryDirectory(prefix="gpuyard-image-") as scratch:
        suite, sources = _sources(recipe, Path(scratch))
        overlay = Path(scratch) / "overlay.tar"
        overlay.write_bytes(recipe.overlay())
        partial = tarball.with_suffix(".partial.tar")
        command = [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(recipe.packages)}",
            *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
            f"--customize-hook=tar-in {overlay} /",
            f"--customize-hook=chroot \"$1\" sh -c '{recipe.finish}'",
            suite,
            str(partial),
            *sources,
        ]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False)
        if done.returncode:
            partial.unlink(missing_ok=True)
            errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["E: no message"]
            raise GpuyardError(f"The box image {recipe.image} could not be built: {errors[0]}")
        partial.replace(tarball)


def _build_from_registry(engine: Engine, recipe: Recipe, progress: Progress) -> None:
    """Build on the registry's ``debian`` image."""
    base = f"debian:{recipe.suite or 'bookworm'}"
    progress(f"Building the box image {recipe.image} on {base} (mmdebstrap is not installed)")
    with tempfile.TemporaryDirectory(prefix="gpuyard-image-") as scratch:
        folder = Path(scratch)
        (folder / "overlay.tar").write_bytes(recipe.overlay())
        lines = [
            f"FROM docker.io/library/{base}",
            f"RUN apt-get update && apt-get install -y --no-install-recommends {' '.join(recipe.packages)}",
            "ADD overlay.tar /",
            f"RUN {recipe.finish}",
            *recipe.changes,
        ]
        (folder / "Containerfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
        try:
            engine.build_image(folder, recipe.image)
        except EngineError as error:
            raise UsageError(
                f"The box image cannot be built: {error} Install mmdebstrap with `apt-get install mmdebstrap` to build "
                "it from package sources instead."
            ) from None


def main(names: list[str]) -> int:
    """Make the images with these names, where they are missing: ``python -m gpuyard.sandbox.images NAME…``."""
    known = {recipe.image: recipe for recipe in (*RECIPES, NEXT)}
    recipes = tuple({ways(name)[0]: known[ways(name)[0]] for name in names}.values())
    if recipes:
        ensure(find(), print, recipes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
