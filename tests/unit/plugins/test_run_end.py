# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The end of a run: which machine goes, which one is kept, and what is said of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpuyard import ssh
from gpuyard.box import checkpoints
from gpuyard.box.checkpoints import LocalStore, stores
from gpuyard.errors import ConnectionLostError, GpuyardError, NothingBegunError, ProviderDownError
from gpuyard.providers.base import Instance, State
from gpuyard.renting import runs, watch

from .conftest import Verb, World, instance

REFUSED = ConnectionLostError("ssh: connect to host 192.0.2.7 port 40022: Connection refused", silent=True)
BROKEN = ConnectionLostError("The connection to vast instance 1 is lost: Host key verification failed.")


def saved(state: bool, why: str, sequence: int | None = 1) -> dict[str, Any]:
    """Return what a machine answers that was asked to end its stages."""
    return {"changed": True, "ended": True, "saved": {"state": state, "sequence": sequence, "why": why}}


ALL_SAVED = saved(True, "The bucket holds everything that is on this box, as checkpoint 1.")
NOT_SAVED = saved(False, "The bucket s3://b has not answered within 20 s. What is new is on this box only.", None)


class Boxes:
    """Machines that answer as a test wants; keeps what they were asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Mapping[str, Any] | GpuyardError] = {}
        self.states: dict[str, str] = {}
        self.stops: list[dict[str, Any]] = []

    def stop(self, one: Instance, _key: Any, **options: Any) -> Mapping[str, Any]:
        """Stand in for :func:`gpuyard.renting.watch.stop`."""
        self.stops.append({"id": one.id, "wait_s": options["wait_s"], "limit_s": options["limit_s"]})
        answer = self.answers[one.id]
        if isinstance(answer, GpuyardError):
            raise answer
        return answer

    def status(self, one: Instance, _key: Any, **_options: Any) -> Mapping[str, Any]:
        """Stand in for :func:`gpuyard.renting.watch.status`."""
        return {"state": self.states[one.id]}


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> Boxes:
    """Return the machines' stages."""
    made = Boxes()
    monkeypatch.setattr(watch, "stop", made.stop)
    monkeypatch.setattr(watch, "status", made.status)
    # Every machine was reached from here once, unless a test says otherwise.
    monkeypatch.setattr(ssh, "host_key_fingerprint", lambda _one: "SHA256:x")
    return made


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    """Return the address of an empty bucket."""
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path / 'bucket'}"


def store_of(bucket: str) -> LocalStore:
    """Return the store behind the address."""
    return LocalStore(Path(bucket.removeprefix("file://")))


def publish(bucket: str, tmp_path: Path, *, outcome: str | None = None, record: str | None = None) -> None:
    """Leave a record and a checkpoint of run a-0 in the bucket."""
    checkpoints.write_record(store_of(bucket), "a-0", "miniprover", outcome=record)
    root = tmp_path / "persistent"
    root.mkdir(exist_ok=True)
    (root / "weights").write_text(f"{time.monotonic_ns()}")
    progress = {"iteration": 0, "stage": "search", "finished": outcome == "done", "outcome": outcome}
    checkpoints.publish(store_of(bucket), "a-0", root, progress=lambda _journal: progress)


def refusal(result: dict[str, Any]) -> str:
    """Return the sentence of a run whose machine is kept; it names the cost and both ways out."""
    assert result.get("failed") is True, result
    assert result["failure"]["kind"] == "NotSavedError"
    message = str(result["msg"])
    assert "is kept, and bills 0.4000 USD an hour" in message
    assert "`ansible-playbook teardown.yml -e run=a-0`" in message
    return message


