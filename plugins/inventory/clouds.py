# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The machines that gpuyard rents, at all clouds, as inventory hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: clouds
short_description: Machines that gpuyard rents
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - Lists the machines of the accounts whose label or tags say that gpuyard rented them. All clouds that have a key are
    asked at the same time, once.
  - Boxes of the user's own (C(inventories/own.yml)) are asked in the same way; those that a run has claimed are hosts,
    in the group C(provider_own).
  - A host has the name of its run; where a run has several nodes, C(<run>.<node>). A second machine of a node, and one
    that was taken away, has the end of its instance id behind that.
  - Every host is in the group C(gpuyard) and in groups by provider, run, workload, pool, GPU, region and state, such as
    C(provider_vast), C(run_miniprover_0), C(workload_miniprover), C(pool_main), C(gpu_rtx_4090), C(region_se),
    C(state_running).
  - Variables of a host are C(gpuyard_provider), C(gpuyard_instance_id), C(gpuyard_run), C(gpuyard_workload),
    C(gpuyard_node), C(gpuyard_state), C(gpuyard_status_text), C(gpuyard_gpu_name), C(gpuyard_gpu_count),
    C(gpuyard_gpu_ram_gb), C(gpuyard_region), C(gpuyard_market), C(gpuyard_price_per_hour_usd), C(gpuyard_created_at),
    C(gpuyard_emulated), and what Ansible needs to reach it over SSH with its host key pinned.
  - Without a key there are no hosts and no error. A cloud that does not answer is a warning that names it; all clouds
    together have eight seconds.
  - The plays of this collection find their machines by themselves. In a command that runs nothing but such plays
    (C(launch.yml), C(gpuyard.cloud.status)), the clouds are not asked and the inventory has no hosts of theirs.
  - The file must be named C(gpuyard.yml) or C(clouds.yml), or end with it, as in C(my.gpuyard.yml); C(.yaml) will do.
  - C(gpuyard.cloud.vast), C(gpuyard.cloud.vultr), C(gpuyard.cloud.lambda_cloud) and C(gpuyard.cloud.runpod) are names
    of this plugin for the machines of one cloud, in files named C(vast.yml), C(vultr.yml), C(lambda_cloud.yml) and
    C(runpod.yml).
extends_documentation_fragment:
  - constructed
  - inventory_cache
options:
  plugin:
    description: The name of this plugin. With the name of a cloud only that one is asked.
    type: str
    required: true
    choices:
      - gpuyard.cloud.clouds
      - gpuyard.cloud.vast
      - gpuyard.cloud.vultr
      - gpuyard.cloud.lambda_cloud
      - gpuyard.cloud.runpod
  provider:
    description:
      - Ask only the cloud that is named here.
      - The extra variable C(provider) (C(-e provider=vast)) wins over this option.
    type: str
    env:
      - name: GPUYARD_PROVIDER
  sandbox:
    description:
      - Whether to list the machines of the clouds that C(gpuyard sandbox) emulates on this machine instead of the
        real ones.
      - In order of precedence it is said by the extra variable C(sandbox), by this option, by E(GPUYARD_SANDBOX), and
        by C(sandbox) in the C(group_vars/all.yml) next to the inventory.
      - Where nobody says anything, the real clouds are asked that have a key. When there is no key of any cloud, and a
        sandbox runs in the default state folder, the machines of the sandbox are listed, with C(gpuyard_emulated) set.
        So C(ansible-inventory --graph) shows what C(ansible-playbook launch.yml -e sandbox=true) has rented.
      - A sandbox that does not run has no hosts; the inventory never starts it.
    type: bool
    env:
      - name: GPUYARD_SANDBOX
  sandbox_state:
    description:
      - The folder in which the sandbox keeps its state. Default, C(~/.gpuyard/sandbox).
      - The extra variable C(sandbox_state) wins over it.
    type: path
    env:
      - name: GPUYARD_SANDBOX_STATE
  ssh_key:
    description:
      - The path of the private SSH key with which the machines are reached. Default, gpuyard's own key.
      - The extra variable C(ssh_key) wins over it.
    type: path
requirements:
  - gpuyard (the Python package that this collection belongs to), in the Python that runs Ansible
"""

EXAMPLES = r"""
# inventories/gpuyard.yml
plugin: gpuyard.cloud.clouds

