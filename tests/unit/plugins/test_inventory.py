# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The inventory plugins, through Ansible's own InventoryManager."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible import context
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.common.collections import ImmutableDict
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory import Constructable
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

from gpuyard import config
from gpuyard.api import hosts
from gpuyard.errors import ProviderDownError, UsageError
from gpuyard.providers.base import State

from .conftest import ROOT, Cloud, World, instance

Parse = Callable[..., InventoryManager]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what the plugins warn of."""
    seen: list[str] = []
    monkeypatch.setattr(Display, "warning", lambda self, text, *_args, **_kwargs: seen.append(str(text)))
    return seen


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> Parse:
    """Return a function that parses inventory files (name: content) with extra variables."""

    def run(
        files: dict[str, str] | None = None, *, cache: bool = True, playbooks: Any = None, **extra: Any
    ) -> InventoryManager:
        folder = tmp_path / "inventory"
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in (files or BOTH).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        words = tuple(f"{name}={value}" for name, value in extra.items())
        monkeypatch.setattr(context, "CLIARGS", ImmutableDict(extra_vars=words, args=playbooks))
        monkeypatch.setattr(load_extra_vars, "extra_vars", {}, raising=False)
        return InventoryManager(loader=DataLoader(), sources=[str(folder)], cache=cache)

    return run


def names(inventory: InventoryManager) -> list[str]:
    return sorted(host.name for host in inventory.get_hosts())


def groups_of(inventory: InventoryManager, host: str) -> set[str]:
    return {group.name for group in inventory.get_host(host).get_groups()} - {"all", "ungrouped"}


BOTH = {"gpuyard.yml": "plugin: gpuyard.cloud.clouds\n"}
ALIASES = {"vast.yml": "plugin: gpuyard.cloud.vast\n", "vultr.yml": "plugin: gpuyard.cloud.vultr\n"}


def test_host_groups_and_variables(world: World, parse: Parse, warnings: list[str]) -> None:
    """X15: the run's name is the host's name."""
    world.vast.held["77"] = instance("vast", "77", "miniprover-0")
    inventory = parse()
    assert names(inventory) == ["miniprover-0"]
    assert groups_of(inventory, "miniprover-0") == {
        "gpuyard",
        "provider_vast",
        "run_miniprover_0",
        "workload_miniprover",
        "pool_main",
        "gpu_rtx_4090",
        "region_se",
        "state_running",
    }
    facts = inventory.get_host("miniprover-0").get_vars()
    assert facts["gpuyard_instance_id"] == "77"
    assert facts["gpuyard_price_per_hour_usd"] == 0.4
    assert facts["gpuyard_emulated"] is False
    assert facts["ansible_host"] == "192.0.2.7"
    assert facts["ansible_port"] == 40022
    for wanted in ("HostKeyAlias=gpuyard-vast-77", "StrictHostKeyChecking=yes", "UserKnownHostsFile="):
        assert wanted in facts["ansible_ssh_common_args"]
    assert all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in facts)
    assert warnings == []


def test_what_is_not_ours_is_left_out(world: World, parse: Parse) -> None:
    world.vast.held["1"] = instance("vast", "1")
    assert names(parse()) == []


@pytest.mark.parametrize("order", [1, -1])
def test_names_do_not_depend_on_the_order_of_the_answer(world: World, parse: Parse, order: int) -> None:
    found = [
        instance("vast", "11111111", "a-0", state=State.PREEMPTED, created_at=1.0),
        instance("vast", "22222222", "a-0", state=State.PENDING, created_at=2.0),
        instance("vast", "33333333", "a-0", state=State.RUNNING, created_at=3.0),
    ]
    world.vast.held = {one.id: one for one in found[::order]}
    inventory = parse()
    ids = {name: inventory.get_host(name).get_vars()["gpuyard_instance_id"] for name in names(inventory)}
    assert ids == {"a-0": "33333333", "a-0-111111": "11111111", "a-0-222222": "22222222"}
    assert len(inventory.get_hosts("run_a_0")) == 3


def test_a_lost_machine_does_not_take_the_name_of_its_successor_elsewhere(world: World, parse: Parse) -> None:
    world.vast.held["123456789"] = instance("vast", "123456789", "a-0", state=State.PREEMPTED, ssh_host="")
    world.vultr.held["cb676a46"] = instance("vultr", "cb676a46", "a-0", region="ewr", gpu_name="A16")
    inventory = parse(BOTH)
    assert names(inventory) == ["a-0", "a-0-456789"]
    assert groups_of(inventory, "a-0") >= {"provider_vultr", "region_ewr", "gpu_a16", "state_running"}
    assert groups_of(inventory, "a-0-456789") >= {"provider_vast", "state_preempted"}
    assert "ansible_host" not in inventory.get_host("a-0-456789").get_vars()


def test_two_clouds_with_a_machine_of_the_same_run(world: World, parse: Parse) -> None:
    world.vast.held["1000001"] = instance("vast", "1000001", "a-0")
    world.vultr.held["2000002"] = instance("vultr", "2000002", "a-0")
    inventory = parse(BOTH)
    assert names(inventory) == ["a-0", "a-0-000002"]
    assert inventory.get_host("a-0").get_vars()["gpuyard_provider"] == "vast"


def test_a_run_named_like_a_group(world: World, parse: Parse) -> None:
    world.vast.held["1000001"] = instance("vast", "1000001", "all")
    inventory = parse()
    assert names(inventory) == ["all-000001"]


def test_provider_limits_what_is_asked(world: World, parse: Parse) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.held["2"] = instance("vultr", "2", "b-0")
    assert names(parse(BOTH, provider="vultr")) == ["b-0"]
    assert (world.vast.asked, world.vultr.asked) == (0, 1)


def test_provider_from_the_environment(world: World, parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUYARD_PROVIDER", "vast")
    parse(BOTH)
    assert (world.vast.asked, world.vultr.asked) == (1, 0)


def test_no_key_is_no_host_and_no_error(world: World, parse: Parse, warnings: list[str]) -> None:
    world.keys = set()
    assert names(parse(BOTH)) == []
    assert warnings == []


def test_a_cloud_that_does_not_answer_is_one_warning(world: World, parse: Parse, warnings: list[str]) -> None:
    world.vast.error = ProviderDownError("Vast.ai answers with 503.", provider="vast")
    world.vultr.held["2"] = instance("vultr", "2", "b-0")
    assert names(parse(BOTH)) == ["b-0"]
    assert warnings == [
        "gpuyard.cloud.clouds: vast could not be asked, so what is rented there is not seen, and may bill: "
        "Vast.ai answers with 503."
    ]


def test_a_silent_cloud_costs_its_time_once_and_hides_no_other_ones_hosts(
    world: World, parse: Parse, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """V1: one interface for all clouds, and the one that is down is named."""
    monkeypatch.setattr(hosts, "ANSWER_S", 0.2)
    over = threading.Event()
    monkeypatch.setattr(world.vast, "instances", lambda: over.wait(30) and [])
    world.vultr.held["2"] = instance("vultr", "2", "b-0")
    began = time.monotonic()
    assert names(parse(BOTH)) == ["b-0"]
    assert time.monotonic() - began < 10
    over.set()
    [warning] = warnings
    assert "vast could not be asked" in warning and "Vast has not answered within 0.2 s." in warning


def test_each_cloud_gets_one_short_try(world: World, parse: Parse) -> None:
    parse(BOTH)
    assert {(call["patience"].tries, call["patience"].read_timeout) for call in world.calls} == {(1, 8.0)}


def test_a_damaged_key_file_hides_no_other_ones_hosts(
    world: World, parse: Parse, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(provider: str | None = None, **options: Any) -> list[Cloud]:
        if provider == "vultr":
            raise UsageError("The key file is not YAML.")
        return world.connect(provider, **options)

    monkeypatch.setattr(config, "connect", connect)
    world.vast.held["1"] = instance("vast", "1", "a-0")
    assert names(parse(BOTH)) == ["a-0"]
    assert warnings == ["gpuyard.cloud.clouds: The key file is not YAML."]


def test_the_older_names_list_one_cloud_each(world: World, parse: Parse, warnings: list[str]) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    world.vultr.held["2"] = instance("vultr", "2", "b-0")
    assert names(parse({"vast.yml": ALIASES["vast.yml"]})) == ["a-0"]
    assert (world.vast.asked, world.vultr.asked) == (1, 0)
    assert names(parse(ALIASES)) == ["a-0", "b-0"]
    assert names(parse(ALIASES, provider="vultr")) == ["b-0"]
    assert warnings == []


@pytest.mark.parametrize(
    ("playbooks", "asked"),
    [
        (("gpuyard.cloud.launch",), False),
        ((f"{ROOT}/status.yml", f"{ROOT}/playbooks/launch.yml", "gpuyard.cloud.teardown"), False),
        ((f"{ROOT}/launch.yml", "/mine/play.yml"), True),
        (("/mine/launch.yml",), True),
        (("gpuyard.cloud.mine",), True),
        ("gpuyard", True),  # the pattern of `ansible` and `ansible-inventory`
        (None, True),
    ],
)
def test_plays_that_use_no_inventory_do_not_ask_the_clouds(
    world: World, parse: Parse, playbooks: Any, asked: bool
) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    assert names(parse(BOTH, playbooks=playbooks)) == (["a-0"] if asked else [])
    assert world.vast.asked == int(asked)


def emulated(world: World) -> Cloud:
    cloud = Cloud("vast", [instance("vast", "5", "s-0", emulated=True)])
    world.sandbox = [cloud]
    return cloud


def test_each_cloud_has_a_name_of_its_own(world: World, parse: Parse) -> None:
    world.sandbox = [Cloud(name, [instance(name, "1", f"{name}-0")]) for name in ("lambda", "runpod")]
    files = {f"{name}.yml": f"plugin: gpuyard.cloud.{name}\n" for name in ("lambda_cloud", "runpod")}
    assert names(parse(files, sandbox="true")) == ["lambda-0", "runpod-0"]
    assert names(parse(files, sandbox="true", provider="lambda")) == ["lambda-0"]


def test_without_any_key_the_running_sandbox_is_listed(world: World, parse: Parse) -> None:
    world.keys = set()
    emulated(world)
    inventory = parse()
    assert inventory.get_host("s-0").get_vars()["gpuyard_emulated"] is True
    assert names(parse(sandbox="false")) == []


def test_with_a_key_of_another_cloud_the_sandbox_is_not_listed(world: World, parse: Parse) -> None:
    world.keys = {"vultr"}
    cloud = emulated(world)
    assert names(parse()) == []
    assert cloud.asked == 0


@pytest.mark.parametrize("how", ["extra", "option", "environment", "site", "template"])
def test_ways_to_say_sandbox(world: World, parse: Parse, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    emulated(world)
    world.vast.held["1"] = instance("vast", "1", "real-0")
    files = {"vast.yml": "plugin: gpuyard.cloud.vast\n"}
    extra = {}
    if how == "extra":
        extra = {"sandbox": "true", "sandbox_state": "/tmp/another"}
    elif how == "option":
        files["vast.yml"] += "sandbox: true\n"
    elif how == "environment":
        monkeypatch.setenv("GPUYARD_SANDBOX", "1")
    elif how == "site":
        files["group_vars/all.yml"] = "sandbox: true\n"
    else:
        files["group_vars/all/site.yml"] = 'sandbox: "{{ 1 == 1 }}"\n'
    assert names(parse(files, **extra)) == ["s-0"]
    assert world.vast.asked == 0
    if how == "extra":
        assert world.calls[-1]["sandbox_state"] == "/tmp/another"
    assert names(parse(files, **{**extra, "sandbox": "no"})) == ["real-0"]


def test_a_sandbox_that_is_neither_true_nor_false(world: World, parse: Parse, warnings: list[str]) -> None:
    assert names(parse(sandbox="perhaps")) == []
    assert warnings == ["gpuyard.cloud.clouds: sandbox='perhaps' is neither true nor false."]


def test_constructed_features(world: World, parse: Parse) -> None:
    world.vast.held["1"] = instance("vast", "1", "a-0")
    inventory = parse(
        {
            "my.vast.yaml": """
