# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a machine was brought to is kept, as a bundle and as an image, and the next machine begins with it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuyard import registry
from gpuyard.sandbox import engine, images
from gpuyard.sandbox import info as sandbox_info

from .conftest import WORKLOAD, Yard
from .test_converging import start
from .test_killed import kill_all

CANARY = "canary-snapshot-4c1b90e7"
PASSWORD = "canary-registry-9d2f"
HTPASSWD = "me:$2y$04$A4XJpbhR7kOZpp38fxWmFeewwUlplXegx0pA9ZGz5OVhXgCl6E.qq\n"  # of that password
BASE = f"{images.ML_IMAGE}:latest"
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
        "python": {"packages": ["six"]},
        "build": ["python3 train.py > built.txt"],
        "verify": ["grep trained built.txt"],
        "environment": {"required": ["KEPT_TOKEN"]},
        "storage": {"gb_per_iteration": 1, "price_per_gb_month": 0.02},
        "stages": [stage],
    }


def write(yard: Yard, document: dict[str, Any]) -> str:
    file = yard.folder / "workloads" / "kept.yml"
    file.write_text(yaml.safe_dump(document))
    return str(file)


def launch(yard: Yard, workload: str, run: str, *words: str, status: int = 0, **environment: str) -> str:
    given = ["-e", "sandbox=true", "-e", "provider=vast", "-e", f"workload={workload}", "-e", f"run={run}", *words]
    return yard.ansible("ansible-playbook", "launch.yml", *given, status=status, KEPT_TOKEN=CANARY, **environment)


def test_a_new_machine_begins_with_the_bundle_of_the_last_one(yard: Yard, document: dict[str, Any]) -> None:
    """X10, B14: verified, packed while its stage runs, found by the wanted state, and nothing of the run in it."""
    workload = write(yard, document)
    launch(yard, workload, "kept-0")
    made = yard.ansible("ansible-playbook", "snapshot.yml", "-e", "sandbox=true", "-e", "run=kept-0")
    key = re.search(r"Bundle ([0-9a-f]{12}): \d+ MB in the bucket, \$0\.00 a month at \$0\.02 a GB; made in", made)
    assert key, made
    again = yard.ansible("ansible-playbook", "snapshot.yml", "-e", "sandbox=true", "-e", "run=kept-0")
    assert "The bucket has a bundle of this state already." in again and again.count(" changed=0 ") == 2
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
    # After a change of the code there is no bundle of the very state: the environment is kept, the build made anew.
    (yard.folder / "kept/train.py").write_text("print('trained anew')")
    near = launch(yard, workload, "kept-3", "-e", "from_bundle=always")
    assert f"Restored from the bundle {key[1]}" in near and "gpuyard's own code, the Python environment fit" in near
    assert "TASK [gpuyard.cloud.checkpoints : Have gpuyard's own code]" not in near
    environment = re.search(r"python_env : Have the environment [^\n]*\n(\w+): \[kept-3\]", near)
    assert environment and environment[1] == "ok", near
    containers = {row["label"].split("/")[1]: row["container"] for row in yard.rented() if "/" in row["label"]}
    assert engine.find().execute(containers["kept-3"], *looked).startswith("trained anew\n")
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[str]:
    """Run a real registry that lets in one user only, and return a repository of it; its images go at the end."""
    program = shutil.which("docker-registry")
    if not program:
        pytest.skip("there is no registry here: apt-get install docker-registry")
    port = free_port()
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    settings = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}},
    }
    (tmp_path / "registry.yml").write_text(yaml.safe_dump(settings))
    server = subprocess.Popen([program, "serve", tmp_path / "registry.yml"], stderr=subprocess.DEVNULL)
    name = f"localhost:{port}/me/kept"
    try:
        for _attempt in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield name
    finally:
        server.kill()
        server.wait()
        forget(name)


def forget(name: str) -> None:
    """Remove the images of a repository from this machine, as a host has none that never pulled one."""
    found = engine.find()
    listed = found.run("images", "--all", "--format", "{{.Repository}} {{.ID}}").splitlines()
    for one in {line.split()[1] for line in listed if line.split()[0] == name}:
        found.run("rmi", "--force", one)


