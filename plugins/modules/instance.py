#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rented machine of a run: there, stopped, or gone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: instance
short_description: Rent, stop, start and destroy the machine of a run
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Brings the machine of a run, or of one node of it, into a state. A node has one machine; the names of both are on
    the machine from the first moment, as the label or the tags of the provider.
  - Nothing is rented twice. A run that has a machine keeps it. A create whose answer was lost is looked up by its label
    for 30 seconds, as long as a new machine may be missing from its cloud's list, and adopted when it is there.
  - A request without an answer is noted in the bucket, or below C(~/.gpuyard) where there is none, so that the next
    task for the run, on any controller, looks for its machine before it rents.
  - When an offer turns out to be sold out, the next one is taken. Any other refusal ends the task, with what was
    rented destroyed.
  - With O(offers) and a bucket, the right to rent for the run is claimed in the bucket (C(<run>/claims/)). A second
    controller waits for the first one, and then finds its machine. A claim whose controller was killed ends by itself
    after a minute.
  - After renting, every cloud with a key is asked once more, whichever O(provider) says. When another controller has
    rented for the run at the same moment, the younger of the two machines goes back and its task fails; the other task
    says what it saw.
  - What the machine costs, from when to when, is written into the ledger in the bucket (C(<run>/ledger/)), where
    M(gpuyard.cloud.run_info) counts it also when the machine is gone. A bucket that does not answer is told, and no
    reason not to rent or to destroy.
  - The SSH host key of a new machine is pinned under a name that belongs to the machine, not to an address.
  - Progress is shown line by line while it runs.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
  - gpuyard.cloud.query
  - gpuyard.cloud.bucket
attributes:
  check_mode:
    support: full
    details: RV(planned_calls) holds the writing calls that would be made; none is made.
  diff_mode:
    support: full
