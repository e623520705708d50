# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The neutral modules: what they do to clouds in memory, and what they say."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError

from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import LocalStore
from gpuyard.errors import CreditError, InvalidRequestError, NoCapacityError, ProviderDownError, UnreachableError
from gpuyard.providers.base import State
from gpuyard.renting import locks, ready, runs, watch

from .conftest import Verb, World, instance, offer

WORKLOAD = """
name: tiny
repository: {path: code}
needs: {gpu_ram_gb: 8}
environment: {required: [TINY_TOKEN]}
stages: [{name: one, command: "true", hours: {expected: 1, worst: 2}}]
"""
SECRET = "canary-secret-77aa31d0c4e94b28"
CANARY = "canary-token-5d1c07b2e9f84a63"


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the path of a workload whose required variable is set."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print()")
    path = tmp_path / "workloads" / "tiny.yml"
    path.parent.mkdir()
    path.write_text(WORKLOAD)
    monkeypatch.setenv("TINY_TOKEN", CANARY)
    monkeypatch.chdir(tmp_path)
    return str(path)


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    """Return the address of an empty bucket."""
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path / 'bucket'}"


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the options of a bucket at a port where nothing listens, with keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-access-1b7f20")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return {"bucket": "s3://nowhere", "bucket_endpoint": "http://127.0.0.1:9"}


def publish(bucket: str, run: str, tmp_path: Path, *, outcome: str | None = None, workload: str = "tiny") -> None:
    """Leave in the bucket what a run leaves there: a record and a checkpoint."""
    store = LocalStore(Path(bucket.removeprefix("file://")))
    checkpoints.write_record(store, run, workload, outcome=outcome)
    root = tmp_path / f"persistent-{run}"
    root.mkdir()
    (root / "weights").write_text("1")
    progress = {"iteration": 1, "stage": "search", "finished": outcome is not None, "outcome": outcome}
    checkpoints.publish(store, run, root, progress=lambda _journal: progress)


def sentence(result: dict[str, Any]) -> str:
    """Return the message of a failed result, which must be one block without a traceback."""
    assert result.get("failed") is True, result
    assert "Traceback" not in str(result)
    assert "exception" not in result
    assert result["failure"]["kind"].endswith("Error")
    return str(result["msg"])


# -- instance ---------------------------------------------------------------------------------------------------------

PRESENT: dict[str, Any] = {"run": "a-0", "workload": "tiny", "wait": False}


def test_present_check_create_again(world: World, verb: Verb) -> None:
    world.vast.market = [offer("vast", "2", price_per_hour_usd=0.5), offer("vast", "1", price_per_hour_usd=0.3)]
    predicted = verb("instance", check=True, **PRESENT)
    assert predicted["changed"]
    assert predicted["planned_calls"] == [
        {"method": "PUT", "url": "https://cloud.invalid/asks/1", "body": {"label": "gpuyard/a-0/tiny"}}
    ]
    assert "vast 1" in predicted["diff"]["after"]["machines"][0]
    assert world.vast.rented == []

    created = verb("instance", **PRESENT)
    assert created["changed"]
    assert world.vast.rented == ["1"]
    assert created["instance"]["run"] == "a-0"
    assert created["connection"]["ansible_host"] == "192.0.2.7"
    assert created["diff"]["before"] == {"machines": []}
    assert len(created["actions"]) == 1
    assert "planned_calls" not in created

    again = verb("instance", **PRESENT)
    assert not again["changed"]
    assert again["instance"]["id"] == created["instance"]["id"]
    assert again["diff"]["before"] == again["diff"]["after"]
    assert world.vast.rented == ["1"]


def test_absent_everywhere_check_delete_again(world: World, verb: Verb) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0", state=State.PREEMPTED)
    world.vultr.held["2"] = instance("vultr", "2", "a-0")
    world.vultr.held["3"] = instance("vultr", "3", "b-0")
    predicted = verb("instance", check=True, run="a-0", state="absent")
    assert [call["method"] for call in predicted["planned_calls"]] == ["DELETE", "DELETE"]
    assert set(world.vultr.held) == {"2", "3"}

    gone = verb("instance", run="a-0", state="absent")
    assert gone["changed"]
    assert len(gone["actions"]) == 2
    assert (world.vast.held, set(world.vultr.held)) == ({}, {"3"})
    assert gone["diff"]["after"] == {"machines": []}

    assert not verb("instance", run="a-0", state="absent")["changed"]


def test_absent_ends_what_can_be_seen_and_names_the_cloud_that_cannot(world: World, verb: Verb) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.error = ProviderDownError("Vultr answers with 503.", provider="vultr", status=503)
    predicted = sentence(verb("instance", check=True, run="a-0", state="absent"))
    assert "503" in predicted and "confirmed gone" not in predicted
    assert "1" in world.vast.held
    result = verb("instance", run="a-0", state="absent")
    message = sentence(result)
    assert "confirmed gone: vast 1" in message and "vultr could not be asked" in message and "503" in message
    assert (result["failure"]["kind"], result["failure"]["provider"]) == ("LeakError", "vultr")
    assert world.vast.held == {}
    world.vast.error = ProviderDownError("Vast.ai is down.", provider="vast")
    assert sentence(verb("instance", run="a-0", state="absent")) == "Vast.ai is down."


def test_a_slip_in_the_name_does_not_look_like_the_end_of_a_rental(world: World, verb: Verb) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    lines: list[str] = []
    result = verb("instance", run="a-00", state="absent", lines=lines)
    assert result["text"] == "Run a-00 has no machine at Vast or Vultr."
    assert lines == ["Runs that have machines: a-0."]
    assert world.vast.held


def test_absent_needs_no_ssh_key(world: World, verb: Verb) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    # Whoever names a key wants its stages ended in good order with it, and hears of a slip before anything is lost.
    assert "/nowhere/id" in sentence(verb("instance_info", partial=True, ssh_key="/nowhere/id"))
    assert verb("instance", run="a-0", state="absent", ssh_key="/nowhere/id")["changed"]


def test_two_commands_do_not_rent_for_one_run(world: World, verb: Verb) -> None:
    offers = [vars_of(offer("vast", "7"))]
    told: list[str] = []
    answers: list[dict[str, Any]] = []
    second = threading.Thread(target=lambda: answers.append(verb("instance", lines=told, offers=offers, **PRESENT)))
    with locks.exclusive("a-0"):
        second.start()
        while not told:
            assert second.is_alive(), answers
            second.join(0.01)
        world.vast.held["1"] = instance("vast", "1", "a-0")  # the first command has got it
    second.join()
    assert "Another command" in told[0]
    assert "just rented vast 1" in sentence(answers[0])
    assert world.vast.rented == []
    # Without anybody else at work the machine is simply the run's machine.
    assert not verb("instance", offers=offers, **PRESENT)["changed"]


