"""What holds for all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and every program that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files whose tests start real programs and wait for them. `make check` leaves them out, so that it ends within two
# minutes; `make test` runs them all.
WITH_PROGRAMS = (
    "contracts/properties/test_checkpoint_properties.py",
    "contracts/test_box_on_python_310.py",
    "unit/checkpoints/test_bundles.py",
    "unit/checkpoints/test_claims.py",
    "unit/checkpoints/test_cloud_sync.py",
    "unit/checkpoints/test_renting_on_s3.py",
    "unit/checkpoints/test_sets.py",
    "unit/core/test_acceptance.py",
    "unit/core/test_own.py",
    "unit/house/test_dependencies.py",
    "unit/house/test_entry_points.py",
    "unit/house/test_play_and_watch.py",
    "unit/house/test_tarball.py",
    "unit/miniprover/",
    "unit/modules/test_box_code.py",
    "unit/modules/test_cuda_toolkit.py",
    "unit/modules/test_data_disks_on_loops.py",
    "unit/modules/test_dataset",
    "unit/modules/test_detached.py",
    "unit/modules/test_health_check.py",
    "unit/modules/test_lean_toolchain.py",
    "unit/modules/test_model_weights.py",
    "unit/modules/test_pantograph_build.py",
    "unit/modules/test_private_repository.py",
    "unit/modules/test_snapshot_bundle.py",
    "unit/modules/test_stage_session.py",
    "unit/modules/test_uv_environment.py",
    "unit/modules/test_work_tree.py",
    "unit/plugins/test_pack_ahead.py",
    "unit/sandbox/test_sandbox_bad_requests.py",
    "unit/stages/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes seconds."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(WITH_PROGRAMS):
            item.add_marker("programs")
