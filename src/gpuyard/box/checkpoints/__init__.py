"""Checkpoints: sets of files that are published to a bucket wholly or not at all.

The stage runner publishes with this on the rented box, the controller reads the bucket with it, and training code has
:mod:`gpuyard.cloud_sync` on top of it. Python 3.10 or newer, standard library, and boto3 once a bucket is opened.
"""

from __future__ import annotations

from gpuyard.box.checkpoints.local_store import LocalStore
from gpuyard.box.checkpoints.looking import Difference, Differences, diff, restore_file
from gpuyard.box.checkpoints.manners import Manners
from gpuyard.box.checkpoints.opening import open_store
from gpuyard.box.checkpoints.publishing import Published, is_asked_again, publish, publish_or_warn
from gpuyard.box.checkpoints.reading import latest_manifest, manifest_of, manifests, sequences
from gpuyard.box.checkpoints.restoring import Restored, brought_in, restore
from gpuyard.box.checkpoints.retention import Pruned, Retention, clear_unfinished, prune_run
from gpuyard.box.checkpoints.run_records import list_runs, read_record, write_record
from gpuyard.box.checkpoints.s3_store import S3Store
from gpuyard.box.checkpoints.stores import Store, StoredObject, answer_soon
from gpuyard.box.checkpoints.verifying import Verified, latest_whole_manifest, verify, verify_all
from gpuyard.errors import BucketError, CheckpointError, MissingObjectError, UnreadableManifestError
from gpuyard.formats.manifest import FileEntry, Manifest
from gpuyard.formats.run_record import RunRecord

__all__ = [
    "BucketError",
    "CheckpointError",
    "Difference",
    "Differences",
    "FileEntry",
    "LocalStore",
    "Manifest",
    "Manners",
    "MissingObjectError",
    "Pruned",
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
    "diff",
    "is_asked_again",
    "latest_manifest",
    "latest_whole_manifest",
    "list_runs",
    "manifest_of",
    "manifests",
    "open_store",
    "prune_run",
    "publish",
    "publish_or_warn",
    "read_record",
    "restore",
    "restore_file",
    "sequences",
    "verify",
    "verify_all",
    "write_record",
]
