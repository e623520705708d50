# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What bills is seen, and what is past its limits is ended, by the plays and over the clouds' real HTTP APIs."""

from __future__ import annotations

from pathlib import Path

from gpuyard.box.checkpoints import LocalStore
from gpuyard.formats.limits import Limits
from gpuyard.renting import limits

from .conftest import Yard


def test_a_machine_is_audited_and_reaped_at_the_end_of_its_lease(yard: Yard, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    words = ("-e", "sandbox=true", "-e", f"bucket={store.url}")
    yard.task("instance", run="late-0", workload="tiny", provider="vast")
    (rented,) = yard.rented()
    said = yard.ansible("ansible-playbook", "audit.yml", *words)
    assert "late-0" in said and "this bucket does not know its run" in said
    limits.write(store, "late-0", Limits(lease_end=1772373600.0))
    said = " ".join(yard.ansible("ansible-playbook", "reap.yml", *words, "--check").split())
    assert "Run late-0 would end: its lease ended at 2026-03-01 14:00 UTC." in said and "DELETE http" in said
    assert yard.rented() == [rented]
    said = yard.ansible("ansible-playbook", "reap.yml", *words, "-e", "format=json")
    assert '"problems": []' in said and yard.rented() == []
    assert "There is nothing to end." in yard.ansible("ansible-playbook", "audit.yml", *words, "-e", "reap=true")
