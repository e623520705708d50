"""Where checkpoints go: a bucket that speaks S3, or a folder.

A :class:`Store` holds objects under plain keys (``run/checkpoints/000001/files/models/policy.npz``), so that
``aws s3 ls`` or a file manager shows what a person expects. Every failure of a store is a :class:`BucketError` whose
text names the bucket and the endpoint and never a key. This module runs on the rented box: Python 3.10, standard
library, and boto3 (imported when an S3 bucket is opened, not before).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from gpuyard.errors import BucketError, CheckpointError, MissingObjectError, UsageError
from gpuyard.formats.location import Location

# A dead bucket must not hold up a stage: one refused or silent connection costs seconds, not minutes.
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
ATTEMPTS = 2
# Who only wants to know whether the bucket is there waits so long for its first answer.
ANSWER_S = 20.0
# Below this size an object is sent and fetched with a single request.
SINGLE_REQUEST_BYTES = 8 * 1024 * 1024
_CHUNK = 1024 * 1024
_PART_PREFIX = ".gpuyard-part-"
LIBRARIES = "GPUYARD_LIBRARIES"
"""The variable that names the folder with boto3, for the training's own Python."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing: its key below the store's prefix, its size in bytes, and the store's own mark of it.

    ``tag`` changes when the object is written again with other content; ``""`` where the store has none. S3 calls it
    ETag; a folder has the time of the last change. ``modified`` is that time in seconds, by the store's clock.
    """

    key: str
    size: int
    tag: str = ""
    modified: float = 0.0


class Store(ABC):
    """A flat set of objects. Keys are relative to the store's prefix, with ``/`` between their parts."""

    url: str
    tags_tell_content = False
    """Whether an object whose tag is as it was has the content that it had. Elsewhere only reading it tells."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the whole object, or raise :class:`MissingObjectError`."""

    @abstractmethod
    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield the object's content piece by piece, or raise :class:`MissingObjectError`."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store ``data`` under ``key``; a reader sees the old object or the new one, never a part."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Store ``data`` unless there is an object under ``key``; return whether ``data`` is there now."""

    @abstractmethod
    def put_stream(self, key: str, stream: BinaryIO) -> None:
        """Store what ``stream`` yields until its end; it is read once, from its start to its end, in order."""

    @abstractmethod
    def fetch(self, key: str, target: Path, size: int) -> None:
        """Write the object of ``size`` bytes to the file ``target`` (not in one step); :class:`MissingObjectError`."""

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """Yield every object whose key begins with ``prefix``."""

    @abstractmethod
    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly below ``prefix`` (which is empty or ends with ``/``), sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is no error."""

    @abstractmethod
    def abort_unfinished(self, prefix: str, spare: Callable[[str], bool] = lambda key: False) -> int:
        """Remove what uploads under ``prefix`` left when they were cut off, and return how many there were.

        No listing shows it, and it takes room, which S3 bills. An upload that goes on at this moment looks the same:
        ``spare`` says of a key whether to leave its upload alone.
        """

    def ends_unfinished(self) -> bool | None:
        """Tell whether the store ends such uploads by itself some day; ``None`` where that is not known."""
        return None


class LocalStore(Store):
    """A folder as a store: for tests, for a network file system, and for people without a bucket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = folder.as_uri()

    def get(self, key: str) -> bytes:
        with self._failures(key):
            return self._path(key).read_bytes()

    def chunks(self, key: str) -> Iterator[bytes]:
        with self._failures(key), self._path(key).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    def put(self, key: str, data: bytes) -> None:
        with self._failures(key), self._replacing(key) as part:
            part.write(data)

    def put_new(self, key: str, data: bytes) -> bool:
        with self._failures(key):
            try:
                with self._replacing(key, new=True) as part:
                    part.write(data)
            except FileExistsError:
                return self._path(key).read_bytes() == data
            return True

    def put_stream(self, key: str, stream: BinaryIO) -> None:
        with self._failures(key), self._replacing(key) as part:
            shutil.copyfileobj(stream, part, _CHUNK)

    def fetch(self, key: str, target: Path, size: int) -> None:
        with self._failures(key):
            shutil.copyfile(self._path(key), target)

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        # Only whole folders are ever asked for, so the walk can begin at the prefix's last slash.
        waiting = [prefix.rpartition("/")[0]]
        while waiting:
            for entry in self._entries(waiting.pop()):
                key = Path(entry.path).relative_to(self.folder).as_posix()
                if entry.is_dir():
                    waiting.append(key)
                elif key.startswith(prefix) and not entry.name.startswith(_PART_PREFIX):
                    with contextlib.suppress(FileNotFoundError):
                        info = entry.stat()
                        yield StoredObject(key, info.st_size, f"{info.st_mtime_ns:x}", info.st_mtime)

    def folders(self, prefix: str = "") -> list[str]:
        return [entry.name for entry in self._entries(prefix) if entry.is_dir()]

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """Return what lies in a folder, by name; nothing when it does not exist (yet)."""
        with self._failures(folder):
            try:
                with os.scandir(self.folder / folder) as found:
                    return sorted(found, key=lambda entry: entry.name)
            except FileNotFoundError:
                return []

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._failures(key):
            path.unlink(missing_ok=True)
            # A bucket has no empty folders, so a folder that stands in for one has none either.
            for folder in path.parents:
                if folder == self.folder:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def abort_unfinished(self, prefix: str, spare: Callable[[str], bool] = lambda key: False) -> int:
        folder = self._path(prefix)
        with self._failures(prefix):
            parts = [part.relative_to(self.folder).as_posix() for part in folder.rglob(f"{_PART_PREFIX}*")]
        unwanted = [key for key in parts if not spare(key)]
        for key in unwanted:
            self.delete(key)
        return len(unwanted)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise CheckpointError(f"The key {key!r} leads out of the folder {self.folder}.")
        return self.folder / key

    @contextlib.contextmanager
    def _replacing(self, key: str, *, new: bool = False) -> Iterator[BinaryIO]:
        path = self._path(key)
        handle, name = self._part_beside(path)
        try:
            with os.fdopen(handle, "wb") as part:
                yield part
                part.flush()
                os.fsync(part.fileno())
            if new:
                self._link(Path(name), path)
            else:
                Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _part_beside(self, path: Path) -> tuple[int, str]:
        """Open a new file in the folder of ``path``; whoever removes that folder as empty just now is outlasted."""
        for _ in range(20):
            with contextlib.suppress(FileNotFoundError):
                path.parent.mkdir(parents=True, exist_ok=True)
                return tempfile.mkstemp(prefix=_PART_PREFIX, dir=path.parent)
        raise BucketError(f"The checkpoint folder {self.folder} cannot be used: {path.parent} does not last.")

    @staticmethod
    def _link(part: Path, path: Path) -> None:
        """Give ``part`` the name ``path``, or raise ``FileExistsError``. Some file systems have no hard links."""
        try:
            os.link(part, path)
            part.unlink()
        except FileExistsError:
            raise
        except OSError:
            if path.exists():
                raise FileExistsError from None
            part.replace(path)

    @contextlib.contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise MissingObjectError(f"{self.url} holds no {key}.") from error
        except OSError as error:
            raise BucketError(
                f"The checkpoint folder {self.folder} cannot be used: {error.strerror or error}."
            ) from error