def test_a_machine_goes_when_the_bucket_holds_everything(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.held["2"] = instance("vultr", "2", "b-0")
    boxes.answers["1"] = ALL_SAVED
    result = verb("run_end", run="a-0", bucket=bucket)
    assert result["changed"] and result["actions"] == ["destroy vast 1, RTX 4090 in Sweden, SE, running"]
    assert (world.vast.held, list(world.vultr.held)) == ({}, ["2"])
    # As long as the stage's own grace time and publishing need, which the machine knows.
    assert boxes.stops == [{"id": "1", "wait_s": None, "limit_s": None}]
    assert runs.stored(store_of(bucket)).records["a-0"].outcome == "cancelled"
    again = verb("run_end", run="a-0", bucket=bucket)
    assert not again["changed"]
    nothing, spent = again["text"].splitlines()
    assert nothing == "Run a-0 has no machine at Vast or Vultr."
    assert spent.startswith("Run a-0 has cost $") and "in all, on 1 machine" in spent


def test_what_is_not_in_the_bucket_keeps_the_machine(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.answers["1"] = {**ALL_SAVED, "ended": False}
    refusal(verb("run_end", run="a-0", bucket=bucket))
    boxes.answers["1"] = NOT_SAVED
    message = refusal(verb("run_end", run="a-0", bucket=bucket))
    assert "vast 1: The bucket s3://b has not answered within 20 s. What is new is on this box only." in message
    assert "`-e lose=true`" in message
    assert list(world.vast.held) == ["1"]
    # It was not ended, so it still counts as what it is.
    assert runs.stored(store_of(bucket)).records["a-0"].outcome is None

    lines: list[str] = []
    result = verb("run_end", run="a-0", bucket=bucket, lose=True, lines=lines)
    assert result["changed"] and world.vast.held == {}
    assert "Destroyed all the same, as lose=true asks for: vast 1: The bucket s3://b has not answered" in lines[0]
    assert boxes.stops[-1] == {"id": "1", "wait_s": 30.0, "limit_s": 60.0}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"wait_s": -1.0}, "wait_s=-1 must be a number of seconds above 0."),
        ({"wait_s": float("nan")}, "wait_s=nan must be a number of seconds above 0."),
        ({"wait_s": float("inf")}, "wait_s=inf must be"),
        ({"run": "Not a name"}, "cannot be a run name"),
        ({"lose": True, "only": "ended"}, "does not go with only=ended"),
        ({"ssh_key": "/nowhere/id"}, "ssh_key=/nowhere/id does not exist"),
    ],
)
def test_a_wrong_option_touches_nothing(
    world: World, verb: Verb, boxes: Boxes, options: dict[str, Any], says: str
) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    result = verb("run_end", **{"run": "a-0", "bucket": "", **options})
    assert result["failed"] and says in result["msg"]
    assert (world.vast.asked, boxes.stops, list(world.vast.held)) == (0, [], ["1"])


def test_without_a_name_the_runs_that_have_machines_are_listed(world: World, verb: Verb, boxes: Boxes) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    result = verb("run_end", run="", bucket="")
    assert result["failed"]
    assert result["msg"] == "Name the run to end with -e run=…; the runs with machines are: a-0."
    lines: list[str] = []
    slip = verb("run_end", run="a-00", bucket="", lines=lines)
    assert slip["text"] == "Run a-00 has no machine at Vast or Vultr." and lines == ["Runs that have machines: a-0."]
    assert list(world.vast.held) == ["1"]


def test_a_machine_on_which_nothing_has_begun_has_nothing_to_lose(world: World, verb: Verb, boxes: Boxes) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.answers["1"] = NothingBegunError("No stage has begun.")
    assert verb("run_end", run="a-0", bucket="")["changed"]
    assert world.vast.held == {}


def test_without_a_bucket_work_is_lost_only_when_told(world: World, verb: Verb, boxes: Boxes) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.answers["1"] = saved(False, "No bucket is set for a-0, so its files are on this box only.", None)
    assert "No bucket is set for a-0" in refusal(verb("run_end", run="a-0", bucket=""))
    boxes.answers["1"] = BROKEN
    message = refusal(verb("run_end", run="a-0", bucket=""))
    assert "Host key verification failed. There is no bucket, so it may hold the only copy." in message
    assert verb("run_end", run="a-0", bucket="", lose=True)["changed"]
    assert world.vast.held == {}


@pytest.mark.parametrize("answer", [REFUSED, BROKEN, GpuyardError("No space left on device."), {"changed": True}])
def test_a_machine_that_cannot_say_is_kept_unless_its_run_has_finished(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path, answer: Any
) -> None:
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.answers["1"] = answer
    message = refusal(verb("run_end", run="a-0", bucket=bucket))
    assert "The newest whole one in the bucket is checkpoint 1 of" in message and "search" in message
    publish(bucket, tmp_path, outcome="failed")  # it may have been started again
    refusal(verb("run_end", run="a-0", bucket=bucket))
    publish(bucket, tmp_path, outcome="done")
    lines: list[str] = []
    assert verb("run_end", run="a-0", bucket=bucket, lines=lines)["changed"]
    assert "But checkpoint 3 of" in lines[0] and "(all stages done) is in the bucket, and is the run's end." in lines[0]
    assert world.vast.held == {}


