"""A private repository over SSH, from a real sshd: by a deploy key, and by the controller's agent through sudo."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from own_box import OwnBox, make
from yard import Yard

from gpuyard.sandbox import images

WORKLOAD = """\
name: hidden
repository:
  url: ssh://git@forge/srv/git/whole.git
  commit: {commit}
  submodules: true
  credentials: {credentials}
needs: {{gpu_count: 1, gpu_ram_gb: 8, disk_gb: 1}}
packages: [git, openssh-client]
build: [cat part/file.txt]
persist: {{directories: [models]}}
stages:
  - {{name: work, command: 'cp part/file.txt models/result && ! env | grep REPOSITORY_SECRET'}}
"""
SOURCE = """\
set -e
useradd -m -s /bin/bash git
install -d -o git /srv/git /home/git/.ssh
cat > /home/git/.ssh/authorized_keys
chown -R git /home/git/.ssh; chmod 700 /home/git/.ssh
cat > /root/make.sh <<'END'
set -e
cd /srv/git
git config --global user.name t; git config --global user.email t@example.org
git config --global protocol.file.allow always
for name in part whole; do
  git init -q $name.git; cd $name.git; echo $name > file.txt; git add .; git commit -qm $name; cd ..
done
cd whole.git; git submodule --quiet add ../part.git part
git config -f .gitmodules submodule.part.url ssh://git@forge/srv/git/part.git; git commit -qam part
git rev-parse HEAD
END
su git -c 'sh /dev/stdin' < /root/make.sh
"""


@dataclass(frozen=True)
class Forge:
    """The server with the repository, the key that opens it, and the line by which it is known."""

    commit: str
    key: Path
    host_key: str

    @property
    def secret(self) -> str:
        """A line of the private key that nothing else holds."""
        return self.key.read_text().splitlines()[2]


@pytest.fixture(scope="module")
def forge(yard: Yard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    key = tmp_path_factory.mktemp("forge") / "deploy"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    box, _ = make(yard, "forge", images.ML_IMAGE, "root", aliases=["forge"])
    public = key.with_suffix(".pub").read_bytes()
    commit = box.engine.execute(box.container, "sh", "-c", SOURCE, stdin=public).split()[-1]
    yard.wait("its host key", lambda: box.run("cat /etc/ssh/ssh_host_ed25519_key.pub 2>/dev/null || true"))
    kind, body = box.run("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
    yield Forge(commit, key, f"forge {kind} {body}")
    box.engine.remove(box.container)


@pytest.fixture(scope="module")
def desk(yard: Yard) -> Iterator[OwnBox]:
    """An own box that is reached as a user with sudo."""
    box, variables = make(yard, "desk", images.ML_IMAGE, "me")
    (yard.state / "own.yml").write_text(json.dumps({"own": {"hosts": {"desk": variables}}}))
    yield box
    box.engine.remove(box.container)


@pytest.fixture
def agent(forge: Forge) -> Iterator[dict[str, str]]:
    """The environment of somebody whose SSH agent has the key."""
    said = subprocess.run(["ssh-agent", "-s"], check=True, capture_output=True, text=True).stdout
    environment = dict(word.split(";")[0].split("=") for word in said.split() if "=" in word)
    subprocess.run(["ssh-add", "-q", str(forge.key)], check=True, env=os.environ | environment)
    yield {"SSH_AUTH_SOCK": environment["SSH_AUTH_SOCK"]}
    subprocess.run(["ssh-agent", "-k"], check=True, env=os.environ | environment, capture_output=True)


def workload(folder: Path, forge: Forge, **credentials: object) -> str:
    (folder / "workloads").mkdir(parents=True, exist_ok=True)
    file = folder / "workloads" / "hidden.yml"
    file.write_text(WORKLOAD.format(commit=forge.commit, credentials=json.dumps(credentials)))
    return str(file)


def nothing_is_left(yard: Yard, desk: OwnBox, forge: Forge) -> None:
    assert not any(forge.secret in text for text in yard.printed)
    assert desk.run(f"grep -rlF '{forge.secret}' /opt /mnt /root /home /etc /tmp /var /run /dev/shm || true") == ""
    assert desk.run("pgrep -a ssh-agent || true") == ""


def test_b9_v6_a_deploy_key(yard: Yard, desk: OwnBox, forge: Forge, tmp_path: Path) -> None:
    file = workload(tmp_path, forge, kind="deploy_key", variable="FORGE_KEY", host_keys=[forge.host_key])
    missing = yard.play("launch", run="hidden-0", workload=file, provider="own", ok=False)
    text = " ".join(missing.text.split())
    assert "FORGE_KEY must hold the path of the private key in the environment of this machine" in text, text
    options = {"run": "hidden-0", "workload": file, "provider": "own"}
    said = yard.play("launch", "-vvv", follow="true", env={"FORGE_KEY": str(forge.key)}, **options)
    assert "is finished" in said.text, said.text
    assert yard.published("hidden-0", "models/result") == {"models/result": b"part\n"}
    nothing_is_left(yard, desk, forge)
    again = yard.play("launch", run="hidden-0", workload=file, iterations="2", env={"FORGE_KEY": str(forge.key)})
    assert again.code == 0
    yard.play("teardown", run="hidden-0")


def test_b9_v6_the_agent_of_the_controller(
    yard: Yard, desk: OwnBox, forge: Forge, agent: dict[str, str], tmp_path: Path
) -> None:
    file = workload(tmp_path, forge, kind="agent", host_keys=[forge.host_key])
    options = {"run": "hidden-1", "workload": file, "provider": "own"}
    said = yard.play("launch", follow="true", env=agent, **options)
    assert "is finished" in said.text, said.text
    assert yard.published("hidden-1", "models/result") == {"models/result": b"part\n"}
    nothing_is_left(yard, desk, forge)
    yard.play("teardown", run="hidden-1")
