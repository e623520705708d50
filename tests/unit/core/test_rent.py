from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpuyard import pace, paths, ssh
from gpuyard.config import SshKey
from gpuyard.errors import (
    AmbiguousError,
    InvalidRequestError,
    LeakError,
    NoCapacityError,
    ProviderDownError,
    UnreachableError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import Instance, State
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.renting import destroy, machine, ready, rent, survey

from .conftest import SSH_KEY, FakeTime, a_spec, an_offer
from .standin import LOST, Reply, Standin

LABEL = "gpuyard/miniprover-0/miniprover"
KEY = SshKey(Path("/keys/with space/id"), SSH_KEY)


def row(number: int, **changes: Any) -> dict[str, Any]:
    status = {"actual_status": "running", "intended_status": "running", "cur_state": "running"}
    where = {"ssh_host": "ssh5.vast.ai", "ssh_port": 12345}
    return {"id": number, "label": LABEL, **status, **where, **changes}


def an_instance(**changes: Any) -> Instance:
    values: dict[str, Any] = {
        "provider": "vast",
        "id": "7",
        "label": LABEL,
        "ref": RunRef("miniprover-0", "miniprover"),
        "state": State.RUNNING,
        "status_text": "running",
        "region": "Oslo, NO",
        "gpu_name": "A16",
        "gpu_count": 1.0,
        "gpu_ram_gb": 16.0,
        "market": "on-demand",
        "price_per_hour_usd": 0.4,
        "ssh_host": "203.0.113.9",
        "ssh_port": 20544,
        **changes,
    }
    return Instance(**values)


@pytest.fixture
def clouds(vast: Vast, vultr: Vultr, service: Standin) -> list[Vast | Vultr]:
    """Both clouds, with our key and nothing rented."""
    service.on("GET", "/api/v0/ssh/", Reply([{"public_key": SSH_KEY}]))
    service.on("GET", "/api/v1/instances/", Reply({"instances": []}))
    service.on("GET", "/ssh-keys", Reply({"ssh_keys": [{"id": "k", "ssh_key": SSH_KEY}]}))
    service.on("GET", "/instances", Reply({"instances": []}))
    service.on("GET", "/plans", Reply({"plans": []}))
    return [vast, vultr]


VULTR_OFFER = an_offer(provider="vultr", id="vcg-a16@ewr", price_per_hour_usd=0.5)
VULTR_ROW = {"id": "v-1", "status": "pending", "region": "ewr", "label": "miniprover-0"}
GONE = Reply({"success": False, "error": "no_such_ask", "msg": "no_such_ask"}, 410)


# -- rent --------------------------------------------------------------------------------------------------------------


def test_the_next_offer_is_tried_when_one_is_gone(clouds: list[Any], service: Standin) -> None:
    service.on("PUT", "/api/v0/asks/", GONE)
    service.on("POST", "/instances", Reply({"instance": VULTR_ROW}, 202))
    told: list[str] = []
    instance = rent.rent(clouds, [an_offer(), an_offer(id="2"), VULTR_OFFER], a_spec(), progress=told.append)
    assert (instance.provider, instance.id) == ("vultr", "v-1")
    assert [line.split(":")[0].split(" at ")[0] for line in told] == [
        "Renting vast 4711",
        "Not to be had any more",
        "Renting vast 2",
        "Not to be had any more",
        "Renting vultr vcg-a16@ewr",
        "Rented vultr instance v-1 for run miniprover-0; it bills until `ansible-playbook teardown.yml "
        "-e run=miniprover-0` ends that.",
    ]


def test_one_offer_after_another_is_not_asked_for_too_often(
    clouds: list[Any], service: Standin, fake_time: FakeTime
) -> None:
    """A refusal for that would cost half a minute, in which the machine that may have been rented is looked for."""
    service.on("PUT", "/api/v0/asks/", GONE)
    with pytest.raises(NoCapacityError):
        rent.rent(clouds, [an_offer(), an_offer(id="2"), an_offer(id="3")], a_spec())
    assert [pause for pause in fake_time.slept if pause] == [4.6, 4.6]


def test_when_all_offers_are_gone_nothing_is_rented(clouds: list[Any], service: Standin) -> None:
    service.on("PUT", "/api/v0/asks/", GONE)
    offers = [an_offer(id=str(number)) for number in range(20)]
    with pytest.raises(NoCapacityError, match="None of the 8 best offers"):
        rent.rent(clouds, offers, a_spec())
    assert len(service.calls("PUT")) == rent.MOST_OFFERS


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply({"success": False, "error": "invalid_args", "msg": "no"}, 400), InvalidRequestError),
        (LOST, AmbiguousError),
        (Reply("down", 500), AmbiguousError),
    ],
)
def test_no_other_error_leads_to_the_next_offer(
    clouds: list[Any], service: Standin, reply: Reply, kind: type[Exception]
) -> None:
    service.on("PUT", "/api/v0/asks/", reply)
    with pytest.raises(kind):
        rent.rent(clouds, [an_offer(), VULTR_OFFER], a_spec())
    assert not service.calls("POST", "/instances")


