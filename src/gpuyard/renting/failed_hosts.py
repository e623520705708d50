"""Hosts that have failed us: remembered when a new machine is not what its offer promised, and left out of the choice.

Each lies in the bucket, where every controller finds it, and in ``~/.gpuyard/hosts``. After :data:`REMEMBERED_DAYS` it
counts no more: hosts are repaired. Only a provider that names the physical host (Vast) lets one be known again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gpuyard import paths
from gpuyard.box.checkpoints import LocalStore, Store
from gpuyard.errors import CheckpointError, GpuyardError, MissingObjectError
from gpuyard.formats.failed_host import FOLDER, FailedHost
from gpuyard.formats.manifest import timestamp
from gpuyard.providers.base import Instance, Progress, Provider
from gpuyard.renting.notebook import Notebook

REMEMBERED_DAYS = 30.0


@dataclass(frozen=True, slots=True)
class FailedHosts:
    """The memory of failed hosts. Nothing here raises: what cannot be kept or read is told."""

    bucket: Notebook = field(default_factory=Notebook)
    progress: Progress = lambda _: None
    now: Callable[[], float] = time.time

    def remember(self, instance: Instance, why: str) -> None:
        """Keep that the host of ``instance`` has failed; of one that its provider does not name, nothing is kept."""
        if not instance.machine_id:
            return
        failed = FailedHost(
            instance.provider,
            instance.machine_id,
            timestamp(),
            why,
            instance.gpu_name,
            instance.region,
            instance.sandbox,
        )
        for store in self._stores():
            try:
                store.put(failed.key, failed.to_bytes())
            except CheckpointError as error:
                self.progress(f"That this host has failed is not kept in {store.url}: {error}")
        self.progress(
            f"Host {failed.host} of {failed.provider} is left out of the choice for {REMEMBERED_DAYS:.0f} days."
        )

    def known(self, clouds: Iterable[Provider]) -> Mapping[tuple[str, str], FailedHost]:
        """Return the hosts of ``clouds`` that have failed lately, by provider and the provider's name of the host."""
        worlds = {cloud.name: cloud.sandbox for cloud in clouds}
        found = {}
        for store in self._stores():
            for failed in self._read(store):
                if worlds.get(failed.provider) == failed.sandbox and self._counts(failed):
                    found[failed.provider, failed.host] = failed
        return found

    def _counts(self, failed: FailedHost) -> bool:
        try:
            when = datetime.fromisoformat(failed.time)
        except ValueError:
            return False
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return self.now() - when.timestamp() < REMEMBERED_DAYS * 86400

    def _read(self, store: Store) -> Iterator[FailedHost]:
        try:
            for item in list(store.objects(f"{FOLDER}/")):
                # A run may be called as this folder is; what lies deeper, and its record, are that run's.
                if item.key.count("/") > 1 or item.key.endswith(("/run.json", "/workload.json")):
                    continue
                try:
                    yield FailedHost.from_bytes(store.get(item.key), where=f"{store.url}/{item.key}")
                except MissingObjectError:
                    continue
                except CheckpointError as error:
                    self.progress(f"{error} It is passed over.")
        except CheckpointError as error:
            self.progress(f"Hosts that have failed before may be chosen again: {error}")

    def _stores(self) -> list[Store]:
        """Return where they lie: the controller's own folder, then the bucket, where there is one."""
        own: list[Store] = [LocalStore(paths.home())]
        try:
            shared = self.bucket.store()
        except GpuyardError as error:
            self.progress(f"Hosts that have failed are known to this controller only: {error}")
            shared = None
        return [*own, shared] if shared else own
