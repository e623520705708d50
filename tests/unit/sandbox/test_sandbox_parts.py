"""The engine's command lines, the images' recipes, addresses, settings and the command's own checks."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from gpuyard.cli import main
from gpuyard.errors import UsageError
from gpuyard.sandbox import boxes, engine, images
from gpuyard.sandbox.clouds import BASE_PATHS
from gpuyard.sandbox.engine import ContainerSpec, Engine, EngineError, Port
from gpuyard.sandbox.info import load
from gpuyard.sandbox.model import Phase, Rental
from gpuyard.sandbox.settings import HIGH_PORTS, Settings, free_port, port_is_free


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)


def test_the_engine_that_answers_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "podman", "echo broken >&2; exit 125")
    with pytest.raises(UsageError, match="none answers behind podman"):
        engine.find()
    program(tmp_path, "docker", "exit 0")
    assert engine.find().kind == "docker"
    program(tmp_path, "podman", "exit 0")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert engine.find().kind == "podman"
    # An ordinary user's Podman opens no port 22.
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert engine.find().kind == "docker"


def test_a_sandbox_stays_with_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(tmp_path, "podman", "exit 0")
    program(tmp_path, "docker", "exit 0")
    assert engine.find("docker").kind == "docker"
    program(tmp_path, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(UsageError, match="started with docker, which does not answer"):
        engine.find("docker")


def test_dockers_socket_for_others_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "docker", "echo 'permission denied while trying to connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(UsageError, match="may not use Docker's socket: let root do `usermod -aG docker"):
        engine.find()


@pytest.mark.parametrize(
    ("kind", "said", "rootless"),
    [
        ("podman", "true", True),
        ("podman", "false", False),
        ("docker", "[name=seccomp,profile=default name=rootless name=cgroupns]", True),
        ("docker", "[name=seccomp,profile=default]", False),
    ],
)
def test_an_engine_without_roots_rights_is_known(tmp_path: Path, kind: str, said: str, rootless: bool) -> None:
    program(tmp_path, kind, f"echo '{said}'")
    assert Engine(str(tmp_path / kind), kind).rootless() is rootless


def test_the_disk_that_can_be_slowed_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole disk below a partition; where there is none, a sentence. Nobody takes a fast disk for a slow one."""
    storage = tmp_path / "storage"
    storage.mkdir()
    program(tmp_path, "podman", f'case "$3" in *Rootless*) echo false ;; *) echo {storage} ;; esac')
    podman = Engine(str(tmp_path / "podman"), "podman")
    monkeypatch.setattr(boxes, "_BLOCK_DEVICES", tmp_path)
    with pytest.raises(EngineError, match=r"cannot slow a disk down here, because .*/storage, where podman keeps"):
        boxes.disk(podman)
    part = tmp_path / "devices" / "sda" / "sda1"
    part.mkdir(parents=True)
    number = storage.stat().st_dev
    (tmp_path / f"{os.major(number)}:{os.minor(number)}").symlink_to(part)
    assert boxes.disk(podman) == Path("/dev/sda1")
    (part / "partition").write_text("1\n")
    assert boxes.disk(podman) == Path("/dev/sda")
    program(tmp_path, "podman", "echo true")
    with pytest.raises(EngineError, match="without root's rights slows no disk down: run the sandbox as root"):
        boxes.disk(podman)


@pytest.mark.parametrize(
    ("version", "outcome", "words"),
    [
        ("1", None, "systemd does not start there on control groups of version 1: run the sandbox as root."),
        ("2", PermissionError(), "it may not listen on port 22: run the sandbox as root, or let root run `sysctl"),
        ("2", OSError(), "something else listens on port 22 of every address: run the sandbox as root."),
    ],
)
def test_an_engine_that_lacks_a_right_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, outcome: OSError | None, words: str
) -> None:
    class Probe(socket.socket):
        def bind(self, *_: object) -> None:
            if outcome:
                raise outcome

    monkeypatch.setattr("gpuyard.sandbox.settings.socket.socket", Probe)
    podman = Engine(str(tmp_path / "podman"), "podman")
    program(tmp_path, "podman", f'case "$3" in *Rootless*) echo true;; *) echo v{version};; esac')
    with pytest.raises(UsageError) as caught:
        boxes.check_rights(podman, "00ff00")
    assert words in str(caught.value)
    # Root's engine opens the port itself, or gives a box an address of its own.
    program(tmp_path, "podman", f'case "$3" in *Rootless*) echo false;; *) echo v{version};; esac')
    boxes.check_rights(podman, "00ff00")


