# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the inventory plugins of all clouds share. Private to this collection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from ansible.errors import AnsibleParserError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable, to_safe_group_name

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core

with suppress(ImportError):  # told when the inventory is read
    from gpuyard import config, paths
    from gpuyard import ssh
    from gpuyard.config import SshKey
    from gpuyard.errors import GpuyardError, UsageError
    from gpuyard.providers.base import Instance

# What the site's configuration can say to this plugin.
SITE_VARIABLES = ("sandbox", "sandbox_state", "ssh_key")

# Which of a run's machines is the run, when there are several: the first of these. A machine in another state (taken
# away, failed) never has the plain name, since nothing can be run on it.
STATE_RANK = {"running": 0, "pending": 1, "stopped": 2, "unknown": 3}


class Host(TypedDict):
    """A finished host: all that is kept in the cache. Holds no secret."""

    variables: dict[str, Any]
    groups: list[str]


def finished_host(instance: Instance, private_key: Path) -> Host:
    """Return the host that stands for ``instance``, which is reached with the key; one that is not ours is an error."""
    if instance.ref is None:
        raise ValueError(f"{instance.provider} {instance.id} was not rented by gpuyard")
    facts: dict[str, Any] = {
        "provider": instance.provider,
        "instance_id": instance.id,
        "run": instance.ref.run,
        "workload": instance.ref.workload,
        "state": str(instance.state),
        "status_text": instance.status_text,
        "gpu_name": instance.gpu_name,
        "gpu_count": instance.gpu_count,
        "gpu_ram_gb": instance.gpu_ram_gb,
        "region": instance.region,
        "market": instance.market,
        "price_per_hour_usd": instance.price_per_hour_usd,
        "created_at": instance.created_at,
        "emulated": instance.emulated,
    }
    named = [
        ("provider", instance.provider),
        ("run", instance.ref.run),
        ("workload", instance.ref.workload),
        ("gpu", instance.gpu_name.lower()),
        ("region", instance.region.lower().split(",")[-1].strip()),  # "Sweden, SE" at Vast, "ewr" at Vultr
        ("state", str(instance.state)),
    ]
    groups = [to_safe_group_name(f"{prefix}_{value}") for prefix, value in named if value]
    variables = {f"gpuyard_{name}": value for name, value in facts.items()} | ssh.ansible_vars(
        instance, SshKey(private_key, "")
    )
    return {"variables": variables, "groups": ["gpuyard", *groups]}


def host_names(hosts: Iterable[Host], taken: Iterable[str]) -> Iterator[tuple[str, Host]]:
    """Give each of ``hosts`` a name that is not in ``taken``: the run's, or the run's with the end of the instance id.

    The same machines have the same names whatever order the cloud lists them in.
    """
    used = set(taken)

    def order(host: Host) -> tuple[int, float, str]:
        facts = host["variables"]
        rank = STATE_RANK.get(facts["gpuyard_state"], len(STATE_RANK))
        return rank, facts["gpuyard_created_at"] or 0.0, facts["gpuyard_instance_id"]

    for host in sorted(hosts, key=order):
        facts = host["variables"]
        run, instance_id = facts["gpuyard_run"], facts["gpuyard_instance_id"]
        wanted = [f"{run}-{instance_id[-6:]}", f"{run}-{instance_id}"]
        if facts["gpuyard_state"] in STATE_RANK:
            wanted.insert(0, run)
        name = next((candidate for candidate in wanted if candidate not in used), wanted[-1])
        used.add(name)
        yield name, host


class CloudInventory(BaseInventoryPlugin, Constructable, Cacheable):
    """Lists one provider's machines that gpuyard rented. A subclass names the provider."""

    provider: ClassVar[str]

    def verify_file(self, path: str) -> bool:
        """Return whether ``path`` is a file for this plugin, by the end of its name."""
        return super().verify_file(path) and path.endswith((f"{self.provider}.yml", f"{self.provider}.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the hosts of ``path`` to ``inventory``; ``cache`` is false when a fresh answer is asked for."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        require_core(AnsibleParserError)
        only = self._vars.get("provider") or self.get_option("provider")
        if only and only != self.provider:
            return
        for name, host in host_names(self._hosts(path, cache), [*self.inventory.hosts, *self.inventory.groups]):
            self._add(name, host)

    def _add(self, name: str, host: Host) -> None:
        """Add one host with its variables and groups, those of the user's configuration included."""
        self.inventory.add_host(name)
        for variable, value in host["variables"].items():
            self.inventory.set_variable(name, variable, value)
        for group in host["groups"]:
            self.inventory.add_child(self.inventory.add_group(group), name)
        strict = self.get_option("strict")
        facts = self.inventory.get_host(name).get_vars()
        self._set_composite_vars(self.get_option("compose"), facts, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), facts, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), facts, name, strict=strict)

    def _hosts(self, path: str, cache: bool) -> list[Host]:
        """Return the finished hosts, from the cache when it is on and has them, else from the cloud.

        What goes wrong is a warning, so that one cloud that is down does not hide the machines of another.
        """
        try:
            sandbox, state = self._sandbox(path)
            # The same file may stand for the real cloud now and for one of several sandboxes later.
            key = self.get_cache_key(f"{path}|{sandbox}|{state}")
            if cache and self.get_option("cache") and (kept := self._cache.get(key)) is not None:
                return kept
            hosts = self._asked(sandbox, state, path)
        except GpuyardError as error:
            self.display.warning(f"{self.NAME}: {error}")
            return []
        if self.get_option("cache"):
            self._cache[key] = hosts
        return hosts

    def _asked(self, sandbox: bool | None, state: Path, path: str) -> list[Host]:
        """Return the finished hosts as the cloud has them now."""
        said = self._said("ssh_key", path)
        key = Path(said).expanduser() if said else paths.home() / "keys" / "id_ed25519"
        ours = [instance for instance in self._instances(sandbox, state) if instance.ref is not None]
        return [finished_host(instance, key) for instance in ours]

    def _instances(self, sandbox: bool | None, state: Path) -> list[Instance]:
        """Return the account's machines; an empty list when there is neither a key nor a running sandbox."""
        clouds = [] if sandbox else config.connect(self.provider, sandbox=False, require=False)
        # Nobody said, and there is no account at all: then what runs in the sandbox is what there is.
        if sandbox or (sandbox is None and not config.connect(sandbox=False, require=False)):
            clouds = config.connect(self.provider, sandbox=True, sandbox_state=state, require=False)
        return [instance for cloud in clouds for instance in cloud.instances()]

    def _sandbox(self, path: str) -> tuple[bool | None, Path]:
        """Return whether the sandbox is meant (``None``: nobody said) and its state folder."""
        said = self._said("sandbox", path)
        state = self._said("sandbox_state", path)
        try:
            sandbox = None if said is None else boolean(said)
        except TypeError as error:
            raise UsageError(f"sandbox={said!r} is neither true nor false.") from error
        return sandbox, Path(state).expanduser() if state else paths.sandbox_state()

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