def _import_boto3(libraries: str) -> Any:
    """Return boto3, from the folder ``libraries`` where this Python has none of its own.

    The folder comes last on the path: whatever the program brings itself stays what it gets.
    """
    try:
        return importlib.import_module("boto3")
    except ImportError:
        if not libraries:
            raise
    if libraries not in sys.path:
        sys.path.append(libraries)
    importlib.invalidate_caches()
    return importlib.import_module("boto3")


class S3Store(Store):
    """A bucket at Amazon S3 or at anything that speaks its protocol (B2, R2, Vultr object storage, seaweedfs)."""

    tags_tell_content = True

    def __init__(self, location: Location, *, access_key: str = "", secret_key: str = "", libraries: str = "") -> None:
        """Open the bucket at ``location``. ``libraries`` is the folder with boto3 for a Python that has none."""
        self.bucket = location.name
        self.prefix = location.prefix and f"{location.prefix}/"
        self.endpoint = location.endpoint or None
        self.url = location.url
        try:
            boto3 = _import_boto3(libraries)
            botocore = importlib.import_module("botocore.exceptions")
            config = importlib.import_module("botocore.config").Config
            transfer = importlib.import_module("boto3.s3.transfer").TransferConfig
        except ImportError as error:
            raise CheckpointError(
                f"The bucket {self.url} needs the Python package boto3, which this Python lacks: add boto3 to the "
                "requirements, or pip install boto3."
            ) from error
        self._client_error = botocore.ClientError
        self._errors: tuple[type[Exception], ...] = (
            botocore.BotoCoreError,
            botocore.ClientError,
            importlib.import_module("boto3.exceptions").Boto3Error,
        )
        self._transfer = transfer(
            multipart_threshold=SINGLE_REQUEST_BYTES, multipart_chunksize=2 * SINGLE_REQUEST_BYTES
        )
        # A session of its own: the default one of boto3 must not be made by several threads at once.
        with self._failures(""):
            self._client: Any = boto3.session.Session().client(
                "s3",
                endpoint_url=self.endpoint,
                aws_access_key_id=access_key or None,
                aws_secret_access_key=secret_key or None,
                region_name=location.region or None,
                config=config(
                    connect_timeout=CONNECT_TIMEOUT_S,
                    read_timeout=READ_TIMEOUT_S,
                    retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                    max_pool_connections=32,
                    # Buckets other than Amazon's often know neither virtual hosts nor the newer checksums.
                    s3={"addressing_style": "path"} if self.endpoint else {},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

    def get(self, key: str) -> bytes:
        with self._failures(key):
            data: bytes = self._client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()
            return data

    def chunks(self, key: str) -> Iterator[bytes]:
        with self._failures(key):
            yield from self._client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].iter_chunks(_CHUNK)

    def put(self, key: str, data: bytes) -> None:
        with self._failures(key):
            self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data)

    def put_new(self, key: str, data: bytes) -> bool:
        """Store ``data`` unless there is an object under ``key``; return whether ``data`` is there now.

        Servers that do not know ``If-None-Match`` (rclone's, some elder ones) ignore it or refuse it. So the key is
        looked at first, and on such a server two calls within the same moment may both succeed.
        """
        target = {"Bucket": self.bucket, "Key": self.prefix + key, "Body": data}
        with contextlib.suppress(MissingObjectError):
            return self.get(key) == data
        with self._failures(key):
            try:
                self._client.put_object(**target, IfNoneMatch="*")
            except self._client_error as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                    # It may be our own, of a request that was sent twice.
                    return self.get(key) == data
                if code not in ("NotImplemented", "501"):
                    raise
                self._client.put_object(**target)
            return True

    def put_stream(self, key: str, stream: BinaryIO) -> None:
        with self._failures(key):
            self._client.upload_fileobj(stream, self.bucket, self.prefix + key, Config=self._transfer)

    def fetch(self, key: str, target: Path, size: int) -> None:
        if size <= SINGLE_REQUEST_BYTES:
            target.write_bytes(self.get(key))
            return
        with self._failures(key):
            self._client.download_file(self.bucket, self.prefix + key, str(target), Config=self._transfer)

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        with self._failures(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    tag = str(item.get("ETag", "")).strip('"')
                    modified = item["LastModified"].timestamp() if "LastModified" in item else 0.0
                    yield StoredObject(item["Key"][len(self.prefix) :], item["Size"], tag, modified)

    def folders(self, prefix: str = "") -> list[str]:
        with self._failures(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix, Delimiter="/"
            )
            start = len(self.prefix + prefix)
            return sorted(item["Prefix"][start:-1] for page in pages for item in page.get("CommonPrefixes", ()))

    def delete(self, key: str) -> None:
        # One request an object: the many-at-once call is what compatible buckets most often lack.
        with self._failures(key):
            self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def abort_unfinished(self, prefix: str, spare: Callable[[str], bool] = lambda key: False) -> int:
        with self._failures(prefix):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            found = [(item["Key"], item["UploadId"]) for page in pages for item in page.get("Uploads", ())]
        unwanted = [(key, upload) for key, upload in found if not spare(key[len(self.prefix) :])]
        for key, upload in unwanted:
            # One that has ended meanwhile is as good.
            with self._failures(key), contextlib.suppress(self._client.exceptions.NoSuchUpload):
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        return len(unwanted)

    def ends_unfinished(self) -> bool | None:
        try:
            answer = self._client.get_bucket_lifecycle_configuration(Bucket=self.bucket)
        except self._client_error as error:
            # Not every key may ask, and not every server knows what this is.
            code = error.response.get("Error", {}).get("Code")
            return False if code == "NoSuchLifecycleConfiguration" else None
        except self._errors:
            return None
        return any(self._ends_ours(rule) for rule in answer.get("Rules", ()))

    def _ends_ours(self, rule: Mapping[str, Any]) -> bool:
        """Tell whether a life-cycle rule ends unfinished uploads below this store's prefix."""
        chosen = rule.get("Filter") or {}
        prefix = chosen.get("Prefix") or (chosen.get("And") or {}).get("Prefix") or rule.get("Prefix") or ""
        on = rule.get("Status") == "Enabled" and "AbortIncompleteMultipartUpload" in rule
        return on and self.prefix.startswith(prefix)

    @contextlib.contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        where = f"The bucket {self.url}" + (f" at {self.endpoint}" if self.endpoint else "")
        try:
            yield
        except self._errors as error:
            code = str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, self._client_error) else ""
            if code in ("NoSuchKey", "404", "NotFound"):
                raise MissingObjectError(f"{self.url} holds no {key}.") from error
            if code == "NoSuchBucket":
                raise BucketError(f"{where} does not exist.") from error
            if code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"):
                raise BucketError(
                    f"{where} refuses the key ({code}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
                ) from error
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise BucketError(f"{where} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.") from error
            raise BucketError(f"{where} cannot be used ({code or type(error).__name__}).") from error
        except ValueError as error:
            # What botocore says of a malformed endpoint or bucket name.
            raise UsageError(f"{where} is not a usable bucket: {error}") from error