def test_a_failing_engine_is_one_sentence(tmp_path: Path) -> None:
    program(tmp_path, "podman", "echo 'first line' >&2; echo 'Error: no such container x' >&2; exit 125")
    with pytest.raises(EngineError, match=r"^podman start failed: Error: no such container x$"):
        Engine(str(tmp_path / "podman"), "podman").start("x")


def test_the_hint_of_dockers_client_is_not_the_error(tmp_path: Path) -> None:
    message = "Error response from daemon: no such container\n\nRun 'docker start --help' for more information"
    program(tmp_path, "docker", f"cat >&2 <<'end'\n{message}\nend\nexit 1")
    with pytest.raises(EngineError, match=r"^docker start failed: Error response from daemon: no such container$"):
        Engine(str(tmp_path / "docker"), "docker").start("x")
    program(tmp_path, "docker", "echo \"See 'docker start --help'.\" >&2; exit 1")
    with pytest.raises(EngineError, match=r"^docker start failed: no message$"):
        Engine(str(tmp_path / "docker"), "docker").start("x")


HOSTILE = {
    "TOKEN": "canary-token-3f9a",
    "LD_PRELOAD": "/tmp/evil.so",
    "PATH": "/tmp/evil",
    "CONTAINERS_CONF": "/tmp/evil.conf",
    "PODMAN_USERNS": "host",
    "DOCKER_HOST": "tcp://127.0.0.1:1",
    "QUOTED": ' "as it stands" #$HOME',
}


@pytest.mark.parametrize(("kind", "switch"), [("podman", "--systemd=always"), ("docker", "--cgroupns=private")])
def test_variables_reach_the_container_only_and_nothing_becomes_an_option(
    tmp_path: Path, kind: str, switch: str
) -> None:
    # A program that writes down what it is given: arguments, environment, standard input.
    program(
        tmp_path,
        kind,
        f"printf '%s\\n' \"$@\" > {tmp_path}/arguments; env > {tmp_path}/environment; cat > {tmp_path}/input",
    )
    spec = ContainerSpec(
        name="box",
        image="--privileged",
        labels={"a": "--privileged"},
        network="net",
        environment=HOSTILE,
        ports=[Port("127.77.1.1", 22, 22)],
        mounts=[(Path("/etc/ssl/certs"), "/etc/ssl/certs")],
        systemd=True,
    )
    Engine(str(tmp_path / kind), kind).create(spec)
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8").splitlines()
    assert "canary-token-3f9a" not in " ".join(arguments)
    seen = (tmp_path / "environment").read_text(encoding="utf-8").splitlines()
    assert not [line for line in seen for name, value in HOSTILE.items() if line == f"{name}={value}"]
    given = (tmp_path / "input").read_text(encoding="utf-8")
    assert given == "".join(f"{name}={value}\n" for name, value in HOSTILE.items())
    assert {switch, "127.77.1.1:22:22/tcp", "/etc/ssl/certs:/etc/ssl/certs:ro"} <= set(arguments)
    assert arguments[arguments.index("--stop-signal") + 1] == "SIGRTMIN+3"
    # The label is the value of its option, and the image comes after the end of the options.
    assert "a=--privileged" in arguments
    assert arguments.index("--privileged") == arguments.index("--") + 1


