"""What a workload says of Lean and Pantograph, and what of it can be checked before anything is rented."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema, model_validator

from gpuyard.errors import UsageError
from gpuyard.workload.values import Commit, Folder, PersistentRoot, Positive, RelativePath, Section, Url, show

# As in plugins/modules/lean_toolchain.py, which a box has without this package.
_EXACT = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+:[A-Za-z0-9.-]*\d[A-Za-z0-9.-]*")
_SHORT = re.compile(r"v?(\d+\.\d+\.\d+[A-Za-z0-9.-]*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SERVER = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?(?:/[^\s?#@]*)?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_EXAMPLE = "leanprover/lean4:v4.27.0"


def exact_toolchain(text: str) -> str:
    """Return the whole name of a Lean toolchain; raise :class:`ValueError` for one that names no exact one."""
    if short := _SHORT.fullmatch(text):
        return f"leanprover/lean4:v{short[1]}"
    if not _EXACT.fullmatch(text):
        raise ValueError(f"must be an exact toolchain such as '{_EXAMPLE}', not {show(text)}")
    return text


def _toolchain(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be an exact toolchain such as '{_EXAMPLE}', not {show(value)}")
    return exact_toolchain(value.strip())


def _sha256(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value.lower()):
        raise ValueError(f"must be a SHA-256 of 64 hexadecimal digits, not {show(value)}")
    return value.lower()


def _server(value: object) -> str:
    if not isinstance(value, str) or not _SERVER.fullmatch(value):
        raise ValueError(f"must be an address such as https://mirror.example.org, not {show(value)}")
    return value.rstrip("/")


def _archive(value: object) -> str:
    if not isinstance(value, str) or not (value.startswith("/") or _SERVER.fullmatch(value)):
        raise ValueError(f"must be an address (https://…), or an absolute path on the machine, not {show(value)}")
    return value


def _revision(value: object) -> str:
    if not isinstance(value, str) or not _REVISION.fullmatch(value):
        raise ValueError(f"must be a tag or commit of Mathlib such as 'v4.27.0', not {show(value)}")
    return value


_TEXT = WithJsonSchema({"type": "string", "minLength": 1})
Toolchain = Annotated[str, BeforeValidator(_toolchain), _TEXT]
Sha256 = Annotated[str, BeforeValidator(_sha256), WithJsonSchema({"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"})]
Server = Annotated[str, BeforeValidator(_server), _TEXT]
Archive = Annotated[str, BeforeValidator(_archive), _TEXT]
Revision = Annotated[str, BeforeValidator(_revision), _TEXT]


class Lean(Section):
    """The Lean 4 toolchain."""

    toolchain: Toolchain | None = None
    """The exact toolchain, such as ``leanprover/lean4:v4.27.0``; ``v4.27.0`` for short."""
    file: RelativePath | None = None
    """A ``lean-toolchain`` file of the repository that names it, in place of ``toolchain``."""
    elan: Literal["release", "package"] = "release"
    """Where elan comes from: the pinned ``release``, or the distribution's ``package``."""
    mirror: Server = "https://github.com"
    """The server of the releases of elan and Lean, or a mirror with the same paths."""
    archive: Archive | None = None
    """An archive of the toolchain in place of the release: an address, or a path on the machine. Needs ``sha256``."""
    sha256: Sha256 | None = None
    """The SHA-256 of the toolchain's archive. Needed with ``archive``, and for most toolchains with ``mirror``."""

    @property
    def system_packages(self) -> list[str]:
        """The distribution's packages that the toolchain needs, as in roles/lean/defaults."""
        return ["ca-certificates", "curl", "git", "zstd", *(["elan"] if self.elan == "package" else [])]

    @model_validator(mode="after")
    def _one_toolchain(self) -> Lean:
        if (self.toolchain is None) == (self.file is None):
            raise ValueError("must have either toolchain or file (a lean-toolchain file of the repository)")
        if self.archive is not None and self.sha256 is None:
            raise ValueError("must have sha256 with archive, so that a wrong archive is noticed")
        return self


class Pantograph(Section):
    """Pantograph, which lets programs talk to Lean. It needs ``lean``."""

    path: Folder | None = None
    """The folder of the repository that holds its source, such as a submodule."""
    url: Url | None = None
    """The address of its Git repository, in place of ``path``."""
    commit: Commit | None = None
    """The commit of ``url``, all 40 hexadecimal digits."""
    mathlib: Revision | None = None
    """The tag or commit of Mathlib that is added to what it requires. None: it knows Lean's own library only."""
    mathlib_url: Url = "https://github.com/leanprover-community/mathlib4"
    """The address of Mathlib's Git repository."""
    project: Folder | None = None
    """The folder of a Lean project in the repository in whose environment it is to work, in place of ``mathlib``."""
    cache: PersistentRoot | None = None
    """The folder in which Mathlib's prebuilt files are kept as they are fetched, about 2 GB, such as one on a volume.
    None: beside Pantograph."""
    cache_url: Server | None = None
    """A mirror of Mathlib's cache."""
    timeout_s: Positive = 300.0
    """How long it may take to load what it imports and to answer, in seconds, when it is tried."""

    @model_validator(mode="after")
    def _one_source(self) -> Pantograph:
        if (self.path is None) == (self.url is None):
            raise ValueError("must have either path (a folder of the repository) or url and commit")
        if (self.url is None) != (self.commit is None):
            raise ValueError("must have url and commit together, so that a run can be repeated")
        if self.mathlib is not None and self.project is not None:
            raise ValueError("must not have mathlib with project, whose own lake-manifest.json names its Mathlib")
        return self


def check(root: Path, names: Collection[str], lean: Lean, pantograph: Pantograph | None) -> None:
    """Raise :class:`UsageError` when the repository's toolchains would fail on the machine.

    ``names`` is what goes there of ``root``.
    """
    listed = set(names)
    folders = {"pantograph.path": pantograph.path, "pantograph.project": pantograph.project} if pantograph else {}
    files = {"lean.file": lean.file} | {
        key: posixpath.join(folder, "lean-toolchain") for key, folder in folders.items() if folder
    }
    found = {"lean.toolchain": lean.toolchain} if lean.toolchain else {}
    for key, file in files.items():
        if file is None:
            continue
        name = posixpath.normpath(file)
        if name not in listed:
            exists = (root / name).is_file()
            why = "does not go to the machine" if exists else f"is not in {root}"
            raise UsageError(f"{key}: the file {name} {why}; a submodule goes there with repository.submodules: true.")
        text = (root / name).read_text(encoding="utf-8", errors="replace").strip()
        try:
            found[f"{key} ({name})"] = exact_toolchain(text)
        except ValueError as error:
            raise UsageError(f"{key}: the file {name} {error}.") from None
    (first, wanted), *others = found.items()
    for key, toolchain in others:
        if toolchain != wanted:
            raise UsageError(
                f"{first} is the toolchain {wanted}, but {key} is {toolchain}: what one has built, the other cannot "
                "load; bring both to the same toolchain."
            )
