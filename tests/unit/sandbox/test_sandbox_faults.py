"""What goes wrong on command: the table, the middleware, the parameters, and a scenario file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import Apis

from gpuyard.errors import UsageError
from gpuyard.sandbox import faults, scenario
from gpuyard.sandbox.cli import add_parser
from gpuyard.sandbox.clouds import EMULATED
from gpuyard.sandbox.model import Fault, Phase, ProviderName


def control(apis: Apis, **fault: Any) -> Any:
    headers = {"Authorization": f"Bearer {apis.cloud.settings.control_key}"}
    return apis.client.post("/sandbox/faults", json=fault, headers=headers)


def listed(apis: Apis, provider: str) -> int:
    """Ask a cloud for its list of instances, and return the status."""
    ways = {
        "vast": ("/api/v1/instances/", apis.cloud.settings.vast_key),
        "vultr": ("/v2/instances", apis.cloud.settings.vultr_key),
        "lambda": ("/lambda/api/v1/instances", apis.cloud.settings.lambda_key),
        "runpod": ("/runpod/v2/pods", apis.cloud.settings.runpod_key),
    }
    path, key = ways[provider]
    return int(apis.client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code)


@pytest.mark.parametrize("provider", get_args(ProviderName))
def test_every_cloud_words_a_refusal_and_a_breakdown(apis: Apis, provider: str) -> None:
    control(apis, kind="throttle", provider=provider)
    control(apis, kind="server-error", provider=provider, count=2)
    statuses = [listed(apis, provider) for _ in range(4)]
    assert statuses[0] == 429 and all(500 <= status < 600 for status in statuses[1:3]) and statuses[3] == 200
    assert [listed(apis, other) for other in get_args(ProviderName)] == [200] * 4


def test_a_place_strikes_those_requests_only(apis: Apis) -> None:
    control(apis, kind="throttle", provider="vast", place="destroy")
    contract = apis.rent_vast()
    assert apis.vast("GET", f"/v0/instances/{contract}/").status_code == 200
    assert apis.vast("DELETE", f"/v0/instances/{contract}/").status_code == 429
    assert apis.vast("DELETE", f"/v0/instances/{contract}/").status_code == 200
    places = {name: cloud.place for name, cloud in EMULATED.items()}
    assert places["vast"]("POST /v0/bundles") == "read" and places["vast"]("PUT /v0/instances/7") == "write"
    assert places["lambda"]("POST /instance-operations/terminate") == "destroy"
    assert places["vultr"]("POST /ssh-keys") == "write" and places["runpod"]("POST /pods") == "create"


@pytest.mark.parametrize("kind", ["lost-answer", "error-after"])
def test_a_create_that_rents_all_the_same(apis: Apis, kind: str) -> None:
    control(apis, kind=kind, provider="vast")
    refused = apis.vast("PUT", "/v0/asks/1/", {"image": "vastai/pytorch"})
    assert refused.status_code == 410, "a create that is refused is not struck"
    answer = apis.vast("PUT", "/v0/asks/11402000/", {"image": "vastai/pytorch", "disk": 20})
    assert answer.status_code == (200 if kind == "lost-answer" else 502)
    assert "new_contract" not in answer.text
    assert len(apis.cloud.world.living("vast")) == 1 and apis.cloud.world.faults == []


def test_without_a_network_nothing_is_carried_out(apis: Apis) -> None:
    control(apis, kind="no-network", provider="vultr", for_s=60)
    wanted = {"region": "ewr", "plan": "vcg-a16-2c-8g-2vram", "os_id": 2136}
    for _ in range(3):
        assert apis.vultr("POST", "/instances", wanted).text == "{"
    apis.clock.now += 61
    assert apis.vultr("GET", "/instances").json()["instances"] == []


def test_time_and_chance_decide_and_a_seed_decides_the_same_each_time() -> None:
    def struck(seed: int) -> list[int]:
        pending = [Fault("throttle", "vast", 100, chance=0.3, seed=seed)]
        return [number for number in range(50) if faults.take(pending, "vast", "throttle", "read", 0)]

    assert struck(1) == struck(1) != struck(2)
    assert 5 < len(struck(1)) < 30
    later = [Fault("throttle", "vast", 1, from_time=10, until_time=20)]
    assert [bool(faults.take([*later], "vast", "throttle", "read", now)) for now in (9, 10, 19.9, 20)] == [
        *(False, True, True, False)
    ]


def test_machines_that_never_boot_or_know_no_key(apis: Apis) -> None:
    control(apis, kind="stuck-boot", provider="vast")
    control(apis, kind="no-key", provider="vultr")
    key = apis.vultr("POST", "/ssh-keys", {"name": "a", "ssh_key": "ssh-ed25519 AAAA a"}).json()["ssh_key"]["id"]
    apis.cloud.settings.boot_seconds = 0.0
    apis.rent_vast()
    apis.rent_vultr(sshkey_id=[key])
    stuck, keyless = apis.cloud.world.rentals
    while not stuck.made or keyless.phase is Phase.BOOTING:
        apis.vast("GET", "/v1/instances/")
    assert stuck.phase is Phase.BOOTING and keyless.public_keys == []
    apis.rent_vast(12033000)
    while apis.cloud.world.rentals[2].phase is Phase.BOOTING:
        apis.vast("GET", "/v1/instances/")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"kind": "meteor", "provider": "vast"}, "kind: there is no fault of this name, only throttle, "),
        ({"kind": "bad-gpu", "provider": "vast", "place": "create"}, "bad-gpu strikes no requests"),
        ({"kind": "throttle", "provider": "vast", "chance": 2}, "chance: "),
        ({"kind": "throttle", "provider": "vast", "plaice": "read"}, "plaice: "),
    ],
)
def test_what_is_no_fault_is_named(apis: Apis, tmp_path: Path, fault: dict[str, Any], sentence: str) -> None:
    answer = control(apis, **fault)
    assert answer.status_code == 422 and sentence in answer.json()["detail"]
    file = tmp_path / "day.yml"
    file.write_text(json.dumps({"faults": [fault]}))
    with pytest.raises(UsageError) as error:
        scenario.read(file)
    assert f"The scenario {file} is not one: faults.0" in str(error.value) and sentence.split(": ")[-1] in str(
        error.value
    )


def test_a_scenario_is_read_and_the_page_of_the_docs_names_every_fault(tmp_path: Path) -> None:
    page = faults.page()
    example = page.split("first:\n\n")[1].split("\n\nThe bucket")[0]
    (tmp_path / "day.yml").write_text("\n".join(line[4:] for line in example.splitlines()))
    day = scenario.read(tmp_path / "day.yml")
    assert (day.advance_s, [one.kind for one in day.faults]) == (3600, ["throttle", "no-network", "server-error"])
    assert day.faults[1].fault(100).until_time == 190
    assert all(f"| `{name}` |" in page for name in faults.KINDS)
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        scenario.read(tmp_path / "night.yml")


def test_every_fault_is_a_command() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    for name, kind in faults.KINDS.items():
        words = ["sandbox", "fault", name, "--provider", "vast", *(["--place", "read"] if kind.place else [])]
        assert parser.parse_args(words).kind == name