plugin: gpuyard.cloud.vast
strict: true
compose: {per_day: gpuyard_price_per_hour_usd * 24}
groups: {cheap: gpuyard_price_per_hour_usd < 0.5, dear: gpuyard_price_per_hour_usd >= 0.5}
keyed_groups: [{key: gpuyard_market, prefix: market}]
"""
        }
    )
    assert groups_of(inventory, "a-0") >= {"cheap", "market_on_demand"}
    assert "dear" not in inventory.groups
    assert inventory.get_host("a-0").get_vars()["per_day"] == pytest.approx(9.6)


def test_an_expression_is_worked_out_once_for_hosts_for_which_it_is_the_same(
    world: World, parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        price = 0.5 if number % 2 else 0.25
        world.vast.held[str(number)] = instance("vast", str(number), f"r{number}-0", price_per_hour_usd=price)
    worked_out: list[str] = []
    whole = Constructable._compose

    def counted(self: Any, template: Any, variables: Any, *more: Any, **options: Any) -> Any:
        worked_out.append(str(template))
        return whole(self, template, variables, *more, **options)

    monkeypatch.setattr(Constructable, "_compose", counted)
    inventory = parse(
        {
            "vast.yml": """
plugin: gpuyard.cloud.vast
strict: true
compose:
  per_day: gpuyard_price_per_hour_usd * 24
  who: gpuyard_run ~ '!'
  home: lookup('env', 'HOME') ~ gpuyard_market
  dice: "[gpuyard_market, 'x'] | random"
  said: extra_word ~ gpuyard_market
