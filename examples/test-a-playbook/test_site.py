"""The playbook beside this file, on a machine without systemd as root and on one with it as a user."""

from pathlib import Path

import pytest

PLAYBOOK = Path(__file__).with_name("site.yml")


@pytest.mark.parametrize("cloud", ["vast", "lambda"])
def test_the_playbook_makes_a_machine_ready(gpuyard_sandbox, cloud):
    box = gpuyard_sandbox.rent(cloud)
    inventory = gpuyard_sandbox.inventory(box)

    first = gpuyard_sandbox.play(PLAYBOOK, inventory=inventory)
    assert first.returncode == 0, first.stdout
    assert box.run("stat --format '%U %a' /srv/checkpoints") == "trainer 750\n"
    assert "trainer soft nofile" in box.run("cat /etc/security/limits.d/90-training.conf")

    second = gpuyard_sandbox.play(PLAYBOOK, inventory=inventory)
    assert "changed=0" in second.stdout, second.stdout


def test_nothing_goes_on_billing(gpuyard_sandbox):
    box = gpuyard_sandbox.rent("vast")
    gpuyard_sandbox.control.advance(3600)
    gpuyard_sandbox.give_back(box)
    bill = gpuyard_sandbox.bill()
    assert bill["billable"] == []
    assert bill["total_usd"] > 0.01
