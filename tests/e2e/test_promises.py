"""Promises that hold for every run: a dry run writes nothing, and secrets are where they belong and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from yard import BETWEEN_LOOKS_S, CANARY, ROOT, Yard

from gpuyard import demo
from gpuyard.renting.runs import stored

TINY = """\
name: tiny
repository: {path: tree}
needs: {gpu_count: 1, gpu_ram_gb: 8, cpu_cores: 2, ram_gb: 4}
environment: {required: [TINY_TOKEN]}
checkpoints: {every_s: 1}
iterations: 1
stages:
  - name: hold
    command: test -n "$TINY_TOKEN" && mkdir -p $GPUYARD_PERSIST/models && date > $GPUYARD_PERSIST/models/x && sleep 600
    grace_s: 2
"""
MORE_SECRETS = "{required: [TINY_TOKEN], optional: [TINY_OPTIONAL, TINY_UNSET], files: {TINY_KEY: key.json}}"
CLOUDS = ("vast", "vultr", "lambda", "runpod")
OPTIONAL, IN_A_FILE = "canary-optional-5b1f7ac02d94e8f17b3c60a2", "canary-file-c0e4d91b66a83f52e7190bd48c31"


def secrets(yard: Yard) -> dict[str, str]:
    """Return every secret of the sandbox by name."""
    info = json.loads((yard.state / "sandbox.json").read_text())
    keys = info["keys"]
    ours = {"token": CANARY, "optional": OPTIONAL, "file": IN_A_FILE}
    return {**{name: keys[name] for name in CLOUDS}, "s3": keys["s3"]["secret_key"], **ours}


def tiny(folder: Path, more: str = "") -> str:
    """Write the smallest workload, with ``more`` lines at its end, and return its path."""
    (folder / "tree").mkdir()
    (folder / "tree" / "README").write_text("A repository.\n")
    (folder / "workloads").mkdir()
    (folder / "workloads" / "tiny.yml").write_text(TINY + more)
    return str(folder / "workloads" / "tiny.yml")


def test_a_dry_run_shows_the_calls_and_makes_none(yard: Yard, tmp_path: Path) -> None:
    home = {"GPUYARD_HOME": str(tmp_path)}  # with an SSH key that no cloud knows
    for provider in ("vultr", "vast"):
        flags = ("--check", "--diff")
        said = yard.play("launch", *flags, provider=provider, run="dry-0", sandbox_state=str(yard.state), env=home)
        text = " ".join(said.text.split())
        assert "would rent" in text and "is expected to take" in text, said.text
        assert (
            ("POST" in text and "/instances" in text) if provider == "vultr" else ("PUT" in text and "/asks/" in text)
        )
    status = yard.control.status()
    assert [one for one in status["instances"] if "dry-0" in (one["label"] + " ".join(one["tags"]))] == []
    # Not even the SSH key was registered.
    info = json.loads((yard.state / "sandbox.json").read_text())
    headers = {"Authorization": f"Bearer {info['keys']['vultr']}"}
    listed = requests.get(f"{info['endpoints']['vultr']}/ssh-keys", headers=headers, timeout=120).json()
    fresh = (tmp_path / "keys" / "id_ed25519.pub").read_text().split()[1]
    assert fresh not in [key["ssh_key"].split()[1] for key in listed["ssh_keys"]]


def test_secrets_are_in_one_file_on_the_machine_and_nowhere_else(yard: Yard, tmp_path: Path) -> None:
    workload, token = tiny(tmp_path), {"TINY_TOKEN": CANARY, "TINY_OPTIONAL": OPTIONAL}
    text = Path(workload).read_text().replace("{required: [TINY_TOKEN]}", MORE_SECRETS)
    look = 'test -z "$TINY_UNSET" && test -n "$TINY_OPTIONAL" && test -s "$TINY_KEY" && mkdir'
    Path(workload).write_text(text.replace("mkdir", look, 1))
    (tmp_path / "key.json").write_text(IN_A_FILE)
    log = tmp_path / "ansible.log"
    logged = {**token, "ANSIBLE_LOG_PATH": str(log)}
    said = yard.play("launch", "-vvv", provider="vast", run="secret-0", workload=workload, env=logged)
    yard.wait("a checkpoint", lambda: yard.manifest("secret-0"), seconds=300)
    wanted = secrets(yard)

    # On the machine: the token and the bucket's key in the secret file only, and the clouds' keys nowhere.
    places = "/opt/gpuyard /mnt /etc /root /home /tmp /var/lib /var/log /run"
    for name, secret in wanted.items():
        files = yard.on_machine("secret-0", f"grep -rlsF -- {secret} {places} || true").split()
        place = {"file": "files/TINY_KEY"}.get(name, "secrets.env")
        assert files == ([] if name in CLOUDS else [f"/opt/gpuyard/run/{place}"]), (name, files)
        commands = yard.on_machine("secret-0", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").replace(f"-- {secret}", "")
        assert secret not in commands, name
    modes = yard.on_machine("secret-0", "cd /opt/gpuyard/run; stat -c %a secrets.env files files/TINY_KEY").split()
    assert modes == ["600", "700", "600"]
    assert CANARY not in yard.on_machine(
        "secret-0", "tmux show-environment -g; tmux list-panes -a -F '#{pane_start_command}'"
    )

    # In the bucket and in everything that was ever printed: nowhere.
    for path, content in yard.published("secret-0", r".*").items():
        for name, secret in wanted.items():
            assert secret.encode() not in content, (name, path)
    yard.play("teardown", run="secret-0", env=token)
    # Nobody has followed it, so the last words are what it costs and how that ends.
    last_words = said.text.partition("TASK [Follow the run to its end")[2]
    assert "Run secret-0 is at work" in last_words and "teardown.yml -e run=secret-0" in last_words
    assert "secret-0" in log.read_text()
    for name, secret in wanted.items():
        for text in [*yard.printed, log.read_text()]:
            assert secret not in text, name

    # On the controller: in the sandbox's own files only.
    for file in yard.home.rglob("*"):
        if file.is_file() and yard.state not in file.parents:
            content = file.read_bytes()
            assert not [name for name, secret in wanted.items() if secret.encode() in content], file


def test_environment_and_site_configuration_say_the_same_as_the_option(yard: Yard, tmp_path: Path) -> None:
    said = yard.run("ansible-playbook", "status.yml", env={"GPUYARD_SANDBOX": "1"})
    assert said.code == 0, said.text
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "all.yml").write_text("sandbox: true\nworkload: miniprover\n")
    (tmp_path / "vast.yml").write_text("plugin: gpuyard.cloud.vast\n")
    said = yard.run("ansible-playbook", "-i", str(tmp_path), "launch.yml", "--check")
    assert said.code == 0 and "(emulated)" in said.text, said.text
    no_key = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    (tmp_path / "group_vars" / "all.yml").write_text("sandbox: false\nworkload: miniprover\n")
    assert yard.run("ansible-playbook", "-i", str(tmp_path), "launch.yml", "--check", env=no_key).code != 0


def test_what_the_demonstration_leaves_unsaid_is_unsaid(yard: Yard) -> None:
    unsaid = json.dumps(demo.unsaid("launch") | {"workload": "miniprover", "run": "unsaid-0"})
    plain = yard.play("launch", "--check", run="unsaid-0", workload="miniprover")
    said = yard.play("launch", "--check", "-e", unsaid)
    shown = [[line for line in one.text.splitlines() if "fit" in line or "would" in line] for one in (plain, said)]
    assert shown[0] == shown[1] != []


def test_the_plays_run_by_collection_name_from_any_folder(yard: Yard, tmp_path: Path) -> None:
    said = yard.run(
        "ansible-playbook",
        "gpuyard.cloud.launch",
        "-e",
        "sandbox=true",
        "-e",
        "workload=miniprover",
        "--check",
        cwd=tmp_path,
    )
    assert said.code == 0, said.text
    assert "would rent" in said.text and tmp_path != ROOT


def follower(alias: str) -> int | None:
    """Return the process id of the connection over which a play follows the machine of that name."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has just ended
        if words[0] == "ssh" and f"HostKeyAlias={alias}" in words and words[-2].endswith("progress --follow"):
            return int(place.parent.name)
    return None


