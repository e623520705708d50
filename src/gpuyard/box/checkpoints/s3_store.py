"""A bucket that speaks S3. boto3's parts are imported when they are needed, not before."""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from gpuyard.box.checkpoints import libraries
from gpuyard.box.checkpoints.stores import SINGLE_REQUEST_BYTES, Piece, Store, StoredObject
from gpuyard.errors import BucketError, MissingObjectError, UsageError
from gpuyard.formats.location import Location

PACKAGE = "boto3"
# A dead bucket must not hold up a stage: one refused or silent connection costs seconds, not minutes.
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
ATTEMPTS = 2
_CHUNK = 1024 * 1024
# Of one object so many pieces are on their way at the same time, each held in memory.
_PIECES_AT_ONCE = 4
# What these answers say of a copy within the bucket holds for this one object only.
_OTHER_SOURCE = ("NoSuchKey", "PreconditionFailed", "404", "412")


@functools.cache
def _descriptions() -> Any:
    """Return the reader of the services' descriptions, which take longer to read than all else of a client."""
    return importlib.import_module("botocore.loaders").create_loader()


class _NotCopiedError(Exception):
    """The server has answered a copy as if it were something else."""


class S3Store(Store):
    """A bucket at Amazon S3 or at anything that speaks its protocol (B2, R2, Vultr object storage, seaweedfs)."""

    tags_tell_content = True

    def __init__(self, location: Location, env: Mapping[str, str]) -> None:
        """Open the bucket at ``location`` with the keys in ``env``, else with what boto3 finds: a profile or a role."""
        self.bucket = location.name
        self.prefix = location.prefix and f"{location.prefix}/"
        self.endpoint = location.endpoint or None
        self.url = location.url
        self._load = functools.partial(libraries.load, PACKAGE, self.url, env.get(libraries.VARIABLE, ""))
        # What boto3 adds to botocore is for large objects, and takes as long to import as botocore itself.
        botocore = self._load("botocore.exceptions")
        self._client_error = botocore.ClientError
        self._errors: tuple[type[Exception], ...] = (botocore.BotoCoreError, botocore.ClientError)
        self._copies_parts = True
        """Until the server has refused to copy a part of an object."""
        self._arguments = {
            "service_name": "s3",
            "endpoint_url": self.endpoint,
            "aws_access_key_id": env.get("AWS_ACCESS_KEY_ID") or None,
            "aws_secret_access_key": env.get("AWS_SECRET_ACCESS_KEY") or None,
            "aws_session_token": env.get("AWS_SESSION_TOKEN") or None,
            "region_name": location.region or None,
            "config": importlib.import_module("botocore.config").Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                max_pool_connections=32,
                # Otherwise an address for others is signed in the old way, which newer regions do not take.
                signature_version="s3v4",
                # Buckets other than Amazon's often know neither virtual hosts nor the newer checksums.
                s3={"addressing_style": "path"} if self.endpoint else {},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        }
        with self._failures(""):
            self._client: Any = self._session().create_client(**self._arguments)

    def _session(self) -> Any:
        """Return a session of one's own: the default one of boto3 must not be made by several threads at once."""
        session = importlib.import_module("botocore.session").Session()
        session.register_component("data_loader", _descriptions())
        return session

    @functools.cached_property
    def _large(self) -> Any:
        """The client of boto3, which sends and fetches a large object in parts."""
        boto3 = self._load()
        self._errors += (importlib.import_module("boto3.exceptions").Boto3Error,)
        return boto3.session.Session(botocore_session=self._session()).client(**self._arguments)

    @functools.cached_property
    def _transfer(self) -> Any:
        """How boto3 sends and fetches it."""
        transfer = importlib.import_module("boto3.s3.transfer").TransferConfig(
            multipart_threshold=SINGLE_REQUEST_BYTES,
            multipart_chunksize=2 * SINGLE_REQUEST_BYTES,
            max_concurrency=_PIECES_AT_ONCE,
        )
        # Several large objects are sent at once, and each holds this many parts in memory.
        transfer.max_in_memory_upload_chunks = _PIECES_AT_ONCE
        return transfer

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
            self._large.upload_fileobj(stream, self.bucket, self.prefix + key, Config=self._transfer)

    def compose(self, key: str, pieces: Sequence[Piece], stream: BinaryIO) -> bool:
        if not self._copies_parts:
            return False
        with self._failures(key):
            target = {"Bucket": self.bucket, "Key": self.prefix + key}
            target["UploadId"] = self._client.create_multipart_upload(**target)["UploadId"]
            try:
                parts = self._send_pieces(target, pieces, stream)
                self._client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
            except BaseException as error:
                with contextlib.suppress(*self._errors):
                    self._client.abort_multipart_upload(**target)
                # Also one that copies too slowly to answer in time may well take the whole.
                if not isinstance(error, (*self._errors, _NotCopiedError)):
                    raise
                self._note_refusal(error)
                return False
            # A server that knows no ranges copies the whole object, and says that all is well.
            size = self._client.head_object(Bucket=self.bucket, Key=self.prefix + key)["ContentLength"]
            if size != sum(piece.size for piece in pieces):
                self._copies_parts = False
                self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)
                return False
            return True

    def _send_pieces(
        self, target: Mapping[str, str], pieces: Sequence[Piece], stream: BinaryIO
    ) -> list[dict[str, Any]]:
        """Send and copy the pieces as parts of an upload; the first that fails ends it."""
        room = threading.Semaphore(_PIECES_AT_ONCE)
        failed = threading.Event()

        def send(number: int, piece: Piece, data: bytes) -> str:
            try:
                if failed.is_set():
                    return ""
                if not piece.key:
                    answer = self._client.upload_part(**target, PartNumber=number, Body=data)
                    return str(answer["ETag"])
                answer = self._client.upload_part_copy(
                    **target,
                    PartNumber=number,
                    CopySource={"Bucket": self.bucket, "Key": self.prefix + piece.key},
                    CopySourceRange=f"bytes={piece.offset}-{piece.offset + piece.size - 1}",
                    CopySourceIfMatch=f'"{piece.tag}"',
                )
                tag = answer.get("CopyPartResult", {}).get("ETag")
                if not tag:
                    raise _NotCopiedError
                return str(tag)
            except BaseException:
                failed.set()
                raise
            finally:
                room.release()

        sent: list[Future[str]] = []
        with ThreadPoolExecutor(_PIECES_AT_ONCE, thread_name_prefix="checkpoint-piece") as pool:
            try:
                for number, piece in enumerate(pieces, start=1):
                    room.acquire()
                    if failed.is_set():
                        break
                    data = b"" if piece.key else stream.read(piece.size)
                    sent.append(pool.submit(send, number, piece, data))
            except BaseException:
                failed.set()
                raise
        return [{"PartNumber": number, "ETag": item.result()} for number, item in enumerate(sent, start=1)]

    def _note_refusal(self, error: BaseException) -> None:
        """Remember that the server does not copy parts, unless its answer says something else."""
        response = getattr(error, "response", None) or {}
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
        if code not in _OTHER_SOURCE and (status < 500 or status == 501):
            self._copies_parts = False

    def fetch(self, key: str, target: Path, size: int) -> None:
        if size <= SINGLE_REQUEST_BYTES:
            target.write_bytes(self.get(key))
            return
        with self._failures(key):
            self._large.download_file(self.bucket, self.prefix + key, str(target), Config=self._transfer)

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

    def signed(self, key: str, seconds: int, *, put: bool = False) -> str:
        """Return an address that lets whoever has it fetch the object, or ``put`` it, for so many seconds."""
        with self._failures(key):
            address: str = self._client.generate_presigned_url(
                "put_object" if put else "get_object",
                Params={"Bucket": self.bucket, "Key": self.prefix + key},
                ExpiresIn=seconds,
            )
            return address

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

    def keeps_versions(self) -> bool | None:
        try:
            answer = self._client.get_bucket_versioning(Bucket=self.bucket)
        except self._errors:
            return None  # not every key may ask, and not every server knows what this is
        return bool(answer.get("Status") == "Enabled")

    def keep_versions(self) -> None:
        with self._failures(""):
            self._client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})
        if not self.keeps_versions():
            raise BucketError(f"The bucket {self.url} takes the request to keep versions, and keeps none.")

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
            if code == "RequestTimeTooSkewed":
                raise BucketError(
                    f"{where} takes no request of a machine whose clock is wrong: set this one's."
                ) from error
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise BucketError(f"{where} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.") from error
            raise BucketError(f"{where} cannot be used ({code or type(error).__name__}).") from error
        except ValueError as error:
            # What botocore says of a malformed endpoint or bucket name.
            raise UsageError(f"{where} is not a usable bucket: {error}") from error