def test_offers_are_taken_in_their_order(world: World, verb: Verb) -> None:
    offers = [
        {**verb_offer, "price_per_hour_usd": "0.9"}
        for verb_offer in ({**vars_of(offer("vultr", "plan@ewr"))}, {**vars_of(offer("vast", "7"))})
    ]
    lines: list[str] = []
    world.vultr.refusals["plan@ewr"] = NoCapacityError("Vultr has no capacity.", provider="vultr")
    result = verb("instance", lines=lines, offers=offers, **PRESENT)
    assert result["instance"]["provider"] == "vast"
    assert any("no capacity" in line for line in lines)


def vars_of(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def test_nothing_is_given_up_for_a_machine_that_no_offer_can_bring(world: World, verb: Verb) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0", state=State.PREEMPTED)
    assert "no offer to rent" in sentence(verb("instance", **PRESENT, offers=[], replace_preempted=True))
    assert list(world.vast.held) == ["1"]


@pytest.mark.parametrize("refusal", [InvalidRequestError("No such image."), CreditError("Out of credit.")])
def test_other_refusals_end_it(world: World, verb: Verb, refusal: Any) -> None:
    world.vast.market = [offer("vast", "1"), offer("vast", "2", price_per_hour_usd=2.0)]
    world.vast.refusals["1"] = refusal
    assert sentence(verb("instance", **PRESENT)) == str(refusal)
    assert world.vast.rented == []


def test_all_offers_gone(world: World, verb: Verb) -> None:
    world.vast.market = [offer("vast", str(number)) for number in range(3)]
    world.vast.refusals = {str(number): NoCapacityError("Sold out.") for number in range(3)}
    result = verb("instance", **PRESENT)
    assert "None of the 3 best offers could be had" in sentence(result)
    assert result["failure"]["kind"] == "NoCapacityError"


def test_a_machine_that_never_answers_is_given_back(world: World, verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    world.vast.market = [offer("vast", "1", price_per_hour_usd=0.1), offer("vast", "2")]
    waited: list[str] = []

    def wait_ssh(one: Any, *_args: Any, **_options: Any) -> str:
        waited.append(one.id)
        if one.id == "91":
            raise UnreachableError("vast instance 91 did not answer.")
        return "SHA256:x"

    monkeypatch.setattr(ready, "wait_ssh", wait_ssh)
    lines: list[str] = []
    result = verb("instance", lines=lines, **{**PRESENT, "wait": True})
    assert result["instance"]["id"] == "92"
    assert waited == ["91", "92"]
    assert list(world.vast.held) == ["92"]
    assert "vast instance 91 did not answer. Giving it back." in lines
    # A machine that the run had before is never given back: its disk holds the run's work.
    world.vast.held = {"91": instance("vast", "91", "a-0")}
    assert "did not answer" in sentence(verb("instance", **{**PRESENT, "wait": True}))
    assert list(world.vast.held) == ["91"]


def test_a_lost_machine_is_replaced_only_when_told(world: World, verb: Verb) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0", state=State.PREEMPTED)
    world.vast.market = [offer("vast", "5")]
    message = sentence(verb("instance", **PRESENT))
    assert "resume_search.yml -e run=a-0" in message
    assert "1" in world.vast.held
    predicted = verb("instance", check=True, replace_preempted=True, **PRESENT)
    assert [call["method"] for call in predicted["planned_calls"]] == ["DELETE", "PUT"]
    replaced = verb("instance", replace_preempted=True, **PRESENT)
    assert list(world.vast.held) == ["95"]
    assert [action.split()[0] for action in replaced["actions"]] == ["destroy", "rent"]


def test_two_machines_of_a_run_are_an_error(world: World, verb: Verb) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.held["2"] = instance("vultr", "2", "a-0")
    message = sentence(verb("instance", **PRESENT))
    assert "vast 1" in message
    assert "vultr 2" in message


def test_stop_and_start(world: World, verb: Verb) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    options = {"run": "a-0", "wait": False}
    assert verb("instance", check=True, state="stopped", **options)["changed"]
    assert world.vast.held["1"].state is State.RUNNING
    assert verb("instance", state="stopped", **options)["changed"]
    assert world.vast.held["1"].state is State.STOPPED
    assert not verb("instance", state="stopped", **options)["changed"]
    assert verb("instance", check=True, state="present", **options)["actions"] == ["start vast 1"]
    assert verb("instance", state="started", **options)["changed"]
    assert world.vast.held["1"].state is State.RUNNING
    assert not verb("instance", state="started", **options)["changed"]
    assert "has no machine" in sentence(verb("instance", run="b-0", state="started"))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"run": "Not a name"}, "cannot be a run name"),
        ({"workload": None}, "its workload has to be named"),
        ({"offers": [{"provider": "vast"}]}, "An offer lacks id"),
        ({"offers": []}, "no offer"),
        ({"max_price_per_hour": 0.01}, "max_price_per_hour <= 0.01 removed 1 of 1"),
        ({"max_price_per_hour": float("nan")}, "max_price_per_hour=nan must be a number above 0"),
        ({"reliability": 95.0}, "reliability=95 must be a number from 0 to 1"),
        ({"ssh_key": "/nowhere/id"}, "ssh_key=/nowhere/id does not exist"),
    ],
)
def test_bad_arguments(world: World, verb: Verb, options: dict[str, Any], wanted: str) -> None:
    world.vast.market = [offer("vast", "1")]
    assert wanted in sentence(verb("instance", **{**PRESENT, **options}))
    assert world.vast.rented == []


# -- offer_info, instance_info ----------------------------------------------------------------------------------------


def test_offer_info(world: World, verb: Verb, workload: str) -> None:
    world.vast.market = [offer("vast", "1", gpu_ram_gb=4.0), offer("vast", "2")]
    world.vultr.market = [offer("vultr", "3", price_per_hour_usd=0.1)]
    result = verb("offer_info", workload=workload)
    assert [one["id"] for one in result["offers"]] == ["3", "2"]
    assert result["rejected"][0]["reasons"] == ["gpu_ram_gb >= 8, has 4"]
    assert "Taking vultr 3" in result["text"]
    none = verb("offer_info", provider="vast", workload=workload, gpu_ram_gb=48)
    assert none["offers"] == []
    assert "gpu_ram_gb >= 48 removed 2 of 2" in none["text"]