# A stage that needs longer to save its work than most, and has it only when it is waited for.
SAVES_LATE = """{ trap 'sleep 8; date > $GPUYARD_PERSIST/models/late; exit 0' TERM; sleep 600 & wait; }
    grace_s: 60
"""


def test_no_machine_is_destroyed_before_its_work_is_saved(yard: Yard, tmp_path: Path) -> None:
    workload, token = tiny(tmp_path), {"TINY_TOKEN": CANARY}
    file = Path(workload)
    file.write_text(file.read_text().replace("sleep 600\n    grace_s: 2\n", SAVES_LATE))
    options = {"provider": "vast", "run": "alone-0", "workload": workload, "shutdown": "true"}
    with ThreadPoolExecutor(max_workers=1) as pool:
        launched = pool.submit(yard.play, "launch", ok=False, env=token, **options)
        yard.wait("a machine", lambda: [one for one in yard.instances("alone-0") if one.state == "running"])
        alias = yard.machine("alone-0").host_key_alias
        connection = yard.wait("the play to follow", lambda: launched.done() or follower(alias))
        assert connection is not True, launched.result().text
        yard.wait("a checkpoint", lambda: yard.manifest("alone-0"), seconds=300)
        os.kill(connection, signal.SIGTERM)
        said = launched.result()
    sentence = " ".join(said.text.split())
    assert "The connection to vast instance" in sentence and "is lost" in sentence
    assert "Nothing is destroyed" in sentence and "teardown.yml -e run=alone-0" in sentence
    status = yard.on_machine("alone-0", "/opt/gpuyard/venv/bin/python -m gpuyard.box.stages status --json")
    assert json.loads(status)["state"] == "running"

    # The machine does not reach the bucket any more, so what its stage saves at its end is on its disk only.
    yard.on_machine("alone-0", "cp /etc/hosts /tmp/hosts; echo 127.0.0.1 bucket > /etc/hosts")
    said = yard.play("teardown", ok=False, run="alone-0", env=token)
    sentence = " ".join(said.text.split())
    assert "stage hold is saving its work" in sentence and "is kept, and bills" in sentence
    assert "cannot be used" in sentence and "teardown.yml -e run=alone-0" in sentence and "-e lose=true" in sentence
    assert "late" in yard.on_machine("alone-0", "ls /mnt/persistent/models") and not yard.published(
        "alone-0", "models/late"
    )
    assert "interrupted" in yard.play("status", run="alone-0").text
    yard.on_machine("alone-0", "cat /tmp/hosts > /etc/hosts")
    yard.play("teardown", run="alone-0", env=token)
    assert yard.instances("alone-0") == [] and yard.published("alone-0", "models/late")
    # It was ended and not lost, so nobody is asked to go on with it.
    kept = stored(yard.store, costs=True)
    assert kept.records["alone-0"].outcome == "cancelled"
    # What it has cost is known when nothing of it is left, and agrees with the cloud's own bill.
    (entry,) = kept.entries["alone-0"]
    billed = sum(line["amount_usd"] for line in yard.control.status()["bill"]["lines"] if line["id"] == entry.id)
    cost = entry.cost_usd(time.time())
    assert entry.ended and cost == pytest.approx(billed, abs=BETWEEN_LOOKS_S / 3600 * entry.price_per_hour_usd)
    assert f"{cost:.4f}" in yard.play("status", run="alone-0").text


