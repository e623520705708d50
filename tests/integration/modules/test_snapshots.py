# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a machine was brought to is kept, as a bundle and as an image, and the next machine begins with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuyard.sandbox import engine, images
from gpuyard.sandbox import info as sandbox_info

from .conftest import WORKLOAD, Yard

CANARY = "canary-snapshot-4c1b90e7"
IMAGE = "localhost/gpuyard-test-image"
SKIPPED = "TASK [Have the base system]"


@pytest.fixture
def document(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A workload with a build, a secret that does not travel, and one that reaches the stages only."""
    code = yard.folder / "kept"
    code.mkdir(exist_ok=True)
    (code / "train.py").write_text("print('trained')")
    (code / ".gpuyardignore").write_text(".env\n")
    (code / ".env").write_text(CANARY)
    stage = {"name": "one", "command": 'cat built.txt && echo "$KEPT_TOKEN" > mine.txt && sleep 600', "grace_s": 1}
    return WORKLOAD | {
        "name": "kept",
        "repository": {"path": "kept"},
        "build": ["python3 train.py > built.txt"],
        "verify": ["grep trained built.txt"],
        "environment": {"required": ["KEPT_TOKEN"]},
        "storage": {"gb_per_iteration": 1, "price_per_gb_month": 0.02},
        "container": {"base": f"{images.ML_IMAGE}:latest", "name": IMAGE},
        "stages": [stage],
    }


def write(yard: Yard, document: dict[str, Any]) -> str:
    file = yard.folder / "workloads" / "kept.yml"
    file.write_text(yaml.safe_dump(document))
    return str(file)


def launch(yard: Yard, workload: str, run: str, *words: str) -> str:
    given = ["-e", "sandbox=true", "-e", "provider=vast", "-e", f"workload={workload}", "-e", f"run={run}", *words]
    return yard.ansible("ansible-playbook", "launch.yml", *given, KEPT_TOKEN=CANARY)


def test_a_new_machine_begins_with_the_bundle_of_the_last_one(yard: Yard, document: dict[str, Any]) -> None:
    """X10, B14: verified, packed while its stage runs, found by the wanted state, and nothing of the run in it."""
    workload = write(yard, document)
    launch(yard, workload, "kept-0")
    made = yard.ansible("ansible-playbook", "snapshot.yml", "-e", "sandbox=true", "-e", "run=kept-0")
    key = re.search(r"Bundle ([0-9a-f]{12}): \d+ MB in the bucket, \$0\.00 a month at \$0\.02 a GB; made in", made)
    assert key, made
    assert f"{key[1]}  kept " in yard.ansible(
        "ansible-playbook", "snapshot.yml", "-e", "sandbox=true", "-e", "state=listed"
    )
    said = launch(yard, workload, "kept-1", "-e", "from_bundle=always")
    assert f"Restored from the bundle {key[1]}" in said
    assert "TASK [gpuyard.cloud.checkpoints : Have gpuyard's own code]" not in said
    containers = {row["label"].split("/")[1]: row["container"] for row in yard.rented() if "/" in row["label"]}
    looked = [
        "sh",
        "-c",
        "cat /opt/gpuyard/src/kept/*/built.txt; find /opt/gpuyard/src -name mine.txt | wc -l; ls /opt/gpuyard",
    ]
    answer = engine.find().execute(containers["kept-1"], *looked)
    assert answer.startswith("trained\n") and "bundle" not in answer.split()
    gone = yard.ansible(
        "ansible-playbook", "snapshot.yml", "-e", "sandbox=true", "-e", "state=absent", "-e", f"bundle={key[1]}"
    )
    assert f"Deleted {key[1]}" in gone


@pytest.fixture
def network(yard: Yard) -> str:
    """The words that let a container reach what rented machines reach."""
    info = sandbox_info.read(Path(yard.environment["GPUYARD_HOME"]) / "sandbox")
    assert info
    words = [f"--network=gpuyard-{info.name}", "--pull=never"]
    if Path("/etc/ssl/certs").is_dir():
        words.append("--volume=/etc/ssl/certs:/etc/ssl/certs:ro")
    # Where packages come from, and with which certificates, as the sandbox tells its machines.
    return " ".join(
        [*words, *(f"--env={name}" for name in ("PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE", "https_proxy"))]
    )


@pytest.fixture
def no_image() -> Iterator[None]:
    """Remove the images that the test makes."""
    yield
    found = engine.find()
    for name in found.run("images", "--format", "{{.Repository}}:{{.Tag}}", IMAGE).split():
        found.run("rmi", "--force", name)


def test_an_image_is_made_run_and_launched_from(
    yard: Yard, document: dict[str, Any], network: str, no_image: None
) -> None:
    """B15, E10, U11: with the roles for machines; the ignore file holds, and no secret and no run is in it."""
    workload = write(yard, document)
    words = ["-e", "sandbox=true", "-e", f"workload={workload}", "-e", json.dumps({"run_options": network})]
    made = re.search(rf"Made ({IMAGE}:[0-9a-f]{{16}});", yard.ansible("ansible-playbook", "image.yml", *words))
    assert made
    assert "is there already" in yard.ansible("ansible-playbook", "image.yml", *words)
    found = engine.find()
    run = ["run", "--rm", "--network=none", "--entrypoint", "sh", made[1], "-c"]
    assert found.run(*run, "cat /opt/gpuyard/src/kept/*/built.txt") == "trained\n"
    secrets = (
        f"grep -rl {CANARY} /opt /root /home /etc /mnt /var /tmp || true; ls /opt/gpuyard/run /root/.ssh 2>&1; true"
    )
    assert found.run(*run, secrets).count("No such file") == 2
    said = launch(yard, write(yard, document | {"image": made[1]}), "kept-2")
    assert SKIPPED not in said and "Run kept-2 is at work" in said
