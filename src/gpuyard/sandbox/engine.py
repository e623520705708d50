"""A thin, typed layer over the command line of Podman or Docker.

The first of the two whose engine really answers is taken: a ``docker`` client without an engine behind it is common.
Everything that the sandbox makes carries the label ``gpuyard.sandbox=<name>``, so that ``down`` removes just its own.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpuyard import paths
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.files import write_whole

LABEL = "gpuyard.sandbox"
_PODMAN_NOFILE = 1_048_576  # what Podman gives every container unless told otherwise
_TIMEOUT_S = 300.0
_SYSTEMD_STOP = "SIGRTMIN+3"
# Docker mounts the control groups read-only and has no switch for systemd. The right to mount them writable (thanks to
# the private namespace it is the container's own branch only) is given up before systemd begins, which then has no more
# rights than under Podman. Version 1 of the control groups has a branch of its own for systemd.
_DOCKER_SYSTEMD_OPTIONS = (
    *("--cgroupns=private", "--cap-add=SYS_ADMIN", "--security-opt=apparmor=unconfined"),
    *("--tmpfs=/run", "--tmpfs=/run/lock", "--env=container=docker"),
)
_DOCKER_SYSTEMD = (
    "groups=/sys/fs/cgroup; [ ! -d $groups/systemd ] || groups=$groups/systemd; "
    "mount -o remount,bind,rw $groups && "
    "exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin /lib/systemd/systemd"
)
_STORAGE = {"podman": "{{.Store.GraphRoot}}", "docker": "{{.DockerRootDir}}"}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What Docker's client adds after its error message.
_HINTS = re.compile(r"(Run|See) 'docker .*|\s*")


class EngineError(GpuyardError):
    """The container engine refused a command; the text is its own last line."""


@dataclass(frozen=True, slots=True)
class Port:
    """A published TCP port: ``host_ip:host_port`` on this machine leads to ``container_port``."""

    host_ip: str
    host_port: int
    container_port: int

    @property
    def option(self) -> str:
        """The value of ``--publish``."""
        return f"{self.host_ip}:{self.host_port}:{self.container_port}/tcp"


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """A container to be created.

    ``environment`` is for the container only: the engine's client gets it as a file. A variable that means something
    to the client itself (``LD_PRELOAD``, ``CONTAINERS_CONF``) has no effect there, and no value is on a command line.
    Such a file cannot hold a line break within a value; that is an error.
    ``mounts`` are ``(source, target)`` pairs, mounted read-only; ``volumes`` are names of volumes and targets.
    """

    name: str
    image: str
    labels: Mapping[str, str]
    network: str
    hostname: str = ""
    aliases: Sequence[str] = ()
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: Sequence[Port] = ()
    mounts: Sequence[tuple[Path, str]] = ()
    volumes: Sequence[tuple[str, str]] = ()
    systemd: bool = False  # process 1 is systemd, whatever ``command`` says
    write_limits: Sequence[tuple[Path, int]] = ()  # a disk, and the bytes a second that reach it


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What the engine says about one container."""

    name: str
    running: bool
    exit_code: int
    labels: Mapping[str, str]
    address: str = ""  # its own, on the network that it is on