def test_a_run_that_has_got_a_machine_meanwhile_gets_no_second_one(clouds: list[Any], service: Standin) -> None:
    service.on("GET", "/api/v1/instances/", Reply({"instances": [row(7), row(8, label="gpuyard/other-0/other")]}))
    with pytest.raises(UsageError, match="has got vast instance 7 from another command"):
        rent.rent(clouds, [VULTR_OFFER], a_spec())
    assert {request.method for request in service.seen} == {"GET"}


def test_two_machines_of_a_run_are_both_named(clouds: list[Any], service: Standin) -> None:
    service.on("GET", "/api/v1/instances/", Reply({"instances": [row(7), row(8)]}))
    with pytest.raises(LeakError, match="vast instance 7, vast instance 8"):
        rent.rent(clouds, [VULTR_OFFER], a_spec())


def test_nothing_is_rented_while_a_cloud_cannot_say_what_the_run_has(clouds: list[Any], service: Standin) -> None:
    service.on("GET", "/api/v1/instances/", Reply("down", 503))
    with pytest.raises(ProviderDownError):
        rent.rent(clouds, [VULTR_OFFER], a_spec())
    assert not service.calls("POST")


def test_a_preempted_machine_is_not_destroyed_unasked(clouds: list[Any], service: Standin) -> None:
    lost = row(7, cur_state="stopped", actual_status="exited")
    service.on("GET", "/api/v1/instances/", Reply({"instances": [lost]}))
    with pytest.raises(UsageError, match=r"still has vast instance 7 \(preempted\)"):
        rent.rent(clouds, [VULTR_OFFER], a_spec())
    assert {request.method for request in service.seen} == {"GET"}


def test_a_replaced_machine_is_not_mistaken_for_the_new_one_whose_answer_is_lost(
    clouds: list[Any], service: Standin
) -> None:
    fresh = row(9, actual_status="loading")
    service.on("GET", "/api/v1/instances/", Reply({"instances": []}), Reply({"instances": [row(7), fresh]}))
    service.on("PUT", "/api/v0/asks/", LOST)
    spec = dataclasses.replace(a_spec(), known_ids=frozenset({"7"}))
    assert rent.rent(clouds, [an_offer()], spec).id == "9"


def test_the_offers_market_is_what_is_rented(clouds: list[Any], service: Standin) -> None:
    service.on("PUT", "/api/v0/asks/", Reply({"success": True, "new_contract": 7}))
    offer = an_offer(market="interruptible", price_per_hour_usd=0.11, disk_price_per_hour_usd=0.01)
    rent.rent(clouds, [offer], a_spec())
    assert service.calls("PUT")[0].body["price"] == 0.1


def test_no_offer_is_an_error(clouds: list[Any]) -> None:
    with pytest.raises(UsageError, match="no offer to rent"):
        rent.rent(clouds, [], a_spec())


# -- find, destroy -----------------------------------------------------------------------------------------------------


def test_find_looks_everywhere(clouds: list[Any], service: Standin) -> None:
    service.on("GET", "/api/v1/instances/", Reply({"instances": [row(7), row(8, label="mine")]}))
    tags = ["gpuyard", "run:other-1", "workload:other"]
    service.on("GET", "/instances", Reply({"instances": [{**VULTR_ROW, "tags": tags}]}))
    assert [instance.id for instance in survey.find(clouds)] == ["7", "v-1"]
    assert [instance.id for instance in survey.find(clouds, "other-1")] == ["v-1"]
    assert survey.find([], "other-1") == []


