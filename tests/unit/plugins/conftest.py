# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lets Ansible's own loader find the collection in this checkout, and keeps the tests away from real accounts."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.loader import init_plugin_loader

from gpuyard import config
from gpuyard.errors import ProviderError
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import CreateSpec, Instance, Offer, PlannedCall, Provider, Query, State
from gpuyard.providers.resources import Kind, Resource, ResourceSpec, Shelf
from gpuyard.renting import acceptance, access, runs

ROOT = Path(__file__).resolve().parents[3]

# Only one finder can be installed in a process, and under ansible-test there is one already.
if not any(type(finder).__name__ == "_AnsibleCollectionFinder" for finder in sys.meta_path):
    init_plugin_loader([str(ROOT / "collections")])


class MemoryShelf(Shelf):
    """STAND-IN: all resources of a kind at a cloud in memory; keeps what it was asked to do, and refuses when told."""

    def __init__(self, kind: Kind, *held: Resource, history: list[str] | None = None) -> None:
        self.kind = kind  # type: ignore[misc]  # a class variable of the real ones
        self.held = {one.id: one for one in held}
        self.history = history if history is not None else []
        self.errors: dict[str, ProviderError] = {}  # by what is asked: all, detach, destroy

    def _asked(self, what: str, resource_id: str = "") -> None:
        if what != "all":
            self.history.append(f"{what} {resource_id}")
        if what in self.errors:
            raise self.errors[what]

    def all(self) -> list[Resource]:
        self._asked("all")
        return list(self.held.values())

    def get(self, resource_id: str) -> Resource | None:
        return self.held.get(resource_id)

    def create(self, spec: ResourceSpec, *, progress: Any = None) -> Resource:
        raise NotImplementedError

    def plan_create(self, spec: ResourceSpec) -> list[PlannedCall]:
        raise NotImplementedError

    def destroy(self, resource_id: str, *, progress: Any = None) -> None:
        self._asked("destroy", resource_id)
        self.held.pop(resource_id, None)

    def plan_destroy(self, resource_id: str) -> list[PlannedCall]:
        return [PlannedCall("DELETE", f"https://cloud.invalid/{self.kind}s/{resource_id}")]

    def detach(self, resource_id: str, *, progress: Any = None) -> None:
        self._asked("detach", resource_id)
        self.held[resource_id] = replace(self.held[resource_id], attached_to=())


def resource(provider: str, kind: Kind, resource_id: str, run: str = "", **values: Any) -> Resource:
    """Return a resource of ``run`` (none: not ours) with everything that a test does not care about."""
    defaults: dict[str, Any] = {
        "name": f"name-of-{resource_id}",
        "ref": RunRef(run, "miniprover") if run else None,
        "ours": bool(run),
        "region": "ewr",
        "size_gb": 1000.0 if kind.bills else None,
        "price_per_month_usd": 100.0 if kind.bills else 0.0,
        "created_at": 1000.0,
    }
    return Resource(provider=provider, kind=kind, id=resource_id, **{**defaults, **values})


class Cloud(Provider):
    """A cloud in memory: it lists what it was given, counts how often it is asked, and rents what is offered."""

    console_url = "https://cloud.invalid"

    def __init__(self, name: str, instances: list[Instance] | None = None) -> None:
        self.name = name  # type: ignore[misc]  # a class variable of the real ones
        self.title = name.title()  # type: ignore[misc]
        self.held = {instance.id: instance for instance in instances or []}
        self.market: list[Offer] = []
        self.asked = 0
        self.error: ProviderError | None = None
        self.refusals: dict[str, ProviderError] = {}
        self.rented: list[str] = []
        self.shelved: dict[Kind, Shelf] = {}
        self.history: list[str] = []

    def shelves(self) -> Mapping[Kind, Shelf]:
        return self.shelved

    def shelve(self, *held: Resource) -> MemoryShelf:
        """Give the cloud a shelf with these resources, all of one kind."""
        made = MemoryShelf(held[0].kind, *held, history=self.history)
        self.shelved[made.kind] = made
        return made

    def offers(self, query: Query) -> list[Offer]:
        return self.market

    def create(self, offer: Offer, spec: CreateSpec, *, progress: Any = None) -> Instance:
        if offer.id in self.refusals:
            raise self.refusals[offer.id]
        self.rented.append(offer.id)
        made = instance(self.name, f"9{offer.id}", ref=spec.ref, price_per_hour_usd=offer.price_per_hour_usd)
        self.held[made.id] = made
        return made

    def plan_create(self, offer: Offer, spec: CreateSpec) -> list[PlannedCall]:
        return [PlannedCall("PUT", f"https://cloud.invalid/asks/{offer.id}", {"label": spec.ref.label})]

    def instances(self) -> list[Instance]:
        self.asked += 1
        if self.error:
            raise self.error
        return list(self.held.values())

    def instance(self, instance_id: str) -> Instance | None:
        return self.held.get(instance_id)

    def destroy(self, instance_id: str, *, progress: Any = None) -> None:
        self.history.append(f"destroy instance {instance_id}")
        self.held.pop(instance_id, None)

    def plan_destroy(self, instance_id: str) -> list[PlannedCall]:
        return [PlannedCall("DELETE", f"https://cloud.invalid/instances/{instance_id}")]

    def credit_usd(self) -> float | None:
        return None

    def start(self, instance_id: str) -> None:
        self.held[instance_id] = replace(self.held[instance_id], state=State.RUNNING)

    def stop(self, instance_id: str) -> None:
        self.held[instance_id] = replace(self.held[instance_id], state=State.STOPPED)