keyed_groups: [{key: per_day | string, prefix: cost}, {key: gpuyard_gpu_name, prefix: model}]
use_extra_vars: true
"""
        },
        extra_word="once",
    )
    facts = {name: inventory.get_host(name).get_vars() for name in names(inventory)}
    assert [facts[f"r{number}-0"]["per_day"] for number in range(6)] == [6.0, 12.0] * 3
    assert [facts[f"r{number}-0"]["who"] for number in range(6)] == [f"r{number}-0!" for number in range(6)]
    assert {one["said"] for one in facts.values()} == {"onceon-demand"}
    assert groups_of(inventory, "r1-0") >= {"cost_12_0", "model_RTX_4090"}
    counts = Counter(worked_out)
    assert (counts["gpuyard_price_per_hour_usd * 24"], counts["per_day | string"], counts["gpuyard_gpu_name"]) == (
        2,
        2,
        1,
    )
    # What may change its mind, or depends on more than a host's own variables, is asked each time.
    assert [counts[word] for word in counts if "lookup" in word or "random" in word or "extra" in word] == [6, 6, 6]
    assert counts["gpuyard_run ~ '!'"] == 6


def test_cache_answers_without_the_cloud(world: World, parse: Parse, tmp_path: Path) -> None:
    files = {
        "vast.yml": f"""
