"""What is said before anything is rented, of the emulated clouds over HTTP, with every request that reaches them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from gpuyard import config
from gpuyard.api import check, offers, plan
from gpuyard.api.site import Site
from gpuyard.planning import PlanRequest
from gpuyard.providers.base import Provider
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.sandbox.clouds.vast import api as vast_api
from gpuyard.sandbox.server import build

SEARCHES = ("/api/v0/bundles", "/api/v0/bundles/")


@dataclass
class Served:
    """The emulated clouds, and the method and path of every request that reached them."""

    app: ASGIApp
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.requests.append((scope["method"], scope["path"]))
        await self.app(scope, receive, send)

    @property
    def writing(self) -> list[tuple[str, str]]:
        """Those that change something; Vast.ai's search is a POST that does not."""
        searches = {("POST", path) for path in SEARCHES}
        return [one for one in self.requests if one[0] != "GET" and one not in searches]


@pytest.fixture
def served(apis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("GPUYARD_HOME", str(tmp_path / "home"))
    for name in ("GPUYARD_PROVIDER", "GPUYARD_SANDBOX", "CLOUD_PROVIDER", "CLOUD_BUCKET", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    made = Served(build(apis.cloud, tmp_path))
    with serve(made) as url:
        made.url = url
        yield made


def connect_with(monkeypatch: pytest.MonkeyPatch, served: Served, vast_key: str, vultr_key: str) -> None:
    def connect(provider: str | None = None, **_: Any) -> list[Provider]:
        clouds: list[Provider] = [
            Vast(vast_key, base_url=served.url, emulated=True),
            Vultr(vultr_key, base_url=f"{served.url}/v2", emulated=True),
        ]
        return [cloud for cloud in clouds if provider in (None, cloud.name)]

    monkeypatch.setattr(config, "connect", connect)


@pytest.fixture
def keys(served: Served, apis: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    settings = apis.cloud.settings
    connect_with(monkeypatch, served, settings.vast_key, settings.vultr_key)
    return settings.vast_key, settings.vultr_key


@pytest.fixture
def workload(tmp_path: Path) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print()")
    (tmp_path / "workloads").mkdir()
    path = tmp_path / "workloads" / "tiny.yml"
    path.write_text(
        "{name: tiny, repository: {path: code}, needs: {gpu_ram_gb: 8}, stages: [{name: one, command: 'true'}]}"
    )
    return str(path)


@pytest.mark.parametrize("provider", ["vast", "vultr"])
def test_no_writing_request_of_a_plan_reaches_any_cloud(
    served: Served, keys: tuple[str, str], workload: str, provider: str
) -> None:
    request = PlanRequest(workload=workload, provider=provider)
    made = plan.plan(Site(provider=provider, bucket=""), request, progress=lambda _: None)
    calls = made.to_dict()["planned_calls"]
    assert [call["method"] for call in calls] == (["POST", "PUT"] if provider == "vast" else ["POST", "POST"])
    assert all(call["url"].startswith(served.url) for call in calls)
    assert served.requests and served.writing == []
    for form in ("table", "json"):
        assert not [key for key in keys if key in made.render(form)]


def test_b1_offers_of_both_clouds_side_by_side(served: Served, keys: tuple[str, str], workload: str) -> None:
    request = offers.OffersRequest(workload, {"gpu_ram_gb": 16.0})
    found = offers.compare(Site(bucket=""), request, by="value", progress=lambda _: None)
    assert {row.offer.provider for row in found.rows} == {"vast", "vultr"}
    both = [row for row in found.rows if row.offer.provider == "vast"]
    assert all(row.on_demand and row.interruptible and row.on_demand > row.interruptible for row in both)
    speeds = [row.per_speed for row in found.rows]
    known = [speed for speed in speeds if speed is not None]
    assert known == sorted(known) and speeds[: len(known)] == known
    assert [removal.condition for removal in found.removals] == ["gpu_ram_gb >= 16"]
    assert served.writing == []


def levels(done: check.Checked) -> dict[str, str]:
    return {finding.what: finding.level for finding in done.findings}


def test_f9_good_wrong_and_empty_accounts(
    served: Served, keys: tuple[str, str], workload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, request = Site(bucket=""), check.CheckRequest(workload)
    good = check.check(site, request)
    assert (levels(good)["Vast.ai"], levels(good)["Vultr"], good.failed) == ("ok", "ok", [])
    monkeypatch.setattr(vast_api, "_CREDIT_USD", 0.0)
    empty = check.check(site, request)
    assert empty.failed == ["Vast.ai"] and "credit $0.00" in empty.render()
    connect_with(monkeypatch, served, "canary-wrong-vast-key", "canary-wrong-vultr-key")
    wrong = check.check(site, request)
    assert wrong.failed == ["Vast.ai", "Vultr"]
    assert "Invalid user key" in wrong.render() and "Invalid API token." in wrong.render()
    assert "canary" not in wrong.render()
    assert served.writing == []