def test_instance_info(world: World, verb: Verb) -> None:
    world.vultr.held["2"] = instance("vultr", "2", "b-0")
    world.vast.held["1"] = instance("vast", "1", "a-0", state=State.PREEMPTED)
    world.vast.held["9"] = instance("vast", "9")

    def ids(**options: Any) -> list[str]:
        return [one["id"] for one in verb("instance_info", **options)["instances"]]

    assert ids() == ["1", "2"]
    assert ids(all=True) == ["9", "1", "2"]
    assert ids(run="b-0") == ["2"]
    assert ids(state="preempted") == ["1"]
    assert ids(provider="vultr", workload="miniprover") == ["2"]
    world.vast.error = ProviderDownError("Vast.ai is down.")
    assert sentence(verb("instance_info")) == "Vast.ai is down."
    partial = verb("instance_info", partial=True)
    assert [one["id"] for one in partial["instances"]] == ["2"]
    assert "vast could not be asked" in partial["unanswered"]["vast"] and "vast could not be asked" in partial["text"]
    world.vultr.error = ProviderDownError("Vultr is down.")
    assert sentence(verb("instance_info", partial=True)) == "Vast.ai is down."


# -- run_plan ---------------------------------------------------------------------------------------------------------


def test_plan_of_a_new_run(world: World, verb: Verb, workload: str, bucket: str) -> None:
    world.vast.market = [offer("vast", "1")]
    world.vultr.market = [offer("vultr", "2", price_per_hour_usd=0.2)]
    result = verb("run_plan", workload=workload, bucket=bucket)
    plan = result["plan"]
    module = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.modules.run_plan")
    assert set(plan) == set(yaml.safe_load(module.RETURN)["plan"]["contains"])
    assert plan["run"] == "tiny-0"
    assert [one["id"] for one in plan["offers"]] == ["2", "1"]
    assert plan["cost"]["run"]["usd"]["expected"] == pytest.approx(0.2 * 1.1)
    assert plan["workload"]["name"] == "tiny"
    assert plan["bucket"]["url"] == bucket
    assert plan["environment_required"] == ["TINY_TOKEN"]
    assert plan["instance"] == plan["connection"] == plan["progress"] == {}
    assert len(plan["fingerprint"]) == 64
    assert "Taking vultr 2" in result["text"]
    assert "0.2000" in result["text"]
    # A folder of that name here is not the one that the machine writes to.
    assert "on the machine; unless storage is shared there, they are lost with it" in result["text"]
    assert CANARY not in str(result)
    assert (world.vast.rented, world.vultr.rented) == ([], [])


def test_the_fingerprint_follows_the_repository(world: World, verb: Verb, workload: str, tmp_path: Path) -> None:
    world.vast.market = [offer("vast", "1")]
    first = verb("run_plan", workload=workload, bucket="")["plan"]["fingerprint"]
    assert verb("run_plan", workload=workload, bucket="")["plan"]["fingerprint"] == first
    (tmp_path / "code" / "train.py").write_text("print(1)")
    assert verb("run_plan", workload=workload, bucket="")["plan"]["fingerprint"] != first


def test_plan_takes_the_run_that_has_a_machine(world: World, verb: Verb, workload: str, bucket: str) -> None:
    world.vast.held["1"] = instance("vast", "1", "tiny-4", ref=tiny("tiny-4"))
    plan = verb("run_plan", workload=workload, bucket=bucket)["plan"]
    assert (plan["run"], plan["instance"]["id"], plan["offers"]) == ("tiny-4", "1", [])
    assert plan["connection"]["ansible_port"] == 40022
    # Asked for another cloud, it is another run, whose name is not one that is taken anywhere.
    world.vast.held = {"1": instance("vast", "1", "tiny-0", ref=tiny("tiny-0"))}
    world.vultr.market = [offer("vultr", "2")]
    assert verb("run_plan", workload=workload, bucket=bucket, provider="vultr")["plan"]["run"] == "tiny-1"
    # Named, it must not get a second machine.
    message = sentence(verb("run_plan", workload=workload, bucket=bucket, provider="vultr", run="tiny-0"))
    assert "has a machine at another cloud (vast 1" in message


def tiny(run: str) -> Any:
    from gpuyard.formats.label import RunRef

    return RunRef(run, "tiny")


def test_a_new_name_is_free_in_the_bucket_too(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    world.vast.market = [offer("vast", "1")]
    publish(bucket, "tiny-0", tmp_path, outcome="done")
    assert verb("run_plan", workload=workload, bucket=bucket)["plan"]["run"] == "tiny-1"
    message = sentence(verb("run_plan", workload=workload, bucket=bucket, run="tiny-0"))
    assert "has finished" in message
    assert "-e run=tiny-1" in message


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"workload": "tinny"}, "Did you mean tiny?"),
        ({"workload": "/nowhere/w.yml"}, "there is no such file"),
        ({"run": "Tiny_0"}, "cannot be a run name"),
        ({"ssh_key": "/nowhere/id"}, "ssh_key=/nowhere/id does not exist"),
        ({"max_price_per_hour": 0.1}, "max_price_per_hour <= 0.1 removed 1 of 1 (best seen 0.4)"),
        ({"max_price_per_hour": float("nan")}, "max_price_per_hour=nan must be a number above 0"),
        ({"max_price_per_hour": -1.0}, "max_price_per_hour=-1 must be a number above 0"),
        ({"gpu_count": 0.0}, "gpu_count=0 must be a number above 0"),
        ({"disk_gb": float("inf")}, "disk_gb=inf must be a number above 0"),
        ({"bucket": "ftp://x"}, "bucket='ftp://x'"),
        ({"shutdown": True}, "shutdown=true destroys the machine when the run ends, and without a bucket its results"),
        ({"mode": "resume"}, "no run that can be resumed"),
        ({"mode": "resume", "run": "tiny-9"}, "There is no run tiny-9"),
    ],
)
def test_plan_bad_input(world: World, verb: Verb, workload: str, options: dict[str, Any], wanted: str) -> None:
    world.vast.market = [offer("vast", "1")]
    assert wanted in sentence(verb("run_plan", **{"workload": workload, "bucket": "", **options}))
    assert world.vast.rented == []


def test_a_wrong_number_is_refused_for_a_run_that_has_a_machine(
    world: World, verb: Verb, workload: str, bucket: str
) -> None:
    world.vast.held["1"] = instance("vast", "1", "tiny-0", ref=tiny("tiny-0"))
    message = sentence(verb("run_plan", workload=workload, bucket=bucket, max_price_per_hour=-1.0))
    assert "max_price_per_hour=-1 must be" in message


def test_plan_wrong_key_in_the_workload(world: World, verb: Verb, workload: str) -> None:
    Path(workload).write_text(WORKLOAD + "stagess: []\n")
    assert "tiny.yml:7: stagess: is not a key here" in sentence(verb("run_plan", workload=workload))