def test_a_machine_that_was_never_reached_has_nothing_to_lose(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.answers["1"] = REFUSED
    refusal(verb("run_end", run="a-0", bucket=bucket))  # it was reached once
    monkeypatch.setattr(ssh, "host_key_fingerprint", lambda _one: None)
    refusal(verb("run_end", run="a-0", bucket=""))  # its cloud says that it runs, and nothing says what it has done
    boxes.answers["1"] = BROKEN
    refusal(verb("run_end", run="a-0", bucket=bucket))  # something answers, and another controller may have used it
    boxes.answers["1"] = REFUSED
    store_of(bucket).put("a-0/rental.json", b"{}")  # a note of its renting is no work
    assert verb("run_end", run="a-0", bucket=bucket)["changed"]

    world.vast.held["2"] = instance("vast", "2", "a-0", state=State.PENDING, ssh_host="")
    boxes.answers["2"] = ConnectionLostError("vast instance 2 has no address yet (loading).", silent=True)
    publish(bucket, tmp_path)
    refusal(verb("run_end", run="a-0", bucket=bucket))  # the bucket knows of the run
    assert verb("run_end", run="a-0", bucket="")["changed"]
    assert world.vast.held == {}


@pytest.mark.parametrize("state", [State.PREEMPTED, State.FAILED])
def test_a_lost_machine_goes_for_a_whole_checkpoint_only(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path, state: State
) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0", state=state)
    assert "The bucket holds no whole checkpoint" in refusal(verb("run_end", run="a-0", bucket=bucket))
    assert "There is no bucket" in refusal(verb("run_end", run="a-0", bucket=""))
    publish(bucket, tmp_path)
    manifest = checkpoints.latest_manifest(store_of(bucket), "a-0")
    assert manifest
    (weights,) = [entry.key for entry in manifest.files]
    content = store_of(bucket).get(weights)
    store_of(bucket).delete(weights)
    assert "The bucket holds no whole checkpoint" in refusal(verb("run_end", run="a-0", bucket=bucket))
    store_of(bucket).put(weights, content)
    lines: list[str] = []
    assert verb("run_end", run="a-0", bucket=bucket, lines=lines)["changed"]
    assert f"vast 1 ({state}) can write no more, and what came after checkpoint 1 of" in lines[0]
    assert world.vast.held == {} and boxes.stops == []


def test_a_stopped_machine_goes_for_the_end_of_its_run_only(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path
) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0", state=State.STOPPED)
    publish(bucket, tmp_path)
    assert "vast 1 is stopped, so its work cannot be saved." in refusal(verb("run_end", run="a-0", bucket=bucket))
    publish(bucket, tmp_path, outcome="done")
    assert verb("run_end", run="a-0", bucket=bucket)["changed"]


def test_a_folder_on_the_machine_itself_saves_nothing(world: World, verb: Verb, boxes: Boxes, bucket: str) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.answers["1"] = ALL_SAVED
    assert "on the machine itself, which goes with it" in refusal(verb("run_end", run="a-0", bucket=bucket))


class SilentStore(LocalStore):
    """A bucket that takes a question and does not answer it as long as the test lasts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.over = threading.Event()

    def folders(self, prefix: str = "") -> list[str]:
        self.over.wait()
        return []


@pytest.fixture
def silent(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let the bucket be silent; that is not waited for long here."""
    store = SilentStore(Path(bucket.removeprefix("file://")))
    monkeypatch.setattr(runs, "open_bucket", lambda _settings: store)
    monkeypatch.setattr(stores, "ANSWER_S", 0.2)
    yield bucket
    store.over.set()
    for thread in threading.enumerate():
        if thread.name == "ask the bucket":
            thread.join()


def test_a_silent_bucket_costs_seconds_and_no_machine(world: World, verb: Verb, boxes: Boxes, silent: str) -> None:
    began = time.monotonic()
    message = verb("run_end", run="a-0", bucket=silent)
    assert message["failed"] and "still counts as resumable" in message["msg"] and "has not answered" in message["msg"]
    for state in (State.RUNNING, State.STOPPED, State.PREEMPTED):
        world.vast.held["1"] = instance("vast", "1", "a-0", state=state)
        boxes.answers["1"] = REFUSED
        assert "has not answered" in refusal(verb("run_end", run="a-0", bucket=silent))
        assert verb("run_end", run="a-0", bucket=silent, lose=True)["changed"]
    # What the machine says is what counts: it may have another way to the bucket.
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.answers["1"] = NothingBegunError("No stage has begun.")
    result = verb("run_end", run="a-0", bucket=silent)
    assert result["changed"] and "still counts as resumable" in result["text"]
    assert time.monotonic() - began < 60


def test_a_silent_bucket_hides_no_machine(world: World, verb: Verb, silent: str) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    result = verb("run_info", bucket=silent, ask_boxes=False)
    assert [one["run"] for one in result["runs"]] == ["a-0"]
    assert "The bucket cannot be read" in result["text"] and "has not answered" in result["text"]


def test_a_cloud_that_is_down_keeps_no_other_ones_machine(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.error = ProviderDownError("Vultr answers with 503.", provider="vultr", status=503)
    boxes.answers["1"] = ALL_SAVED
    result = verb("run_end", run="a-0", bucket=bucket)
    message = result["msg"]
    assert "confirmed gone: vast 1" in message and "vultr could not be asked" in message and "503" in message
    assert (result["failure"]["kind"], result["failure"]["provider"]) == ("LeakError", "vultr")
    assert world.vast.held == {}
    assert runs.stored(store_of(bucket)).records["a-0"].outcome is None


def test_one_machine_is_kept_and_the_other_one_goes(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.held["2"] = instance("vultr", "2", "a-0")
    boxes.answers |= {"1": ALL_SAVED, "2": NOT_SAVED}
    message = refusal(verb("run_end", run="a-0", bucket=bucket))
    assert message.startswith("Destroyed, and confirmed gone: vast 1") and "vultr 2" in message
    assert (world.vast.held, list(world.vultr.held)) == ({}, ["2"])


def test_check_mode_touches_nothing(world: World, verb: Verb, boxes: Boxes, bucket: str) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.held["2"] = instance("vultr", "2", "a-0", state=State.PREEMPTED)
    result = verb("run_end", check=True, run="a-0", bucket=bucket)
    assert result["changed"] and [call["method"] for call in result["planned_calls"]] == ["DELETE", "DELETE"]
    assert "would end the stages on vast 1 in good order" in result["text"]
    assert "would destroy vultr 2" in result["text"] and "if nothing is lost with it" in result["text"]
    assert boxes.stops == [] and (list(world.vast.held), list(world.vultr.held)) == (["1"], ["2"])


@pytest.mark.parametrize(
    ("state", "goes"),
    [("finished", True), ("failed", True), ("idle", True), ("running", False), ("interrupted", False)],
)
def test_a_followed_machine_goes_only_when_its_run_has_ended(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path, state: str, goes: bool
) -> None:
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.states["1"], boxes.answers["1"] = state, ALL_SAVED
    result = verb("run_end", run="a-0", bucket=bucket, only="ended", since=0)
    assert (world.vast.held == {}) is goes
    if not goes:
        assert refusal(result).startswith("Nothing is destroyed: Run a-0 ")
        assert boxes.stops == []


def test_a_followed_machine_whose_end_is_not_saved_is_kept(world: World, verb: Verb, boxes: Boxes, bucket: str) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.states["1"], boxes.answers["1"] = "finished", NOT_SAVED
    message = refusal(verb("run_end", run="a-0", bucket=bucket, only="ended"))
    assert message.startswith("Nothing is destroyed: vast 1: The bucket s3://b has not answered")


@pytest.mark.parametrize(
    ("before", "outcome", "goes"),
    [
        (0, None, False),  # the newest checkpoint is from the middle of the work
        (0, "failed", True),
        (1, "failed", False),  # from before this launch: what came after it is not there
        (0, "interrupted", False),
        (1, "done", True),  # it had ended already
    ],
)
@pytest.mark.parametrize("machine", [State.RUNNING, State.PREEMPTED])
def test_a_followed_machine_that_is_gone_goes_only_for_a_checkpoint_of_its_own_end(
    world: World,
    verb: Verb,
    boxes: Boxes,
    bucket: str,
    tmp_path: Path,
    before: int,
    outcome: str | None,
    goes: bool,
    machine: State,
) -> None:
    publish(bucket, tmp_path, outcome=outcome)
    world.vast.held["1"] = instance("vast", "1", "a-0", state=machine)
    boxes.states["1"] = "unreachable"
    result = verb("run_end", run="a-0", bucket=bucket, only="ended", since=before)
    assert (world.vast.held == {}) is goes
    if not goes:
        assert "Nothing is destroyed" in refusal(result)
        # Whoever resumes it finds it.
        assert runs.stored(store_of(bucket)).records["a-0"].outcome is None


def test_a_machine_that_vanished_while_it_was_followed_is_not_torn_down(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path
) -> None:
    publish(bucket, tmp_path)
    assert not verb("run_end", run="a-0", bucket=bucket, only="ended")["changed"]
    assert runs.stored(store_of(bucket)).records["a-0"].outcome is None


@pytest.mark.parametrize(
    ("state", "goes"), [("not-started", True), ("running", False), ("failed", False), ("unreachable", False)]
)
def test_a_new_machine_is_given_back_only_before_its_stages(
    world: World, verb: Verb, boxes: Boxes, bucket: str, tmp_path: Path, state: str, goes: bool
) -> None:
    publish(bucket, tmp_path)
    world.vast.held["1"] = instance("vast", "1", "a-0")
    boxes.states["1"], boxes.answers["1"] = state, NothingBegunError("No stage has begun.")
    result = verb("run_end", run="a-0", bucket=bucket, only="not-begun")
    assert (world.vast.held == {}) is goes
    if not goes:
        assert refusal(result).startswith("Nothing is destroyed: ")
    # The run itself goes on another time.
    assert runs.stored(store_of(bucket)).records["a-0"].outcome is None
