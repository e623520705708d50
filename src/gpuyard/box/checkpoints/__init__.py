"""Checkpoints: sets of files that are published to a bucket wholly or not at all.

The stage runner publishes with this on the rented box, the controller reads the bucket with it, and training code has
:mod:`gpuyard.cloud_sync` on top of it. Python 3.10 or newer, standard library, and boto3 once a bucket is opened.
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
from gpuyard.errors import BucketError, CheckpointError, MissingObjectError, UnreadableManifestError
from gpuyard.formats.manifest import FileEntry, Manifest, RunRecord

__all__ = [
    "BucketError",
    "CheckpointError",
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
    "verify",
    "write_record",
]
