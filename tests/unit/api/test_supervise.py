"""The supervisor as a whole: which runs it takes, how two share them, and what it refuses."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from gpuyard import pace
from gpuyard.api import supervise
from gpuyard.api.notices import Notices
from gpuyard.api.site import Site
from gpuyard.api.supervise import Real, Supervise, Supervisor
from gpuyard.api.supervision import Look, Watch
from gpuyard.box.checkpoints import LocalStore, write_record
from gpuyard.config import SshKey
from gpuyard.errors import ProviderDownError, UsageError
from gpuyard.formats.supervision import Supervision, supervision_key
from gpuyard.renting import claim
from gpuyard.renting.claim import Lease
from gpuyard.renting.survey import Survey


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "bucket").mkdir()
    return LocalStore(tmp_path / "bucket")


# --- who has a run ---


def test_one_supervisor_has_a_run_and_the_next_one_when_it_is_gone(store: LocalStore) -> None:
    now = [0.0]
    clock = pace.Clock(now=lambda: now[0])
    first, second = (Lease(store, "kept-0", clock=clock) for _ in range(2))
    assert first.take() == "" and first.held
    assert "A command on " in second.take() and not second.held
    (file,) = (store.folder / "kept-0" / claim.WATCHING).iterdir()
    written = file.stat().st_mtime_ns
    now[0] += claim.LEASE_S / 2
    assert first.take() == "" and file.stat().st_mtime_ns > written  # written again
    # The first one is killed: by the bucket's own clock its lease ends.
    os.utime(file, (time.time() - claim.LEASE_S - 1,) * 2)
    assert [whose for whose in (second.take() for _ in range(20)) if not whose] and second.held
    # One that was only suspended, and wakes, has it no more.
    now[0] += claim.LEASE_S
    assert not first.held
    second.drop()
    assert [whose for whose in (first.take() for _ in range(20)) if not whose] and first.held


def test_two_that_try_at_once_do_not_both_get_it(store: LocalStore) -> None:
    leases = [Lease(store, "kept-0") for _ in range(4)]
    got: list[int] = []
    barrier = threading.Barrier(len(leases))

    def attempt(number: int) -> None:
        for _ in range(10):
            barrier.wait()
            if leases[number].take() == "":
                got.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(len(leases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) <= 1


# --- which runs ---


class Quiet(Watch):
    """STAND-IN for a watch: a run that ends at the second look, and one whose look fails."""

    def step(self, seen: Survey) -> None:
        self.steps = getattr(self, "steps", 0) + 1
        if self.name == "bad-0" and self.steps == 1:
            raise ValueError("not thought of")
        if self.steps == 2:
            self.over, self.failed = "finished", self.name == "bad-0"


class Clouds(Real):
    """STAND-IN for the clouds: there are some, and nothing is rented."""

    def survey(self) -> Survey:
        return Survey(1, [], {})

    def look(self, name: str, seen: Survey) -> Look:
        raise AssertionError


def a_supervisor(store: LocalStore, *names: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Supervisor:
    monkeypatch.setattr(supervise, "Watch", Quiet)
    notices = Notices(store, lambda _: None)
    key = SshKey(Path("key"), "ssh-ed25519 AAAA")
    world = Clouds(Site(), lambda _: None, clouds=[], store=store, key=key, notices=notices)
    return Supervisor(world, Supervise(names, **more), {}, store)


def test_runs_are_looked_at_side_by_side_and_one_that_fails_hinders_no_other(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "_TOLD_S", 0.01)
    one = a_supervisor(store, "kept-0", "bad-0", monkeypatch=monkeypatch)
    monkeypatch.setattr(one, "_request", Supervise(("kept-0", "bad-0"), interval_s=0.02))
    lines: list[str] = []
    done = one.serve(SimpleQueue(), lines.append)
    assert done.ended == {"bad-0": "finished", "kept-0": "finished"} and done.failed == ["bad-0"]
    assert done.to_dict()["text"] == "Run bad-0: finished.\nRun kept-0: finished."
    assert sum("could not be looked at" in line for line in lines) == 1


def test_clouds_that_do_not_answer_are_told_once_and_waited_for(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = a_supervisor(store, "kept-0", monkeypatch=monkeypatch)
    monkeypatch.setattr(one, "_request", Supervise(("kept-0",), interval_s=0.02))
    asked: list[int] = []

    def survey(_: Clouds) -> Survey:
        asked.append(1)
        if len(asked) < 4:
            raise ProviderDownError("Vast.ai does not answer.", provider="vast")
        return Survey(1, [], {})

    monkeypatch.setattr(Clouds, "survey", survey)
    lines: list[str] = []
    assert one.serve(SimpleQueue(), lines.append).ended == {"kept-0": "finished"}
    assert sum("cannot be asked now" in line for line in lines) == 1 and len(asked) > 4


def test_without_names_those_are_taken_that_a_supervisor_has_begun_to_watch(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, state in (("a-0", "watching"), ("b-0", "renting"), ("c-0", "ended")):
        store.put(supervision_key(name), Supervision(state).to_bytes())
    write_record(store, "d-0", "kept")
    assert supervise.wanted(store) == ["a-0", "b-0"]
    store.put(supervision_key("b-0"), b"damaged")
    assert supervise.wanted(store) == ["a-0", "b-0"]  # so that somebody says so
    one = a_supervisor(store, monkeypatch=monkeypatch)
    monkeypatch.setattr(one, "_request", Supervise(interval_s=0.02))
    assert sorted(one.serve(SimpleQueue(), lambda _: None).ended) == ["a-0", "b-0"]


def test_a_teardown_says_that_a_run_is_to_be_left_alone(store: LocalStore, tmp_path: Path) -> None:
    site = Site(bucket=f"file://{store.folder}")
    supervise.give_over(site, "kept-0", progress=print)  # nobody watches it
    assert not list(store.objects("kept-0/"))
    store.put(supervision_key("kept-0"), Supervision("renting", losses=("vast/1",)).to_bytes())
    supervise.give_over(site, "kept-0", progress=print)
    after = Supervision.from_bytes(store.get(supervision_key("kept-0")), where="x")
    assert (after.state, after.outcome, after.losses) == ("ended", "it was torn down", ("vast/1",))
    lines: list[str] = []
    store.put(supervision_key("kept-0"), b"damaged")
    supervise.give_over(site, "kept-0", progress=lines.append)
    assert len(lines) == 1 and "may rent for it again" in lines[0]


# --- what is refused ---


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Supervise(("a-0", "b-0", "a-0")), "run=a-0,b-0,a-0 names a-0 twice: name each run once."),
        (Supervise(("A_0",)), "run='A_0'"),
        (Supervise(interval_s=0.5), "interval_s=0.5 must be a number of seconds from 1 on."),
        (Supervise(interval_s=float("nan")), "interval_s=nan"),
        (Supervise(losses_before_on_demand=-1), "losses_before_on_demand=-1"),
        (Supervise(silent_minutes=0.5), "silent_minutes=0.5 must be a number of minutes from 1 on, or 0 for never."),
    ],
)
def test_what_cannot_work_is_one_sentence(request_: Supervise, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        request_.check()
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


@pytest.mark.parametrize("bucket", ["", "file:///nowhere-on-this-controller"])
def test_without_a_bucket_that_others_see_nothing_is_supervised(bucket: str) -> None:
    with pytest.raises(UsageError, match=r"^A supervisor needs a bucket that other controllers see"):
        supervise.supervise(Site(bucket=bucket), Supervise(("kept-0",)), progress=print)


def test_a_run_that_nobody_knows_is_named_with_those_there_are(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(store, "kept-0", "kept")
    with pytest.raises(UsageError, match=r"^run='kept-1' is not known .* the runs there are: kept-0\.$"):
        a_supervisor(store, "kept-1", monkeypatch=monkeypatch).check_known()