options:
  run:
    description: The name of the run.
    type: str
    required: true
  node:
    description:
      - The node of the run that the machine serves, C(<pool>-<number>). The default is the one node of a run whose
        workload names no pools of several.
      - O(state=absent) ends all nodes of the run, whatever this says.
    type: str
    default: main-0
  state:
    description:
      - With V(present), the run has a machine that runs and answers over SSH.
      - With V(absent), every machine of the run at every cloud asked is destroyed, whatever is on it, and confirmed
        gone. M(gpuyard.cloud.run_end) destroys only what is saved.
      - With V(stopped) and V(started), the run's machine is stopped and started, at clouds that can do that. A stopped
        machine still costs something, at some clouds the full price.
      - With V(rebooted), the run's machine is rebooted, each time. Stages that run on it end; a launch goes on with
        them.
    type: str
    choices: [present, absent, started, stopped, rebooted]
    default: present
  workload:
    description: The name of the run's workload, which is on the machine's label. Needed to rent.
    type: str
  offers:
    description:
      - The offers to try, the best first, as RV(gpuyard.cloud.offer_info#module:offers) or
        RV(gpuyard.cloud.run_plan#module:plan) say them.
      - By default, the clouds are asked for what fits the conditions given here.
    type: list
    elements: dict
  image:
    description: The container image to boot, where the provider takes one. Empty for the provider's own choice.
    type: str
    default: ""
  ssh_key:
    description:
      - The path of the private SSH key with which the machine is reached.
      - By default, gpuyard uses a key of its own, C(~/.gpuyard/keys/id_ed25519).
      - A machine that another controller has rented knows that controller's key only, and the task fails with a
        sentence that names the keys.
    type: path
  replace_preempted:
    description:
      - What to do when the provider has taken the run's machine away. Without this, nothing is done and the task
        fails, since the disk of that machine may hold the only copy of the last work.
      - With V(true), what is left of it is destroyed and another machine is rented. Say so only when the work is in
        the bucket.
    type: bool
    default: false
  wait:
    description: Whether to come back only when the machine runs and answers over SSH.
    type: bool
    default: true
  timeout:
    description: How many seconds to wait for one machine before it is given back and the next offer is tried.
    type: int
    default: 900
seealso:
  - module: gpuyard.cloud.run_plan
  - module: gpuyard.cloud.instance_info
"""

EXAMPLES = r"""
- name: Rent a machine for the run, as planned
  gpuyard.cloud.instance:
    run: "{{ planned.plan.run }}"
    workload: "{{ planned.plan.workload.name }}"
    offers: "{{ planned.plan.offers }}"
  register: rented

- name: Rent any machine with 24 GB of GPU memory
  gpuyard.cloud.instance:
    run: notebook-0
    workload: notebook
    gpu_ram_gb: 24
    max_price_per_hour: 0.60

- name: End the rental
  gpuyard.cloud.instance:
    run: notebook-0
    state: absent
"""

RETURN = r"""
instance:
  description:
    - The machine; empty when there is none.
    - C(idle_price_per_hour_usd) is what it costs while it does not run (at Vast its disk, at Vultr all of it), and
      C(cost_now_per_hour_usd) what it costs in its present state.
  returned: success
  type: dict
  sample:
    provider: vast
    id: "1234567"
    run: notebook-0
    workload: notebook
    state: running
    region: SE
    gpu_name: RTX 4090
    price_per_hour_usd: 0.43
    idle_price_per_hour_usd: 0.02
    cost_now_per_hour_usd: 0.43
    ssh_host: 203.0.113.7
    ssh_port: 40022
    emulated: false
connection:
  description: What Ansible needs to reach it, as host variables; empty when there is no machine.
  returned: success
  type: dict
  sample:
    ansible_host: 203.0.113.7
    ansible_port: 40022
    ansible_user: root
rented:
  description: Whether the machine is one that this task has rented, and that holds no work yet.
  returned: success
  type: bool
actions:
  description: What was done, or would be done in check mode, in words.
  returned: success
  type: list
  elements: str
  sample: ["rent RTX 4090 at vast (SE, 0.43 USD/h) for notebook-0"]
planned_calls:
  description: The writing calls to the provider's API that check mode did not make.
  returned: in check mode
  type: list
  elements: dict
  sample: [{method: PUT, url: "https://console.vast.ai/api/v0/asks/6001/", body: {label: gpuyard/notebook-0/notebook}}]
failure:
  description: What went wrong, for programs.
  returned: failure
  type: dict
  sample: {kind: NoCapacityError, provider: vast, status: 400, code: no_such_ask, instance_id: null}
"""

from typing import TYPE_CHECKING, Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import (
    BUCKET_OPTIONS,
    PROVIDER_OPTIONS,
    QUERY_OPTIONS,
    Call,
    run_module,
)

if TYPE_CHECKING:
    from gpuyard.providers.base import Offer, Provider
    from gpuyard.renting.machine import Outcome

ARGUMENT_SPEC: dict[str, Any] = (
    PROVIDER_OPTIONS
    | QUERY_OPTIONS
    | BUCKET_OPTIONS
    | {
        "run": {"type": "str", "required": True},
        "node": {"type": "str", "default": "main-0"},
        "state": {
            "type": "str",
            "choices": ["present", "absent", "started", "stopped", "rebooted"],
            "default": "present",
        },
        "workload": {"type": "str"},
        "offers": {"type": "list", "elements": "dict"},
        "image": {"type": "str", "default": ""},
        "ssh_key": {"type": "path", "no_log": False},
        "replace_preempted": {"type": "bool", "default": False},
        "wait": {"type": "bool", "default": True},
        "timeout": {"type": "int", "default": 900},
    }
)
CONDITIONS: dict[str, Any] = {}


def run(call: Call) -> dict[str, Any]:
    """Bring the run's machine into the wanted state."""
    from gpuyard import market, records
    from gpuyard import ssh
    from gpuyard.formats.label import check_node
    from gpuyard.renting import claim, ledger, machine, notebook, pending

    state = call.params["state"]
    site = call.site()
    if state == "present":
        # A misspelt sandbox_state at the end of a run must not become a new sandbox.
        site.start_sandbox(call.progress)
    clouds = site.clouds()
    how: dict[str, Any] = {"check": call.check_mode, "progress": call.progress}
    shared = notebook.Notebook(site.shared_store)
    book = ledger.Ledger(shared, call.progress)
    notes = pending.PendingNotes(shared, call.progress)
    if state == "absent":
        # First, so that nothing that only other states need can be in the way of ending what bills.
        return report(call, machine.absent(clouds, call.params["run"], ledger=book, notes=notes, **how), {}, clouds)
    key = site.key()

    def offers() -> list[Offer]:
        if call.params["offers"] is not None:
            return [records.offer_from_dict(offer) for offer in call.params["offers"]]
        query = records.query_from_dict(call.given(*QUERY_OPTIONS))
        return market.choose(market.collect(clouds, query, progress=call.progress).offers, query)

    order = machine.Order(
        run=call.params["run"],
        node=check_node(call.params["node"]),
        workload=call.option("workload"),
        offers=offers,
        key=key,
        image=call.params["image"],
        planned=bool(call.params["offers"]),
        replace_preempted=call.params["replace_preempted"],
        wait=call.params["wait"],
        timeout_s=call.params["timeout"],
        everywhere=site.every_cloud() if site.provider else clouds,
        notes=notes,
        ledger=book,
        claims=claim.Claims(shared, call.progress),
        **call.given("disk_gb"),
    )
    if state == "stopped":
        outcome = machine.stopped(clouds, order.run, node=order.node, ledger=book, **how)
    else:
        reach = {"started": machine.started, "rebooted": machine.rebooted}.get(state, machine.present)
        outcome = reach(clouds, order, **how)
    return report(call, outcome, ssh.ansible_vars(outcome.instance, key) if outcome.instance else {}, clouds)


def report(call: Call, outcome: Outcome, connection: dict[str, Any], clouds: list[Provider]) -> dict[str, Any]:
    """Return what was done, or in check mode would be, as the module's result."""
    from gpuyard import paths, records
    from gpuyard.hosts import host_name

    run = call.params["run"]
    name = host_name(run, call.params["node"], [call.params["node"]])
    result = {
        "changed": outcome.changed,
        "actions": outcome.actions,
        "instance": records.instance_to_dict(outcome.instance) if outcome.instance else {},
        "connection": connection,
        "rented": outcome.rented,
        "diff": {"before": {"machines": outcome.before}, "after": {"machines": outcome.after}},
    }
    if outcome.instance and call.params["wait"] and not call.check_mode:
        result["text"] = f"Reach it by its name: ssh -F {paths.home() / 'ssh_config'} {name}"
    if call.params["state"] == "absent" and not outcome.changed:
        result["text"] = f"Run {run} has no machine at {' or '.join(cloud.title for cloud in clouds)}."
    if call.check_mode:
        result["planned_calls"] = [records.call_to_dict(planned) for planned in outcome.planned]
        words = records.planned_text(outcome.actions, outcome.planned)
        result["text"] = "\n".join(words) or result.get("text", "")
    return result


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
