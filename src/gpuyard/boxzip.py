"""The archive that brings gpuyard's own code onto a rented box: the stage runner and checkpoints, in one zip file.

Python runs it as it is, with no installation. Its bytes depend on its sources only, so that a box that has it already
is recognised by the hash. The same list of sources is what the type checker and the tests take as Python 3.10;
``python -m gpuyard.boxzip`` prints it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from gpuyard.files import write_whole

PACKAGES = ("box", "formats")
MODULES = ("__init__.py", "cloud_sync.py", "errors.py", "files.py", "py.typed")
OLDEST_PYTHON = (3, 10)
"""The Python of Ubuntu 22.04, the oldest system that boxes are rented with."""
# The oldest time that a zip can hold; the real one would make every build differ.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def sources() -> list[Path]:
    """Return the files that travel to a box, in the order in which the archive holds them."""
    package = Path(__file__).parent
    files = [package / name for name in MODULES]
    for name in PACKAGES:
        files += sorted((package / name).rglob("*.py"))
    return files


def content() -> bytes:
    """Return the archive's bytes."""
    package = Path(__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in sources():
            entry = zipfile.ZipInfo(f"gpuyard/{file.relative_to(package).as_posix()}", _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, whatever the controller is
            # Not compressed: a hundred kilobytes are sent as fast, and compressed bytes vary with the version of zlib.
            archive.writestr(entry, file.read_bytes(), compress_type=zipfile.ZIP_STORED)
    return buffer.getvalue()


def build(path: Path) -> str:
    """Write the archive to ``path`` in one step, unless it is there already; return its SHA-256 in hexadecimal."""
    data = content()
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, mode=0o644)
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    print(*(file for file in sources() if file.suffix == ".py"), sep="\n")
