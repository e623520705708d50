"""B11, B12, B13 and V8: what a workload may say of weights and data sets, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpuyard.box.checkpoints import LocalStore
from gpuyard.box.checkpoints.rules import Rules
from gpuyard.config import BucketSettings
from gpuyard.errors import UsageError
from gpuyard.planning import stored
from gpuyard.workload import Workload, data

WEIGHTS = {"repository": "org/tiny", "revision": "a" * 40, "directory": "data/models/base"}
PAIRS = {"from": "s3://bucket/pairs/", "to": "data/pairs"}


def workload(**changes: Any) -> Workload:
    values: dict[str, Any] = {
        "name": "prover",
        "repository": {"path": str(Path(__file__).parent)},
        "persist": {"directories": ["data"], "rules": [{"path": "data/**", "kind": "model"}]},
        "stages": [{"name": "train", "command": "true"}],
    }
    return Workload.model_validate(values | changes)


def test_checkpoints_hold_neither_whatever_the_rules_say() -> None:
    box: Any = workload(weights={"base": WEIGHTS}, datasets={"pairs": PAIRS}).to_box()
    rules = Rules.from_workload(box["persist"]["rules"])
    left_out = ("data/models/base/model.safetensors", "data/pairs/train.txt", ".huggingface/hub/x")
    assert [rules.publishes(path) for path in left_out] == [False, False, False]
    assert rules.publishes("data/checkpoints/1.pt")
    assert box["datasets"]["pairs"]["from"] == "s3://bucket/pairs/"


STORED = {
    "from": "bucket://models/base",
    "checksums": "SHA256SUMS",
    "directory": "data/models/own",
    "store": "/volume/own",
}


def test_b12_weights_of_a_bucket_come_to_a_machine_as_its_data_sets_do() -> None:
    """What fetches data sets goes on where it was cut, checks a list, and looks on the volume first."""
    made = workload(weights={"base": WEIGHTS, "own": STORED}, datasets={"own": PAIRS})
    box: Any = made.to_box()
    assert list(box["weights"]) == ["base"] and set(box["weights"]["base"]) == {*data.HUB_KEYS}
    assert list(box["datasets"]) == ["own (weights)", "own"]
    entry = box["datasets"]["own (weights)"]
    assert entry["to"] == "data/models/own" and {key: entry[key] for key in STORED if key != "directory"} == {
        key: value for key, value in STORED.items() if key != "directory"
    }
    assert not Rules.from_workload(box["persist"]["rules"]).publishes("data/models/own/model.safetensors")
    assert box["environment"]["set"]["HF_HUB_OFFLINE"] == "1"
    assert made.missing_environment({}) == []


def test_b12_what_the_runs_bucket_lacks_is_told_before_anything_is_rented(tmp_path: Path) -> None:
    fallback = {"from": "bucket://small/", "to": "data/pairs"}
    made = workload(weights={"own": STORED}, datasets={"pairs": PAIRS | {"fallback": {"from": fallback["from"]}}})
    store = LocalStore(tmp_path)
    bucket = BucketSettings("s3://runs/mine")
    with pytest.raises(UsageError, match=r"weights.own.from=bucket://models/base lies in .* which is not named: name"):
        stored.check(made, BucketSettings(), None)
    with pytest.raises(UsageError, match="which is file:///there, which a machine cannot read"):
        stored.check(made, BucketSettings("file:///there"), store)
    with pytest.raises(UsageError, match=r"there is nothing at s3://runs/mine/models/base\. Put it there first"):
        stored.check(made, bucket, store)
    store.put("models/base/model.safetensors", b"weights")
    with pytest.raises(UsageError, match=r"datasets\.pairs\.fallback\.from=bucket://small/: there is nothing"):
        stored.check(made, bucket, store)
    store.put("small/a", b"a")
    stored.check(made, bucket, store)


def test_stages_with_weights_do_not_ask_the_hub() -> None:
    box: Any = workload(weights={"base": WEIGHTS}).to_box()
    assert box["environment"]["set"] == {"HF_HUB_OFFLINE": "1", "HF_HOME": "/mnt/persistent/.huggingface"}
    own: Any = workload(weights={"base": WEIGHTS}, environment={"set": {"HF_HUB_OFFLINE": "0"}}).to_box()
    assert own["environment"]["set"]["HF_HUB_OFFLINE"] == "0"
    assert workload().to_box()["environment"]["set"] == {}  # type: ignore[index]


def test_what_they_need_is_asked_for_before_anything_is_rented() -> None:
    """U7 for these keys; an optional HF_TOKEN, and the keys of S3, may come from elsewhere."""
    fallback = {"from": "gs://bucket/small/"}
    both = workload(
        weights={"base": WEIGHTS | {"gated": True}, "open": WEIGHTS | {"directory": "data/models/open"}},
        datasets={"pairs": PAIRS | {"from": "b2://bucket/pairs/", "fallback": fallback}},
    )
    names = ["HF_TOKEN", "B2_KEY_ID", "B2_APP_KEY", "GOOGLE_APPLICATION_CREDENTIALS"]
    assert both.missing_environment({}) == names
    with pytest.raises(UsageError, match="needs HF_TOKEN, B2_KEY_ID, B2_APP_KEY, GOOGLE_APPLICATION_CREDENTIALS in"):
        both.check_environment({})
    assert workload(datasets={"pairs": PAIRS}).missing_environment({}) == []
    open_to_all = PAIRS | {"from": "gs://bucket/pairs/", "public": True}
    assert workload(datasets={"pairs": open_to_all}).missing_environment({}) == []


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"revision": "main"}, "must be a commit of 40 hexadecimal digits, not 'main', because a branch names other"),
        ({"repository": "https://huggingface.co/org/tiny"}, "must be a repository of the Hub, of the form owner/name"),
        ({"directory": "models"}, r"must have weights.base.directory \(models\) in one of persist.directories"),
        ({"store": "volume"}, "must be an absolute path below /"),
        ({"revision": None}, r"must have repository and revision \(of the Hub\), or from"),
        ({"from": "bucket://models/base"}, "must have either from or repository, revision and gated"),
        ({"sha256": "0" * 64}, "must have from with endpoint, public, checksums or sha256"),
        (
            {"repository": None, "revision": None, "from": "models/base"},
            "must be an address that begins with bucket://",
        ),
    ],
)
def test_mistakes_in_weights(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        workload(weights={"base": WEIGHTS | weights})


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            {"from": "ftp://host/x"},
            r"must be an address that begins with bucket:// \(the run's own bucket\), s3://, b2://,",
        ),
        ({"from": "https://user:secret@host/x"}, "must not hold a user or password"),
        ({"from": "https://host/x?signature=secret"}, "must not have anything from '\\?' or '#' on"),
        ({"from": "s3://bucket/../x"}, r"must not have '\.\.' in its path"),
        ({"from": "https://host/x/", "endpoint": "https://host"}, "has an endpoint, which https:// already names"),
        ({"checksums": "SHA256SUMS", "include": ["*"]}, "must not have include or exclude with checksums"),
        ({"sha256": "0" * 64}, "has a sha256 for several files"),
        ({"sha256": "0"}, "must be a SHA-256 of 64 lower-case hexadecimal digits"),
        ({"to": "elsewhere"}, r"must have datasets.pairs.to \(elsewhere\) in one of persist.directories"),
    ],
)
def test_mistakes_in_data_sets(dataset: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        workload(datasets={"pairs": PAIRS | dataset})


def test_one_folder_serves_one_thing() -> None:
    with pytest.raises(ValueError, match=r"outside the folder of weights\.base\.directory"):
        workload(weights={"base": WEIGHTS}, datasets={"pairs": PAIRS | {"to": "data/models/base/pairs"}})