@pytest.mark.parametrize(
    "environment", [{"": "x"}, {"A=B": "x"}, {"A B": "x"}, {"#A": "x"}, {"A": "x\ny"}, {"A": "\0"}]
)
def test_a_variable_that_fits_no_line_is_an_error(tmp_path: Path, environment: dict[str, str]) -> None:
    program(tmp_path, "podman", "exit 0")
    spec = ContainerSpec(name="box", image="image", labels={}, network="net", environment=environment)
    with pytest.raises(EngineError, match="cannot be given to a container"):
        Engine(str(tmp_path / "podman"), "podman").create(spec)


def test_the_overlay_is_the_same_everywhere_and_programs_can_be_run() -> None:
    """Its digest names the image: another process, with another umask and another order of sets, must get the same."""
    script = (
        "import os; os.umask(0o077); from gpuyard.sandbox import images as made; "
        "print(*(recipe.digest for recipe in (*made.RECIPES, made.NEXT)))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": f"UTC-{seed}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [recipe.digest for recipe in (*images.RECIPES, images.NEXT)]
    for recipe in images.RECIPES:
        with tarfile.open(fileobj=io.BytesIO(recipe.overlay())) as archive:
            modes = {entry.name: entry.mode for entry in archive.getmembers()}
        assert modes["usr/local/bin/nvidia-smi"] == 0o755
        assert modes["etc/ssh/sshd_config.d/10-gpuyard.conf"] == 0o644
        assert not [name for name in modes if "ssh_host" in name]
    assert images.VM.digest != images.ML.digest


def test_one_image_of_another_debian_is_used_with_systemd_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert images.ways(images.NEXT_VM_IMAGE) == (images.NEXT_IMAGE, True)
    assert images.ways(images.NEXT_IMAGE) == (images.NEXT_IMAGE, False)
    assert (images.ways(images.VM_IMAGE)[1], images.ways(images.ML_IMAGE)[1]) == (True, False)
    (tmp_path / "own.sources").write_text("Suites: bookworm bookworm-updates\n")
    monkeypatch.setattr(images, "_suite", lambda: ("bookworm", str(tmp_path / "own.sources")))
    (tmp_path / "copies").mkdir()
    suite, files = images._sources(images.NEXT, tmp_path / "copies")
    assert suite == "trixie" and Path(files[0]).read_text() == "Suites: trixie trixie-updates\n"
    assert images._sources(images.VM, tmp_path) == ("bookworm", [str(tmp_path / "own.sources")])


def test_addresses_that_are_taken_are_passed_over() -> None:
    first = boxes.choose_address("00ff00", 1, 20_022)
    assert first.startswith("127.77.")
    with socket.socket() as taken:
        taken.bind((first, 20_022))
        taken.listen()
        assert boxes.choose_address("00ff00", 1, 20_022) != first
    assert boxes.choose_address("00ff00", 2, 20_022) != first
    assert len(set(boxes.choose_high_ports(64))) == 64


def test_a_high_port_that_is_taken_everywhere_is_an_error_and_port_22_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "port_is_free", lambda *_, **__: False)
    assert not boxes.choose_address("00ff00", 1, boxes.SSH)
    with pytest.raises(EngineError, match="has the ports 20022, 20023 free"):
        boxes.choose_address("00ff00", 1, 20_022, 20_023)


def test_only_what_a_box_can_use_of_this_machines_environment_goes_there() -> None:
    environment = {
        "https_proxy": "http://127.0.0.1:3128",
        "NO_PROXY": "localhost",
        "PIP_INDEX_URL": "http://127.0.0.1/simple",
        "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
        "REQUESTS_CA_BUNDLE": "/opt/company/ca.pem",
        "VAST_API_KEY": "canary-vast-3f9a",
        "AWS_SECRET_ACCESS_KEY": "canary-aws-3f9a",
        "HOME": "/home/user",
    }
    assert set(boxes.machine_environment(environment)) == {"https_proxy", "NO_PROXY", "PIP_INDEX_URL", "SSL_CERT_FILE"}