def answer_soon(question: Callable[[], _T], where: str) -> _T:
    """Return the answer of ``question``, which asks the bucket called ``where``; raises whatever it raises.

    Raises :class:`BucketError` when the answer takes longer than :data:`ANSWER_S`. A bucket that takes connections and
    says nothing costs a minute with every request, and nobody who waits for something else should pay that.
    """
    answers: list[_T] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:  # whatever it is: it is raised by whoever waits
            errors.append(error)

    thread = threading.Thread(target=ask, name="ask the bucket", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if errors:
        raise errors[0]
    if not answers:
        raise BucketError(f"The bucket {where} has not answered within {ANSWER_S:.0f} s.")
    return answers[0]


def open_store(
    location: Location | str,
    *,
    access_key: str = "",
    secret_key: str = "",
    env: Mapping[str, str] | None = None,
) -> Store:
    """Return the store at a place or address. Nothing is asked of it yet.

    What is not given is taken from ``env`` (default: the process environment) under the names that Amazon's own tools
    use: ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
    ``AWS_DEFAULT_REGION``. Raises :class:`gpuyard.errors.UsageError` for what is no address.
    """
    values = os.environ if env is None else env
    place = (Location.parse(location) if isinstance(location, str) else location).completed(values)
    if place.scheme == "file":
        return LocalStore(Path(place.name))
    if not place:
        raise UsageError("An empty address is not an address of a bucket: use s3://name or file:///folder.")
    return S3Store(
        place,
        access_key=access_key or values.get("AWS_ACCESS_KEY_ID", ""),
        secret_key=secret_key or values.get("AWS_SECRET_ACCESS_KEY", ""),
        libraries=values.get(LIBRARIES, ""),
    )