def test_a_new_machine_that_cannot_be_used_is_given_back_and_a_used_one_is_not(yard: Yard, tmp_path: Path) -> None:
    workload, token = tiny(tmp_path, 'build: ["echo nothing can be built; exit 3"]\n'), {"TINY_TOKEN": CANARY}
    options = {"provider": "vast", "run": "unbuilt-0", "workload": workload}
    said = yard.play("launch", ok=False, env=token, **options, shutdown="true")
    assert "nothing can be built" in said.text
    assert "The machine is destroyed" in said.text and yard.instances("unbuilt-0") == []
    said = yard.play("launch", ok=False, env=token, **options)
    assert "kept, and bills" in said.text and "teardown.yml -e run=unbuilt-0" in " ".join(said.text.split())
    kept = yard.machine("unbuilt-0")
    # A machine that was there before may hold work, whatever shutdown says.
    said = yard.play("launch", ok=False, env=token, **options, shutdown="true")
    assert "kept, and bills" in said.text and yard.machine("unbuilt-0").id == kept.id
    # A cloud that is down keeps no other one's machine billing; that it could not be asked is told.
    yard.control.fault("server-error", "vultr", 1000)
    said = yard.play("teardown", ok=False, run="unbuilt-0")
    sentence = " ".join(said.text.split())
    assert f"confirmed gone: vast {kept.id}" in sentence and "vultr could not be asked" in sentence
    status = yard.play("status", ok=False, provider="vultr")
    yard.control.clear_faults()
    assert "Vultr" in status.text and yard.instances("unbuilt-0") == []
    yard.play("teardown", run="unbuilt-0")