def instance(provider: str, instance_id: str, run: str = "", **values: Any) -> Instance:
    """Return an instance of ``run`` (none: not ours) with everything that a test does not care about."""
    defaults: dict[str, Any] = {
        "label": "",
        "ref": RunRef(run, "miniprover") if run else None,
        "state": State.RUNNING,
        "status_text": "running",
        "region": "Sweden, SE",
        "gpu_name": "RTX 4090",
        "gpu_count": 1.0,
        "gpu_ram_gb": 24.0,
        "market": "on-demand",
        "price_per_hour_usd": 0.4,
        "ssh_host": "192.0.2.7",
        "ssh_port": 40022,
        "created_at": 1000.0,
    }
    return Instance(provider=provider, id=instance_id, **{**defaults, **values})


def offer(provider: str, offer_id: str, **values: Any) -> Offer:
    """Return an offer with everything that a test does not care about."""
    defaults: dict[str, Any] = {
        "gpu_name": "RTX 4090",
        "gpu_count": 1.0,
        "gpu_ram_gb": 24.0,
        "cpu_cores": 8.0,
        "ram_gb": 32.0,
        "disk_gb": 100.0,
        "region": "Sweden, SE",
        "market": "on-demand",
        "price_per_hour_usd": 0.4,
    }
    return Offer(provider=provider, id=offer_id, **{**defaults, **values})


class World:
    """The clouds that ``gpuyard.config.connect`` finds: the real ones by key, the sandbox's when one runs."""

    def __init__(self) -> None:
        self.vast = Cloud("vast")
        self.vultr = Cloud("vultr")
        self.keys = {"vast", "vultr"}
        self.sandbox: list[Cloud] = []
        self.calls: list[Mapping[str, Any]] = []

    def connect(self, provider: str | None = None, *, sandbox: bool | None = None, **options: Any) -> list[Cloud]:
        """Stand in for the function of that name."""
        self.calls.append({"provider": provider, "sandbox": sandbox, **options})
        found = self.sandbox if sandbox else [cloud for cloud in (self.vast, self.vultr) if cloud.name in self.keys]
        return [cloud for cloud in found if provider in (None, cloud.name)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Return a world of two empty clouds with a key each; nothing of the machine's own accounts is seen."""
    for name in ("GPUYARD_PROVIDER", "GPUYARD_SANDBOX", "GPUYARD_SANDBOX_STATE", "CLOUD_PROVIDER", "CLOUD_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPUYARD_HOME", str(tmp_path / "home"))
    made = World()
    monkeypatch.setattr(config, "connect", made.connect)
    # The machines of this world are names only, so nobody goes and lets this controller in (test_access.py does).
    monkeypatch.setattr(access, "let_in", lambda *_args, **_more: None)
    monkeypatch.setattr(acceptance.Acceptance, "check", lambda *_args: None)
    runs._opened.cache_clear()  # a bucket of another test may have the same name
    return made


Verb = Callable[..., dict[str, Any]]


@pytest.fixture
def verb(world: World) -> Verb:
    """Return a function that runs a module's verb with its real argument specification, in this process."""

    def run(
        verb_name: str,
        /,
        *,
        check: bool = False,
        lines: list[str] | None = None,
        named: list[str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        prefix = "ansible_collections.gpuyard.cloud.plugins"
        module = importlib.import_module(f"{prefix}.modules.{verb_name}")
        shared = importlib.import_module(f"{prefix}.module_utils._verb")
        checked = ArgumentSpecValidator(module.ARGUMENT_SPEC, **module.CONDITIONS).validate(options)
        assert checked.error_messages == []
        call = shared.Call(
            checked.validated_parameters,
            check,
            (lines if lines is not None else []).append,
            (named if named is not None else []).extend,
        )
        result = shared.attempt(module.run, call)
        json.dumps(result)  # a module's result leaves Python
        return result

    return run
