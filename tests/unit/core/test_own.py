"""Boxes of the user's own (catalogue rows X7, E8), against a STAND-IN for ssh that runs commands on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuyard import config, market, ssh
from gpuyard.box import own as box
from gpuyard.config import SshKey
from gpuyard.errors import LeakError, NoCapacityError, UnsupportedError, UsageError
from gpuyard.formats.label import RunRef
from gpuyard.planning import choose
from gpuyard.providers.base import CreateSpec, Instance, Query, State
from gpuyard.providers.own import Own, read_inventory
from gpuyard.renting import runs, survey, watch
from gpuyard.renting.runs import Run

INVENTORY = """\
own:
  vars: {ansible_user: me, gpu_name: NVIDIA RTX 4090, gpu_count: 1, gpu_ram_gb: 24}
  hosts:
    tower: {ansible_host: tower.example, ansible_port: 2222, disk_gb: 500}
    desk: {ansible_user: root, ansible_ssh_common_args: "-J me@gate -o ServerAliveInterval=5", gpu_ram_gb: 48}
  children:
    far: {hosts: {attic: {ansible_host: attic.example}}}
"""
SPEC = CreateSpec(RunRef("prover-0", "prover"), "ssh-ed25519 AAAA")
KEY = SshKey(Path("/nowhere/id"), "ssh-ed25519 AAAA")
# STAND-IN: each host is a folder here that stands for its /opt/gpuyard. Without the folder the host is switched off.
SSH = """\
#!{python} -IS
import json, os, pathlib, subprocess, sys
base, words = pathlib.Path({base!r}), sys.argv[1:]
if words[0] == "-G":
    sys.exit(print("user me\\nport 22"))
host = words[-2].partition("@")[2]
with open(base / "asked", "a") as asked:
    asked.write(json.dumps(words) + "\\n")
if not (base / host).is_dir():
    sys.exit(print(f"ssh: connect to host {{host}} port 22: Connection refused", file=sys.stderr) or 255)
