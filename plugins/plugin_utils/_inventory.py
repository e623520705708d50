# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the inventory plugins of all clouds share. Private to this collection."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from ansible.errors import AnsibleParserError
from ansible.module_utils.basic import missing_required_lib
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable, to_safe_group_name

try:
    from gpuyard import config, hosts, paths, ssh
    from gpuyard.config import SshKey
    from gpuyard.errors import GpuyardError, UsageError
    from gpuyard.providers.base import Instance
except ImportError as error:
    GPUYARD_IMPORT_ERROR: ImportError | None = error
else:
    GPUYARD_IMPORT_ERROR = None

# What the site's configuration can say to this plugin.
SITE_VARIABLES = ("sandbox", "sandbox_state", "ssh_key")


class Host(TypedDict):
    """A finished host: all that is kept in the cache. Holds no secret."""

    name: str
    variables: dict[str, Any]
    groups: list[str]


def finished_hosts(instances: Iterable[Instance], private_key: Path, taken: Collection[str] = ()) -> list[Host]:
    """Return a host for each of ``instances`` that is ours, reached with the key, with a name not in ``taken``."""
    return [_finished(host, private_key) for host in hosts.named(instances, taken)]


def _finished(host: hosts.Host, private_key: Path) -> Host:
    instance, ref = host.instance, host.instance.ref
    assert ref is not None  # only such machines are hosts
    facts: dict[str, Any] = {
        "provider": instance.provider,
        "instance_id": instance.id,
        "run": ref.run,
        "workload": ref.workload,
        "node": ref.node,
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
    connection = ssh.ansible_vars(instance, SshKey(private_key, ""))
    return {
        "name": host.name,
        "variables": {f"gpuyard_{name}": value for name, value in facts.items()} | connection,
        "groups": [to_safe_group_name(group) for group in host.groups],
    }


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
        if GPUYARD_IMPORT_ERROR is not None:
            raise AnsibleParserError(missing_required_lib("gpuyard")) from GPUYARD_IMPORT_ERROR
        only = self._vars.get("provider") or self.get_option("provider")
        if only and only != self.provider:
            return
        for host in self._hosts(path, cache):
            # A cached name may have gone to another cloud's machine since.
            end = f"-{host['variables']['gpuyard_instance_id'][-6:]}" if host["name"] in self.inventory.hosts else ""
            self._add(host["name"] + end, host)

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
        taken = {*self.inventory.hosts, *self.inventory.groups}
        return finished_hosts(self._instances(sandbox, state), key, taken)

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