def test_all_are_destroyed_and_their_host_keys_forgotten(clouds: list[Any], service: Standin) -> None:
    file = paths.known_hosts()
    paths.ensure_private(file.parent)
    file.write_text("gpuyard-vast-7 ssh-ed25519 AAAA\ngpuyard-vast-77 ssh-ed25519 BBBB\n")
    for number in (7, 8):
        service.on("DELETE", f"/api/v0/instances/{number}/", Reply({"success": True}))
        service.on("GET", f"/api/v0/instances/{number}/", Reply({"instances": None}))
    destroy.destroy_all(clouds, [an_instance(), an_instance(id="8")])
    assert len(service.calls("DELETE")) == 2
    assert file.read_text() == "gpuyard-vast-77 ssh-ed25519 BBBB\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_destroyed_is_all_named(clouds: list[Any], service: Standin) -> None:
    for number in (7, 8, 9):
        service.on("DELETE", f"/api/v0/instances/{number}/", Reply({"success": True}))
        still = None if number == 9 else row(number)
        service.on("GET", f"/api/v0/instances/{number}/", Reply({"instances": still}))
    # Trouble with our own files hides none of it.
    paths.ensure_private(paths.home())
    paths.known_hosts().with_name("known_hosts.lock").mkdir()
    with pytest.raises(LeakError, match=r"instance 7 .*instance 8 "):
        destroy.destroy_all(clouds, [an_instance(), an_instance(id="8"), an_instance(id="9")])
    with pytest.raises(UsageError, match="not configured"):
        destroy.destroy_all(clouds, [an_instance(provider="lambda")])


# -- wait_ready --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(fake_time: FakeTime) -> pace.Clock:
    return pace.Clock(sleep=fake_time.sleep, now=fake_time.clock, date=fake_time.clock)


def states(service: Standin, *rows: dict[str, Any] | None) -> None:
    service.on("GET", "/api/v0/instances/7/", *(Reply({"instances": item}) for item in rows))


def test_ready_is_running_with_an_address(vast: Vast, service: Standin, clock: pace.Clock) -> None:
    loading = row(7, actual_status="loading")
    no_address = row(7, ssh_host=None)
    states(service, None, row(7, actual_status=None), loading, loading, no_address, row(7))
    told: list[str] = []
    found = ready.wait_ready(vast, an_instance(state=State.PENDING, ssh_host=""), progress=told.append, clock=clock)
    assert (found.state, found.ssh_host, found.ssh_port) == (State.RUNNING, "ssh5.vast.ai", 12345)
    assert [line.split(": ")[1] for line in told] == ["scheduling.", "loading.", "running."]


def test_the_pauses_start_small_and_are_capped(
    vast: Vast, service: Standin, clock: pace.Clock, fake_time: FakeTime
) -> None:
    states(service, row(7, actual_status="loading"))
    with pytest.raises(UnreachableError, match=r"not ready after 30 s; it last was loading\. It is rented and bills"):
        ready.wait_ready(vast, an_instance(), timeout_s=30, clock=clock)
    assert fake_time.slept[0] == 0.3
    assert max(fake_time.slept) == 3.0


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (row(7, actual_status="created", status_msg="OCI runtime create failed: x"), "will not start: it is failed"),
        (row(7, cur_state="stopped", actual_status="exited"), "will not start: it is preempted"),
        (None, "is gone: its provider no longer lists it"),
    ],
)
def test_a_state_without_a_future_ends_the_wait_at_the_second_look(
    vast: Vast, service: Standin, clock: pace.Clock, end: dict[str, Any] | None, said: str
) -> None:
    loading = row(7, actual_status="loading")
    states(service, loading, end, loading, end, end, row(7))
    with pytest.raises(UnreachableError, match=said):
        ready.wait_ready(vast, an_instance(), clock=clock)
    assert len(service.seen) == 5


def test_an_instance_that_never_appears_is_gone(vast: Vast, service: Standin, clock: pace.Clock) -> None:
    states(service, None)
    with pytest.raises(UnreachableError, match="is gone"):
        ready.wait_ready(vast, an_instance(), clock=clock)
    assert clock.now() - 1000 > rent.UNLISTED_S


def test_trouble_of_the_provider_is_waited_out(vast: Vast, service: Standin, clock: pace.Clock) -> None:
    service.on("GET", "/api/v0/instances/7/", *[Reply("down", 503)] * 7, Reply({"instances": row(7)}))
    assert ready.wait_ready(vast, an_instance(), clock=clock).id == "7"