# Groups and variables of one's own, and a cache for large inventories:
# plugin: gpuyard.cloud.clouds
# cache: true
# cache_plugin: ansible.builtin.jsonfile
# cache_connection: .ansible/inventory
# cache_timeout: 60
# groups:
#   cheap: gpuyard_price_per_hour_usd < 0.5
# keyed_groups:
#   - key: gpuyard_market
#     prefix: market
# compose:
#   cost_per_day: gpuyard_price_per_hour_usd * 24
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from ansible import context
from ansible.errors import AnsibleParserError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable, to_safe_group_name
from jinja2 import Environment, TemplateError, nodes
from jinja2.filters import FILTERS
from jinja2.tests import TESTS

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core

with suppress(ImportError):  # told when the inventory is read
    from gpuyard import paths
    from gpuyard.api import hosts
    from gpuyard.api.site import Site
    from gpuyard.errors import GpuyardError, UsageError

NAME = "gpuyard.cloud.clouds"
# The names of this plugin for one cloud, and the clouds.
ALIASES = {"vast": "vast", "vultr": "vultr", "lambda_cloud": "lambda", "runpod": "runpod"}
# What the site's configuration can say to this plugin.
SITE_VARIABLES = ("sandbox", "sandbox_state", "ssh_key")
COLLECTION = Path(__file__).resolve().parents[2]
PLAIN = (str, int, float, type(None))
# What makes the same of the same values, whenever it is asked.
SAME_FILTERS = {*FILTERS, "regex_replace", "regex_search", "bool", "ternary", "split"} - {"random"}
SAME_TESTS = {*TESTS, "match", "search", "regex"}


class Host(TypedDict):
    """A finished host: all that is kept in the cache. Holds no secret."""

    name: str
    groups: list[str]
    variables: dict[str, Any]


def needs_no_hosts(playbooks: Any) -> bool:
    """Return whether a command line names playbooks, and all of them are this collection's own.

    Those find their machines by themselves, and a cloud that is silent should not hold them up. What another command
    (``ansible``, ``ansible-inventory``) has in this place is a text.
    """
    own = {file.stem for file in COLLECTION.glob("playbooks/*.yml")}

    def ours(playbook: str) -> bool:
        if playbook.startswith("gpuyard.cloud."):
            return playbook.removeprefix("gpuyard.cloud.") in own
        path = Path(playbook).resolve()
        return path.stem in own and path.parent in (COLLECTION, COLLECTION / "playbooks")

    return isinstance(playbooks, list | tuple) and len(playbooks) > 0 and all(map(ours, playbooks))


