# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the neutral modules share: their common options, and how the core's errors become results.

A module is an argument specification and a function from a :class:`Call` to a result. The same function runs in a
module process and, through the action plugin ``verb``, in Ansible's own process, where its progress can be shown while
it runs. Private to this collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule, env_fallback

from ansible_collections.gpuyard.cloud.plugins.module_utils._core import core_problem

with suppress(ImportError):  # told when the module runs
    from gpuyard.errors import GpuyardError, ProviderError, UsageError

if TYPE_CHECKING:
    from gpuyard.api.site import Site
    from gpuyard.planning import PlanRequest

PROVIDER_OPTIONS: dict[str, Any] = {
    "provider": {"type": "str", "fallback": (env_fallback, ["GPUYARD_PROVIDER"])},
    # What the environment says of the sandbox is read by the core, which takes an empty variable for none.
    "sandbox": {"type": "bool"},
    "sandbox_state": {"type": "path"},
}

BUCKET_OPTIONS: dict[str, Any] = {"bucket": {"type": "str"}, "bucket_endpoint": {"type": "str"}}

QUERY_OPTIONS: dict[str, Any] = {
    "gpu_count": {"type": "float"},
    "gpu_ram_gb": {"type": "float"},
    "most_gpu_ram_gb": {"type": "float"},
    "gpu_names": {"type": "list", "elements": "str", "default": []},
    "cpu_cores": {"type": "float"},
    "ram_gb": {"type": "float"},
    "disk_gb": {"type": "float"},
    "cuda": {"type": "str"},
    "driver": {"type": "str"},
    "compute_capability": {"type": "str"},
    "reliability": {"type": "float"},
    "internet_mbit_s": {"type": "float"},
    "static_ip": {"type": "bool"},
    "data_center": {"type": "bool"},
    "regions": {"type": "list", "elements": "str", "default": []},
    "countries": {"type": "list", "elements": "str", "default": []},
    "market": {"type": "str", "choices": ["on-demand", "interruptible", "any"]},
    "max_price_per_hour": {"type": "float"},
    "rank": {"type": "str", "choices": ["price", "value", "distance", "regions"]},
}

REPORT_OPTIONS: dict[str, Any] = {"report": {"type": "path"}}

SITE_OPTIONS = ("sandbox", "sandbox_state", "bucket", "bucket_endpoint", "ssh_key")
"""Where the clouds, the bucket and the SSH key are: the same for all verbs of a play."""

PLAN_OPTIONS: dict[str, Any] = (
    PROVIDER_OPTIONS
    | BUCKET_OPTIONS
    | QUERY_OPTIONS
    | {
        "mode": {"type": "str", "choices": ["launch", "resume"], "default": "launch"},
        "workload": {"type": "str"},
        "run": {"type": "str"},
        "profiles": {"type": "list", "elements": "str", "default": []},
        "overrides": {"type": "raw"},
        "iterations": {"type": "int"},
        "stage": {"type": "str"},
        "from_stage": {"type": "str"},
        "until_stage": {"type": "str"},
        "iteration": {"type": "int"},
        "lease_hours": {"type": "float"},
        "budget_usd": {"type": "float"},
        "offer": {"type": "str"},
        "box": {"type": "str"},
        "move": {"type": "bool", "default": False},
        "restore": {"type": "int"},
        "update": {"type": "bool", "default": False},
        "ssh_key": {"type": "path", "no_log": False},
        "converge": {"type": "str", "choices": ["auto", "full"], "default": "auto"},
        "follow": {"type": "bool"},
        "shutdown": {"type": "bool", "default": False},
    }
)


def _silent(line: str) -> None:
    """Show no progress: a module process has nobody to show it to."""


def _unprepared(names: Iterable[str]) -> None:
    """Make nothing ready: no task comes after a module process that could use it."""


@dataclass(frozen=True)
class Call:
    """One call of a verb: its validated options, and the way to tell what is going on."""

    params: dict[str, Any]
    check_mode: bool = False
    progress: Callable[[str], None] = field(default=_silent)
    next_on_machines: Callable[[Iterable[str]], None] = field(default=_unprepared)
    """Takes names of modules that the next tasks send to machines, in their order, so that they are made ready."""

    def option(self, name: str) -> Any:
        """Return an option, with an empty text meaning that it was not said (plays pass on what they were given)."""
        value = self.params.get(name)
        return None if value == "" else value

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of the named options that were said."""
        return {name: value for name in names if (value := self.option(name)) not in (None, [], {})}

    def site(self) -> Site:
        """Return where the options say that the clouds, the bucket and the SSH key are."""
        from gpuyard.api.site import Site

        named = {
            name: self.option(name) for name in ("provider", "sandbox", "sandbox_state", "bucket_endpoint", "ssh_key")
        }
        if self.option("box"):
            named["provider"] = "own"  # which is checked with the rest of the request
        return Site(bucket=self.params.get("bucket"), **named)  # an empty bucket is an answer: there is none


def stays(call: Call) -> bool:
    """Tell whether a launch stays until the run ends: as it is told, else where it is to end the rental then."""
    follow, shutdown = call.params["follow"], call.params["shutdown"]
    return bool(shutdown if follow is None else follow)


def plan_request(call: Call) -> PlanRequest:
    """Return what the options of :data:`PLAN_OPTIONS` ask for."""
    from gpuyard.box.stages.choice import Choice
    from gpuyard.planning import PlanRequest
    from gpuyard.providers.base import OWN

    where = call.given("provider", "offer")
    if box := call.option("box"):
        if where.get("provider", OWN) != OWN or "offer" in where:
            raise UsageError(f"box={box} is a box of your own, so provider and offer are not said beside it.")
        where = {"provider": OWN, "offer": box}
    if call.params["move"] and not call.option("run"):
        raise UsageError("Which run is to move? Name it with -e run=….")
    return PlanRequest(
        mode=call.params["mode"],
        move=call.params["move"],
        max_price_per_hour_usd=call.option("max_price_per_hour"),
        shutdown=call.params["shutdown"],
        update=call.params["update"],
        follow=stays(call),
        conditions=call.given(*(name for name in QUERY_OPTIONS if name not in ("market", "max_price_per_hour"))),
        choice=Choice(
            call.option("from_stage"), call.option("stage"), call.option("iteration"), call.option("until_stage")
        ),
        **call.given("profiles", "overrides", "iterations"),
        **call.given("workload", "run", "market", "restore", "lease_hours", "budget_usd"),
        **where,
    )


Verb = Callable[[Call], dict[str, Any]]


def attempt(verb: Verb, call: Call) -> dict[str, Any]:
    """Return the result of ``verb``; an error that a user can understand becomes a failed result of one sentence.

    ``failure`` says the same to a program: ``kind`` is the name of the error's class in gpuyard.errors.
    """
    if problem := core_problem():
        return {"failed": True, "msg": problem}
    try:
        return {"changed": False} | verb(call)
    except GpuyardError as error:
        failure: dict[str, Any] = {"kind": type(error).__name__}
        if isinstance(error, ProviderError):
            failure |= {
                "provider": error.provider,
                "status": error.status,
                "code": error.code,
                "instance_id": error.instance_id,
            }
        return {"failed": True, "changed": False, "msg": str(error), "failure": failure}


def run_module(verb: Verb, argument_spec: dict[str, Any], **conditions: Any) -> None:
    """Run ``verb`` as a module; ``conditions`` are those of AnsibleModule between options."""
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True, **conditions)
    result = attempt(verb, Call(module.params, module.check_mode))
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)
