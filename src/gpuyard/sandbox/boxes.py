"""Turns a rental into a container: name, address, ports, files, environment."""

from __future__ import annotations

import base64
import configparser
import functools
import io
import json
import os
import random
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

from gpuyard import registry
from gpuyard.errors import UsageError
from gpuyard.sandbox import images
from gpuyard.sandbox.engine import LABEL, ContainerSpec, Engine, EngineError, Port
from gpuyard.sandbox.model import SSH as SSH
from gpuyard.sandbox.model import Json, Rental
from gpuyard.sandbox.settings import HIGH_PORTS, Settings, port_is_free

INSTANCE_LABEL = "gpuyard.instance"
_CERTIFICATES = Path("/etc/ssl/certs")
# What a box needs to reach package registries where this machine does: proxies, package indexes, certificate files.
_REGISTRY_VARIABLES = re.compile(
    r"(https?|no|all)_proxy|PIP_(EXTRA_)?INDEX_URL|PIP_DEFAULT_TIMEOUT|UV_(DEFAULT_|EXTRA_)?INDEX(_URL)?|PIP_CERT"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE",
    re.IGNORECASE,
)
_ATTEMPTS = 20
# Root's keys lie in the user's home already.
_MAKE_USER = """set -e
useradd --shell /bin/bash --groups sudo --home-dir "$2" "$1"
chown -R "$1:" "$2"
echo "$1 ALL=(ALL) NOPASSWD: ALL" > /etc/sudoers.d/90-cloud-init-users"""
_SLOW_BYTES_PER_S = 4_000_000
_BLOCK_DEVICES = Path("/sys/dev/block")
_LOGIN = re.compile(r"-u (?P<user>\S+) -p (?P<password>\S+) (?P<registry>\S+)")
_PULL_S = 1800.0


def choose_address(sandbox: str, number: int, *ports: int) -> str:
    """Return a loopback address on which all ``ports`` are free; ``number`` never repeats, so addresses hardly do.

    Several sandboxes begin in different parts of 127.77.0.0/16; where they meet, the bind decides. ``""``: port 22 is
    wanted and something, such as this machine's own sshd, has it on every address.
    """
    start = int(sandbox, 16) * 256 + number
    for step in range(_ATTEMPTS):
        place = (start + step) % (254 * 254)
        address = f"127.77.{place // 254 + 1}.{place % 254 + 1}"
        # The engine listens there, not this process; whether it may is asked once, by `check_rights`.
        if all(port_is_free(address, port, as_root=True) for port in ports):
            return address
    if SSH in ports:
        return ""
    raise EngineError(f"No loopback address below 127.77.0.0/16 has the ports {', '.join(map(str, ports))} free.")


def check_rights(engine: Engine, sandbox: str) -> None:
    """Raise :class:`UsageError` when the engine lacks a right without which no Vultr machine can be had."""
    if not engine.rootless():
        return  # root's engine listens on port 22, or gives a box an address of its own
    address = choose_address(sandbox, 0, SSH)
    remedy = "run the sandbox as root"
    if engine.control_groups() == "1":
        reason = "systemd does not start there on control groups of version 1"
    elif not address:
        reason = "something else listens on port 22 of every address"
    elif not port_is_free(address, SSH):
        reason = "it may not listen on port 22"
        remedy += ", or let root run `sysctl net.ipv4.ip_unprivileged_port_start=22`"
    else:
        return
    raise UsageError(
        f"{engine.kind.title()} without root's rights cannot run the sandbox's machines here because {reason}: "
        f"{remedy}."
    )


def choose_high_ports(count: int) -> list[int]:
    """Return ``count`` different random high port numbers."""
    return random.sample(HIGH_PORTS, count)


def machine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return those variables of this machine that a box needs to reach the same package registries."""
    chosen = {}
    for name, value in environment.items():
        # A file is of use in the box only where the same file is mounted there.
        local = value.startswith("/") and not value.startswith(f"{_CERTIFICATES}/") and value != str(_CERTIFICATES)
        if _REGISTRY_VARIABLES.fullmatch(name) and value and not local:
            chosen[name] = value
    return chosen


@functools.cache
def pip_index() -> dict[str, str]:
    """Return the package index that this machine's pip configuration names, as variables for pip and uv."""
    parser = configparser.ConfigParser(interpolation=None)
    files = ["/etc/pip.conf", "~/.config/pip/pip.conf", os.environ.get("PIP_CONFIG_FILE", "")]
    try:
        parser.read([Path(file).expanduser() for file in files if file], encoding="utf-8")
    except configparser.Error:
        return {}
    url = parser.get("global", "index-url", fallback="").strip()
    return {"PIP_INDEX_URL": url, "UV_DEFAULT_INDEX": url} if url else {}


def disk(engine: Engine) -> Path:
    """Return the whole disk on which boxes write; :class:`EngineError` where a box's writing cannot be slowed down."""
    if engine.rootless():
        raise EngineError(f"{engine.kind.title()} without root's rights slows no disk down: run the sandbox as root.")
    storage = engine.storage()
    number = storage.stat().st_dev if storage.is_dir() else 0  # the engine may run on another machine
    device = (_BLOCK_DEVICES / f"{os.major(number)}:{os.minor(number)}").resolve()
    whole = device.parent if (device / "partition").exists() else device  # the kernel slows no part of a disk
    if not whole.exists():
        raise EngineError(
            f"The sandbox cannot slow a disk down here, because {storage}, where {engine.kind} keeps its containers, "
            "is on no disk that the kernel knows by its number: use a machine where it lies on ext4 or XFS."
        )
    return Path("/dev", whole.name.replace("!", "/"))


