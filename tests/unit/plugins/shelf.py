# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""STAND-IN for what accounts hold: shelves in memory, which keep what they were asked to do."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from gpuyard.errors import ProviderError
from gpuyard.providers.base import PlannedCall, Provider
from gpuyard.providers.resources import Kind, Resource, ResourceSpec, Shelf


class FixedShelf(Shelf):
    """A shelf whose things stay as they were made, as at a cloud that attaches storage only to a new machine."""

    title = ""

    def __init__(self, cloud: Provider, kind: Kind) -> None:
        self.kind = kind  # type: ignore[misc]  # a class variable of the real ones
        self.cloud = cloud
        self.held: dict[str, Resource] = {}
        self._numbers = itertools.count(1)
        self.asked: list[str] = []
        self.made: list[ResourceSpec] = []
        self.refusal: ProviderError | None = None  # of a create or an end
        self.ready_at_once = True
        cloud.shelves = lambda: {**getattr(cloud, "filled", {}), kind: self}  # type: ignore[method-assign]

    def all(self) -> list[Resource]:
        self.asked.append("list")
        return list(self.held.values())

    def get(self, resource_id: str) -> Resource | None:
        found = self.held.get(resource_id)
        if found and not found.ready:
            self.held[resource_id] = replace(found, ready=True)
        return found

    def put(self, name: str, **values: Any) -> Resource:
        """Let there be one."""
        made = Resource(self.cloud.name, self.kind, f"{self.kind.value[:3]}-{next(self._numbers)}", name, **values)
        self.held[made.id] = made
        return made

    def create(self, spec: ResourceSpec, *, progress: Any = None) -> Resource:
        self.asked.append(f"create {spec.name}")
        if progress and spec.content:
            progress(f"{self.cloud.title} tells {spec.content}.")
        if self.refusal:
            raise self.refusal
        self.made.append(spec)
        if self.kind is Kind.VARIABLE:
            self.held = {found: one for found, one in self.held.items() if one.name != spec.name}
        detail = {"public_key": " ".join(spec.content.split()[:2])} if self.kind is Kind.SSH_KEY else {}
        price = self.price_per_month_usd(spec)
        return self.put(
            spec.ref.label if spec.ref else spec.name,
            ref=spec.ref,
            ours=True,
            region=spec.region,
            size_gb=spec.size_gb,
            price_per_month_usd=price,
            detail=detail,
            ready=self.ready_at_once,
        )

    def plan_create(self, spec: ResourceSpec) -> list[PlannedCall]:
        body = {"name": spec.name, "size": spec.size_gb, "value": spec.content}
        return [PlannedCall("POST", f"https://cloud.invalid/{self.kind}", body)]

    def destroy(self, resource_id: str, *, progress: Any = None) -> None:
        self.asked.append(f"destroy {resource_id}")
        if self.refusal:
            raise self.refusal
        self.held.pop(resource_id, None)

    def plan_destroy(self, resource_id: str) -> list[PlannedCall]:
        return [PlannedCall("DELETE", f"https://cloud.invalid/{self.kind}/{resource_id}")]

    def price_per_month_usd(self, spec: ResourceSpec) -> float | None:
        return spec.size_gb / 10 if self.kind.bills and spec.size_gb else super().price_per_month_usd(spec)


class LiveShelf(FixedShelf):
    """A shelf whose things grow, and go to and from machines that live."""

    title = "block storage"

    def attach(self, resource_id: str, instance_id: str, *, progress: Any = None) -> None:
        self.asked.append(f"attach {resource_id} {instance_id}")
        self.held[resource_id] = replace(self.held[resource_id], attached_to=(instance_id,))

    def detach(self, resource_id: str, *, progress: Any = None) -> None:
        self.asked.append(f"detach {resource_id}")
        self.held[resource_id] = replace(self.held[resource_id], attached_to=())

    def grow(self, resource_id: str, size_gb: float) -> None:
        self.asked.append(f"grow {resource_id} {size_gb:g}")
        self.held[resource_id] = replace(self.held[resource_id], size_gb=size_gb)
