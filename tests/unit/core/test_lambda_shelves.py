"""What a Lambda account holds beside instances, against answers right and wrong (docs/reference/lambda.md)."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gpuyard.errors import (
    AmbiguousError,
    InvalidRequestError,
    LeakError,
    NoCapacityError,
    NotFoundError,
    ProviderDownError,
    UnsupportedError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.http import Patience
from gpuyard.providers.lambda_cloud import Lambda
from gpuyard.providers.rental import Waits
from gpuyard.providers.resources import Kind, ResourceSpec, Shelf

from .conftest import SSH_KEY, a_spec, an_offer
from .standin import LOST, Reply, Standin

REF = RunRef("miniprover-0", "miniprover")
NAME = "gpuyard-Rminiprover-0-Wminiprover"
LIST = "/file-systems"
OFFER = an_offer(provider="lambda", id="gpu_1x_a10@us-east-1", region="us-east-1")


@pytest.fixture
def cloud(service: Standin, patience: Patience, waits: Waits) -> Lambda:
    return Lambda("canary-lambda-99ff88ee77dd66cc", base_url=service.url, patience=patience, waits=waits)


@pytest.fixture
def shelf(cloud: Lambda) -> Shelf:
    return cloud.shelves()[Kind.FILESYSTEM]


@pytest.fixture
def keys(cloud: Lambda) -> Shelf:
    return cloud.shelves()[Kind.SSH_KEY]


def row(one: str = "fs1", **changes: Any) -> dict[str, Any]:
    return {
        "id": one,
        "name": NAME,
        "mount_point": f"/lambda/nfs/{NAME}",
        "created": "2026-11-22T05:00:00Z",
        "is_in_use": False,
        "region": {"name": "us-east-1", "description": "Virginia, USA"},
        "bytes_used": 50_000_000_000,
        **changes,
    }


def there(service: Standin, *rows: dict[str, Any]) -> None:
    service.on("GET", LIST, Reply({"data": [*rows]}))


def refusal(status: int, code: str) -> Reply:
    return Reply({"error": {"code": code, "message": "No."}}, status)


def a_file_system(**changes: Any) -> ResourceSpec:
    wanted: dict[str, Any] = {"name": "data", "ref": REF, "region": "us-east-1", **changes}
    return ResourceSpec(**wanted)


# -- file systems ------------------------------------------------------------------------------------------------------


def test_the_run_stands_in_the_name(shelf: Shelf, service: Standin) -> None:
    service.on("POST", "/filesystems", Reply({"data": row(bytes_used=0)}))
    made = shelf.create(a_file_system(size_gb=100))
    [post] = service.calls("POST")
    assert post.body == {"name": NAME, "region": "us-east-1"}
    assert (made.ref, made.ours, made.region, made.price_per_month_usd) == (REF, True, "us-east-1", 0)
    assert [call.body for call in shelf.plan_create(a_file_system())] == [post.body]
    assert shelf.price_per_month_usd(a_file_system(size_gb=100)) == pytest.approx(20)
    assert shelf.price_per_month_usd(a_file_system()) is None and len(service.seen) == 1


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"region": ""}, UsageError, "name one, such as us-east-1"),
        ({"ref": None, "name": "my data"}, UsageError, "'my data' cannot be the name .*letters, digits and dashes"),
        ({"ref": None, "name": "0data"}, UsageError, "beginning with a letter"),
        ({"ref": None, "name": "d" * 61}, UsageError, "1 to 60"),
        ({"ref": RunRef("a" * 40, "b" * 20)}, UsageError, r"run=a+ is too long here.*60 are allowed"),
        ({"options": {"tier": "fast"}}, UnsupportedError, "has no option tier: it knows none"),
        ({"content": "x"}, UnsupportedError, "has no content"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sent(
    shelf: Shelf, service: Standin, changes: dict[str, Any], error: type[Exception], why: str
) -> None:
    for act in (shelf.create, shelf.plan_create):
        with pytest.raises(error, match=why):
            act(a_file_system(**changes))
    assert service.seen == []


@pytest.mark.parametrize("reply", [LOST, refusal(500, "global/internal-error"), Reply({"data": {}})])
def test_a_lost_answer_finds_it_by_its_name(shelf: Shelf, service: Standin, reply: Reply) -> None:
    there(service, row("foreign", name="my-data"), row("ours"))
    service.on("POST", "/filesystems", reply)
    assert shelf.create(a_file_system()).id == "ours" and len(service.calls("POST")) == 1
    service.on("POST", "/filesystems", reply)
    assert shelf.create(a_file_system(ref=None, name="my_data")).id == "foreign"


def test_a_second_one_of_a_run_gets_a_number_since_names_are_there_once(shelf: Shelf, service: Standin) -> None:
    second = row("fs2", name=f"{NAME}-X2")
    there(service, row(), second)
    service.on("POST", "/filesystems", Reply({"data": row("fs3", name=f"{NAME}-X3")}))
    made = shelf.create(a_file_system(known_ids=frozenset({"fs1", "fs2"})))
    assert [post.body["name"] for post in service.calls("POST")] == [f"{NAME}-X3"]
    assert {one.ref for one in (made, *shelf.all())} == {REF}
    tight = RunRef("a" * 24, "b" * 25)
    there(service, row(name=tight.name(60)))
    with pytest.raises(UsageError, match=r"the name of one more, .*-X2, is too long"):
        shelf.plan_create(a_file_system(ref=tight, known_ids=frozenset({"fs1"})))


def test_a_lost_answer_without_one_makes_no_second(shelf: Shelf, service: Standin) -> None:
    there(service)
    service.on("POST", "/filesystems", LOST)
    with pytest.raises(AmbiguousError, match="No file system of run miniprover-0"):
        shelf.create(a_file_system())
    assert len(service.calls("POST")) == 1


@pytest.mark.parametrize("path", ["/file-systems", "/filesystems"])
def test_the_list_is_at_either_path_and_says_who_has_them(shelf: Shelf, service: Standin, path: str) -> None:
    service.on("GET", path, Reply({"data": [row(is_in_use=True), row("fs2", name="data", region="us-west-1")]}))
    other = "/filesystems" if path == "/file-systems" else "/file-systems"
    service.on("GET", other, refusal(404, "global/object-does-not-exist"))
    instance = {"id": "i1", "file_system_names": [NAME], "jupyter_token": "canary-jupyter"}
    service.on("GET", "/instances", Reply({"data": [instance, {"id": "i2", "file_system_names": []}]}))
    first, second = shelf.all()
    assert (first.attached_to, first.status_text, first.size_gb, first.price_per_month_usd) == (
        ("i1",), "in use", 50, pytest.approx(10),
    )  # fmt: skip
    assert (second.ref, second.ours, second.region, second.attached_to) == (None, False, "us-west-1", ())
    assert shelf.get("fs2") is not None and shelf.get("fs3") is None and "canary" not in repr(first)


def test_an_answer_that_is_no_list_confirms_no_end(shelf: Shelf, keys: Shelf, service: Standin) -> None:
    for path, one in ((LIST, shelf), ("/ssh-keys", keys)):
        service.on("GET", path, Reply({}))
        with pytest.raises(ProviderDownError, match="holds no list"):
            one.get("fs1")


def test_one_that_a_terminated_instance_still_holds_is_deleted_later(shelf: Shelf, service: Standin) -> None:
    busy = refusal(400, "filesystems/filesystem-in-use")
    service.on("DELETE", "/filesystems/fs1", *[busy] * 5, Reply({"data": {"deleted_ids": ["fs1"]}}))
    service.on("GET", LIST, *[Reply({"data": [row()]})] * 7, Reply({"data": []}))
    shelf.destroy("fs1")
    assert len(service.calls("DELETE")) >= 3


def test_an_end_that_cannot_be_confirmed_names_it(shelf: Shelf, service: Standin) -> None:
    there(service, row())
    service.on("DELETE", "/filesystems/fs1", refusal(400, "filesystems/filesystem-in-use"))
    with pytest.raises(LeakError, match=r"file system fs1 could not be confirmed") as leak:
        shelf.destroy("fs1")
    assert leak.value.instance_id == "fs1"
    [planned] = shelf.plan_destroy("fs1")
    assert (planned.method, planned.url.removeprefix(service.url)) == ("DELETE", "/filesystems/fs1")


def test_gone_already_is_success(shelf: Shelf, service: Standin) -> None:
    there(service)
    service.on("DELETE", "/filesystems/fs1", refusal(404, "global/object-does-not-exist"))
    shelf.destroy("fs1")


# -- an instance with file systems -------------------------------------------------------------------------------------


def launch(cloud: Lambda, service: Standin, *mounts: tuple[str, str]) -> dict[str, Any]:
    service.on("GET", "/ssh-keys", Reply({"data": [{"id": "1", "name": "mine", "public_key": SSH_KEY}]}))
    service.on("POST", "/instance-operations/launch", Reply({"data": {"instance_ids": ["x"]}}))
    [planned] = cloud.plan_create(OFFER, a_spec(mounts=mounts))
    cloud.create(OFFER, a_spec(mounts=mounts))
    [post] = service.calls("POST")
    assert planned.body == post.body
    return dict(post.body)


def test_a_launch_names_its_file_systems(cloud: Lambda, service: Standin) -> None:
    there(service, row(), row("fs2", name="models"))
    body = launch(cloud, service, ("fs1", "/data/work"), ("fs2", ""))
    assert body["file_system_mounts"] == [{"file_system_id": "fs1", "mount_point": "/data/work"}]
    assert body["file_system_names"] == ["models"]


def test_a_launch_without_any_says_nothing_of_them(cloud: Lambda, service: Standin) -> None:
    assert not [name for name in launch(cloud, service) if name.startswith("file_system")]
    assert service.calls("GET", LIST) == []


@pytest.mark.parametrize(
    ("mount", "error", "why"),
    [
        (("fs1", "/mnt/work"), UsageError, "cannot lie at /mnt/work: choose a path below /lambda/nfs"),
        (("fs1", "/data/" + "x" * 256), UsageError, "cannot lie at"),
        (("none", "/data/x"), NotFoundError, "no file system none"),
        (("west", ""), NoCapacityError, "is in us-west-1, and instances of us-east-1 cannot have it"),
    ],
)
def test_a_launch_that_cannot_have_it_is_not_sent(
    cloud: Lambda, service: Standin, mount: tuple[str, str], error: type[Exception], why: str
) -> None:
    there(service, row(), row("west", name="west", region={"name": "us-west-1"}))
    for act in (cloud.create, cloud.plan_create):
        with pytest.raises(error, match=why):
            act(OFFER, a_spec(mounts=(mount,)))
    assert service.calls("POST") == []


# -- SSH keys ----------------------------------------------------------------------------------------------------------


def a_key(**changes: Any) -> ResourceSpec:
    return ResourceSpec(**{"name": "gpuyard-laptop", "content": SSH_KEY + "\n", **changes})


def test_a_public_key_is_always_sent_and_a_private_one_never_kept(
    keys: Shelf, service: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service.on("GET", "/ssh-keys", Reply({"data": []}))
    answer = {"id": "k1", "name": "gpuyard-laptop", "private_key": "canary-private-half"}
    service.on("POST", "/ssh-keys", Reply({"data": answer}))
    told: list[str] = []
    made = keys.create(a_key(), progress=told.append)
    body = " ".join([*SSH_KEY.split()[:2], "gpuyard-laptop"])
    assert [post.body for post in service.calls("POST")] == [{"name": "gpuyard-laptop", "public_key": body}]
    assert (made.id, made.name, made.ours) == ("k1", "gpuyard-laptop", True)
    assert "canary" not in f"{made!r} {told} {caplog.text}"


def test_a_key_that_is_there_under_any_name_is_taken(keys: Shelf, service: Standin) -> None:
    held = {"id": "k0", "name": "theirs", "public_key": f"{SSH_KEY}@home\n"}
    service.on("GET", "/ssh-keys", Reply({"data": [held]}))
    assert keys.create(a_key()).id == "k0" and keys.plan_create(a_key()) == []
    assert not keys.all()[0].ours and service.calls("POST") == []


def test_a_key_whose_answer_was_lost_is_found(keys: Shelf, service: Standin) -> None:
    made = {"id": "k1", "name": "gpuyard-laptop", "public_key": SSH_KEY}
    service.on("GET", "/ssh-keys", Reply({"data": []}), Reply({"data": []}), Reply({"data": [made]}))
    service.on("POST", "/ssh-keys", LOST)
    assert keys.create(a_key()).id == "k1" and len(service.calls("POST")) == 1


def test_a_name_that_another_key_has_is_refused_in_lambdas_words(keys: Shelf, service: Standin) -> None:
    service.on(
        "GET", "/ssh-keys", Reply({"data": [{"id": "k0", "name": "gpuyard-laptop", "public_key": "ssh-rsa A x"}]})
    )
    service.on("POST", "/ssh-keys", Reply({"error": {"code": "global/duplicate", "message": "Name is taken."}}, 409))
    with pytest.raises(InvalidRequestError, match="Name is taken"):
        keys.create(a_key())
    with pytest.raises(UsageError, match="is too long for a Lambda SSH key's name"):
        keys.create(a_key(name="k" * 65))


def test_a_key_is_removed_and_confirmed_gone(keys: Shelf, service: Standin) -> None:
    held = {"id": "k1", "name": "x", "public_key": SSH_KEY}
    service.on("GET", "/ssh-keys", Reply({"data": [held]}), Reply({"data": []}))
    service.on("DELETE", "/ssh-keys/k1", Reply({"data": {}}))
    keys.destroy("k1")
    assert len(service.calls("DELETE")) == 1
    assert [call.method for call in keys.plan_destroy("k1")] == ["DELETE"]