def test_plan_looks_into_the_repository(world: World, verb: Verb, workload: str, tmp_path: Path) -> None:
    world.vast.market = [offer("vast", "1")]
    for name in ("a", "b", "c", "d"):
        (tmp_path / "code" / name).mkdir()
        (tmp_path / "code" / name / "input.txt").write_text("")
    Path(workload).write_text(f"{WORKLOAD}persist: {{directories: [a, b, c, d]}}\n")
    text = verb("run_plan", workload=workload, bucket="")["text"]
    assert "a/input.txt, b/input.txt, c/input.txt and 1 more of the repository lie in a persisted folder: " in text
    Path(workload).write_text(f"{WORKLOAD}python: {{requirements: more.txt}}\n")
    world.calls.clear()
    message = sentence(verb("run_plan", workload=workload, bucket=""))
    assert message == f"{workload}: python.requirements: the file more.txt is not in {tmp_path / 'code'}."
    assert world.calls == []


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_plan_says_what_goes_to_the_machine_and_what_does_not(
    world: World, verb: Verb, workload: str, tmp_path: Path
) -> None:
    """Number and size, what is not committed, and the largest that are left out."""
    world.vast.market = [offer("vast", "1")]
    code = tmp_path / "code"
    git(tmp_path, "init", "-q", "code")
    (code / ".gitignore").write_text("data/\nlogs/\nsmall/\n")
    git(code, "add", ".")
    git(code, "commit", "-q", "-m", "first")
    for name, size in (("data/x", 2_500_000), ("logs/x", 300_000), ("small/x", 10), ("new", 1000)):
        (code / name).parent.mkdir(exist_ok=True)
        (code / name).write_bytes(b"x" * size)
    there = len(list(code.iterdir())) - 4  # .git, data, logs, small
    text = verb("run_plan", workload=workload, bucket="")["text"]
    assert f"{there} files, 1.0 kB, of {code} go to the machine; 1 file is not committed (new)." in text
    assert "Left out: data/ (2.5 MB, git ignores it), logs/ (300 kB, git ignores it); repository.include brings" in text
    Path(workload).write_text(WORKLOAD.replace("{path: code}", f"{{path: {code}, include: [data/x]}}"))
    included = verb("run_plan", workload=workload, bucket="")["text"]
    assert f"{there + 1} files, 2.5 MB, of {code} go to the machine; 1 file is not committed" in included
    assert "Left out: logs/ (300 kB, git ignores it); " in included
    Path(workload).write_text(WORKLOAD.replace("{path: code}", "{path: code, include: [weights/]}"))
    message = sentence(verb("run_plan", workload=workload, bucket=""))
    assert message == f"{workload}: repository.include: no file in {code} matches 'weights/'."


