"""The acceptance of a new machine (X11, V9), with the real box code behind a stand-in for ssh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuyard import market, pace
from gpuyard.box import health
from gpuyard.box.checkpoints import LocalStore
from gpuyard.config import BucketSettings, SshKey
from gpuyard.errors import DiskFullError, NoOfferError, UnfitError, UnreachableError
from gpuyard.formats.failed_host import FailedHost
from gpuyard.formats.manifest import timestamp
from gpuyard.providers.base import Instance, Query, State
from gpuyard.renting import acceptance, rent
from gpuyard.renting.acceptance import Acceptance
from gpuyard.renting.failed_hosts import FailedHosts
from gpuyard.renting.notebook import Notebook
from gpuyard.workload.hardware import DEFAULTS

from .conftest import SSH_KEY, a_spec, an_offer

KEY = SshKey(Path("/keys/id"), SSH_KEY)
SOURCE = Path(health.__file__)
SMI = """#!/bin/sh
# STAND-IN for the sandbox's own stand-in.
case "$*" in
  -L) echo "GPU 0: RTX 3060 STAND-IN (UUID: x)" ;;
  --query-gpu=memory.total*) echo 12288; echo STAND-IN >&2 ;;
  *) exit 2 ;;
esac
"""


def a_machine(**changes: Any) -> Instance:
    values: dict[str, Any] = {
        "provider": "vast",
        "id": "7",
        "label": "",
        "ref": None,
        "state": State.RUNNING,
        "status_text": "running",
        "region": "Oslo, NO",
        "gpu_name": "RTX 3060",
        "gpu_count": 1.0,
        "gpu_ram_gb": 12.0,
        "market": "on-demand",
        "price_per_hour_usd": 0.4,
        "ssh_host": "203.0.113.9",
        "machine_id": "11402",
        **changes,
    }
    return Instance(**values)


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The box code as it is, but that it writes less to the disk."""
    text = SOURCE.read_text()
    assert "_DISK_BYTES = 64 * _MIB" in text
    copy = tmp_path / "health.py"
    copy.write_text(text.replace("_DISK_BYTES = 64 * _MIB", "_DISK_BYTES = 4 * _MIB"))
    monkeypatch.setattr(health, "__file__", str(copy))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that comes first; its ssh runs what it is given on this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "ssh", '#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stand-in for the driver's library."""
    folder = tmp_path_factory.mktemp("driver")
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler here, which the stand-in for the driver needs")
    source = Path(__file__).with_name("libcuda_standin.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


def ask(request: dict[str, Any], **environment: str) -> dict[str, health.Check]:
    """Run the box code as a box does, and return the checks by name."""
    done = subprocess.run(
        [sys.executable, "-c", Path(health.__file__).read_text()],
        input=json.dumps(request),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert done.returncode == int(any(one["state"] == "failed" for one in found.values())), done.stderr
    return found


# -- on the box --------------------------------------------------------------------------------------------------------


def test_x11_every_gpu_computes_and_its_memory_is_measured(libcuda: Path, programs: Path) -> None:
    """The calls of the driver are right as far as a stand-in in C can tell: order, types, pointers."""
    # An older driver, which knows the older name only.
    program(
        programs,
        "nvidia-smi",
        "#!/bin/sh\ncase $* in *event*) exit 2 ;; *clocks*) echo 0, Not Active, Not Active; esac",
    )
    request = {"gpu_count": 2, "gpu_ram_gb": 24, "gpu_bandwidth_gb_s": 0.01, "emulated": True}
    found = ask(request, LD_LIBRARY_PATH=str(libcuda))
    assert {name: one["state"] for name, one in found.items() if name.startswith("gpu")} == dict.fromkeys(
        ("gpu count", "gpu memory", "gpu arithmetic", "gpu bandwidth", "gpu state"), "ok"
    )
    assert found["gpu arithmetic"]["found"] == "2 of 2 right" and found["gpu memory"]["found"] == "25.8 GB"
    slow = ask({**request, "gpu_count": 3, "gpu_ram_gb": 40, "gpu_bandwidth_gb_s": 1e6}, LD_LIBRARY_PATH=str(libcuda))
    assert [name for name, one in slow.items() if one["state"] == "failed"] == [
        "gpu count",
        "gpu memory",
        "gpu bandwidth",
    ]


@pytest.mark.parametrize(
    ("fault", "name", "why"),
    [
        ("wrong", "gpu arithmetic", "GPU 0 computes 1 of 262144 results wrong"),
        ("init", "gpu count", "the driver does not start: cuInit: CUDA_ERROR_SYSTEM_NOT_READY"),
        ("crash", "gpu", "the check was ended by a fault in the driver"),
    ],
)
def test_x11_a_gpu_that_fails_is_told(libcuda: Path, fault: str, name: str, why: str) -> None:
    found = ask({"gpu_count": 2}, LD_LIBRARY_PATH=str(libcuda), STANDIN_CUDA=fault)
    assert (found[name]["state"], found[name]["why"]) == ("failed", why)
    assert found["disk"]["state"] == "ok"


@pytest.mark.parametrize(("least", "pieces"), [(None, 4), (0.001, 4), (1e9, 16)])
def test_a_disk_is_measured_for_longer_only_where_its_threshold_is_near(
    monkeypatch: pytest.MonkeyPatch, least: float | None, pieces: int
) -> None:
    written: list[int] = []
    monkeypatch.setattr(health.os, "write", lambda _handle, data: written.append(len(data)) or len(data))
    found = health.disk_checks({"disk_mb_s": least})
    assert len(written) == pieces and found[-1]["state"] == ("failed" if least == 1e9 else "ok")


def test_x11_a_gpu_that_hangs_is_ended(libcuda: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(SOURCE.parents[2])!r}); from gpuyard.box import health, health as h\n"
    )
    script += "h.LIMITS_S['gpu'] = 0.5; print(h.measure({'gpu_count': 1})['checks'][0]['why'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": str(libcuda), "STANDIN_CUDA": "hang"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "no answer within 0 s\n"


def test_v9_errors_of_memory_and_throttling_are_told() -> None:
    assert health.state_of("0, Not Active, Not Active\n[N/A], Not Active, Not Active\n")["state"] == "ok"
    bad = health.state_of("3, Active, Not Active\n0, Not Active, Active\n")
    assert (bad["state"], bad["why"]) == (
        "failed",
        "GPU 0 has 3 uncorrected memory errors; GPU 0 is slowed down by heat; GPU 1 is slowed down for lack of power",
    )


def test_v9_data_has_to_be_there_and_hold_something(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.bin").write_text("a")
    assert ask({"data": [f"{tmp_path}/full", f"{tmp_path}/*/a.*"]})["data"]["found"] == "2 of 2"
    for path in ("empty", "none", "*/b.*"):
        found = ask({"data": [f"{tmp_path}/full", f"{tmp_path}/{path}"]})["data"]
        assert (found["state"], found["why"]) == ("failed", f"nothing in {tmp_path}/{path}")


# -- on the controller -------------------------------------------------------------------------------------------------


def an_acceptance(told: list[str], **changes: Any) -> Acceptance:
    hosts = FailedHosts(progress=told.append)
    return Acceptance(**{"defaults": DEFAULTS, "hosts": hosts, "clock": pace.Clock(sleep=lambda _: None), **changes})


def remembered() -> list[str]:
    return [path.name for path in (Path(os.environ["GPUYARD_HOME"]) / "hosts").glob("*")]


def test_x11_a_box_of_the_sandbox_is_taken_for_what_it_says(programs: Path) -> None:
    program(programs, "nvidia-smi", SMI)
    told: list[str] = []
    an_acceptance(told).check(a_machine(emulated=True), KEY, told.append)
    (line,) = told
    assert line.startswith("vast instance 7 is what was offered: gpu count 1, gpu memory 12.9 GB, disk space ")
    assert line.endswith(
        "gpu arithmetic and gpu bandwidth not looked at, since this box is the sandbox's, which has no GPU; "
        "network not looked at, since there is no bucket that a machine reaches by network."
    )
    with pytest.raises(UnfitError, match=r"gpu count: 1 instead of 2; gpu memory: 12\.9 GB instead of 24 GB"):
        an_acceptance(told).check(a_machine(emulated=True, gpu_count=2.0, gpu_ram_gb=24.0), KEY, told.append)


def test_x11_a_real_box_that_says_it_is_the_sandboxs_is_not_believed(programs: Path) -> None:
    program(programs, "nvidia-smi", SMI)
    told: list[str] = []
    with pytest.raises(UnfitError, match=r"vast instance 7 is not what was offered: gpu count: 0, there is no driver"):
        an_acceptance(told).check(a_machine(), KEY, told.append)
    # Some machines answer before their driver does.
    assert sum("has no working driver yet; looking again" in line for line in told) == 3
    assert told[-1] == "Host 11402 of vast is left out of the choice for 30 days."
    assert remembered() == ["vast-11402.json"]


def test_thresholds_are_the_workloads(programs: Path) -> None:
    program(programs, "nvidia-smi", SMI)
    told: list[str] = []
    never = {"disk_mb_s": 1e9, "disk_free_gb": 1e9}
    with pytest.raises(
        UnfitError, match=r"disk space: .* instead of at least 1e\+09 GB free; disk: .* MB/s instead of"
    ):
        an_acceptance(told, least=never).check(a_machine(emulated=True), KEY, told.append)
    # Nobody has named these, and the sandbox's boxes have this machine's disk.
    an_acceptance(told, defaults=never).check(a_machine(emulated=True), KEY, told.append)
    # One that need not pass is told, and kept, and its host stays in the choice.
    an_acceptance(told := [], least=never, required=False).check(
        a_machine(emulated=True, machine_id="8"), KEY, told.append
    )
    assert "is kept (health.required is false): disk space" in told[0] and "vast-8.json" not in remembered()


def test_what_is_not_the_hosts_fault_is_not_remembered(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(programs, "nvidia-smi", SMI)
    told: list[str] = []
    s3 = BucketSettings(
        "s3://b",
        "http://127.0.0.1:9",
        keys={"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"},
        region="us-east-1",
    )
    # A bucket that does not answer here either keeps nobody from training.
    an_acceptance(told, bucket=s3).check(a_machine(emulated=True), KEY, told.append)
    assert "network not looked at, since the bucket does not answer" in told[-1]
    monkeypatch.setattr(acceptance.runs, "check_answers", lambda _store: None)
    with pytest.raises(UnfitError, match=r"network: no answer, the bucket does not answer: .*refused"):
        an_acceptance(told, bucket=s3).check(a_machine(emulated=True), KEY, told.append)
    assert remembered() == []
    program(programs, "ssh", "#!/bin/sh\necho 'Connection reset' >&2; exit 255\n")
    with pytest.raises(UnreachableError, match="breaks again and again: Connection reset"):
        an_acceptance(told).check(a_machine(), KEY, told.append)
    program(programs, "ssh", "#!/bin/sh\nexit 127\n")
    an_acceptance(told).check(a_machine(), KEY, told.append)
    assert told[-1] == "vast instance 7 has no python3 yet, so it is taken untested."
    program(programs, "ssh", "#!/bin/sh\necho hello; echo 'Killed' >&2; exit 137\n")
    with pytest.raises(UnfitError, match=r"cannot be tested: Killed\."):
        an_acceptance(told).check(a_machine(), KEY, told.append)
    assert remembered() == []
    monkeypatch.setattr(acceptance, "LIMIT_S", 0.2)
    program(programs, "ssh", "#!/bin/sh\nexec sleep 30\n")
    with pytest.raises(UnfitError, match="hangs"):
        an_acceptance(told).check(a_machine(), KEY, told.append)
    assert remembered() == ["vast-11402.json"]


# -- hosts that have failed --------------------------------------------------------------------------------------------


def test_x11_failed_hosts_are_known_to_every_controller_for_a_while(
    tmp_path: Path, vast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    bucket = LocalStore(tmp_path / "bucket")
    memory = FailedHosts(Notebook(lambda: bucket), told.append)
    memory.remember(a_machine(), "gpu count: 0 instead of 1")
    memory.remember(a_machine(machine_id=""), "nobody knows where it is")
    memory.remember(a_machine(machine_id="9", sandbox="abc"), "an emulated one")
    assert set(memory.known([vast])) == {("vast", "11402")}
    monkeypatch.setenv("GPUYARD_HOME", str(tmp_path / "another"))
    (known,) = memory.known([vast]).values()
    assert known.words == f"on {timestamp()[:10]} (gpu count: 0 instead of 1)"
    old = FailedHost("vast", "5", "2026-01-01T00:00:00Z", "long ago")
    bucket.put(old.key, old.to_bytes())
    bucket.put("hosts/vast-6.json", b'{"version": 7}')
    bucket.put("hosts/run.json", b"{}")  # of a run that is called as the folder is
    told.clear()
    assert set(memory.known([vast])) == {("vast", "11402")}
    assert len(told) == 1 and "vast-6.json is of version 7" in told[0] and told[0].endswith("It is passed over.")


def test_x11_the_plan_leaves_out_failed_hosts_and_says_why() -> None:
    offers = [an_offer(machine_id="11402"), an_offer(id="2", machine_id="9", price_per_hour_usd=0.9)]
    failed = {("vast", "11402"): "on 2026-03-01 (gpu count: 0 instead of 1)"}
    verdicts = market.judge(offers, Query(), failed_hosts=failed)
    assert [offer.id for offer in market.rank(verdicts)] == ["2"]
    words = "failed_hosts removed 1 of 2: host 11402 failed us on 2026-03-01 (gpu count: 0 instead of 1)."
    assert words in market.explain(verdicts)
    with pytest.raises(NoOfferError, match="host 11402 failed us on 2026-03-01"):
        raise market.no_offer(market.judge(offers[:1], Query(), failed_hosts=failed))


def test_a_host_that_has_failed_is_not_tried_at_its_other_price(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def create(_provider: object, offer: Any, *_: object) -> Instance:
        tried.append(offer.id)
        return a_machine(id=offer.id)

    def make_usable(instance: Instance) -> Instance:
        if instance.id == "1":
            raise UnfitError("vast instance 1 is not what was offered.")
        return instance

    monkeypatch.setattr(rent, "_create", create)
    monkeypatch.setattr(rent, "_check_has_none", lambda *_: None)
    provider = type("Named", (), {"name": "vast", "sandbox": ""})()
    offers = [an_offer(id=number, machine_id=host) for number, host in (("1", "h"), ("2", "h"), ("3", "k"))]
    assert rent.rent([provider], offers, a_spec(), make_usable=make_usable).id == "3"
    assert tried == ["1", "3"]


def test_u10_too_little_room_is_a_matter_of_the_disk_and_no_fault_of_the_host(programs: Path) -> None:
    program(programs, "nvidia-smi", SMI)
    told: list[str] = []
    with pytest.raises(DiskFullError, match=r"disk space: .* GB free"):
        an_acceptance(told, least={"disk_free_gb": 1e9}).check(a_machine(emulated=True), KEY, told.append)
    assert remembered() == []