# -- SSH ---------------------------------------------------------------------------------------------------------------


def test_variables_for_ansible() -> None:
    variables = ssh.ansible_vars(an_instance(), KEY, Path("/state/known hosts"))
    assert variables == {
        "ansible_host": "203.0.113.9",
        "ansible_port": 20544,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": "/keys/with space/id",
        "ansible_ssh_common_args": variables["ansible_ssh_common_args"],
        "ansible_control_path": variables["ansible_control_path"],
    }
    words = shlex.split(str(variables["ansible_ssh_common_args"]))
    options = dict(word.split("=", 1) for word in words[1::2])
    assert set(words[::2]) == {"-o"}
    assert options["HostKeyAlias"] == "gpuyard-vast-7"
    assert options["StrictHostKeyChecking"] == "yes"
    assert options["UserKnownHostsFile"] == '"/state/known hosts"'
    assert ssh.ansible_vars(an_instance(ssh_host=""), KEY) == {}


def test_arguments_are_what_ssh_understands(tmp_path: Path) -> None:
    """The real ssh reads them and says what it makes of them (`ssh -G` does not connect)."""
    known = tmp_path / "odd %h folder" / "known_hosts"
    arguments = ssh.ssh_args(an_instance(), KEY, known)
    done = subprocess.run(["ssh", "-G", *arguments], capture_output=True, text=True, check=True)
    settings = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert (settings["hostname"], settings["port"], settings["user"]) == ("203.0.113.9", "20544", "root")
    assert settings["stricthostkeychecking"] in ("yes", "true")
    assert settings["userknownhostsfile"].strip('"').replace("%%", "%") == str(known)
    assert settings["hostkeyalias"] == "gpuyard-vast-7"
    assert (settings["batchmode"], settings["identitiesonly"], settings["requesttty"]) == ("yes", "yes", "false")
    first = ssh.ssh_args(an_instance(), KEY, known, first_contact=True)
    assert "StrictHostKeyChecking=accept-new" in first
    assert first[-1] == "root@203.0.113.9"


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for ssh: does what the next file of ``<folder>/answers`` says, and keeps its arguments.

    The real one is exercised against the sandbox's machines.
    """
    folder = tmp_path / "fake"
    (folder / "answers").mkdir(parents=True)
    program = folder / "ssh"
    program.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$*" >> {folder}/calls\n'
        f"next=$(ls {folder}/answers | head -n 1)\n"
        f'sh {folder}/answers/"$next"; code=$?\n'
        f'[ "$(ls {folder}/answers | wc -l)" -gt 1 ] && rm {folder}/answers/"$next"\n'
        "exit $code\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def answers(folder: Path, *scripts: str) -> None:
    for old in (folder / "answers").iterdir():
        old.unlink()
    for number, script in enumerate(scripts):
        (folder / "answers" / f"{number:02}").write_text(script + "\n")


REFUSED = "echo 'connect to host 203.0.113.9 port 20544: Connection refused' >&2; exit 255"
BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIP4dFgb4JeCnyIIF6NFQc/4n2hjIm8X0XmqljzQkIRD9"


def test_x12_ssh_is_tried_until_it_answers_and_its_key_is_pinned(fake_ssh: Path, clock: pace.Clock) -> None:
    line = f"gpuyard-vast-7 ssh-ed25519 {BLOB}"
    answers(fake_ssh, REFUSED, REFUSED, f"echo '{line}' >> {paths.known_hosts()}")
    told: list[str] = []
    fingerprint = ready.wait_ssh(an_instance(), KEY, progress=told.append, clock=clock)
    expected = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(paths.known_hosts())], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert fingerprint == expected
    assert len(told) == 2  # the same complaint is told once
    calls = (fake_ssh / "calls").read_text().splitlines()
    assert len(calls) == 3
    assert all("StrictHostKeyChecking=accept-new" in call and call.endswith("root@203.0.113.9 true") for call in calls)


def test_x12_another_host_key_ends_the_wait_at_once(fake_ssh: Path, clock: pace.Clock) -> None:
    answers(fake_ssh, "echo 'WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!' >&2; exit 255")
    with pytest.raises(UnreachableError, match=r"another host key.*gpuyard-vast-7"):
        ready.wait_ssh(an_instance(), KEY, clock=clock)
    assert len((fake_ssh / "calls").read_text().splitlines()) == 1


def test_ssh_that_never_answers(fake_ssh: Path, clock: pace.Clock) -> None:
    answers(fake_ssh, REFUSED)
    with pytest.raises(UnreachableError, match=r"203\.0\.113\.9:20544 within 5 s .*Connection refused"):
        ready.wait_ssh(an_instance(), KEY, timeout_s=5, clock=clock)


DENIED = "echo 'root@203.0.113.9: Permission denied (publickey).' >&2; exit 255"
OTHER_KEY = f"ssh-ed25519 {BLOB} gpuyard-laptop"


def test_a_machine_that_does_not_know_our_key_is_one_sentence_and_soon(
    fake_ssh: Path, clock: pace.Clock, fake_time: FakeTime
) -> None:
    answers(fake_ssh, REFUSED, DENIED)
    with pytest.raises(UnreachableError) as caught:
        ready.wait_ssh(an_instance(), KEY, new=False, account_keys=lambda: [SSH_KEY, OTHER_KEY], clock=clock)
    assert fake_time.now - 1000 < 20
    said = str(caught.value)
    assert f"{ssh.key_fingerprint(SSH_KEY)} (/keys/with space/id)" in said
    assert f"The account also has {ssh.key_fingerprint(OTHER_KEY)} (gpuyard-laptop)." in said
    assert "-e ssh_key=PATH" in said and "teardown.yml -e run=miniprover-0" in said
    for owner in ([], [OTHER_KEY] * 9):  # keys that nobody can name, and too many of them
        with pytest.raises(UnreachableError, match="another controller has rented it"):
            ready.wait_ssh(an_instance(), KEY, new=False, account_keys=lambda: owner, clock=clock)  # noqa: B023


def test_a_new_machine_is_given_time_to_learn_our_key(fake_ssh: Path, clock: pace.Clock, fake_time: FakeTime) -> None:
    pinned = f"echo 'gpuyard-vast-7 ssh-ed25519 {BLOB}' >> {paths.known_hosts()}"
    answers(fake_ssh, *[DENIED] * 20, REFUSED, pinned)
    ready.wait_ssh(an_instance(), KEY, clock=clock)
    assert fake_time.now - 1000 > ready.KEY_REFUSED_S + 10
    # One that a killed command of ours has rented a moment ago is as new.
    answers(fake_ssh, *[DENIED] * 20, pinned)
    young = an_instance(created_at=fake_time.now)
    began = fake_time.now
    ready.wait_ssh(young, KEY, new=False, account_keys=lambda: [SSH_KEY], clock=clock)
    assert fake_time.now - began > ready.KEY_REFUSED_S + 10
    answers(fake_ssh, DENIED)
    with pytest.raises(UnreachableError, match="still refuses the SSH key with which it was rented"):
        ready.wait_ssh(an_instance(), KEY, clock=clock)
    assert fake_time.now - began < 200
    for age, keys, most in ((0, [OTHER_KEY], 20), (500, [SSH_KEY], 20)):
        began = fake_time.now
        with pytest.raises(UnreachableError, match="does not know the SSH key"):
            kept = an_instance(created_at=fake_time.now - age)
            ready.wait_ssh(kept, KEY, new=False, account_keys=lambda: keys, clock=clock)  # noqa: B023
        assert fake_time.now - began < most


def test_a_new_machine_does_not_meet_the_pin_of_an_old_one_with_its_id(clouds: list[Any], service: Standin) -> None:
    ssh.add_ssh_host(an_instance(id="3"), KEY)
    pins = paths.known_hosts()
    pins.write_text(f"gpuyard-vast-7 ssh-ed25519 {BLOB}\ngpuyard-vast-3 ssh-ed25519 {BLOB}\ngpuyard-vast-8 x y\n")
    service.on("PUT", "/api/v0/asks/", Reply({"success": True, "new_contract": 7}))
    rent.rent(clouds, [an_offer()], a_spec())
    # Nor does that of the machine stay which the run had before.
    assert pins.read_text() == "gpuyard-vast-8 x y\n"


def test_pins_go_when_the_machine_is_known_to_be_gone(
    clouds: list[Any], service: Standin, waits: Any, tmp_path: Path
) -> None:
    ssh.add_ssh_host(an_instance(), KEY)
    ssh.add_ssh_host(an_instance(id="8", ref=RunRef("other-0", "other")), KEY)
    pins = paths.known_hosts()
    pins.write_text("gpuyard-vast-7 x y\ngpuyard-vast-8 x y\ngpuyard-sandbox-ab-vast-7 x y\n")
    before = pins.read_text()
    service.on("GET", "/api/v1/instances/", Reply({"instances": [row(7)]}))
    service.on("GET", "/api/v0/instances/7/", Reply({"instances": row(7)}))
    service.on("DELETE", "/api/v0/instances/7/", Reply({"success": True}))
    with pytest.raises(LeakError):
        machine.absent(clouds, "miniprover-0")
    assert pins.read_text() == before  # it may be there
    service.on("GET", "/api/v1/instances/", Reply({"instances": []}))
    service.on("GET", "/instances", Reply("down", 503))
    with pytest.raises(LeakError):
        machine.absent(clouds, "miniprover-0")
    assert pins.read_text() == before
    service.on("GET", "/instances", Reply({"instances": []}))
    machine.absent(clouds[1:], "miniprover-0")
    assert pins.read_text() == before  # nobody has asked the cloud where it is
    machine.absent(clouds, "miniprover-0")
    assert pins.read_text() == "gpuyard-vast-8 x y\ngpuyard-sandbox-ab-vast-7 x y\n"
    ssh.forget_sandbox("ab")
    assert pins.read_text() == "gpuyard-vast-8 x y\n"
    ssh.forget_sandbox("ab", tmp_path / "nowhere" / "known_hosts")
    assert not (tmp_path / "nowhere").exists()


def test_machines_of_two_sandboxes_have_two_aliases(service: Standin, patience: Any) -> None:
    service.on("GET", "/api/v1/instances/", Reply({"instances": [row(7)]}))
    made = [Vast("k", base_url=service.url, patience=patience, emulated=True, sandbox=name) for name in ("ab", "cd")]
    aliases = [cloud.instances()[0].host_key_alias for cloud in made]
    assert aliases == ["gpuyard-sandbox-ab-vast-7", "gpuyard-sandbox-cd-vast-7"]


def test_a_key_of_another_instance_is_not_this_ones(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    assert ssh.host_key_fingerprint(an_instance(), file) is None
    ssh.forget_host_key(an_instance(), file)
    file.write_text(f"# a comment\n\ngpuyard-vast-77 ssh-ed25519 {BLOB}\ngpuyard-vast-7 ssh-ed25519 not-base64!\n")
    assert ssh.host_key_fingerprint(an_instance(), file) is None
    assert ssh.host_key_fingerprint(dataclasses.replace(an_instance(), id="77"), file) is not None


def test_other_clouds_have_their_turn_before_the_rest_of_one_that_refuses() -> None:
    offers = [an_offer(id=f"v{number}") for number in range(10)] + [an_offer(provider="vultr", id="u0")]
    tried = [offer.id for offer in rent.worth_trying(offers)]
    assert tried == ["v0", "v1", "v2", "u0", *(f"v{number}" for number in range(3, 10))]
    assert [offer.id for offer in rent.worth_trying(offers[:2])] == ["v0", "v1"]


def test_a_run_can_be_reached_by_its_name_until_its_machine_is_forgotten(tmp_path: Path) -> None:
    key, hosts = SshKey(tmp_path / "id", SSH_KEY), tmp_path / "known_hosts"
    ref = RunRef("story-0", "prover")
    lost, current = an_instance(ref=ref), an_instance(id="8", ref=ref, ssh_port=2222)
    for instance in (lost, current):
        ssh.add_ssh_host(instance, key, hosts)

    def resolved() -> set[str]:
        words = ["ssh", "-G", "-F", str(tmp_path / "ssh_config"), "story-0"]
        return set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines())

    wanted = {f"hostname {current.ssh_host}", "port 2222", f"identityfile {key.private_path}"}
    pinned = {"hostkeyalias gpuyard-vast-8", f"userknownhostsfile {hosts}", "stricthostkeychecking true"}
    assert wanted | pinned <= resolved()
    ssh.forget_host_key(lost, hosts)
    assert "port 2222" in resolved()
    ssh.forget_host_key(current, hosts)
    assert "port 2222" not in resolved()
    ssh.add_ssh_host(an_instance(ref=None), key, hosts)
    assert list((tmp_path / "ssh").iterdir()) == []
