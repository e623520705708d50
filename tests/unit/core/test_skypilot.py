"""F1, F2: clouds through SkyPilot, against a stand-in for its Python API."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gpuyard import config, market
from gpuyard.errors import (
    AmbiguousError,
    AuthenticationError,
    InvalidRequestError,
    LeakError,
    NoCapacityError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers import skypilot
from gpuyard.providers.base import CreateSpec, Offer, Query, State
from gpuyard.providers.rental import Waits
from gpuyard.providers.skypilot import Skypilot, cluster_name, ref_of
from gpuyard.ranking import Ranking

from . import fake_sky

KEY = "ssh-ed25519 AAAA gpuyard"
REF = RunRef("fairy2-0", "fairy2")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> fake_sky.Fake:
    world = fake_sky.Fake()
    registry = type("Registry", (), {"CLOUD_REGISTRY": {"aws": "aws", "nebius": "nebius", "lambda": "lambda"}})
    parts = skypilot.Modules(fake_sky, world, world, world, world, registry, world, world)
    monkeypatch.setattr(skypilot, "modules", lambda: parts)
    return world


@pytest.fixture
def sky(fake: fake_sky.Fake) -> Skypilot:
    return Skypilot("nebius,gcp,aws", waits=Waits(unlisted=0.0, destroy_timeout=0.0, sleep=lambda _: None))


def spec(**values: Any) -> CreateSpec:
    return CreateSpec(**{"ref": REF, "ssh_public_key": KEY, "disk_gb": 60.5, **values})


def nebius(sky: Skypilot) -> Offer:
    return market.choose(sky.offers(Query()), Query(market="on-demand"))[0]


# -- offers -----------------------------------------------------------------------------------------------------------


def test_f1_nebius_comes_first_then_gcp_then_aws_and_h100_before_a100(sky: Skypilot) -> None:
    offers = sky.offers(Query(disk_gb=200.0))
    ranked = market.choose(offers, Query(market="on-demand", disk_gb=200.0))
    assert [(one.region.partition(",")[0], one.gpu_name) for one in ranked] == [
        ("nebius", "H100"),
        ("nebius", "L40S"),
        ("gcp", "H100"),
        ("gcp", "A100 80GB"),
        ("aws", "H100"),
        ("aws", "A100"),
    ]
    assert {one.gpu_ram_gb for one in ranked if one.gpu_name == "H100"} == {80.0}  # GCP names none, AWS counts in GiB
    assert ranked[3].gpu_ram_gb == 80.0 and ranked[0].price_per_hour_usd == 2.95
    # Spot and on demand are one offer with two prices; what has no price on a market is not there.
    assert sum(one.market == "interruptible" for one in offers) == 4
    only = market.choose(offers, Query(regions=["aws"], market="on-demand"))
    assert {one.region for one in only} == {"aws, us-east-1"}


def test_an_order_of_the_users_own_is_kept_and_other_clouds_come_before(fake: fake_sky.Fake) -> None:
    offers = Skypilot("AWS, gcp").offers(Query())
    assert offers[0].id == "aws/us-east-1/p5.4xlarge/H100:1" and not any("nebius" in one.id for one in offers)
    live = Offer("vast", "1", "H100", 1, 80, 8, 64, 500, "SE", "on-demand", 99.0)
    verdicts = market.judge([*offers, live], Query(gpu_names=["H100"]))
    assert market.rank(verdicts)[0] is live
    assert "the first of 5 that fit, in the order in which the clouds are taken" in market.explain(verdicts)[0]
    assert "later in the order" in Ranking(Query(), [live]).why_behind(live, offers[0])


def test_a_cloud_without_credentials_is_left_out_and_none_at_all_is_said(sky: Skypilot, fake: fake_sky.Fake) -> None:
    fake.enabled = ["GCP"]
    assert {one.id.partition("/")[0] for one in sky.offers(Query())} == {"gcp"}
    assert fake.calls == []
    fake.enabled = ["Kubernetes"]
    with pytest.raises(AuthenticationError, match="`sky check nebius gcp aws` says what is missing"):
        sky.offers(Query())
    assert fake.calls == ["check ('nebius', 'gcp', 'aws')"]  # what SkyPilot remembers may be old
    with pytest.raises(AuthenticationError):
        sky.credit_usd()  # what check.yml asks


# -- create -----------------------------------------------------------------------------------------------------------


def test_f2_the_task_has_what_the_workload_needs_and_only_our_public_key(
    sky: Skypilot, fake: fake_sky.Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    made = sky.create(nebius(sky), spec(market="interruptible", environment={"A": "b"}), progress=print)
    (task,) = fake.launched
    assert task.resources is not None and vars(task.resources) | {"cloud": ""} == {
        "infra": "nebius/eu-north1",
        "instance_type": "gpu-h100-sxm_1gpu-16vcpu-200gb",
        "accelerators": {"H100": 1},
        "use_spot": True,
        "disk_size": 61,
        "labels": {"gpuyard-run": "fairy2-0", "gpuyard-workload": "fairy2", "gpuyard-node": "main-0"},
        "cloud": "",
    }
    assert task.envs == {"A": "b"} and task.api_server_access is False
    assert task.setup is not None and "authorized_keys" in task.setup and KEY in task.setup
    assert made.ref == REF and made.state is State.RUNNING and made.id.startswith("gpuyard.fairy2-0.fairy2.main-0.")
    assert (made.ssh_host, made.ssh_port, made.ssh_user) == ("203.0.113.7", 22, "ubuntu")
    assert (made.market, made.price_per_hour_usd, made.region) == ("interruptible", 2.95, "nebius, eu-north1")
    assert capsys.readouterr().out == f"Running on cluster: {made.id}\nLaunching on AWS\n"
    assert [one.id for one in sky.instances()] == [made.id]


def test_no_credential_is_copied_onto_the_machine(sky: Skypilot, fake: fake_sky.Fake) -> None:
    fake.credentials = {"~/.aws/credentials": "aws"}
    sky.create(nebius(sky), spec())
    assert fake.launched_with["aws"] == fake.launched_with["nebius"] == {"remote_identity": "NO_UPLOAD"}
    fake.credentials["~/.lambda_cloud/lambda_keys"] = "lambda"  # SkyPilot has no such setting for Lambda
    with pytest.raises(UsageError, match=r"would copy ~/\.lambda_cloud/lambda_keys onto the machine"):
        sky.create(nebius(sky), spec())
    assert len(fake.launched) == 1


def test_no_capacity_lets_the_next_offer_be_tried_and_a_refusal_does_not(sky: Skypilot, fake: fake_sky.Fake) -> None:
    offer = nebius(sky)
    fake.launch_fails = fake_sky.ResourcesUnavailableError("\x1b[31mFailed to provision\x1b[0m\n in all zones")
    with pytest.raises(NoCapacityError, match="SkyPilot refused: Failed to provision in all zones"):
        sky.create(offer, spec())
    fake.launch_fails = ValueError("disk_size is wrong")
    with pytest.raises(InvalidRequestError, match="disk_size is wrong"):
        sky.create(offer, spec())
    assert not any(call.startswith("down") for call in fake.calls)


@pytest.mark.parametrize("error", [RuntimeError("setup failed"), fake_sky.ResourcesUnavailableError("no zone")])
def test_a_machine_that_a_failed_launch_left_is_ended(sky: Skypilot, fake: fake_sky.Fake, error: Exception) -> None:
    fake.launch_fails, fake.launch_keeps = error, True
    with pytest.raises(NoCapacityError):
        sky.create(nebius(sky), spec())
    assert fake.clusters == {} and fake.on_cloud == {} and fake.calls[-1].startswith("down gpuyard.fairy2-0.")


def test_a_lost_answer_is_looked_up_by_name(sky: Skypilot, fake: fake_sky.Fake) -> None:
    fake.launch_fails, fake.launch_keeps = fake_sky.ApiServerConnectionError("gone"), True
    assert sky.create(nebius(sky), spec()).state is State.PENDING
    assert sum(call.startswith("launch") for call in fake.calls) == 1
    fake.clusters.clear()
    fake.launch_keeps = False
    with pytest.raises(AmbiguousError, match="Nothing else was rented"):
        sky.create(nebius(sky), spec())


def test_a_launch_that_never_ends_is_cancelled_and_ended(fake: fake_sky.Fake) -> None:
    released = threading.Event()
    sky = Skypilot("nebius", waits=Waits(unlisted=0.0, destroy_timeout=0.0), launch_s=0.05)
    offer = nebius(sky)
    fake.launch_waits = lambda: released.wait(10)
    with pytest.raises(NoCapacityError, match="no machine up within 0 s"):
        sky.create(offer, spec())
    assert fake.calls[-1] == "cancel"
    released.set()


def test_plan_create_asks_nothing_and_shows_the_task(sky: Skypilot, fake: fake_sky.Fake) -> None:
    (call,) = sky.plan_create(nebius(sky), spec())
    assert (call.method, call.url) == ("POST", "http://127.0.0.1:46580/launch") and call.body is not None
    assert call.body["cluster_name"] == "gpuyard.fairy2-0.fairy2.main-0.…" and fake.launched == []
    (end,) = sky.plan_destroy("gpuyard.a.b.main-0.1")
    assert end.body == {"cluster_name": "gpuyard.a.b.main-0.1"}


# -- names, states, ends ----------------------------------------------------------------------------------------------


def test_a_name_says_its_run_and_is_never_the_same_twice() -> None:
    ref = RunRef("a-b", "c", "search-3")
    assert ref_of(cluster_name(ref)) == ref and cluster_name(ref) != cluster_name(ref)
    assert [ref_of(name) for name in ("mine", "gpuyard", "gpuyard.x", "sky-abc.d.e")] == [None] * 4


def test_states_and_what_is_not_ours(sky: Skypilot, fake: fake_sky.Fake) -> None:
    resources = fake_sky.Resources("m", "A100-80GB:2", "gcp/us-central1")
    for status in fake_sky.ClusterStatus:
        fake.add(status.value.lower(), resources, status)
    fake.clusters["up"].handle.head_ip = None
    fake.clusters["init"].handle = None  # nothing has been provisioned yet
    seen = {one.id: one for one in sky.instances()}
    assert {name: one.state for name, one in seen.items()} == {
        "init": State.PENDING,
        "up": State.PENDING,  # no address yet
        "stopped": State.STOPPED,
        "autostopping": State.RUNNING,
        "pending": State.PENDING,
    }
    assert all(one.ref is None for one in seen.values())
    assert (seen["stopped"].gpu_name, seen["stopped"].gpu_count, seen["stopped"].gpu_ram_gb) == ("A100 80GB", 2.0, 80.0)
    assert seen["init"].price_per_hour_usd == 0.0


def test_destroy_asks_the_clouds_own_list(sky: Skypilot, fake: fake_sky.Fake) -> None:
    made = sky.create(nebius(sky), spec())
    lines: list[str] = []
    sky.destroy(made.id, progress=lines.append)
    assert lines[-1] == f"The cloud of {made.id} lists none of its machines."
    sky.destroy(made.id)  # already gone is success


@pytest.mark.parametrize(
    ("error", "words"), [(None, "it still lists i-1"), (RuntimeError("no route"), "it cannot be asked")]
)
def test_a_machine_that_skypilot_forgot_is_a_leak(
    sky: Skypilot, fake: fake_sky.Fake, error: Exception | None, words: str
) -> None:
    made = sky.create(nebius(sky), spec())
    fake.forgets, fake.query_fails = True, error
    with pytest.raises(LeakError, match=words) as caught:
        sky.destroy(made.id)
    assert caught.value.instance_id == made.id


def test_a_cloud_whose_list_cannot_be_asked_is_said(sky: Skypilot, fake: fake_sky.Fake) -> None:
    made = sky.create(nebius(sky), spec())
    fake.query_fails = NotImplementedError()
    lines: list[str] = []
    sky.destroy(made.id, progress=lines.append)
    assert "its own word stands" in lines[-1]


def test_stop_and_start(sky: Skypilot) -> None:
    made = sky.create(nebius(sky), spec())
    sky.stop(made.id)
    assert (stopped := sky.instance(made.id)) and stopped.state is State.STOPPED
    sky.start(made.id)
    assert (started := sky.instance(made.id)) and started.state is State.RUNNING


# -- where it comes from ----------------------------------------------------------------------------------------------


def test_configured_by_a_list_of_clouds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUYARD_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="set GPUYARD_SKYPILOT=nebius,gcp,aws"):
        config.connect("skypilot", env={})
    assert [repr(one) for one in config.connect(env={"GPUYARD_SKYPILOT": "gcp"})] == ["Skypilot('gcp')"]
    (tmp_path / "skypilot").write_text("nebius\naws\n")
    assert repr(config.connect("skypilot", env={})[0]) == "Skypilot('nebius,aws')"
    with pytest.raises(UsageError, match="kubernetes"):
        Skypilot("aws,kubernetes")


def test_skypilot_is_only_imported_when_it_is_asked() -> None:
    program = "import sys; from gpuyard import config; config.connect('skypilot', env={'GPUYARD_SKYPILOT': 'aws'})"
    program += "; assert not [name for name in sys.modules if name.split('.')[0] == 'sky']"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_the_extra_there_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sky", None)
    with pytest.raises(UsageError, match=r"pip install 'gpuyard\[skypilot\]' 'skypilot\[nebius,gcp,aws\]'"):
        Skypilot("aws").instances()


def test_the_stand_in_takes_what_the_real_package_takes() -> None:
    sky = pytest.importorskip("sky", reason="the extra skypilot is not installed")
    pairs = [(fake_sky.Task, sky.Task), (fake_sky.Resources, sky.Resources)]
    for module, names in fake_sky.USED.items():
        real = importlib.import_module(module)
        pairs += [(getattr(fake_sky.Fake, name), getattr(real, name)) for name in names]
    for ours, theirs in pairs:
        mine, real = _parameters(ours), _parameters(theirs)
        assert set(mine) <= set(real), ours
        assert {name for name, one in real.items() if _is_needed(one)} <= set(mine), ours
        # What is called without names has the same place there.
        first = [name for name, one in mine.items() if _is_needed(one)]
        assert list(real)[: len(first)] == first, ours
    from sky import exceptions
    from sky.catalog.common import InstanceTypeInfo
    from sky.utils import registry, schemas

    assert InstanceTypeInfo._fields == fake_sky.InstanceTypeInfo._fields
    assert {one.value for one in sky.ClusterStatus} == {one.value for one in fake_sky.ClusterStatus}
    assert all(hasattr(exceptions, name) for _, names in skypilot._KINDS for name in names)
    settings = schemas.get_config_schema()["properties"]
    assert {
        name for name in registry.CLOUD_REGISTRY if "remote_identity" in settings.get(name, {}).get("properties", {})
    } == set(skypilot._KEEPS_CREDENTIALS)
    assert isinstance(skypilot.modules().server.get_server_url(), str)


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(function).parameters)
    found.pop("self", None)
    return found


def _is_needed(one: inspect.Parameter) -> bool:
    return one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
