"""Whether what a workload has in the run's own bucket, weights and data sets, is there before anything is rented."""

from __future__ import annotations

from gpuyard.box import checkpoints
from gpuyard.config import BucketSettings
from gpuyard.errors import UsageError
from gpuyard.remedies import option
from gpuyard.workload import Workload
from gpuyard.workload.data import RUN_BUCKET, in_run_bucket


def check(workload: Workload, settings: BucketSettings, store: checkpoints.Store | None) -> None:
    """Raise :class:`UsageError` for an address in the run's bucket where the bucket is no S3 or holds nothing there."""
    for key, address in in_run_bucket(workload.weights, workload.datasets).items():
        if store is None or not settings.url.startswith("s3:"):
            where = f"is {settings.url}, which a machine cannot read" if settings.url else "is not named"
            raise UsageError(
                f"{key}={address} lies in the run's bucket, which {where}: name one with {option('bucket', 's3://…')}, "
                "or the address itself in the workload. Nothing was rented."
            )
        path = address.removeprefix(RUN_BUCKET)
        if next(iter(store.objects(path)), None) is None:
            url = f"{settings.url}/{path}"
            raise UsageError(
                f"{key}={address}: there is nothing at {url}. Put it there first, for example with "
                f"`aws s3 cp --recursive FOLDER {url}`. Nothing was rented."
            )
