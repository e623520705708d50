"""Whatever is wrong with the input: one clear sentence, a non-zero exit, nothing rented."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from yard import Yard

BROKEN = """\
name: broken
repository: {path: .}
needs: {gpu_ram_gb: 8}
stages:
  - name: train
    command: "true"
    grace_s: soon
"""

NEEDY = """\
name: needy
repository: {path: .}
environment: {required: [GPUYARD_E2E_WANDB_KEY, GPUYARD_E2E_OTHER]}
stages:
  - name: train
    command: "true"
"""

GREEDY = """\
name: greedy
repository: {path: .}
needs: {gpu_count: 64, gpu_ram_gb: 500}
stages:
  - name: train
    command: "true"
"""


@dataclass(frozen=True)
class Case:
    """Extra vars that cannot work, and what the one sentence has to contain."""

    name: str
    extra: dict[str, str]
    says: tuple[str, ...]
    verb: str = "launch"
    files: dict[str, str] = field(default_factory=dict)


CASES = [
    Case("unknown provider", {"provider": "vulture"}, ("vulture", "vast", "vultr")),
    Case("unknown workload", {"workload": "minprover"}, ("minprover", "miniprover")),
    Case(
        "wrong key", {"workload": "{dir}/broken.yml"}, ("broken.yml:7", "grace_s", "soon"), files={"broken.yml": BROKEN}
    ),
    Case("no such file", {"workload": "{dir}/absent.yml"}, ("absent.yml",)),
    Case("run name", {"run": "My_Run"}, ("My_Run", "lower-case")),
    Case("reserved run name", {"run": "localhost"}, ("localhost", "another name")),
    Case("long run name", {"run": "a" * 80}, ("1 to 40",)),
    Case("nothing fits", {"workload": "{dir}/greedy.yml"}, ("gpu_count", "removed"), files={"greedy.yml": GREEDY}),
    Case("too dear", {"max_price_per_hour": "0.001"}, ("max_price_per_hour", "0.001", "removed")),
    Case("price is no number", {"max_price_per_hour": "cheap"}, ("max_price_per_hour", "cheap")),
    Case(
        "environment",
        {"workload": "{dir}/needy.yml"},
        ("GPUYARD_E2E_WANDB_KEY", "GPUYARD_E2E_OTHER"),
        files={"needy.yml": NEEDY},
    ),
    Case("no SSH key", {"ssh_key": "{dir}/id_absent"}, ("ssh_key", "id_absent")),
    Case("bucket is none", {"bucket": "ftp://somewhere"}, ("bucket", "ftp://somewhere", "s3://")),
    Case("no such offer", {"offer": "4711"}, ("offer", "4711", "not among")),
    Case("no such GPU", {"gpu_name": "H900"}, ("gpu_names", "H900", "removed")),
    Case("half a GPU name", {"gpu_name": "RTX"}, ("gpu_name='RTX' is no GPU model", "RTX 4090", "A16")),
    Case(
        "options that are none",
        {"gpu_name": "RTX 4090", "max_price_per_hr": "0.001", "lines": "5"},
        ("-e gpu_name=RTX_4090", "did you mean max_price_per_hour?", "lines=… is an option of logs.yml"),
    ),
    Case("no workload by its name", {"workload": "/etc/passwd"}, ("/etc/passwd", ".yml")),
    Case("no run name", {"run": "../x"}, ("run='../x'", "lower-case"), verb="status"),
    Case(
        "no sandbox there",
        {"run": "a-0", "sandbox_state": "{dir}/sandobx"},
        ("sandobx: there is no sandbox there", "launch.yml"),
        verb="teardown",
    ),
    Case("unsaved", {"shutdown": "true", "bucket": ""}, ("shutdown=true", "bucket")),
    Case("market", {"market": "spot"}, ("market", "spot", "interruptible")),
    Case("no price at all", {"max_price_per_hour": "nan"}, ("max_price_per_hour=nan", "above 0")),
    Case("no GPU", {"gpu_count": "0"}, ("gpu_count=0", "above 0")),
    Case("shutdown is no switch", {"shutdown": "ture"}, ("shutdown='ture' must be true or false",)),
    Case("follow is no switch", {"follow": "maybe"}, ("follow='maybe' must be true or false",)),
    Case("converge", {"converge": "all"}, ("converge", "all", "auto, full")),
    Case("sandbox is no switch", {"sandbox": "maybe"}, ("sandbox='maybe' must be true or false",)),
    Case("nothing to resume", {}, ("no run that can be resumed",), verb="resume_search"),
    Case("unknown run", {"run": "never-was"}, ("never-was",), verb="resume_search"),
    Case("log of nobody", {"run": "never-was"}, ("never-was",), verb="logs"),
    Case("which run", {}, ("-e run=",), verb="teardown"),
]


@pytest.fixture(autouse=True)
def nothing_is_rented(yard: Yard) -> Iterator[None]:
    """Whatever a test here does, the clouds have the same machines and the same bill afterwards."""
    before = yard.control.status()
    yield
    after = yard.control.status()
    assert after["instances"] == before["instances"]
    assert after["bill"]["total_usd"] == before["bill"]["total_usd"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_clear_sentence(yard: Yard, tmp_path: Path, case: Case) -> None:
    for name, content in case.files.items():
        (tmp_path / name).write_text(content)
    extra = {name: value.replace("{dir}", str(tmp_path)) for name, value in case.extra.items()}
    said = yard.play(case.verb, ok=False, **extra)
    sentence = " ".join(said.text.split())
    for part in case.says:
        assert part in sentence, said.text


def test_no_key_and_no_sandbox_names_both_ways_out(yard: Yard, tmp_path: Path) -> None:
    said = yard.run("ansible-playbook", "launch.yml", env={"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)})
    sentence = " ".join(said.text.split())
    assert said.code != 0 and "Traceback" not in said.text
    assert "VULTR_API_KEY" in sentence and "VAST_API_KEY" in sentence and "sandbox=true" in sentence


def test_an_unreachable_bucket_ends_the_launch(yard: Yard) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nothing answers there
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "canary-access-52c1f0ab", "AWS_SECRET_ACCESS_KEY": "canary-secret-0f9b7d3e51aa"}
        said = yard.play("launch", ok=False, env=keys, bucket="s3://nowhere", bucket_endpoint=endpoint)
    assert "nowhere" in said.text and endpoint in said.text
    assert "canary-secret" not in said.text


def test_a_taken_port_is_named(yard: Yard, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = yard.run("gpuyard", "sandbox", "up", "--state", str(tmp_path / "other"), "--port", port)
        assert said.code != 0 and port in said.text and "--port" in said.text and "Traceback" not in said.text
        yard.run("gpuyard", "sandbox", "down", "--state", str(tmp_path / "other"))


def test_no_container_engine_says_what_to_install(yard: Yard, tmp_path: Path) -> None:
    for name in ("podman", "docker"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho no engine here >&2\nexit 1\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    said = yard.run("gpuyard", "sandbox", "up", "--state", str(tmp_path / "other"), env={"PATH": path})
    assert said.code != 0 and "podman" in said.text and "Traceback" not in said.text