def box_files(rental: Rental, gpu: Json, onstart: str, user_data: bytes) -> bytes:
    """Return what is put into a box before its first start, as a tar archive.

    Nothing in it is secret: public keys, the GPU that the offer named, package index settings, the user's scripts.
    """
    environment = {**pip_index(), **machine_environment(os.environ)}
    environment_file = "".join(f'{name}="{value}"\n' for name, value in sorted(environment.items()))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo(f"{rental.home.lstrip('/')}/.ssh")
        folder.type = tarfile.DIRTYPE
        folder.mode = 0o700
        archive.addfile(folder)
        images.add_file(archive, f"{folder.name}/authorized_keys", authorized_keys(rental), 0o600)
        images.add_file(archive, "etc/gpuyard-gpu.json", json.dumps(gpu).encode(), 0o644)
        images.add_file(archive, "etc/environment", environment_file.encode(), 0o644)
        if onstart:
            images.add_file(archive, "root/onstart.sh", onstart.encode(), 0o700)
        if user_data:
            images.add_file(archive, "var/lib/gpuyard/user-data", user_data, 0o600)
    return buffer.getvalue()


def authorized_keys(rental: Rental) -> bytes:
    """Return the content of ``authorized_keys``: exactly the keys that the API was given for this rental."""
    return "".join(f"{key.strip()}\n" for key in rental.public_keys).encode()


def make(
    engine: Engine,
    settings: Settings,
    rental: Rental,
    *,
    gpu: Json,
    environment: Mapping[str, str],
    onstart: str = "",
    user_data: bytes = b"",
    slow_disk: bool = False,
) -> None:
    """Create the rental's container and start it; with ``slow_disk`` this machine's kernel slows its writing down."""
    if registry.is_local(rental.image):
        pull(engine, rental)
    image, systemd = images.ways(rental.image)
    volumes = [(volume(settings, holding), target) for holding, target in rental.mounts.items()]
    for name, _ in volumes:
        engine.ensure_volume(name, {LABEL: settings.name})
    spec = ContainerSpec(
        name=rental.container,
        image=image,
        labels={LABEL: settings.name, INSTANCE_LABEL: f"{rental.provider}/{rental.id}"},
        network=settings.network,
        hostname=hostname(rental),
        environment=environment,
        ports=[Port(rental.address, outside, int(inside)) for inside, outside in rental.ports.items()]
        if rental.address
        else [],
        mounts=[(_CERTIFICATES, str(_CERTIFICATES))] if _CERTIFICATES.is_dir() else [],
        volumes=volumes,
        systemd=systemd,
        write_limits=[(disk(engine), _SLOW_BYTES_PER_S)] if slow_disk else [],
    )
    engine.create(spec)
    engine.copy_in(rental.container, box_files(rental, gpu, onstart, user_data))
    start(engine, rental)
    if rental.user != "root":
        engine.execute(rental.container, "sh", "-c", _MAKE_USER, "sh", rental.user, rental.home)
        for _, target in volumes:
            engine.execute(rental.container, "chown", f"{rental.user}:", target)


def volume(settings: Settings, holding_id: str) -> str:
    """Return the name under which the engine keeps what is stored in a volume or file system."""
    return f"{settings.network}-{holding_id}"


def is_here(image: str) -> bool:
    """Tell whether an image can be had on this machine: in its engine, or in a registry on loopback."""
    return image.startswith("localhost/") or registry.is_local(image)


def pull(engine: Engine, rental: Rental) -> None:
    """Pull the rental's image as its host does: with the login that came with the order, and with no other."""
    login = _LOGIN.fullmatch(str(rental.request.get("image_login") or ""))
    auth = {}
    if login:
        coded = base64.b64encode(f"{login['user']}:{login['password']}".encode()).decode()
        auth = {"auths": {login["registry"]: {"auth": coded}}}
    try:
        engine.at_registry(
            "pull", "--quiet", rental.image, auth=json.dumps(auth).encode(), plain=True, timeout_s=_PULL_S
        )
    except EngineError as error:
        denied = any(word in str(error) for word in ("unauthorized", "denied"))
        raise EngineError(f"pull access denied for {rental.image}" if denied else str(error)) from None


def start(engine: Engine, rental: Rental) -> None:
    """Start the rental's container; one without a loopback address is reached at its own, which may change."""
    engine.start(rental.container)
    if rental.bridged or not rental.address:
        state = engine.state(rental.container)
        rental.bridged, rental.address = True, state.address if state else ""


def hostname(rental: Rental) -> str:
    """Return the box's host name: the one asked for at Vultr, else the label, else the id, made fit for a host name."""
    wanted = str(rental.request.get("hostname") or rental.label or rental.id)
    return re.sub(r"[^A-Za-z0-9-]+", "-", wanted).strip("-")[:63] or "box"


def write_keys(engine: Engine, rental: Rental) -> None:
    """Bring a running box's ``authorized_keys`` to what the rental says now."""
    file = f"{rental.home}/.ssh/authorized_keys"
    engine.execute(rental.container, "sh", "-c", f"cat > {file}", stdin=authorized_keys(rental))
