"""Checkpoints: sets of files that are published to a bucket wholly or not at all.

The stage runner publishes with this on the rented box, the controller reads the bucket with it, and training code may
import :class:`CloudSync` and its functions. Python 3.10 or newer, standard library, and boto3 once a bucket is opened.
"""

from __future__ import annotations

from gpuyard.box.checkpoints.sets import (
    Published,
    Restored,
    Retention,
    Verified,
    brought_in,
    clear_unfinished,
    latest_manifest,
    latest_whole_manifest,
    list_runs,
    manifest_of,
    manifests,
    publish,
    publish_or_warn,
    restore,
    sequences,
    verify,
    write_record,
)
from gpuyard.box.checkpoints.stores import LocalStore, S3Store, Store, StoredObject, answer_soon, open_store
from gpuyard.box.checkpoints.sync import (
    CloudSync,
    download_checkpoints,
    download_directory,
    download_file,
    get_cloud_sync_from_env,
    sync_checkpoints,
    sync_logs,
    upload_directory,
    upload_file,
)
from gpuyard.errors import BucketError, CheckpointError, MissingObjectError, UnreadableManifestError
from gpuyard.formats.manifest import FileEntry, Manifest
from gpuyard.formats.run_record import RunRecord

__all__ = [
    "BucketError",
    "CheckpointError",
    "CloudSync",
    "FileEntry",
    "LocalStore",
    "Manifest",
    "MissingObjectError",
    "Published",
    "Restored",
    "Retention",
    "RunRecord",
    "S3Store",
    "Store",
    "StoredObject",
    "UnreadableManifestError",
    "Verified",
    "answer_soon",
    "brought_in",
    "clear_unfinished",
    "download_checkpoints",
    "download_directory",
    "download_file",
    "get_cloud_sync_from_env",
    "latest_manifest",
    "latest_whole_manifest",
    "list_runs",
    "manifest_of",
    "manifests",
    "open_store",
    "publish",
    "publish_or_warn",
    "restore",
    "sequences",
    "sync_checkpoints",
    "sync_logs",
    "upload_directory",
    "upload_file",
    "verify",
    "write_record",
]