plugin: gpuyard.cloud.vast
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: {tmp_path / "cache"}
"""
    }
    world.vast.held["1"] = instance("vast", "1", "a-0")
    first = parse(files)
    kept = [path for path in (tmp_path / "cache").iterdir() if path.is_file()]
    assert [oct(path.stat().st_mode & 0o777) for path in kept] == ["0o600"]
    world.vast.held["2"] = instance("vast", "2", "b-0")
    second = parse(files)
    assert world.vast.asked == 1
    assert names(first) == names(second) == ["a-0"]
    assert first.get_host("a-0").get_vars() == second.get_host("a-0").get_vars()
    assert names(parse(files, cache=False)) == ["a-0", "b-0"]
    assert world.vast.asked == 2
    # The sandbox is another world with a cache of its own.
    emulated(world)
    assert names(parse(files, sandbox="true")) == ["s-0"]


def test_a_failed_answer_is_not_cached(world: World, parse: Parse, tmp_path: Path) -> None:
    files = {
        "vast.yml": "plugin: gpuyard.cloud.vast\ncache: true\ncache_plugin: ansible.builtin.jsonfile\n"
        f"cache_connection: {tmp_path / 'cache'}\n"
    }
    world.vast.error = ProviderDownError("down")
    assert names(parse(files)) == []
    world.vast.error = None
    world.vast.held["1"] = instance("vast", "1", "a-0")
    assert names(parse(files)) == ["a-0"]


def test_files_of_other_names_are_not_ours(world: World, parse: Parse) -> None:
    parse({"others.yml": "plugin: gpuyard.cloud.vast\n"})
    assert world.vast.asked == 0