def test_settings_come_back_and_a_foreign_file_is_named(tmp_path: Path) -> None:
    assert Settings.load(tmp_path) is None
    settings = Settings(port=4711)
    settings.save(tmp_path)
    assert Settings.load(tmp_path) == settings
    assert (tmp_path / "settings.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "settings.json").write_text("[1", encoding="utf-8")
    with pytest.raises(UsageError, match=r"settings\.json"):
        Settings.load(tmp_path)


def test_a_stranger_with_the_old_process_id_is_not_the_sandbox(tmp_path: Path) -> None:
    document = Settings(port=1).sandbox_json(os.getpid(), BASE_PATHS)
    (tmp_path / "sandbox.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match="ended without being shut down"):
        load(tmp_path)
    (tmp_path / "sandbox.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path)


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not port_is_free("127.0.0.1", taken.getsockname()[1])
        assert free_port() in HIGH_PORTS, "an outgoing connection could get another one before its server starts"


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--port", "0"],
        ["up", "--port", "http"],
        ["up", "--boot-seconds", "-1"],
        ["up", "--boot-seconds", "soon"],
        ["fault", "throttle", "--provider", "aws"],
        ["fault", "throttle", "--provider", "vast", "--count", "0"],
        ["fault", "preempt"],
        ["fault", "preempt", "--run", "a-0", "--outcome", "explosion"],
        ["fault"],
        [],
    ],
)
def test_wrong_usage_is_refused_by_the_parser(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sandbox", *arguments])
    assert stop.value.code == 2
    assert "usage: gpuyard sandbox" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["podman", "docker"])
def test_a_login_reaches_the_engine_by_a_file_that_goes_at_once(tmp_path: Path, kind: str) -> None:
    """E10"""
    said = tmp_path / "said"
    file = '"${DOCKER_CONFIG}/config.json"'
    program(tmp_path / "bin", kind, f'echo "$@" > {said}; cat {file} >> {said}; stat -c %a {file} >> {said}')
    Engine(str(tmp_path / "bin" / kind), kind).at_registry("push", "--quiet", "a/b", auth=b"{}", plain=True)
    words, content = said.read_text().split("\n", 1)
    assert content == "{}600\n"
    option = next((word for word in words.split() if word.startswith("--authfile=")), "")
    assert words == (f"push --tls-verify=false {option} --quiet a/b" if kind == "podman" else "push --quiet a/b")
    assert not list(Path(option.removeprefix("--authfile=")).parent.glob("config.json")) if option else True


def pulled(image: str, login: str, answer: str, folder: Path) -> str:
    """Pull an image as a rental's host does; return the words and the logins that the engine got."""
    said = folder / "said"
    program(folder / "bin", "podman", f'echo "$@" > {said}; cat "$DOCKER_CONFIG/config.json" >> {said}; {answer}')
    rental = Rental(
        provider="vast", id="1", item="1", region="", label="", container="c", image=image, address="", ports={},
        created_at=0.0, phase=Phase.BOOTING, phase_since=0.0, made=False, request={"image_login": login},
    )  # fmt: skip
    boxes.pull(Engine(str(folder / "bin/podman"), "podman"), rental)
    return said.read_text()


def test_a_host_pulls_with_the_login_of_the_order_alone(tmp_path: Path) -> None:
    """U11"""
    image = f"localhost:5000/me/prover@sha256:{'0' * 64}"
    assert boxes.is_here(image) and boxes.is_here("localhost/prover:1") and not boxes.is_here("ghcr.io/me/prover:1")
    said = pulled(image, "-u me -p secret localhost:5000", "exit 0", tmp_path)
    assert said.split("\n")[0].endswith(image) and "secret" not in said
    assert json.loads(said.split("\n")[1]) == {"auths": {"localhost:5000": {"auth": "bWU6c2VjcmV0"}}}
    assert pulled(image, "", "exit 0", tmp_path).endswith("\n{}")
    with pytest.raises(EngineError, match=rf"^pull access denied for {image}$"):
        pulled(image, "", "echo 'Error: unauthorized: authentication required' >&2; exit 125", tmp_path)
    with pytest.raises(EngineError, match="manifest unknown"):
        pulled(image, "", "echo 'Error: manifest unknown' >&2; exit 125", tmp_path)