def test_the_default_workload_is_known_in_any_folder(yard: Yard, tmp_path: Path) -> None:
    said = yard.run("ansible-playbook", "gpuyard.cloud.launch", "-e", "sandbox=true", "--check", cwd=tmp_path)
    assert said.code == 0, said.text
    assert "of workload miniprover" in said.text


CHOSEN = """\
schema: 1
name: chosen
repository: {path: tree}
needs: {gpu_ram_gb: 8}
persist: {directories: [models]}
parameters: {epochs: 3, size: {type: str, default: big, choices: [big, small]}}
profiles: {small: {parameters: {size: small}}}
iterations: 2
stages:
  - {name: data, command: echo data >> models/marks, run: once}
  - name: train
    command: "train() { echo train-$ITERATION $EPOCHS $SIZE $MODE $@ >> models/marks; }; train"
    overrides: true
    environment: {MODE: later}
    first: {environment: {MODE: first}}
  - {name: export, command: echo export-$ITERATION >> models/marks; sleep 600, timeout: 1s, run: later}
"""


def test_v12_f6_a_run_with_values_and_stages_of_its_own(yard: Yard, tmp_path: Path) -> None:
    workload = tiny(tmp_path)
    Path(workload).write_text(CHOSEN)
    options = {"provider": "vast", "run": "chosen-0", "workload": workload, "profile": "small", "follow": "true"}
    said = yard.play(
        "launch", ok=False, **options, overrides="epochs=1,batch.size=4", from_stage="train", iteration="1"
    )
    assert said.code != 0 and "export was ended after 1 s, its timeout" in " ".join(said.text.split()), said.text
    marks = "cat /opt/gpuyard/src/chosen/*/models/marks"
    # It began at iteration 1, and what runs once in the run was not passed over.
    assert yard.on_machine("chosen-0", marks).split("\n")[:3] == [
        "data",
        "train-1 1 small later batch.size=4",
        "export-1",
    ]
    said = yard.play("launch", **options, overrides="epochs=2", stage="train", iteration="0")
    assert "Only train of iteration 0 is to run." in said.text
    # The profile and the override that were said before still hold.
    assert yard.on_machine("chosen-0", marks).split("\n")[3:4] == ["train-0 2 small first batch.size=4"]
    yard.play("teardown", run="chosen-0")
