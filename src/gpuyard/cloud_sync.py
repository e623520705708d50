"""Cloud storage for training code: single files, folders, logs, and whole checkpoint sets.

    from gpuyard.cloud_sync import get_cloud_sync_from_env

    sync = get_cloud_sync_from_env()
    sync.download_checkpoints("policy", "checkpoints")  # before training: nothing, or the newest whole set
    sync.sync_checkpoints("checkpoints", "policy", keep_last=3)  # at each checkpoint, and at the end
    sync.sync_logs("runs", "policy")

Training never fails of it. No function here raises, whatever is wrong with the bucket or the configuration: a failure
is a warning on the logger ``gpuyard.cloud_sync`` and ``False``, and the files stay where they are.

The configuration comes from the environment, and gpuyard sets it for every stage: ``CLOUD_PROVIDER`` (``s3``,
``gcs``, ``azure``, or ``local``, the default) and ``CLOUD_BUCKET`` (``name``, ``name/prefix``, or for ``local`` a
folder). For S3 there are ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, and
``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` for buckets elsewhere (B2, R2, Vultr object storage); for Google
``GOOGLE_APPLICATION_CREDENTIALS``; for Azure ``AZURE_STORAGE_CONNECTION_STRING``, or ``AZURE_STORAGE_ACCOUNT`` with
``AZURE_STORAGE_SAS_TOKEN`` or ``AZURE_STORAGE_KEY``. Of what a stage uploads, the keys begin with ``<run>/files/``.

On the level DEBUG the logger says which provider and bucket are used, and what was copied; never a key.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from gpuyard.box.checkpoints import Retention, Store, open_store, publish, restore
from gpuyard.box.checkpoints.beneath import Folder, create
from gpuyard.errors import CheckpointError, GpuyardError
from gpuyard.files import inner_path
from gpuyard.formats.location import BUCKET_VARIABLES, KEY_VARIABLES, Location
from gpuyard.formats.manifest import STATE

__all__ = [
    "CloudSync",
    "download_checkpoints",
    "download_directory",
    "download_file",
    "get_cloud_sync_from_env",
    "sync_checkpoints",
    "sync_logs",
    "upload_directory",
    "upload_file",
]
_log = logging.getLogger("gpuyard.cloud_sync")


class CloudSync:
    """Copies files between this machine and one bucket.

    ``provider`` is ``s3``, ``gcs``, ``azure`` or ``local``; ``bucket_name`` is the bucket (``name`` or
    ``name/prefix``), for ``local`` a folder; ``None`` for either is as if it were not given. ``local`` without a folder
    keeps everything where it is, and every call succeeds. With a provider that is not known, or a cloud's without a
    bucket, there is a warning, files stay local, and every call returns ``False``.
    """

    def __init__(
        self, provider: str | None = "local", bucket_name: str | None = "", *, endpoint: str | None = ""
    ) -> None:
        self.provider = str(provider or "").lower()
        self.bucket_name = str(bucket_name or "")
        self._store: Store | None = None
        self._location: Location | None = None
        """Where to copy to; ``None`` where the configuration names no place."""
        try:
            place = Location.of_provider(self.provider, self.bucket_name, endpoint=str(endpoint or ""))
            self._location = place.completed(os.environ)
            _log.debug("Files are copied to %s.", self._where())
        except GpuyardError as error:
            _log.warning("Nothing is copied to a bucket, files stay local: %s", error)

    def _where(self) -> str:
        place = self._location
        if not place:
            return "no bucket, they stay local"
        at = f" at {place.endpoint}" if place.endpoint else ""
        return f"{place.url}{at} (provider {self.provider or 's3'})"

    @property
    def stays_local(self) -> bool:
        """True when there is nowhere to copy to, by choice or by mistake, so that files stay where they are."""
        return not self._location

    def upload_file(self, local_path: str | Path, cloud_path: str) -> bool:
        """Store one file under the key ``cloud_path``; return whether that worked."""

        def work(store: Store) -> None:
            with Path(local_path).open("rb") as stream:
                store.put_stream(cloud_path, stream)

        return self._attempt(f"upload of {local_path}", work)

    def download_file(self, cloud_path: str, local_path: str | Path) -> bool:
        """Fetch the object ``cloud_path`` into a file, which appears whole or not at all; return success."""

        def work(store: Store) -> None:
            target = Path(local_path)
            size = next((item.size for item in store.objects(cloud_path) if item.key == cloud_path), 0)
            _fetch(store, cloud_path, size, target.parent, target.name)

        return self._attempt(f"download of {cloud_path}", work)

    def upload_directory(self, local_path: str | Path, cloud_path: str) -> bool:
        """Store every file below a folder under ``cloud_path/``, up to the first failure; return whether all were."""
        folder = Path(local_path)
        keys: list[tuple[Path, str]] = []

        def look() -> None:
            if not folder.is_dir():
                raise CheckpointError(f"{folder} is not a folder.")
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            keys.extend((path, f"{cloud_path.strip('/')}/{path.relative_to(folder).as_posix()}") for path in files)

        return self._attempt(f"upload of {folder}", lambda store: look()) and all(
            self.upload_file(path, key) for path, key in keys
        )

    def download_directory(self, cloud_path: str, local_path: str | Path) -> bool:
        """Fetch every object under ``cloud_path/`` into a folder, up to the first failure; return whether all came.

        Nothing is written outside the folder: a key that leads out of it, or through a link in it, is a failure.
        """
        prefix = f"{cloud_path.strip('/')}/"

        def fetch(key: str, size: int) -> bool:
            return self._attempt(
                f"download of {key}", lambda store: _fetch(store, key, size, Path(local_path), key[len(prefix) :])
            )

        sizes: dict[str, int] = {}
        if not self._attempt(
            f"listing of {prefix}", lambda store: sizes.update((item.key, item.size) for item in store.objects(prefix))
        ):
            return False
        # A key that ends with a slash is how some tools write down an empty folder.
        return all(fetch(key, size) for key, size in sizes.items() if not key.endswith("/"))

    def sync_checkpoints(self, local_path: str | Path, name: str, *, keep_last: int = 0) -> bool:
        """Publish a folder as one set under ``name/checkpoints/``, sending what changed; return whether that worked."""
        folder = Path(local_path)

        def work(store: Store) -> None:
            published = publish(store, name, folder, retention=Retention(keep_last=keep_last))
            for text in filter(None, [published.lacks, *published.warnings]):
                _log.warning("The checkpoint of %s is published; %s", folder, text)

        return self._attempt(f"publishing of {folder}", work)

    def download_checkpoints(self, name: str, local_path: str | Path) -> bool:
        """Restore the newest whole set of ``name`` into a folder that holds nothing yet; local files always win.

        Returns whether the folder is usable now: restored, filled already, or rightly empty because there is no set.
        """
        folder = Path(local_path)

        def work(store: Store) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            for text in restore(lambda: store, name, folder, has_local=_has_files).warnings:
                _log.warning("%s", text)

        return self._attempt(f"restoring of {name}", work)

    def sync_logs(self, local_path: str | Path, name: str) -> bool:
        """Store a folder of logs (TensorBoard's, say) under ``name/logs/``; return whether that worked."""
        return self.upload_directory(local_path, f"{name}/logs")

    def _attempt(self, what: str, work: Callable[[Store], object]) -> bool:
        if self._location is None:
            return False  # The warning was given once, when this was made.
        if not self._location:
            return True
        try:
            if self._store is None:
                self._store = open_store(self._location)
            work(self._store)
        except Exception as error:  # whatever it is: training does not end because of a copy
            said = str(error) if isinstance(error, (GpuyardError, OSError)) else repr(error)
            _log.warning("The %s failed, files stay local: %s", what, said)
            return False
        _log.debug("The %s is done: %s.", what, self._where())
        return True


def _fetch(store: Store, key: str, size: int, folder: Path, path: str) -> None:
    """Fetch an object of ``size`` bytes into the file ``path`` below ``folder``, in one step and through no link."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        inner_path(path)
    except ValueError as error:
        raise CheckpointError(f"It is not written below {folder}: {error}.") from error
    with Folder(folder) as base, base.parent(path, make=True) as (parent, name):
        part = f".gpuyard-part-{uuid.uuid4().hex}"
        os.close(create(parent, part, 0o666))
        try:
            store.fetch(key, (folder / path).with_name(part), size)
            os.replace(part, name, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=parent)


def _has_files(folder: Path) -> bool:
    """Tell whether anything but gpuyard's own scratch folder lies in ``folder``."""
    return any(path.name != STATE for path in folder.iterdir())


def get_cloud_sync_from_env() -> CloudSync:
    """Return the :class:`CloudSync` that ``CLOUD_PROVIDER`` and ``CLOUD_BUCKET`` describe; with neither: local only.

    It is the same one, with its connections, as long as the environment says the same.
    """
    connection = tuple(os.environ.get(name, "") for name in (*BUCKET_VARIABLES, *KEY_VARIABLES))
    return _from_environment(os.environ.get("CLOUD_PROVIDER", ""), os.environ.get("CLOUD_BUCKET", ""), connection)


@functools.lru_cache(maxsize=4)
def _from_environment(provider: str, bucket: str, connection: tuple[str, ...]) -> CloudSync:
    return CloudSync(provider, bucket)


def upload_file(local_path: str | Path, cloud_path: str) -> bool:
    """:meth:`CloudSync.upload_file` with the environment's configuration."""
    return get_cloud_sync_from_env().upload_file(local_path, cloud_path)


def download_file(cloud_path: str, local_path: str | Path) -> bool:
    """:meth:`CloudSync.download_file` with the environment's configuration."""
    return get_cloud_sync_from_env().download_file(cloud_path, local_path)


def upload_directory(local_path: str | Path, cloud_path: str) -> bool:
    """:meth:`CloudSync.upload_directory` with the environment's configuration."""
    return get_cloud_sync_from_env().upload_directory(local_path, cloud_path)


def download_directory(cloud_path: str, local_path: str | Path) -> bool:
    """:meth:`CloudSync.download_directory` with the environment's configuration."""
    return get_cloud_sync_from_env().download_directory(cloud_path, local_path)


def sync_checkpoints(local_path: str | Path, name: str, *, keep_last: int = 0) -> bool:
    """:meth:`CloudSync.sync_checkpoints` with the environment's configuration."""
    return get_cloud_sync_from_env().sync_checkpoints(local_path, name, keep_last=keep_last)


def download_checkpoints(name: str, local_path: str | Path) -> bool:
    """:meth:`CloudSync.download_checkpoints` with the environment's configuration."""
    return get_cloud_sync_from_env().download_checkpoints(name, local_path)


def sync_logs(local_path: str | Path, name: str) -> bool:
    """:meth:`CloudSync.sync_logs` with the environment's configuration."""
    return get_cloud_sync_from_env().sync_logs(local_path, name)