@dataclass(frozen=True, slots=True)
class Engine:
    """One container engine. Methods block; errors are :class:`EngineError` with one sentence."""

    binary: str
    kind: str  # "podman" or "docker"
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> str:
        """Run one engine command and return its standard output."""
        try:
            done = subprocess.run(
                [self.binary, *arguments],
                input=stdin,
                capture_output=True,
                env={**os.environ, **self.environment},
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"{self.kind} {arguments[0]} did not end within {timeout_s:g} s.") from None
        except OSError as error:
            raise EngineError(f"{self.kind} cannot be run: {error.strerror}.") from None
        if done.returncode:
            lines = [line for line in done.stderr.decode(errors="replace").splitlines() if not _HINTS.fullmatch(line)]
            raise EngineError(f"{self.kind} {arguments[0]} failed: {lines[-1] if lines else 'no message'}")
        return done.stdout.decode(errors="replace")

    def rootless(self) -> bool:
        """Return whether the engine runs without root's rights, so that it opens no low port."""
        if self.kind == "podman":
            return self.run("info", "--format", "{{.Host.Security.Rootless}}").strip() == "true"
        return "name=rootless" in self.run("info", "--format", "{{.SecurityOptions}}")

    def control_groups(self) -> str:
        """Return the version of this machine's control groups, "1" or "2"."""
        key = "{{.Host.CgroupsVersion}}" if self.kind == "podman" else "{{.CgroupVersion}}"
        return self.run("info", "--format", key).strip().removeprefix("v")

    def storage(self) -> Path:
        """Return the folder in which the engine keeps its containers."""
        return Path(self.run("info", "--format", _STORAGE[self.kind]).strip())

    def image_label(self, image: str, label: str) -> str | None:
        """Return an image's label, ``""`` when it has none, ``None`` when the image does not exist."""
        try:
            found = json.loads(self.run("image", "inspect", image))[0]
        except EngineError:
            return None
        labels = found.get("Labels") or (found.get("Config") or {}).get("Labels") or {}
        return str(labels.get(label, ""))

    def import_image(self, tarball: Path, image: str, changes: Sequence[str]) -> None:
        """Make ``image`` of a root file system; ``changes`` are Containerfile instructions such as ``LABEL a=b``."""
        options = [word for change in changes for word in ("--change", change)]
        self.run("import", *options, str(tarball), image)

    def build_image(self, folder: Path, image: str) -> None:
        """Build ``image`` from the ``Containerfile`` in ``folder``."""
        self.run("build", "-f", str(folder / "Containerfile"), "-t", image, str(folder), timeout_s=1800)

    def at_registry(
        self, verb: str, *words: str, auth: bytes | None = None, plain: bool = False, timeout_s: float = _TIMEOUT_S
    ) -> str:
        """Run ``pull``, ``push`` or ``login``; ``plain``: without TLS.

        ``auth`` is the content of an auth file, whose logins alone are used; ``None``: those that the engine has.
        """
        engine, options = self, []
        with tempfile.TemporaryDirectory(prefix="gpuyard-auth-") as folder:
            if self.kind == "podman" and plain:
                options.append("--tls-verify=false")
            if auth is not None:
                file = Path(folder) / "config.json"
                write_whole(file, auth, mode=0o600)
                engine = replace(self, environment={**self.environment, "DOCKER_CONFIG": folder})
                options += [f"--authfile={file}"] if self.kind == "podman" else []
            return engine.run(verb, *options, *words, stdin=b"", timeout_s=timeout_s)

    def ensure_network(self, network: str, labels: Mapping[str, str]) -> None:
        """Create a bridge network in which containers find each other by name; existing is fine."""
        try:
            self.run("network", "inspect", network)
        except EngineError:
            self.run("network", "create", *_label_options(labels), network)

    def remove_network(self, network: str) -> None:
        """Remove a network; missing is fine."""
        try:
            self.run("network", "inspect", network)
        except EngineError:
            return
        self.run("network", "rm", network)

    def ensure_volume(self, volume: str, labels: Mapping[str, str]) -> None:
        """Create a volume, which outlives the containers that use it; existing is fine."""
        try:
            self.run("volume", "inspect", volume)
        except EngineError:
            self.run("volume", "create", *_label_options(labels), volume)

    def volumes(self, sandbox: str) -> list[str]:
        """Return the names of all volumes that carry the sandbox's label."""
        return self.run("volume", "ls", "--filter", f"label={LABEL}={sandbox}", "--format", "{{.Name}}").split()

    def remove_volume(self, volume: str) -> None:
        """Remove a volume with what is in it; missing is fine."""
        try:
            self.run("volume", "inspect", volume)
        except EngineError:
            return
        self.run("volume", "rm", volume)

    def create(self, spec: ContainerSpec) -> None:
        """Create a container without starting it."""
        # Every image is made here; what is not here is nobody's, and no registry is asked for it.
        options = ["--pull=never", "--name", spec.name, "--network", spec.network, *_label_options(spec.labels)]
        if spec.hostname:
            options += ["--hostname", spec.hostname]
        for alias in spec.aliases:
            options += ["--network-alias", alias]
        for port in spec.ports:
            options += ["--publish", port.option]
        for source, target in spec.mounts:
            options += ["--volume", f"{source}:{target}:ro"]
        for volume, target in spec.volumes:
            options += ["--volume", f"{volume}:{target}"]
        for device, bytes_per_s in spec.write_limits:
            options += ["--device-write-bps", f"{device}:{bytes_per_s}"]
        if spec.environment:
            options += ["--env-file", "/dev/stdin"]  # which nobody else can read, and of which nothing stays behind
        command = spec.command
        if spec.systemd:
            options += ["--stop-signal", _SYSTEMD_STOP]
        if self.kind == "podman":
            options += ["--systemd=always" if spec.systemd else "--systemd=false"]
        elif spec.systemd:
            options += _DOCKER_SYSTEMD_OPTIONS
            command = ["sh", "-c", _DOCKER_SYSTEMD]
        # After "--" nothing is an option, whatever it looks like.
        variables = _environment_file(spec.environment) if spec.environment else None
        self.run("create", *options, "--", spec.image, *command, stdin=variables)

    def copy_in(self, container: str, tar: bytes) -> None:
        """Unpack a tar archive at the container's root; works before its first start."""
        self.run("cp", "-", f"{container}:/", stdin=tar)

    def start(self, container: str) -> None:
        """Start a created or stopped container."""
        self.run("start", container)

    def stop(self, container: str, *, grace_s: int = 10) -> None:
        """Send SIGTERM (systemd: its own stop signal), then SIGKILL after ``grace_s`` seconds."""
        self.run("stop", "-t", str(grace_s), container)

    def kill(self, container: str) -> None:
        """SIGKILL the container's processes at once; a container that does not run is fine."""
        if (self.state(container) or _GONE).running:
            self.run("kill", "--signal", "KILL", container)

    def remove(self, container: str) -> None:
        """Remove a container, running or not; missing is fine."""
        if self.state(container) is not None:
            options = ["--force", "--volumes"] + (["--time", "0"] if self.kind == "podman" else [])
            self.run("rm", *options, container)

    def execute(self, container: str, *command: str, stdin: bytes | None = None, timeout_s: float = _TIMEOUT_S) -> str:
        """Run a command in a running container and return its standard output."""
        flags = ["--interactive"] if stdin is not None else []
        return self.run("exec", *flags, container, *command, stdin=stdin, timeout_s=timeout_s)

    def logs(self, container: str, lines: int) -> list[str]:
        """Return the last lines that a container's own program has printed, on both of its outputs."""
        done = subprocess.run(
            [self.binary, "logs", "--tail", str(lines), container],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.environment},
            timeout=_TIMEOUT_S,
            check=False,
        )
        return done.stdout.decode(errors="replace").splitlines()[-lines:]

    def state(self, container: str) -> ContainerState | None:
        """Return a container's state, ``None`` when it does not exist."""
        try:
            found = json.loads(self.run("container", "inspect", container))[0]
        except EngineError:
            return None
        networks = (found.get("NetworkSettings") or {}).get("Networks") or {}
        return ContainerState(
            name=str(found["Name"]).lstrip("/"),
            running=bool(found["State"]["Running"]),
            exit_code=int(found["State"]["ExitCode"]),
            labels=(found.get("Config") or {}).get("Labels") or {},
            address=next((str(one["IPAddress"]) for one in networks.values() if one.get("IPAddress")), ""),
        )

    def containers(self, sandbox: str) -> list[str]:
        """Return the names of all containers that carry the sandbox's label, running or not."""
        output = self.run("ps", "--all", "--filter", f"label={LABEL}={sandbox}", "--format", "{{.Names}}")
        return output.split()

    def running(self, sandbox: str) -> set[str]:
        """Return the names of those that run now."""
        output = self.run("ps", "--filter", f"label={LABEL}={sandbox}", "--format", "{{.Names}}")
        return set(output.split())