command = words[-1].replace("/opt/gpuyard", str(base / host)).removeprefix("sudo -n ")
sys.exit(subprocess.run(["sh", "-c", command]).returncode)
"""


class Hosts:
    """The hosts as folders."""

    def __init__(self, base: Path) -> None:
        self.base = base
        for name in ("tower.example", "desk", "attic.example"):
            (base / name).mkdir()

    def asked(self) -> list[list[str]]:
        """Return the command lines of ssh so far."""
        file = self.base / "asked"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ssh"
    program.write_text(SSH.format(python=sys.executable, base=str(tmp_path / "hosts")))
    program.chmod(0o755)
    (tmp_path / "hosts").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    yield Hosts(tmp_path / "hosts")


@pytest.fixture
def own(hosts: Hosts, tmp_path: Path) -> Own:
    file = tmp_path / "own.yml"
    file.write_text(INVENTORY)
    return Own(str(file))


def test_x7_free_boxes_are_offers_at_no_price(own: Own, hosts: Hosts) -> None:
    offers = {offer.id: offer for offer in own.offers(Query())}
    assert set(offers) == {"attic", "desk", "tower"}
    tower = offers["tower"]
    assert (tower.price_per_hour_usd, tower.gpu_name, tower.gpu_ram_gb, tower.disk_gb) == (0.0, "RTX 4090", 24, 500)
    assert tower.cpu_cores >= 1 and tower.ram_gb > 0  # asked, since the inventory does not say it
    assert offers["desk"].gpu_ram_gb == 48
    # One that costs nothing wins, also where the workload asks for interruptible machines.
    query = Query(gpu_count=1, gpu_ram_gb=40, market="interruptible", disk_gb=0)
    dear = dataclasses.replace(tower, provider="vast", gpu_ram_gb=80, price_per_hour_usd=0.1, market="interruptible")
    assert [offer.id for offer in market.choose([dear, *offers.values()], query)] == ["desk", "tower"]
    without = dataclasses.replace(tower, gpu_count=0)
    assert market.rank(market.judge([without], Query(gpu_count=1, disk_gb=0))) == []


def test_x7_a_claim_is_the_runs_until_it_is_released(own: Own, hosts: Hosts) -> None:
    offer = next(offer for offer in own.offers(Query()) if offer.id == "tower")
    claimed = own.create(offer, SPEC)
    assert claimed.ref == SPEC.ref and claimed.price_per_hour_usd == 0 and claimed.state is State.RUNNING
    assert [one.id for one in own.instances()] == [claimed.id] == [own.instance(claimed.id).id]  # type: ignore[union-attr]
    assert "tower" not in [other.id for other in own.offers(Query())]
    # Somebody who saw it free a moment ago does not get it.
    with pytest.raises(NoCapacityError, match="claimed by another run"):
        own.create(offer, dataclasses.replace(SPEC, ref=RunRef("other-0", "prover")))
    own.destroy("tower-000000")  # another run's earlier claim
    assert own.instance(claimed.id) is not None
    own.destroy(claimed.id)
    assert own.instance(claimed.id) is None and own.instances() == []
    own.destroy(claimed.id)
    assert (hosts.base / "tower.example").is_dir()


def test_x7_nothing_ever_ends_an_own_box(own: Own, hosts: Hosts) -> None:
    claimed = own.create(own.offers(Query())[0], SPEC)
    for verb in (own.stop, own.start):
        with pytest.raises(UnsupportedError):
            verb(claimed.id)
    own.destroy(claimed.id)
    # Everything that was run on a box is this one file with these words.
    source = Path(box.__file__).read_text()
    actions = {"look", "facts", "claim", "release"}
    for words in hosts.asked():
        assert "python3 -c" in words[-1] and words[-1].rpartition("/opt/gpuyard")[2].split()[0] in actions
    for word in ("poweroff", "shutdown", "reboot", "halt", "systemctl", "mkfs", "init 0", "virsh", "rmtree(root)"):
        assert word not in source


def test_x7_a_box_that_is_off_hides_no_other_and_is_not_lost(own: Own, hosts: Hosts) -> None:
    offers = {offer.id: offer for offer in own.offers(Query())}
    claimed = own.create(offers["tower"], SPEC)
    for name in ("tower.example", "attic.example"):
        (hosts.base / name).rename(hosts.base / f"{name}-off")
    found = {one.way.name: one for one in own.instances() if one.way}
    assert set(found) == {"tower", "attic"} and all(one.silent for one in found.values())
    assert found["tower"].id == claimed.id and found["tower"].ref == SPEC.ref and found["attic"].ref is None
    assert [offer.id for offer in own.offers(Query())] == ["desk"]
    (sentence,) = survey.silent_boxes(found.values())
    assert sentence.startswith("Own box attic does not answer: ssh: connect to host")
    (run,) = runs.join(found.values(), runs.Stored())
    assert run.state == "unreachable" and not run.resumable
    with pytest.raises(UsageError, match=r"own box tower, which does not answer.*Switch it on.*removing it from"):
        choose.refuse_silent_box(run)
    choose.refuse_silent_box(Run("other-0", "prover"))
    with pytest.raises(LeakError, match=r"tower could not be confirmed free.*costs nothing.*own\.yml"):
        own.destroy(claimed.id)
    with pytest.raises(NoCapacityError, match="attic does not answer"):
        own.create(offers["attic"], SPEC)


def test_x7_each_is_reached_as_its_inventory_says(own: Own, hosts: Hosts, tmp_path: Path) -> None:
    by_name = {offer.id: own.create(offer, SPEC) for offer in own.offers(Query())}
    desk, tower = by_name["desk"], by_name["tower"]
    words = ssh.ssh_args(desk, KEY, tmp_path / "known")
    assert words[-1] == "root@desk" and "ProxyJump=me@gate" in words and "ServerAliveInterval=5" in words
    assert "-i" not in words and "IdentitiesOnly=no" in words and "HostKeyAlias=gpuyard-own-desk" in words
    assert ssh.ssh_args(tower, KEY, tmp_path / "known")[-3:] == ["-p", "2222", "me@tower.example"]
    variables = ssh.ansible_vars(tower, KEY)
    assert variables["ansible_become"] is True and variables["ansible_ssh_private_key_file"] == ""
    assert "ansible_become" not in ssh.ansible_vars(desk, KEY)
    assert watch.command(tower, KEY, ["status"])[-1].startswith("sudo -n sh -c ")
    ssh.add_ssh_host(desk, KEY)
    entry = (Path(os.environ["GPUYARD_HOME"]) / "ssh" / "prover-0.conf").read_text()
    assert "ProxyJump me@gate" in entry and "IdentityFile" not in entry
    # The box stays the same machine when its run has gone, so its host key stays pinned.
    known = Path(os.environ["GPUYARD_HOME"]) / "known_hosts"
    known.write_text("gpuyard-own-desk ssh-ed25519 AAAA\ngpuyard-vast-1 ssh-ed25519 AAAA\n")
    ssh.forget_host_key(desk)
    ssh.forget_host_key(dataclasses.replace(desk, provider="vast", id="1", way=None))
    assert known.read_text() == "gpuyard-own-desk ssh-ed25519 AAAA\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("own: [tower]", "group own must be a mapping"),
        ("own: {hosts: {tower: {gpu_count: many}}}", "host tower: gpu_count='many' must be a number"),
        ("own: {hosts: {tower: {ansible_ssh_private_key_file: /no/key}}}", "host tower: .*/no/key does not exist"),
        ("own: {hosts: {tower: {ansible_ssh_common_args: -L 1:2}}}", "host tower: .*holds '-L'; it can hold -o"),
        ("own: {", "cannot be read"),
    ],
)
def test_a_mistake_in_the_inventory_is_one_sentence(hosts: Hosts, tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "own.yml"
    file.write_text(text)
    with pytest.raises(UsageError, match=complaint):
        read_inventory(file)


def test_x7_the_file_takes_the_place_of_a_key(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.connect(require=False) == []
    with pytest.raises(UsageError, match=r"no box of your own in inventories/own\.yml.*GPUYARD_OWN_BOXES"):
        config.connect("own")
    (tmp_path / "inventories").mkdir()
    (tmp_path / "inventories" / "own.yml").write_text("own: {hosts: {}}")
    assert config.connect(require=False) == []
    (tmp_path / "inventories" / "own.yml").write_text(INVENTORY)
    assert [cloud.name for cloud in config.connect()] == ["own"]
    monkeypatch.chdir("/")
    monkeypatch.setenv("GPUYARD_OWN_BOXES", str(tmp_path / "inventories" / "own.yml"))
    monkeypatch.setenv("VAST_API_KEY", "k")
    assert [cloud.name for cloud in config.connect()] == ["vast", "own"]


def test_x7_the_example_in_the_repository_names_no_box() -> None:
    assert read_inventory(Path(__file__).resolve().parents[3] / "inventories" / "own.yml") == []


def test_x7_a_release_leaves_no_secret_and_loses_no_work(tmp_path: Path) -> None:
    """What stays is the box, its toolchains, and what the stages have written, out of the way of a later run."""
    root, volume = tmp_path / "gpuyard", tmp_path / "volume"
    for folder in ("run", "src/prover/0a", "rust", "envs/prover"):
        (root / folder).mkdir(parents=True)
    (volume / "models").mkdir(parents=True)
    (volume / "models" / "policy").write_text("work")
    (volume / "dataset").write_text("the user's own")
    (volume / ".gpuyard" / "tmp").mkdir(parents=True)
    (volume / ".gpuyard" / "tmp" / "hashes.json").write_text("{}")
    (volume / ".gpuyard" / "journal.jsonl").write_text("{}\n")
    (root / "run" / "secrets.env").write_text("TOKEN=canary")
    persist = {"root": str(volume), "directories": ["models", "empty"]}
    (root / "run" / "workload.json").write_text(json.dumps({"name": "prover", "persist": persist}))
    (root / "converged.json").write_text("{}")
    (root / "src" / ".prover.build.log").write_text("")
    box.claim(root, {"id": "tower-1", "label": SPEC.ref.label})
    stage = subprocess.Popen(["sleep", "600"], env={"GPUYARD_INSTANCE_ID": "tower-1", "PATH": os.environ["PATH"]})
    other = subprocess.Popen(["sleep", "600"], env={"GPUYARD_INSTANCE_ID": "tower-2", "PATH": os.environ["PATH"]})
    try:
        assert box.release(root, "tower-2")["id"] == "tower-1" and stage.poll() is None
        # The test waits for its child as init would.
        threading.Thread(target=stage.wait, daemon=True).start()
        assert box.release(root, "tower-1") == {}
        assert stage.poll() is not None and other.poll() is None
    finally:
        for process in (stage, other):
            process.kill()
            process.wait()
    assert sorted(path.name for path in root.rglob("*")) == ["envs", "prover", "rust", "src"]
    aside = volume / ".gpuyard" / "tmp" / "released" / "tower-1"
    assert (aside / "models" / "policy").read_text() == "work" and (aside / ".gpuyard" / "journal.jsonl").exists()
    assert (volume / "dataset").read_text() == "the user's own"
    assert not (volume / "models").exists() and not (volume / ".gpuyard" / "tmp" / "hashes.json").exists()


def test_an_instance_of_a_cloud_is_as_before(tmp_path: Path) -> None:
    rented = Instance("vast", "1", "", None, State.UNKNOWN, "", "", "", 1, 8, "on-demand", 0.1, ssh_host="h")
    assert not rented.silent
    assert "-i" in ssh.ssh_args(rented, KEY, tmp_path) and "ansible_become" not in ssh.ansible_vars(rented, KEY)


def test_a_box_takes_no_volume_of_a_cloud_along(own: Own, hosts: Hosts) -> None:
    offer, spec = own.offers(Query())[0], dataclasses.replace(SPEC, mounts=(("v1", "/data"),))
    for act in (own.create, own.plan_create):
        with pytest.raises(UnsupportedError, match="is created with a volume"):
            act(offer, spec)
    assert own.instances() == []
