"""The acceptance of a new machine: whether it is what its offer promised, before anything else is done with it.

:mod:`gpuyard.box.health` is sent over SSH and measures for some seconds. A machine that fails goes back as one that
never started does, and the next offer is taken; its host is remembered (:mod:`gpuyard.renting.failed_hosts`).
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpuyard import pace, ssh
from gpuyard.box import health
from gpuyard.box.checkpoints import S3Store
from gpuyard.config import BucketSettings, SshKey
from gpuyard.errors import CheckpointError, DiskFullError, UnfitError, UnreachableError
from gpuyard.formats.failed_host import FOLDER
from gpuyard.providers.base import Instance, Progress
from gpuyard.renting import runs
from gpuyard.renting.failed_hosts import FailedHosts

LIMIT_S = 120.0
_ATTEMPTS = 3
_DRIVER_LOOKS = 3
_DRIVER_PAUSE_S = 15.0
_SSH_FAILED = 255
_NO_PROGRAM = 127
_SIGNED_S = 300
# The checks of what belongs to the host; what lies between it and a bucket may be somebody else's fault.
_OF_THE_HOST = ("gpu", "disk")
_ROOM = "disk space"  # a matter of how large a disk was asked for
_NOT_NVIDIA = re.compile(r"(MI\d|RX\s|Pro\s[VW]\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a new machine has to pass.

    ``least`` are the thresholds by the names of :mod:`gpuyard.box.health`; ``defaults`` those that nobody has named,
    which the sandbox's boxes are not held against: they have this machine's disk, whatever their offer says. A machine
    that fails is kept, and told, unless ``required``.
    """

    least: Mapping[str, float] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)
    required: bool = True
    driver_comes: bool = False  # whether a role brings the driver, so that none is no fault
    bucket: BucketSettings = field(default_factory=BucketSettings)
    hosts: FailedHosts = field(default_factory=FailedHosts)
    clock: pace.Clock = field(default_factory=pace.Clock)

    def check(self, instance: Instance, key: SshKey, progress: Progress) -> None:
        """Measure a machine that answers over SSH, and tell what was found.

        Raises :class:`UnfitError` for one that is not what was offered, after its host is remembered where the fault is
        its own, and :class:`UnreachableError` when the connection breaks again and again.
        """
        name = f"{instance.provider} instance {instance.id}"
        with self._way_to_bucket(instance, progress) as way:
            checks = self._patiently(instance, key, self._request(instance) | way, progress)
        if not checks:
            return
        silent = next((one for one in checks if one["found"] == health.NO_ANSWER and one["name"] == "network"), None)
        if silent and not self._bucket_answers():
            # It does not answer here either, which never keeps anybody from training.
            silent.update(state="skipped")
        failed = list(filter(_failed, checks))
        if not failed:
            progress(f"{name} is what was offered: {_passed(checks)}.")
            return
        why = "; ".join(_words(one) for one in failed)
        if not self.required:
            progress(f"{name} is not what was offered, and is kept (health.required is false): {why}.")
            return
        for line in health.table(checks):
            progress(f"  {line}")
        full = any(one["name"] == _ROOM for one in failed)
        if any(one["name"].startswith(_OF_THE_HOST) and one["name"] != _ROOM for one in failed):
            self.hosts.remember(instance, why)
        raise (DiskFullError if full else UnfitError)(f"{name} is not what was offered: {why}.")

    def _request(self, instance: Instance) -> dict[str, Any]:
        judged = dict(self.least) if instance.emulated else {**self.defaults, **self.least}
        request: dict[str, Any] = {**judged, "emulated": instance.emulated, "driver_comes": self.driver_comes}
        if instance.gpu_count and not _NOT_NVIDIA.match(instance.gpu_name):
            # A part of a GPU shows as one, with its part of the memory.
            request |= {"gpu_count": max(1, int(instance.gpu_count)), "gpu_ram_gb": instance.gpu_ram_gb}
        return request

    @contextmanager
    def _way_to_bucket(self, instance: Instance, progress: Progress) -> Iterator[dict[str, Any]]:
        """Yield signed addresses of an object in the bucket, which is removed afterwards. No key leaves this one."""
        key = f"{FOLDER}/test-{instance.provider}-{secrets.token_hex(6)}"
        try:
            way = self._signed(key)
        except CheckpointError as error:
            progress(f"The way to the bucket is not measured: {error}")
            way = {"no_network": "no address of the bucket can be signed"}
        try:
            yield way
        finally:
            with suppress(CheckpointError):  # told by whoever needs the bucket next
                if "put" in way and (ours := runs.open_bucket(self.bucket)):
                    ours.delete(key)

    def _signed(self, key: str) -> dict[str, str]:
        from_boxes = self.bucket.endpoint_from_boxes or self.bucket.endpoint
        store = runs.open_bucket(replace(self.bucket, endpoint=from_boxes))
        if not isinstance(store, S3Store):
            there = "the way is measured to an S3 bucket only"
            none = "there is no bucket that a machine reaches by network"
            return {"no_network": there if self.bucket.location.by_network else none}
        return {name: store.signed(key, _SIGNED_S, put=name == "put") for name in ("put", "get")}

    def _bucket_answers(self) -> bool:
        try:
            runs.check_answers(runs.open_bucket(self.bucket))
        except CheckpointError:
            return False
        return True

    def _patiently(
        self, instance: Instance, key: SshKey, request: Mapping[str, Any], progress: Progress
    ) -> list[health.Check]:
        """Measure, and again while a driver may still be starting: some machines answer before it does."""
        checks = self._measure(instance, key, request, progress)
        for _ in range(_DRIVER_LOOKS):
            if not any(one["name"] == "gpu count" and "driver" in one["why"] for one in checks if _failed(one)):
                break
            progress(f"{instance.provider} instance {instance.id} has no working driver yet; looking again.")
            self.clock.sleep(_DRIVER_PAUSE_S)
            checks = self._measure(instance, key, request, progress)
        return checks

    def _measure(
        self, instance: Instance, key: SshKey, request: Mapping[str, Any], progress: Progress
    ) -> list[health.Check]:
        """Return what the machine says of itself; nothing, which is told, where it has no Python."""
        name = f"{instance.provider} instance {instance.id}"
        source = Path(health.__file__).read_text(encoding="utf-8")
        command = [
            "ssh",
            *ssh.by_shared_connection(instance, key),
            *ssh.ssh_args(instance, key),
            shlex.join(["python3", "-c", source]),
        ]
        complaint = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                self.clock.sleep(2.0)
            try:
                done = subprocess.run(
                    command,
                    input=json.dumps(request),
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=LIMIT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                self.hosts.remember(instance, "it hangs when it is tested")
                raise UnfitError(f"{name} hangs: it has not said within {LIMIT_S:.0f} s what it has.") from None
            complaint = " ".join(done.stderr.split())[-300:]
            if done.returncode == _NO_PROGRAM:
                progress(f"{name} has no python3 yet, so it is taken untested.")
                return []
            if done.returncode != _SSH_FAILED:
                return _checks(done.stdout) or _not_tested(name, complaint)
        raise UnreachableError(f"The connection to {name} breaks again and again: {complaint}")


def _checks(output: str) -> list[health.Check]:
    """Return the checks of the last line that holds some: a login shell may print a banner around it."""
    for line in reversed(output.splitlines()):
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            found = json.loads(line)["checks"]
            return [{field: str(one[field]) for field in ("name", "state", "found", "wanted", "why")} for one in found]
    return []


def _not_tested(name: str, complaint: str) -> list[health.Check]:
    raise UnfitError(f"{name} cannot be tested: {complaint or 'it says nothing'}.")


def _failed(one: health.Check) -> bool:
    return one["state"] == "failed"


def _words(one: health.Check) -> str:
    """Return a failed check in a few words."""
    wanted = f" instead of {one['wanted']}" if one["wanted"] and not one["why"] else ""
    return f"{one['name']}: {', '.join(filter(None, [one['found'], one['why']]))}{wanted}"


def _passed(checks: list[health.Check]) -> str:
    """Return what was found in one line; what was not looked at comes last, with the reason."""
    measured = [f"{one['name']} {one['found'] or 'fine'}" for one in checks if one["state"] == "ok"]
    skipped: dict[str, list[str]] = {}
    for one in checks:
        if one["state"] == "skipped":
            skipped.setdefault(one["why"], []).append(one["name"])
    left_out = [f"{' and '.join(names)} not looked at, since {why}" for why, names in skipped.items()]
    return "; ".join([", ".join(measured), *left_out])
