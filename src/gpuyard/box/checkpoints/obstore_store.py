"""Buckets of Google Cloud Storage and containers of Azure Blob Storage, by the library ``obstore``.

It is imported when one is opened, not before.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from gpuyard.box.checkpoints import libraries
from gpuyard.box.checkpoints.parallel import in_parallel
from gpuyard.box.checkpoints.s3_store import ATTEMPTS, CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from gpuyard.box.checkpoints.stores import SINGLE_REQUEST_BYTES, Store, StoredObject
from gpuyard.errors import BucketError, CheckpointError, MissingObjectError, UsageError
from gpuyard.formats.location import Location, connection_string

PACKAGE = "obstore"
# A whole transfer may take as long as a slow line needs; one that stands still ends by READ_TIMEOUT_S.
_TRANSFER_S = 24 * 3600
# Here an answer is waited for from the moment when the request begins, so it includes sending a part of a large file.
_PART_S = 600
_PART = 2 * SINGLE_REQUEST_BYTES
_PARTS_AT_A_TIME = 4
_CHUNK = 1024 * 1024
_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_REFUSED = ("401", "403")
# Where a machine of either cloud asks for its role.
_ROLE = "http://169.254.169.254/"
_GOOGLE_TYPES = ("service_account", "authorized_user")
_WHAT_OPENS = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (the file of a service account)",
    "az": "AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_KEY or AZURE_STORAGE_CONNECTION_STRING",
}


class ObstoreStore(Store):
    """A bucket at Google or a container at Azure."""

    tags_tell_content = True

    def __init__(self, location: Location, env: Mapping[str, str]) -> None:
        """Open the bucket at ``location`` with what ``env`` has for it, else with the role of the machine.

        Raises :class:`UsageError` for a key that can be none and for an account that is not named.
        """
        self.prefix = location.prefix and f"{location.prefix}/"
        self.endpoint = location.endpoint
        self.url = location.url
        self._opens = _WHAT_OPENS[location.scheme]
        self._obstore = libraries.load(PACKAGE, self.url, env.get(libraries.VARIABLE, ""))
        errors = self._obstore.exceptions
        # A key that cannot be a part of an address is a ValueError.
        self._errors: tuple[type[Exception], ...] = (errors.BaseError, FileNotFoundError, ValueError)
        self._there_already: type[Exception] = errors.AlreadyExistsError
        self._refusals = (errors.UnauthenticatedError, errors.PermissionDeniedError)
        with self._failures(""):
            self._small: Any = _open(self._obstore, location, env, READ_TIMEOUT_S)
            self._large: Any = _open(self._obstore, location, env, _PART_S)

    def get(self, key: str) -> bytes:
        with self._failures(key):
            return bytes(self._obstore.get(self._small, self.prefix + key).bytes())

    def chunks(self, key: str) -> Iterator[bytes]:
        with self._failures(key):
            for chunk in self._obstore.get(self._small, self.prefix + key).stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

    def put(self, key: str, data: bytes) -> None:
        with self._failures(key):
            self._obstore.put(self._small, self.prefix + key, data, use_multipart=False)

    def put_new(self, key: str, data: bytes) -> bool:
        with self._failures(key):
            try:
                self._obstore.put(self._small, self.prefix + key, data, mode="create", use_multipart=False)
            except self._there_already:
                # It may be our own, of a request that was sent twice.
                return self.get(key) == data
            return True

    def put_stream(self, key: str, stream: BinaryIO) -> None:
        pieces = iter(partial(stream.read, _CHUNK), b"")
        first = b"".join(itertools.islice(pieces, SINGLE_REQUEST_BYTES // _CHUNK))
        rest = next(pieces, b"")
        if not rest:
            self.put(key, first)
            return
        with self._failures(key):
            self._obstore.put(
                self._large,
                self.prefix + key,
                itertools.chain([first, rest], pieces),
                use_multipart=True,
                chunk_size=_PART,
                max_concurrency=_PARTS_AT_A_TIME,
            )

    def fetch(self, key: str, target: Path, size: int) -> None:
        with target.open("wb") as stream:
            if size <= SINGLE_REQUEST_BYTES:
                stream.write(self.get(key))
                return
            with self._failures(key):
                # It may be damaged, and then has another size than it should have.
                there = self._obstore.head(self._small, self.prefix + key)["size"]

            def copy(start: int) -> None:
                os.pwrite(stream.fileno(), self._part(key, start, min(_PART, there - start)), start)

            in_parallel(copy, range(0, there, _PART), _PARTS_AT_A_TIME)

    def _part(self, key: str, start: int, length: int) -> bytes:
        with self._failures(key):
            return bytes(self._obstore.get_range(self._small, self.prefix + key, start=start, length=length))

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        # The library knows only whole folders.
        folder = (self.prefix + prefix).rpartition("/")[0]
        with self._failures(prefix):
            for page in self._obstore.list(self._small, folder or None):
                for item in page:
                    key = item["path"][len(self.prefix) :]
                    if key.startswith(prefix):
                        tag = (item["e_tag"] or "").strip('"')
                        yield StoredObject(key, item["size"], tag, item["last_modified"].timestamp())

    def folders(self, prefix: str = "") -> list[str]:
        with self._failures(prefix):
            found = self._obstore.list_with_delimiter(self._small, (self.prefix + prefix).rstrip("/") or None)
            return sorted(path.rpartition("/")[2] for path in found["common_prefixes"])

    def delete(self, key: str) -> None:
        with self._failures(key), contextlib.suppress(FileNotFoundError):
            self._obstore.delete(self._small, self.prefix + key)

    def abort_unfinished(self, prefix: str, spare: Callable[[str], bool] = lambda key: False) -> int:
        # Azure drops blocks that belong to nothing after a week. Google lists and ends unfinished uploads only in a way
        # that the library does not speak; there it takes a life-cycle rule of the bucket.
        return 0

    def ends_unfinished(self) -> bool | None:
        return True if self.url.startswith("az:") else None

    @contextlib.contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        where = f"The bucket {self.url}" + (f" at {self.endpoint}" if self.endpoint else "")
        try:
            yield
        except self._errors as error:
            # Its text holds the request's address, and that may hold a signature: only these two are taken from it.
            text = str(error)
            code, status = (found[1] if (found := sought.search(text)) else "" for sought in (_CODE, _STATUS))
            if code in _NO_BUCKET:
                raise BucketError(f"{where} does not exist.") from None
            if isinstance(error, FileNotFoundError):
                raise MissingObjectError(f"{self.url} holds no {key}.") from None
            if isinstance(error, ValueError):
                raise CheckpointError(f"{where} cannot hold the key {key!r}.") from None
            if _ROLE in text:
                raise BucketError(f"{where} needs {self._opens}, since this machine has no role of its own.") from None
            if status in _REFUSED or isinstance(error, self._refusals):
                raise BucketError(
                    f"{where} refuses the key ({code or status or 'malformed'}): check {self._opens}."
                ) from None
            raise BucketError(f"{where} cannot be used ({code or status or _reason(error, text)}).") from None


def _reason(error: Exception, text: str) -> str:
    """Return what kept a request from being answered, in a word."""
    known = {"TimedOut": "no answer in time", "kind: Timeout": "no answer in time", "kind: Connect": "no connection"}
    return next((words for sign, words in known.items() if sign in text), type(error).__name__)


def _open(obstore: Any, location: Location, env: Mapping[str, str], answer_s: float) -> Any:
    options = {
        "allow_http": location.endpoint.startswith("http:"),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=answer_s),
        "timeout": timedelta(seconds=_TRANSFER_S),
    }
    retries = {"max_retries": ATTEMPTS - 1, "retry_timeout": timedelta(seconds=answer_s * ATTEMPTS)}
    settings = _google(location, env) if location.scheme == "gs" else _azure(location, env)
    kind = obstore.store.GCSStore if location.scheme == "gs" else obstore.store.AzureStore
    return kind(location.name, client_options=options, retry_config=retries, **settings)


def _google(location: Location, env: Mapping[str, str]) -> dict[str, Any]:
    if location.endpoint:
        # Only an emulator has an address of its own, and no token of an account is for it.
        nobody = {"token": "emulator", "expires_at": None}
        return {"config": {"base_url": location.endpoint}, "credential_provider": lambda: nobody}
    file = env.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    if not file:
        return {}
    try:
        kind = json.loads(Path(file).read_bytes())["type"]
    except OSError as error:
        raise UsageError(f"GOOGLE_APPLICATION_CREDENTIALS={file} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, KeyError):
        kind = ""
    if kind not in _GOOGLE_TYPES:
        raise UsageError(
            f"GOOGLE_APPLICATION_CREDENTIALS={file} must be the file of a service account, as `gcloud iam "
            "service-accounts keys create` writes it."
        )
    return {"config": {"application_credentials": file}}


def _azure(location: Location, env: Mapping[str, str]) -> dict[str, Any]:
    if not location.account:
        raise UsageError(
            f"The bucket {location.url} needs its account: set AZURE_STORAGE_ACCOUNT or "
            "AZURE_STORAGE_CONNECTION_STRING, or name the account's address, https://ACCOUNT.blob.core.windows.net, "
            "with bucket_endpoint."
        )
    config = {"account_name": location.account, "endpoint": location.endpoint}
    string = connection_string(env.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    # The narrowest comes first.
    token = env.get("AZURE_STORAGE_SAS_TOKEN") or string.get("SharedAccessSignature")
    key = env.get("AZURE_STORAGE_KEY") or string.get("AccountKey")
    if token:
        credential: dict[str, Any] = {"sas_token": token.lstrip("?"), "expires_at": None}
    elif key:
        credential = {"access_key": key, "expires_at": None}
    else:
        return {"config": config}
    return {"config": config, "credential_provider": lambda: credential}