def login_file(folder: Path, repository: str, password: str) -> str:
    """Write a file as `podman login --authfile` does."""
    auth = base64.b64encode(f"me:{password}".encode()).decode()
    file = folder / f"auth-{len(password)}.json"
    file.write_text(json.dumps({"auths": {registry.registry_of(repository): {"auth": auth}}}))
    return str(file)


def test_an_image_is_made_pushed_run_and_launched_from(
    yard: Yard, document: dict[str, Any], network: str, repository: str, tmp_path: Path
) -> None:
    """B15, E10, U11: with the roles for machines; the ignore file holds, and no secret and no run is in it.

    The registry is asked before all work. The password comes from a file only, and nothing shows it.
    """
    yard.secrets.append(PASSWORD)
    right, wrong = (login_file(tmp_path, repository, word) for word in (PASSWORD, "wrong"))
    document |= {"container": {"base": BASE, "name": repository}}

    def make(workload: str, login: str, status: int = 0) -> str:
        words = ["-e", "sandbox=true", "-e", f"workload={workload}", "-e", json.dumps({"run_options": network})]
        environment = {registry.VARIABLE: login}
        return yard.ansible("ansible-playbook", "image.yml", "-e", "push=true", *words, status=status, **environment)

    silent = f"localhost:{free_port()}/me/kept"
    refused = make(write(yard, document | {"container": {"base": BASE, "name": silent}}), "", 2)
    assert f"The registry {registry.registry_of(silent)} does not answer" in refused
    workload = write(yard, document)
    refused = make(workload, wrong, 2)
    assert f"The registry {registry.registry_of(repository)} does not take the login in " in refused
    assert "Starting a container" not in refused

    # Killed while the container is brought into shape, it leaves no image, and the next one begins anew.
    words = [
        "image.yml",
        "-e",
        "sandbox=true",
        "-e",
        f"workload={workload}",
        "-e",
        json.dumps({"run_options": network}),
    ]
    first = start(yard, *words)
    try:
        deadline = time.monotonic() + 300
        while not any("TASK [Have the base system]" in line for line in first.stdout or []):
            assert first.poll() is None and time.monotonic() < deadline
    finally:
        kill_all(first.pid)
        first.communicate()
    assert repository not in engine.find().run("images", "--format", "{{.Repository}}")
    pushed = make(workload, right)
    reference = re.search(rf"Pushed ({repository}:[0-9a-f]{{16}}); say `image: ({repository}@sha256:\w{{64}})`", pushed)
    assert reference, pushed
    again = make(workload, right)
    assert "is there already" in again and f"{reference[1]} already; say `image: {reference[2]}`" in again
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", again)

    found = engine.find()
    run = ["run", "--rm", "--network=none", "--entrypoint", "sh", reference[1], "-c"]
    assert found.run(*run, "cat /opt/gpuyard/src/kept/*/built.txt") == "trained\n"
    secrets = (
        f"grep -rlE '{CANARY}|{PASSWORD}' /opt /root /home /etc /mnt /var /tmp || true; "
        "ls /opt/gpuyard/run /root/.ssh 2>&1; true"
    )
    assert found.run(*run, secrets).count("No such file") == 2

    forget(repository)
    booting = write(yard, document | {"image": reference[2]})
    plan = ["--check", "-e", "provider=vast", "-e", f"workload={booting}", "-e", "sandbox=true", "-e", "run=kept-4"]
    shown = yard.ansible("ansible-playbook", "launch.yml", *plan, KEPT_TOKEN=CANARY, **{registry.VARIABLE: right})
    assert "(the login of me at localhost:" in shown
    refused = launch(yard, booting, "kept-2", status=2)
    assert f"The image {reference[2]} cannot be pulled" in refused and refused.count("Giving it back.") == 1
    said = launch(yard, booting, "kept-2", **{registry.VARIABLE: right})
    assert SKIPPED not in said and "Run kept-2 is at work" in said
    assert PASSWORD not in yard.gpuyard("sandbox", "status", "--json")
