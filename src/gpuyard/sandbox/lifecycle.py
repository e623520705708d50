"""Bringing a sandbox up and down: images, network, servers, and the process that plays the clouds."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gpuyard import paths
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.providers.base import Progress
from gpuyard.sandbox import boxes, images, services
from gpuyard.sandbox.engine import LABEL, Engine, find
from gpuyard.sandbox.info import INFO_FILE, SandboxInfo, is_server, is_up, load
from gpuyard.sandbox.settings import LOOPBACK, Settings, free_port, port_is_free

LOG_FILE = "sandbox.log"
_START_S = 120.0
_STOP_S = 60.0
_OWN_FILES = (INFO_FILE, "settings.json", "state.json", LOG_FILE, "lock")


@dataclass(frozen=True, slots=True)
class Options:
    """What a user can choose at ``up``; ``None`` leaves what this state folder had, or the default."""

    port: int | None = None
    boot_seconds: float | None = None
    rate_limits: bool | None = None
    offers: int | None = None
    seed: int | None = None


def up(state: Path, progress: Progress, options: Options | None = None) -> SandboxInfo:
    """Let a sandbox run with this state folder, and return how to reach it. Running already: nothing changes."""
    state = paths.ensure_private(state).resolve()
    options = options or Options()
    with _lock(state):
        if is_up(state):
            info = load(state)
            progress(f"The sandbox is up at {info.endpoints['vast']} (state folder {state}).")
            if options != Options():
                progress("It was up already: other options need `gpuyard sandbox down` first.")
            return info
        services.check_installed()
        engine = _engine(state)
        settings = _settings(state, options)
        settings.engine = engine.kind
        settings.save(state)  # now, so that `down` finds what an `up` that fails leaves behind
        if not engine.state(services.container(settings, "bucket")) and not port_is_free(LOOPBACK, settings.s3_port):
            settings.s3_port = free_port()
        images.ensure(engine, progress)
        progress(f"Starting the sandbox {settings.name} with {engine.kind}")
        engine.ensure_network(settings.network, {LABEL: settings.name})
        services.ensure(engine, settings, services.bucket(settings))
        services.ensure(engine, settings, services.model_hub())
        folder = services.rust_mirror_folder(engine, progress)
        settings.rust_mirror = services.MIRROR_URL if folder else ""
        if folder:
            services.ensure(engine, settings, services.mirror(folder))
        settings.save(state)
        info = _start_server(state)
        services.ensure(engine, settings, services.clouds(state))
        progress(f"The sandbox is up at {info.endpoints['vast']} (state folder {state}).")
        return info


def down(state: Path, progress: Progress, *, keep_state: bool = False) -> None:
    """End everything that the sandbox of this state folder runs. No sandbox: nothing to do.

    The state folder's own files go too, unless ``keep_state`` keeps the bill and the log.
    """
    state = state.resolve()
    settings = Settings.load(state) if state.is_dir() else None
    if settings is None:
        progress(f"There is no sandbox in {state}.")
        return
    # What it brings takes a while to import, and only this verb needs it.
    from gpuyard import ssh

    with _lock(state):
        _stop_server(state)
        engine = find(settings.engine)
        names = engine.containers(settings.name)
        for name in names:
            engine.remove(name)
        for volume in engine.volumes(settings.name):
            engine.remove_volume(volume)
        engine.remove_network(settings.network)
        with suppress(OSError):
            ssh.forget_sandbox(settings.name)
        if not keep_state:
            for name in _OWN_FILES:
                (state / name).unlink(missing_ok=True)
            shutil.rmtree(state / services.FROM_BOXES, ignore_errors=True)
            if not any(state.iterdir()):
                state.rmdir()
    progress(f"The sandbox {settings.name} is down: its process, {len(names)} containers and its network are gone.")


def _engine(state: Path) -> Engine:
    """Return the engine that this state folder's sandbox has, else the best one, when its machines can run there."""
    known = Settings.load(state) or Settings()
    engine = find(known.engine)
    boxes.check_rights(engine, known.name)
    return engine


@contextmanager
def _lock(state: Path) -> Iterator[None]:
    """Let one `up` or `down` at a time work on a state folder."""
    with (state / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _settings(state: Path, options: Options) -> Settings:
    """Return the settings for this start: what the folder had, what was asked for, free ports for the rest."""
    settings = Settings.load(state) or Settings()
    if options.port:
        if not port_is_free(LOOPBACK, options.port):
            raise UsageError(f"Port {options.port} is taken on {LOOPBACK}: choose another one with `--port`.")
        settings.port = options.port
    elif not settings.port or not port_is_free(LOOPBACK, settings.port):
        settings.port = free_port()
    if not settings.s3_port:
        settings.s3_port = free_port()
    if options.boot_seconds is not None:
        settings.boot_seconds = options.boot_seconds
    if options.rate_limits is not None:
        settings.rate_limits = options.rate_limits
    if options.offers is not None:
        settings.offers = options.offers
    if options.seed is not None:
        settings.seed = options.seed
    settings.save(state)
    return settings


def _start_server(state: Path) -> SandboxInfo:
    """Start the server process, detached from this one, and wait until it answers."""
    log = state / LOG_FILE
    (state / INFO_FILE).unlink(missing_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpuyard.sandbox.server", "--state", str(state)],
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(handle)
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise GpuyardError(f"The sandbox did not start: {last[0]}")
        if is_up(state):
            return load(state)
        time.sleep(0.05)
    process.terminate()
    raise GpuyardError(f"The sandbox did not start within {_START_S:g} s: see {log}.")


def _stop_server(state: Path) -> None:
    """End the server by its own process id."""
    try:
        pid = load(state).pid
    except UsageError:
        (state / INFO_FILE).unlink(missing_ok=True)
        return
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _STOP_S
    while time.monotonic() < end and is_server(pid, state):
        time.sleep(0.05)
    if is_server(pid, state):
        os.kill(pid, signal.SIGKILL)