class Memo:
    """What an expression has been worked out to, by the variables that it names."""

    def __init__(self, template: Any) -> None:
        """Look which variables it names; an expression that cannot be read, or may change its mind, is not kept."""
        self.values: dict[tuple[Any, ...], Any] = {}
        self._names: tuple[str, ...] | None = None
        with suppress(TemplateError, TypeError):
            tree = Environment(autoescape=True).parse("{{ " + str(template) + " }}")
            filters = {found.name for found in tree.find_all(nodes.Filter)}
            tests = {found.name for found in tree.find_all(nodes.Test)}
            if filters <= SAME_FILTERS and tests <= SAME_TESTS:
                self._names = tuple(sorted({found.name for found in tree.find_all(nodes.Name)}))

    def key(self, variables: Any, extra: Any) -> tuple[Any, ...] | None:
        """Return what the value depends on; ``None`` where that is more than plain values of these ``variables``."""
        if self._names is None:
            return None
        found: list[Any] = []
        for name in self._names:
            value = variables.get(name)
            # What is no variable of the host may be a function (lookup, now); an extra variable may be a template.
            if name not in variables or name in extra or not isinstance(value, PLAIN):
                return None
            found += [type(value), value]
        return tuple(found)


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """The inventory plugin gpuyard.cloud.clouds."""

    NAME = NAME
    _known: dict[str, Memo]

    def verify_file(self, path: str) -> bool:
        """Return whether ``path`` is a file for this plugin, by the end of its name."""
        names = ("gpuyard", "clouds", *ALIASES)
        return super().verify_file(path) and path.endswith(
            tuple(f"{name}.{end}" for name in names for end in ("yml", "yaml"))
        )

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the hosts of ``path`` to ``inventory``; ``cache`` is false when a fresh answer is asked for."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        require_core(AnsibleParserError)
        if needs_no_hosts(context.CLIARGS.get("args")):
            return
        self._known = {}
        self._safe_names: dict[str, str] = {}
        wishes = {name: self.get_option(name) for name in ("strict", "compose", "groups", "keyed_groups")}
        for host in self._hosts(path, cache):
            self._add(host, **wishes)

    def _add(self, host: Host, *, strict: bool, compose: Any, groups: Any, keyed_groups: Any) -> None:
        """Add one host with its variables and groups, those of the user's configuration included."""
        name = host["name"]
        self.inventory.add_host(name)
        added = self.inventory.get_host(name)
        for variable, value in host["variables"].items():
            added.set_variable(variable, value)
        for group in host["groups"]:
            if group not in self._safe_names:
                self._safe_names[group] = self.inventory.add_group(to_safe_group_name(group))
            self.inventory.add_child(self._safe_names[group], name)
        facts = added.get_vars()
        if compose:
            self._set_composite_vars(compose, facts, name, strict=strict)
            facts = added.get_vars()
        # The facts are complete, so that Ansible need not put them together again for every group.
        self._add_host_to_composed_groups(groups, facts, name, strict=strict, fetch_hostvars=False)
        self._add_host_to_keyed_groups(keyed_groups, facts, name, strict=strict, fetch_hostvars=False)

    def _compose(self, template: Any, variables: Any, *further: Any, **options: Any) -> Any:
        """Return an expression's value for a host, as Ansible does; once for all hosts for which it has to be the same.

        Ansible compiles an expression anew for each host, which takes most of the time of a large inventory.
        """
        if template not in self._known:
            self._known[template] = Memo(template)
        memo = self._known[template]
        key = memo.key(variables, self._vars)
        if key is not None and key in memo.values:
            return memo.values[key]
        value = super()._compose(template, variables, *further, **options)
        if key is not None and isinstance(value, PLAIN):
            memo.values[key] = value
        return value

    def _hosts(self, path: str, cache: bool) -> list[Host]:
        """Return the hosts, from the cache when it is on and has them, else from the clouds.

        What goes wrong is a warning. An answer that lacks a cloud is not kept.
        """
        try:
            site = self._site(path)
            if site is None:
                return []
            # The same file may stand for the real clouds now and for one of several sandboxes later.
            key = self.get_cache_key(f"{path}|{site}")
            kept: list[Host] | None = self._cache.get(key) if cache and self.get_option("cache") else None
            if kept is not None:
                return kept
            answer = hosts.find(site, taken=[*self.inventory.hosts, *self.inventory.groups]).to_dict()
        except GpuyardError as error:
            self.display.warning(f"{self.NAME}: {error}")
            return []
        for text in dict.fromkeys(answer["unanswered"].values()):
            self.display.warning(f"{self.NAME}: {text}")
        found: list[Host] = answer["hosts"]
        if self.get_option("cache") and not answer["unanswered"]:
            self._cache[key] = found
        return found

    def _site(self, path: str) -> Site | None:
        """Return where to look; ``None`` for nowhere: this file is for another cloud than the one that is wanted."""
        alias = self.get_option("plugin").rpartition(".")[2]
        provider = self._vars.get("provider") or self.get_option("provider")
        if alias in ALIASES:
            if provider not in (None, "", ALIASES[alias]):
                return None
            provider = ALIASES[alias]
        said = self._said("sandbox", path)
        try:
            sandbox = None if said is None else boolean(said)
        except TypeError as error:
            raise UsageError(f"sandbox={said!r} is neither true nor false.") from error
        state, ssh_key = self._said("sandbox_state", path), self._said("ssh_key", path)
        return Site(
            provider=str(provider) if provider else None,
            sandbox=sandbox,
            sandbox_state=str(state or paths.sandbox_state()),
            ssh_key=str(ssh_key) if ssh_key else None,
        )

    def _said(self, name: str, path: str) -> Any:
        """Return the value of ``name``: extra variable, option or environment, group_vars/all next to the inventory."""
        for value in (self._vars.get(name), self.get_option(name)):
            if value not in (None, ""):
                return value
        return self._site_variables(path).get(name)

    def _site_variables(self, path: str) -> dict[str, Any]:
        """Return the site configuration, which Ansible itself loads only after the inventory plugins ran."""
        variables: dict[str, Any] = {}
        for file in self.loader.find_vars_files(str(Path(path).parent / "group_vars"), "all"):
            variables.update(self.loader.load_from_file(file, trusted_as_template=True) or {})
        return {name: self.templar.template(variables[name]) for name in SITE_VARIABLES if name in variables}

    def update_cache_if_changed(self) -> None:
        """Write the cache, readable by its owner only: it says where the machines are."""
        super().update_cache_if_changed()
        folder = self.get_option("cache_connection")
        if folder and Path(folder).is_dir():
            # Ansible puts prefixes of its own in front of the key that get_cache_key made.
            for file in Path(folder).glob(f"*{self.ansible_name}_*"):
                file.chmod(0o600)