_GONE = ContainerState(name="", running=False, exit_code=0, labels={})


def _environment_file(environment: Mapping[str, str]) -> bytes:
    """Return the variables as the file that ``--env-file`` reads: a line each, taken as it stands.

    A name alone on a line would be looked up in the client's own environment, and ``#`` begins a comment.
    """
    for name, value in environment.items():
        if not _VARIABLE.fullmatch(name) or any(character in value for character in "\n\r\0"):
            raise EngineError(
                f"The variable {name!r} cannot be given to a container: its name holds something other than letters, "
                "digits and _, or its value a line break."
            )
    return "".join(f"{name}={value}\n" for name, value in environment.items()).encode()


def _label_options(labels: Mapping[str, str]) -> list[str]:
    return [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]


def _podman_environment() -> dict[str, str]:
    """Return variables that let root's Podman work where no service manager runs, as in a container or a build machine.

    A machine with systemd, or with a configuration of its own, is left as it is.
    """
    configured = os.environ.get("CONTAINERS_CONF") or Path("/etc/containers/containers.conf").exists()
    if os.geteuid() != 0 or configured or Path("/run/systemd/system").is_dir():
        return {}
    settings = ["[containers]"]
    nofile = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if nofile != resource.RLIM_INFINITY and nofile < _PODMAN_NOFILE:
        processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        count = 30_000 if processes == resource.RLIM_INFINITY else min(processes, 30_000)
        settings.append(f'default_ulimits = ["nofile={nofile}:{nofile}", "nproc={count}:{count}"]')
    settings += ["[engine]", 'cgroup_manager = "cgroupfs"', 'events_logger = "file"']
    if shutil.which("runc"):  # crun needs more of the control groups than such a place allows
        settings.append('runtime = "runc"')
    settings += ["[network]", 'network_backend = "netavark"']
    folder = paths.cache()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "containers.conf"
    text = "\n".join(settings) + "\n"
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_whole(file, text, mode=0o644)
    return {"CONTAINERS_CONF": str(file)}


