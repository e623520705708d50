"""What a workload says of the large files that its stages read: model weights and data sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from gpuyard.workload.values import COMMIT, Folder, Positive, Section, SomeWords, Switch, show

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCHEMES = ("s3", "b2", "gs", "az", "https", "http", "bucket")
RUN_BUCKET = "bucket://"
"""What the address of something in the run's own bucket begins with."""
_HUB_CACHE = ".huggingface"  # below persist.root
# What has to be set where the play runs. For S3 a machine may have a role in place of keys.
_KEYS = {
    "b2": ("B2_KEY_ID", "B2_APP_KEY"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "az": ("AZURE_STORAGE_CONNECTION_STRING",),
}


def _repository(value: object) -> str:
    if not isinstance(value, str) or not _REPOSITORY.fullmatch(value):
        raise ValueError(f"must be a repository of the Hub, of the form owner/name, not {show(value)}")
    return value


def _revision(value: object) -> str:
    # A branch would have to be looked up and kept for the run's later machines, and the file would not say what ran.
    if not isinstance(value, str) or not COMMIT.fullmatch(value):
        raise ValueError(
            f"must be a commit of 40 hexadecimal digits, not {show(value)}, because a branch names other files "
            "tomorrow; the Hub lists a model's commits at https://huggingface.co/OWNER/NAME/commits/main"
        )
    return value


def _sha256(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"must be a SHA-256 of 64 lower-case hexadecimal digits in quotes, not {show(value)}")
    return value


def _source(value: object) -> str:
    address = urlsplit(value) if isinstance(value, str) and value.isprintable() and " " not in value else None
    if address is None or address.scheme not in _SCHEMES or not address.netloc:
        raise ValueError(
            "must be an address that begins with bucket:// (the run's own bucket), s3://, b2://, gs://, az:// or "
            f"https://, not {show(value)}"
        )
    if "@" in address.netloc:
        raise ValueError("must not hold a user or password: they come from the environment")
    if address.query or address.fragment:
        raise ValueError(f"must not have anything from '?' or '#' on, not {show(value)}")
    if ".." in address.path.split("/"):
        raise ValueError(f"must not have '..' in its path, not {show(value)}")
    return str(value)


def _store(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/") or ".." in value.split("/") or not value.strip("/"):
        raise ValueError(f"must be an absolute path below /, without '..', not {show(value)}")
    return value.rstrip("/")


_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
Repository = Annotated[
    str, BeforeValidator(_repository), WithJsonSchema({"type": "string", "pattern": f"^{_REPOSITORY.pattern}$"})
]
Revision = Annotated[
    str, BeforeValidator(_revision), WithJsonSchema({"type": "string", "pattern": f"^{COMMIT.pattern}$"})
]
Sha256 = Annotated[str, BeforeValidator(_sha256), WithJsonSchema({"type": "string", "pattern": f"^{_SHA256.pattern}$"})]
Source = Annotated[str, BeforeValidator(_source), WithJsonSchema(_TEXT)]
Store = Annotated[str, BeforeValidator(_store), WithJsonSchema(_TEXT)]


class _Files(Section):
    """Which files of a place are wanted, and how they are checked."""

    origin: Source | None = Field(default=None, alias="from")
    """Where they lie, in place of the Hub: ``bucket://path`` in the run's own bucket, ``s3://bucket/path``, or another
    address as in ``datasets``."""
    endpoint: SomeWords | None = None
    """The address of an S3 service other than Amazon's. Default: for ``b2`` that in ``B2_S3_ENDPOINT``, else the one of
    the run's bucket. For ``az`` with ``public`` it is the account's address."""
    public: Switch = False
    """Whether everybody may read it, so that no keys are needed."""
    include: list[SomeWords] = []
    """Patterns of the files to fetch, such as ``*.safetensors`` or ``train/**``; as rclone takes them, for the Hub as
    ``hf`` does. None: all."""
    exclude: list[SomeWords] = []
    """Patterns of files to leave out."""
    checksums: SomeWords | None = None
    """A file at the origin with lines as ``sha256sum`` writes them: exactly these files are wanted, and verified."""
    sha256: Sha256 | None = None
    """The SHA-256 of that file; of the data set itself when it is a single file."""

    @property
    def scheme(self) -> str:
        """The kind of place, "" for the Hub."""
        return urlsplit(self.origin or "").scheme

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.endpoint and self.scheme not in ("s3", "b2", "gs", "az", ""):
            raise ValueError(f"has an endpoint, which {self.scheme}:// already names")
        if self.checksums and (self.include or self.exclude):
            raise ValueError("must not have include or exclude with checksums, which names the files")
        several = (self.origin or "").endswith("/") or self.include or self.exclude
        if self.sha256 and not self.checksums and several:
            raise ValueError("has a sha256 for several files: name a file with their checksums in checksums")
        return self

    def variables(self) -> tuple[str, ...]:
        """Return the variables that must be set where the play runs."""
        return () if self.public else _KEYS.get(self.scheme, ())


class Weights(_Files):
    """A model, every file of which is verified: of the Hugging Face Hub at one commit, or in a bucket."""

    repository: Repository | None = None
    """The repository on the Hub, such as ``deepseek-ai/DeepSeek-Prover-V2-7B``."""
    revision: Revision | None = None
    """The commit, all 40 hexadecimal digits in quotes."""
    directory: Folder
    """The folder for the files, relative to the repository of the code, in one of ``persist.directories``."""
    store: Store | None = None
    """The folder of a volume in which the files lie; ``directory`` becomes a link to it. What the volume holds already
    is verified and not fetched."""
    gated: Switch = False
    """Whether the Hub asks for ``HF_TOKEN``, which then must be set where the play runs."""

    @model_validator(mode="after")
    def _one_place(self) -> Weights:
        if self.origin and (self.repository or self.revision or self.gated):
            raise ValueError("must have either from or repository, revision and gated, which are the Hub's")
        if not self.origin and not (self.repository and self.revision):
            raise ValueError(
                "must have repository and revision (of the Hub), or from (an address such as bucket://path)"
            )
        if not self.origin and (self.endpoint or self.public or self.checksums or self.sha256):
            raise ValueError("must have from with endpoint, public, checksums or sha256, since the Hub names its own")
        return self

    def variables(self) -> tuple[str, ...]:
        """Return the variables that must be set where the play runs."""
        return ("HF_TOKEN",) if self.gated else super().variables()


HUB_KEYS = ("repository", "revision", "directory", "store", "include", "exclude", "gated")
"""What a machine is told of weights that are the Hub's."""


class Origin(_Files):
    """Where a data set comes from."""

    origin: Source = Field(alias="from")
    """A file or folder: ``bucket://path`` in the run's own bucket, ``s3://bucket/path``, ``b2://bucket/path``,
    ``gs://bucket/path``, ``az://container/path`` or ``https://host/path``; a folder of a web server ends with a
    slash."""
    disk_gb: Positive | None = None
    """The disk that it takes with all that ``prepare`` makes of it, in gigabytes. Default: the size of its files."""


class Dataset(Origin):
    """A data set: fetched once for each volume, and verified as far as its origin says checksums."""

    to: Folder
    """The folder for it, relative to the repository of the code, in one of ``persist.directories``."""
    store: Store | None = None
    """The folder of a volume in which the files lie; ``to`` becomes a link to it."""
    fallback: Origin | None = None
    """Another origin, which is taken when the first one is not there or its ``disk_gb`` is not free."""
    prepare: SomeWords | None = None
    """A shell command that makes of it what the stages read, run in the repository once for each state of the data;
    ``DATASET`` holds the folder. It may be cut off, and then runs again."""

    def variables(self) -> tuple[str, ...]:
        """Return the variables that must be set where the play runs."""
        return tuple(dict.fromkeys([*super().variables(), *(self.fallback.variables() if self.fallback else ())]))


def places(weights: Mapping[str, Weights], datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """Return the folders of the repository that hold such files, by the key of the workload that names them."""
    return {
        **{f"weights.{name}.directory": entry.directory for name, entry in weights.items()},
        **{f"datasets.{name}.to": entry.to for name, entry in datasets.items()},
    }


def check_places(found: Mapping[str, str], directories: Iterable[str]) -> None:
    """Raise :class:`ValueError` for a folder that is not kept, or that lies in another one."""
    kept = list(directories)
    for key, folder in found.items():
        if not any(f"{folder}/".startswith(f"{directory}/") for directory in kept):
            raise ValueError(
                f"must have {key} ({folder}) in one of persist.directories, where the code finds it after each change: "
                f"{', '.join(kept) or 'they are none'}"
            )
        for other, path in found.items():
            if other != key and f"{folder}/".startswith(f"{path}/"):
                raise ValueError(f"must have {key} ({folder}) outside the folder of {other} ({path})")


def to_box(weights: Mapping[str, Weights], datasets: Mapping[str, Dataset]) -> dict[str, Any]:
    """Return what a machine is told of both, as JSON-able values: weights that are not the Hub's come as a data set."""
    stored = {
        f"{name} (weights)": Dataset.model_validate(
            {
                **entry.model_dump(by_alias=True, exclude={"repository", "revision", "directory", "gated"}),
                "to": entry.directory,
            }
        )
        for name, entry in weights.items()
        if entry.origin
    }
    return {
        "weights": {
            name: entry.model_dump(mode="json", include={*HUB_KEYS})
            for name, entry in weights.items()
            if not entry.origin
        },
        "datasets": {
            name: entry.model_dump(mode="json", by_alias=True) for name, entry in {**stored, **datasets}.items()
        },
    }


def in_run_bucket(weights: Mapping[str, Weights], datasets: Mapping[str, Dataset]) -> dict[str, str]:
    """Return the addresses that lie in the run's own bucket, by the key of the workload that names them."""
    found: dict[str, str] = {}
    for kind, entries in (("weights", weights), ("datasets", datasets)):
        for name, entry in entries.items():
            fallback = entry.fallback if isinstance(entry, Dataset) else None
            origins = {"from": entry.origin or "", "fallback.from": fallback.origin if fallback else ""}
            found |= {f"{kind}.{name}.{key}": url for key, url in origins.items() if url.startswith(RUN_BUCKET)}
    return found


def stage_environment(weights: Mapping[str, Weights], root: str) -> dict[str, str]:
    """Return what the stages are told where there are weights: nobody asks the Hub while it trains."""
    return {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{root}/{_HUB_CACHE}"} if weights else {}


def rules(found: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the rules of ``persist`` by which no checkpoint holds these folders, since they can be had again."""
    unsaid = {"publish": None, "keep": None, "complete_if": None}
    data = [{"path": folder, "kind": "data", **unsaid} for folder in found.values()]
    return [*data, {"path": _HUB_CACHE, "kind": "cache", **unsaid}] if data else []