@pytest.mark.parametrize("path", ["~/code", ".", "../{folder}/code", "{tmp}/code"])
def test_a_repository_may_lie_anywhere(
    world: World, verb: Verb, workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    world.vast.market = [offer("vast", "1")]
    monkeypatch.setenv("HOME", str(tmp_path))
    path = path.format(folder=tmp_path.name, tmp=tmp_path)
    Path(workload).write_text(WORKLOAD.replace("{path: code}", f"{{path: {path}}}"))
    plan = verb("run_plan", workload=workload, bucket="")["plan"]
    assert Path(plan["tree"]).resolve() == (tmp_path if path == "." else tmp_path / "code")
    assert "path" not in plan["workload"]["repository"], "the machine need not know where it lies here"


@pytest.mark.parametrize("recorded", [True, False])
def test_plan_says_which_files_of_the_repository_the_checkpoint_will_replace(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path, *, recorded: bool
) -> None:
    world.vast.market = [offer("vast", "1")]
    for folder in ("code/data", "persistent/data"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("same", "newer", "changed"):
            (tmp_path / folder / name).write_text("first")
    if recorded:
        digest = hashlib.sha256(b"first").hexdigest()
        brought = {f"data/{name}": digest for name in ("same", "newer", "changed")}
        (tmp_path / "persistent/.gpuyard").mkdir()
        (tmp_path / "persistent/.gpuyard/brought.json").write_text(json.dumps(brought))
        (tmp_path / "persistent/data/changed").write_text("the run's")
        (tmp_path / "code/data/changed").write_text("second")
    store = LocalStore(Path(bucket.removeprefix("file://")))
    checkpoints.write_record(store, "tiny-1", "tiny")
    checkpoints.publish(store, "tiny-1", tmp_path / "persistent", progress=lambda _journal: {"iteration": 1})
    Path(workload).write_text(f"{WORKLOAD}persist: {{directories: [data]}}\n")
    options = {"mode": "resume", "workload": workload, "bucket": bucket}
    before = verb("run_plan", **options)["text"]
    assert "data/newer" not in before.replace("data/newer, data/same of the repository lie", "")
    (tmp_path / "code/data/newer").write_text("second")
    text = verb("run_plan", **options)["text"]
    kept = "data/changed" if recorded else "data/newer"
    assert f"{kept} in the checkpoint is not as in the repository" in text
    assert ("data/newer is newer in the repository than in the checkpoint" in text) is recorded


def test_plan_looks_for_a_repository_that_is_fetched(world: World, verb: Verb, workload: str) -> None:
    world.vast.market = [offer("vast", "1")]
    source = {"url": "http://127.0.0.1:9/name", "commit": "0" * 40}
    Path(workload).write_text(WORKLOAD.replace("{path: code}", str(source)))
    assert (
        "127.0.0.1:9/name at 000000000000 cannot be looked for from here"
        in (verb("run_plan", workload=workload, bucket="")["text"])
    )


def test_plan_missing_environment(world: World, verb: Verb, workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_TOKEN")
    assert "TINY_TOKEN" in sentence(verb("run_plan", workload=workload))
    assert world.calls == []


def test_plan_unreachable_bucket(world: World, verb: Verb, workload: str, closed: dict[str, str]) -> None:
    result = verb("run_plan", workload=workload, **closed)
    assert "nowhere" in sentence(result)
    assert SECRET not in str(result)


@pytest.mark.parametrize(("rule", "said"), [(False, True), (True, False), (None, False)])
def test_the_plan_says_when_unfinished_uploads_would_stay(
    world: World,
    verb: Verb,
    workload: str,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    rule: bool | None,
    said: bool,
) -> None:
    monkeypatch.setattr(LocalStore, "ends_unfinished", lambda store: rule)
    world.vast.market = [offer("vast", "1")]
    text = verb("run_plan", workload=workload, bucket=bucket)["text"]
    assert ("No rule of that bucket ends unfinished uploads by itself." in text) is said


def test_the_plan_says_what_checkpoints_will_not_hold(world: World, verb: Verb, workload: str, bucket: str) -> None:
    """A user who loses the machine must not learn only then that the cache was not published."""
    rules = "persist: {rules: [{path: cache/**, kind: cache}, {path: models/*.pt, kind: model}]}\n"
    Path(workload).write_text(WORKLOAD + rules)
    world.vast.market = [offer("vast", "1")]
    text = verb("run_plan", workload=workload, bucket=bucket)["text"]
    assert "Not in checkpoints, by persist.rules: cache/** (cache)." in text
    assert "Of each folder checkpoints hold only the newest of models/*.pt." in text
    assert "persist.rules" not in verb("run_plan", workload=workload, bucket="")["text"]


def test_the_plan_tells_the_machine_which_checkpoint_to_expect(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 only where the bucket was read and holds nothing of the run; a folder may be another one on the machine."""
    world.vast.market = [offer("vast", "1")]
    assert verb("run_plan", workload=workload, bucket=bucket)["plan"]["expected_checkpoint"] == -1
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    store = LocalStore(Path(bucket.removeprefix("file://")))
    monkeypatch.setattr(runs, "open_store", lambda *place, **keys: store)
    assert verb("run_plan", workload=workload, bucket="s3://b")["plan"]["expected_checkpoint"] == 0
    publish(bucket, "tiny-1", tmp_path)
    asked = {"run": "tiny-1", "workload": workload, "bucket": "s3://b"}
    assert verb("run_plan", **asked)["plan"]["expected_checkpoint"] == 1
    # A machine that was taken for lost may still publish: of that nothing is known.
    world.vast.held["2"] = instance("vast", "2", ref=tiny("tiny-2"))
    asked["run"] = "tiny-2"
    assert verb("run_plan", **asked)["plan"]["expected_checkpoint"] == 0
    world.vast.held["3"] = instance("vast", "3", ref=tiny("tiny-2"), state=State.PREEMPTED)
    assert verb("run_plan", **asked)["plan"]["expected_checkpoint"] == -1


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_resume_finds_the_one_run(world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path) -> None:
    publish(bucket, "tiny-0", tmp_path, outcome="done")
    publish(bucket, "tiny-1", tmp_path)
    # The host that was just lost is not taken again.
    world.vast.held["1"] = instance("vast", "1", ref=tiny("tiny-1"), state=State.PREEMPTED, machine_id="m1")
    world.vast.market = [
        offer("vast", "5", machine_id="m1", price_per_hour_usd=0.1),
        offer("vast", "6", machine_id="m2"),
    ]
    result = verb("run_plan", mode="resume", workload=workload, bucket=bucket)
    assert result["plan"]["run"] == "tiny-1"
    assert result["plan"]["progress"]["stage"] == "search"
    assert [one["id"] for one in result["plan"]["offers"]] == ["6"]
    assert "goes on from iteration 1, search" in result["text"]
    assert "resume_search.yml -e run=tiny-1" in sentence(verb("run_plan", run="tiny-1", bucket=bucket))
    # Whoever launches another one is told of it.
    other = verb("run_plan", workload=workload, bucket=bucket)
    assert other["plan"]["run"] == "tiny-2"
    assert "Run tiny-1 has lost its machine (vast 1" in other["text"]
    assert "has lost its machine" not in result["text"]

    publish(bucket, "tiny-2", tmp_path)
    message = sentence(verb("run_plan", mode="resume", workload=workload, bucket=bucket))
    assert "2 runs can be resumed: tiny-1 (preempted" in message
    assert "tiny-2 (interrupted" in message
    assert verb("run_plan", mode="resume", run="tiny-2", bucket=bucket)["plan"]["run"] == "tiny-2"


def test_resume_tells_of_what_was_lost_before_a_checkpoint(
    world: World, verb: Verb, workload: str, bucket: str
) -> None:
    world.vast.held["1"] = instance("vast", "1", ref=tiny("tiny-1"), state=State.PREEMPTED)
    message = sentence(verb("run_plan", mode="resume", bucket=bucket))
    assert "no run that can be resumed" in message and "may still bill: tiny-1" in message


def test_resume_does_not_give_up_the_only_copy(world: World, verb: Verb, workload: str, bucket: str) -> None:
    world.vast.held["1"] = instance("vast", "1", ref=tiny("tiny-1"), state=State.PREEMPTED)
    message = sentence(verb("run_plan", mode="resume", run="tiny-1", bucket=bucket))
    assert "no whole checkpoint in the bucket" in message
    # Nor when the bucket knows no more of it than that it began, and no run is named.
    checkpoints.write_record(LocalStore(Path(bucket.removeprefix("file://"))), "tiny-1", "tiny")
    assert sentence(verb("run_plan", mode="resume", bucket=bucket)) == message
    # A launch does not promise a checkpoint that there is not.
    assert sentence(verb("run_plan", run="tiny-1", bucket=bucket)) == message


def test_only_a_checkpoint_lets_a_lost_machine_go(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    world.vast.held["1"] = instance("vast", "1", ref=tiny("tiny-1"))
    plan = verb("run_plan", mode="resume", run="tiny-1", bucket=bucket)["plan"]
    # It may be lost between the plan and the renting; what its disk holds is then the only copy.
    assert (plan["provider"], plan["replace_preempted"]) == ("vast", False)
    publish(bucket, "tiny-1", tmp_path)
    assert verb("run_plan", mode="resume", run="tiny-1", bucket=bucket)["plan"]["replace_preempted"] is True
    assert verb("run_plan", mode="launch", run="tiny-1", bucket=bucket)["plan"]["replace_preempted"] is False


def test_a_lost_disk_is_not_given_up_for_a_checkpoint_that_lacks_files(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, "tiny-1", tmp_path)
    store = LocalStore(Path(bucket.removeprefix("file://")))
    root = tmp_path / "persistent-tiny-1"
    (root / "weights").write_text("2 and more")
    checkpoints.publish(store, "tiny-1", root, progress=lambda _journal: {})
    newest, older = checkpoints.manifests(store, "tiny-1")
    world.vast.held["1"] = instance("vast", "1", ref=tiny("tiny-1"), state=State.PREEMPTED)
    world.vast.market = [offer("vast", "2")]
    lines: list[str] = []

    def plan() -> dict[str, Any]:
        return verb("run_plan", mode="resume", run="tiny-1", bucket=bucket, lines=lines)

    assert plan()["plan"]["replace_preempted"] is True and not any("lacks files" in line for line in lines)
    assert plan()["plan"]["checkpoint"] == newest.sequence
    store.delete(next(entry.key for entry in newest.files if entry.path == "weights"))
    older_one = plan()["plan"]
    assert older_one["progress"]["stage"] == "search"
    # What says that it holds this launch's work has to be newer than both.
    assert older_one["checkpoint"] == newest.sequence
    assert any(f"or has damaged ones, so {older.sequence} will be" in line for line in lines)
    store.put(next(entry.key for entry in older.files if entry.path == "weights"), b"cut off in the middle")
    assert "no whole checkpoint in the bucket" in sentence(plan())


def test_a_checkpoint_that_cannot_be_read_ends_the_planning_of_its_run_only(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    store = LocalStore(Path(bucket.removeprefix("file://")))
    for run in ("tiny-1", "tiny-2"):
        publish(bucket, run, tmp_path)
    root = tmp_path / "persistent-tiny-1"
    (root / "weights").write_text("2")
    checkpoints.publish(store, "tiny-1", root, progress=lambda _journal: {"done": "not as gpuyard says it"})
    store.put("tiny-1/checkpoints/000003/manifest.json", b"")
    world.vast.market = [offer("vast", "1")]
    for mode in ("launch", "resume"):
        result = verb("run_plan", mode=mode, run="tiny-1", bucket=bucket)
        assert "tiny-1/checkpoints/000003/manifest.json is empty" in sentence(result)
        assert "-e restore=2 (there are 2, 1)" in sentence(result)
        assert verb("run_plan", mode=mode, run="tiny-2", bucket=bucket)["plan"]["restore"] == -1
    # The bucket is not the run's only place: a machine that it has goes on, and the plan says what is wrong.
    world.vast.held["1"] = instance("vast", "1", ref=tiny("tiny-1"))
    assert "Something of it in the bucket cannot be read" in verb("run_plan", run="tiny-1", bucket=bucket)["text"]
    del world.vast.held["1"]
    # Status and logs of the others do not suffer.
    shown = verb("run_info", bucket=bucket)
    assert [(one["run"], bool(one["problem"])) for one in shown["runs"]] == [("tiny-1", True), ("tiny-2", False)]
    assert "tiny-1 has something in the bucket that cannot be read: file://" in shown["text"]
    assert "-e run=tiny-2" in shown["text"] and "tiny-1 can go on" not in shown["text"]
    assert "is empty" in sentence(verb("stage_log", run="tiny-1", bucket=bucket))
    assert "has no log" in sentence(verb("stage_log", run="tiny-2", bucket=bucket))
    # An older one is taken by choice.
    chosen = verb("run_plan", mode="resume", run="tiny-1", bucket=bucket, restore=2)
    assert (chosen["plan"]["restore"], chosen["plan"]["checkpoint"]) == (2, 3)
    assert "goes on from" in chosen["text"] and "checkpoint 2 of" in chosen["text"]


@pytest.mark.parametrize(
    ("restore", "message"),
    [
        (0, "restore=0 is not the number of a checkpoint: those begin at 1."),
        (-1, "restore=-1 is not the number of a checkpoint"),
        (7, "restore=7 cannot be: Run tiny-1 has no checkpoint 7 in file://"),
        (2, "restore=2 cannot be: file:///"),
    ],
)
def test_only_a_checkpoint_that_is_there_can_be_chosen(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path, restore: int, message: str
) -> None:
    publish(bucket, "tiny-1", tmp_path)
    LocalStore(Path(bucket.removeprefix("file://"))).put("tiny-1/checkpoints/000002/manifest.json", b"{")
    world.vast.market = [offer("vast", "1")]
    assert message in sentence(verb("run_plan", mode="resume", run="tiny-1", bucket=bucket, restore=restore))


def test_a_chosen_checkpoint_needs_a_bucket_and_all_its_files(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, "tiny-1", tmp_path)
    world.vast.market = [offer("vast", "2")]
    assert "needs the bucket" in sentence(verb("run_plan", run="tiny-1", workload=workload, bucket="", restore=1))
    world.vast.held["1"] = instance("vast", "1", ref=tiny("tiny-1"), state=State.PREEMPTED)
    assert verb("run_plan", mode="resume", run="tiny-1", bucket=bucket, restore=1)["plan"]["replace_preempted"] is True
    LocalStore(Path(bucket.removeprefix("file://"))).delete("tiny-1/checkpoints/000001/files/weights")
    message = sentence(verb("run_plan", mode="resume", run="tiny-1", bucket=bucket, restore=1))
    assert "files of that checkpoint are missing" in message and "vast 1" in message


def test_what_a_lost_machine_left_elsewhere_goes_as_well(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, "tiny-1", tmp_path)
    world.vast.held["1"] = instance("vast", "1", ref=tiny("tiny-1"), state=State.PREEMPTED)
    world.vultr.market = [offer("vultr", "2")]
    result = verb("run_plan", mode="resume", run="tiny-1", provider="vultr", bucket=bucket)
    plan = result["plan"]
    assert "What is left of the lost machine goes first: vast 1" in result["text"]
    replaced = verb(
        "instance",
        wait=False,
        workload="tiny",
        **{name: plan[name] for name in ("run", "provider", "offers", "replace_preempted")},
    )
    assert replaced["instance"]["provider"] == "vultr"
    assert world.vast.held == {}
    assert verb("run_plan", workload=workload, bucket=bucket, provider="vultr", run="tiny-2")["plan"]["provider"] == (
        "vultr"
    )


def test_a_finished_run_that_lost_its_machine_is_not_to_be_resumed(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, "tiny-0", tmp_path, outcome="done")
    world.vast.held["1"] = instance("vast", "1", ref=tiny("tiny-0"), state=State.PREEMPTED)
    world.vast.market = [offer("vast", "2")]
    message = sentence(verb("run_plan", workload=workload, bucket=bucket, run="tiny-0"))
    assert "has finished" in message and "teardown.yml -e run=tiny-0" in message
    lines: list[str] = verb("run_plan", workload=workload, bucket=bucket)["text"].splitlines()
    (about,) = [line for line in lines if line.startswith("Run tiny-0 ")]
    assert "teardown.yml -e run=tiny-0" in about and "resume_search" not in about


# -- run_info ---------------------------------------------------------------------------------------------------------


def test_run_info_joins_machines_and_bucket(world: World, verb: Verb, bucket: str, tmp_path: Path) -> None:
    publish(bucket, "done-0", tmp_path, outcome="done")
    publish(bucket, "lost-0", tmp_path)
    publish(bucket, "busy-0", tmp_path)
    world.vast.held["1"] = instance("vast", "1", ref=tiny("busy-0"))
    world.vultr.held["2"] = instance("vultr", "2", ref=tiny("taken-0"), state=State.PREEMPTED)
    world.vultr.held["3"] = instance("vultr", "3", ref=tiny("done-0"))
    world.vultr.held["4"] = instance("vultr", "4", ref=tiny("busy-0"), state=State.PREEMPTED)
    result = verb("run_info", bucket=bucket, ask_boxes=False)
    states = {one["run"]: (one["state"], one["resumable"]) for one in result["runs"]}
    assert states == {
        "busy-0": ("running", False),
        "done-0": ("finished", False),
        "lost-0": ("interrupted", True),
        "taken-0": ("preempted", False),
    }
    assert "resume_search.yml -e run=lost-0" in result["text"]
    assert "done-0 has ended and still bills" in result["text"]
    missing = verb("run_info", bucket=bucket, ask_boxes=False, run="dnoe-0")["text"]
    assert missing.startswith("run='dnoe-0' is not known to the clouds and the bucket; ")
    assert missing.endswith("the runs there are: busy-0, done-0, lost-0, taken-0.")
    assert "busy-0 also has vultr 4, RTX 4090 in Sweden, SE, preempted, which may bill as well." in result["text"]
    del world.vultr.held["4"]
    busy = verb("run_info", bucket=bucket, ask_boxes=False)["runs"][0]
    assert busy["hours"] > 0
    assert busy["cost_usd"] == pytest.approx(busy["hours"] * 0.4)
    assert [one["run"] for one in verb("run_info", bucket=bucket, ask_boxes=False, run="busy-0")["runs"]] == ["busy-0"]
    assert verb("run_info", bucket=bucket, workload="none")["text"] == "There are no runs."


def test_what_a_run_has_cost_stays_known_after_its_end(world: World, verb: Verb, bucket: str) -> None:
    world.vast.market = [offer("vast", "1")]
    verb("instance", bucket=bucket, **PRESENT)
    verb("instance", bucket=bucket, run="a-0", state="absent")
    result = verb("run_info", bucket=bucket)
    (gone,) = result["runs"]
    assert (gone["run"], gone["workload"], gone["instances"], gone["resumable"]) == ("a-0", "tiny", [], False)
    # The machine is as old as its cloud says: since 1970.
    assert gone["spent_usd"] > 10_000 * 0.4 and gone["cost_usd"] == 0.0
    assert f"In all ${gone['spent_usd']:.4f} so far, and $0.0000 an hour now" in result["text"]
    # Its name is free, since there is nothing that a new run could go on from by mistake.
    assert verb("run_info", bucket="")["runs"] == []
    Path(bucket.removeprefix("file://"), "a-0", "ledger", "vast-91.json").write_text("{")
    assert "is not an entry of gpuyard's ledger" in verb("run_info", bucket=bucket)["text"]


def test_run_info_without_one_of_the_clouds(world: World, verb: Verb, bucket: str) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.error = ProviderDownError("Vultr is down.", provider="vultr")
    result = verb("run_info", bucket=bucket, ask_boxes=False)
    assert [one["run"] for one in result["runs"]] == ["a-0"]
    assert "Vultr is down." in result["unanswered"]["vultr"] and "Vultr is down." in result["text"]
    world.vast.error = ProviderDownError("Vast.ai is down.")
    assert sentence(verb("run_info", bucket=bucket)) == "Vast.ai is down."


# -- run_record -------------------------------------------------------------------------------------------------------


def test_a_run_torn_down_is_resumed_only_by_name(
    world: World, verb: Verb, workload: str, bucket: str, tmp_path: Path
) -> None:
    for run, outcome in (("tiny-0", "interrupted"), ("tiny-1", "done"), ("tiny-2", None)):
        publish(bucket, run, tmp_path, outcome=outcome)
    world.vast.market = [offer("vast", "1")]
    assert verb("run_record", run="tiny-0", bucket=bucket, check=True)["changed"]
    assert "tiny-0 (interrupted" in sentence(verb("run_plan", mode="resume", bucket=bucket))
    told = verb("run_record", run="tiny-0", bucket=bucket)
    assert told["changed"] and told["diff"]["after"] == {"outcome": "cancelled"}
    for run in ("tiny-0", "tiny-1", "tiny-9"):  # again; ended by itself; unknown to the bucket
        assert not verb("run_record", run=run, bucket=bucket)["changed"]
    assert not verb("run_record", run="tiny-0", bucket="")["changed"]
    states = {one["run"]: one["state"] for one in verb("run_info", bucket=bucket)["runs"]}
    assert states == {"tiny-0": "cancelled", "tiny-1": "finished", "tiny-2": "interrupted"}
    assert verb("run_plan", mode="resume", bucket=bucket)["plan"]["run"] == "tiny-2"
    assert verb("run_plan", mode="resume", run="tiny-0", bucket=bucket)["plan"]["run"] == "tiny-0"
    verb("run_record", run="tiny-2", bucket=bucket)
    message = sentence(verb("run_plan", mode="resume", bucket=bucket))
    assert "no run that can be resumed" in message
    assert "go on when they are named (-e run=…): tiny-0 (cancelled, stopped), tiny-2" in message


def test_an_end_is_no_failure_because_the_bucket_cannot_be_told(verb: Verb, closed: dict[str, str]) -> None:
    result = verb("run_record", run="a-0", **closed)
    assert not result["changed"] and not result.get("failed")
    assert "still counts as resumable" in result["text"] and SECRET not in str(result)


def test_run_info_without_its_bucket(world: World, verb: Verb, closed: dict[str, str]) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    result = verb("run_info", ask_boxes=False, **closed)
    assert [one["run"] for one in result["runs"]] == ["a-0"]
    assert "The bucket cannot be read" in result["text"]


def test_a_log_does_not_need_the_bucket(
    world: World, verb: Verb, closed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "lines", lambda machine, key, words: iter(["theorem 41: proved"]))
    assert "nowhere" in sentence(verb("stage_log", run="a-0", **closed))
    world.vast.held["1"] = instance("vast", "1", "a-0")
    told: list[str] = []
    assert verb("stage_log", run="a-0", lines=told, **closed)["lines"] == ["theorem 41: proved"]
    assert "nowhere" in sentence(verb("stage_log", run="b-0", **closed))
    assert any("The bucket cannot be read" in line for line in told)


def test_what_is_followed_to_its_end_bills_on(
    world: World, verb: Verb, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    failure = {"stage": "train", "iteration": 0, "exit_code": 3, "last_line": "no GPU"}
    monkeypatch.setattr(watch, "progress", lambda *_args: iter([{"event": "end", "state": "failed"}]))
    monkeypatch.setattr(watch, "status", lambda *_args, **_more: {"state": "failed", "failure": failure})
    monkeypatch.setattr(watch, "lines", lambda *_args: iter(["no GPU"]))
    bills = "it bills 0.4000 USD an hour: `ansible-playbook teardown.yml -e run=a-0` ends that."
    message = sentence(verb("stage_log", run="a-0", follow=True, bucket=bucket))
    assert "Run a-0 has failed in iteration 0, train (exit code 3). Its last lines:\n    no GPU\n" in message
    assert message.endswith(bills)
    monkeypatch.setattr(watch, "progress", lambda *_args: iter([{"event": "end", "state": "finished"}]))
    assert verb("stage_log", run="a-0", follow=True, bucket=bucket)["text"].endswith(bills)
    # One stage that was chosen has ended well, and others are left.
    monkeypatch.setattr(watch, "progress", lambda *_args: iter([{"event": "end", "state": "idle"}]))
    text = verb("stage_log", run="a-0", follow=True, bucket=bucket)["text"]
    assert text.startswith("What was to run is done; the run has other stages left.\n") and text.endswith(bills)


def test_run_info_shows_what_the_machines_say(
    world: World, verb: Verb, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vast.held["2"] = instance("vast", "2", "b-0", state=State.PREEMPTED)
    monkeypatch.setattr(watch, "status", lambda *_args, **_more: {"state": "idle", "iteration": 2, "stage": "search"})
    result = verb("run_info", bucket=bucket)
    idle, lost = result["runs"]
    assert (idle["state"], idle["stages"]["stage"], idle["resumable"]) == ("idle", "search", False)
    assert (lost["state"], lost["stages"]) == ("preempted", {})
    assert "iteration 2, search" in result["text"] and "Nothing runs on a-0 (idle), and it bills" in result["text"]
    assert verb("run_info", bucket=bucket, ask_boxes=False)["runs"][0]["state"] == "running"


def test_a_log_does_not_need_the_other_clouds(world: World, verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "lines", lambda machine, key, words: iter(["theorem 41: proved"]))
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.error = ProviderDownError("Vultr is down.", provider="vultr")
    assert verb("stage_log", run="a-0", bucket="")["lines"] == ["theorem 41: proved"]
    assert sentence(verb("stage_log", run="b-0", bucket="")) == "Vultr is down."


def test_a_log_says_where_the_run_is_shown(world: World, verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    """U5."""
    world.vast.held["1"] = instance("vast", "1", "a-0")
    asked: list[list[str]] = []

    def said(machine: Any, key: Any, words: list[str]) -> Iterator[str]:
        asked.append(words)
        yield from ("ERROR: slow", '{"links": {"wandb": "https://wandb.ai/me/a/runs/1"}}')

    monkeypatch.setattr(watch, "lines", said)
    result = verb("stage_log", run="a-0", bucket="", errors=True)
    assert asked == [["log", "--lines", "50", "--errors", "--links"]]
    assert (result["lines"], result["links"]) == (["ERROR: slow"], {"wandb": "https://wandb.ai/me/a/runs/1"})


# -- secrets ----------------------------------------------------------------------------------------------------------


def lookup(*terms: str, **options: Any) -> dict[str, str]:
    from ansible.plugins.loader import lookup_loader

    found: dict[str, str] = lookup_loader.get("gpuyard.cloud.box_secrets").run(list(terms), variables={}, **options)[0]
    return found


def test_box_secrets(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_TOKEN", CANARY)
    monkeypatch.setenv("VAST_API_KEY", "canary-vast-3f9a00d17c")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary-access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    assert lookup("TINY_TOKEN", bucket="s3://mine") == {
        "TINY_TOKEN": CANARY,
        "AWS_ACCESS_KEY_ID": "canary-access",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    assert lookup(bucket="") == {}
    with pytest.raises(AnsibleError, match="Not set in the controller's environment: NOT_THERE"):
        lookup("TINY_TOKEN", "NOT_THERE")


def test_box_secrets_that_are_optional(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_TOKEN", CANARY)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOT_THERE", raising=False)
    assert lookup(bucket="", optional=["TINY_TOKEN", "EMPTY", "NOT_THERE"]) == {"TINY_TOKEN": CANARY}


def test_box_secret_files(tmp_path: Path) -> None:
    from ansible.plugins.loader import lookup_loader

    (tmp_path / "key.json").write_bytes(b"canary\xff")
    run = lookup_loader.get("gpuyard.cloud.box_secret_files").run
    found = run([{"KEY": str(tmp_path / "key.json")}], variables={})[0]
    assert base64.b64decode(found["KEY"]) == b"canary\xff"
    assert run([{}], variables={}) == [{}]
    with pytest.raises(AnsibleError, match=r"KEY: /nowhere cannot be read: No such file or directory\."):
        run([{"KEY": "/nowhere"}], variables={})


def test_secret_files_are_checked_before_anything_is_asked(
    world: World, verb: Verb, workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vast.market = [offer("vast", "1")]
    monkeypatch.delenv("KEY", raising=False)

    def plan(files: str) -> dict[str, Any]:
        more = f"{{files: {files}, optional: [WANDB_API_KEY]}}"
        Path(workload).write_text(WORKLOAD.replace("{required: [TINY_TOKEN]}", more))
        world.calls.clear()
        return verb("run_plan", workload=workload, bucket="")

    assert "environment.files: KEY: there is no file" in sentence(plan("{KEY: key.json}")) and world.calls == []
    assert "KEY has no path here, so KEY must name the file in the environment" in sentence(plan("{KEY: null}"))
    (tmp_path / "key.json").write_text(CANARY)
    (tmp_path / "large").write_bytes(b"x" * 200_000)
    assert "large is larger than 100 kB, so it is no secret but data" in sentence(plan("{KEY: large}"))
    monkeypatch.setenv("KEY", str(tmp_path / "key.json"))
    for files in ("{KEY: null}", "{KEY: /of/another/controller}", "{KEY: key.json}", f"{{KEY: {tmp_path}/key.json}}"):
        if "key.json" in files:
            monkeypatch.delenv("KEY", raising=False)
        result = plan(files)
        assert result["plan"]["environment_files"] == {"KEY": str(tmp_path / "key.json")}
        assert result["plan"]["environment_optional"] == ["WANDB_API_KEY"]
        assert CANARY not in json.dumps(result) and "files" not in result["plan"]["workload"]["environment"]


def test_without_the_package_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._verb")
    core = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._core")
    for installed, words in ((None, "does not have it"), ("9.9.9", "has 9.9.9")):
        monkeypatch.setattr(core, "INSTALLED", installed)
        result = shared.attempt(lambda call: {}, shared.Call({}))
        assert result["failed"] and f"{words}: pip install gpuyard=={core.VERSION}" in result["msg"]
    monkeypatch.setattr(core, "INSTALLED", core.VERSION)
    assert shared.attempt(lambda call: {}, shared.Call({})) == {"changed": False}
