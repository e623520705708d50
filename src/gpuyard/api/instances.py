"""What is rented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuyard import records, ssh
from gpuyard.api.site import Site
from gpuyard.providers.base import Instance
from gpuyard.renting import survey


@dataclass(frozen=True, slots=True)
class InstancesRequest:
    """Which instances are wanted; ``None`` is any.

    ``foreign``: also those that gpuyard did not rent. ``partial``: a cloud that does not answer is only named, as long
    as another one does; without it that is an error, since what cannot be seen may still be there.
    """

    run: str | None = None
    workload: str | None = None
    state: str | None = None
    foreign: bool = False
    partial: bool = False

    def takes(self, instance: Instance) -> bool:
        """Tell whether this instance is wanted."""
        if instance.ref is None:
            return self.foreign and self.run is None and self.workload is None and self._in_state(instance)
        wanted = self.run in (None, instance.ref.run) and self.workload in (None, instance.ref.workload)
        return wanted and self._in_state(instance)

    def _in_state(self, instance: Instance) -> bool:
        return self.state in (None, str(instance.state))


@dataclass(frozen=True, slots=True)
class Reachable:
    """An instance, and what Ansible needs to reach it, as host variables; empty as long as it has no address."""

    instance: Instance
    connection: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Instances:
    """The instances in the order of provider, run and id, and a sentence for each cloud that could not be asked."""

    found: list[Reachable]
    unanswered: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "instances": [
                records.instance_to_dict(one.instance) | {"connection": dict(one.connection)} for one in self.found
            ],
            "unanswered": dict(self.unanswered),
            "text": "\n".join(self.unanswered.values()),
        }


def find(site: Site, request: InstancesRequest) -> Instances:
    """Return the instances that the clouds of ``site`` list and ``request`` wants.

    Raises :class:`gpuyard.errors.ProviderError` when a cloud does not answer, with ``partial`` when none does.
    """
    clouds, key = site.clouds(), site.key()
    seen = survey.take(clouds)
    listed = seen.answered() if request.partial else seen.complete()
    found = sorted(
        (one for one in listed if request.takes(one)),
        key=lambda one: (one.provider, one.ref.run if one.ref else "", one.id),
    )
    return Instances([Reachable(one, ssh.ansible_vars(one, key)) for one in found], seen.unanswered())