def find(chosen: str = "") -> Engine:
    """Return the first engine that answers; with ``chosen``, the one that a sandbox was started with or none.

    Root's Podman comes before Docker, Docker before the Podman of an ordinary user, which can do less. Raises
    :class:`UsageError` that says what to do.
    """
    silent: dict[str, str] = {}
    kinds = ("podman", "docker") if os.geteuid() == 0 else ("docker", "podman")
    for kind in (chosen,) if chosen else kinds:
        binary = shutil.which(kind)
        if not binary:
            continue
        engine = Engine(binary, kind, _podman_environment() if kind == "podman" else {})
        try:
            engine.run("ps", "--quiet", timeout_s=120)
        except EngineError as error:
            silent[kind] = str(error)
            continue
        return engine
    if chosen:
        raise UsageError(
            f"This sandbox was started with {chosen}, which does not answer now: start it and try again. Where it is "
            "gone for good, nothing of the sandbox is left but its state folder, which you can delete."
        )
    if "permission denied" in silent.get("docker", "").lower():
        raise UsageError(
            "The sandbox needs a container engine and this user may not use Docker's socket: let root do "
            "`usermod -aG docker <user>` and log in again, or use root."
        )
    reason = f"none answers behind {' and '.join(silent)}" if silent else "there is none"
    raise UsageError(
        f"The sandbox needs a container engine, and {reason}: start Docker, or install Podman with "
        "`apt-get install podman runc netavark aardvark-dns iptables mmdebstrap`."
    )
