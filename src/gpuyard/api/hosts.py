"""What is rented, as hosts: for an inventory, which must answer soon and show what can be seen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuyard import config, hosts, ssh
from gpuyard.api.site import Site
from gpuyard.config import SshKey
from gpuyard.errors import UsageError
from gpuyard.hosts import Host
from gpuyard.providers.base import Provider
from gpuyard.providers.http import Patience
from gpuyard.renting import survey

ANSWER_S = 8.0
"""How long all clouds together have to answer (seconds)."""
_ONE_TRY = Patience(tries=1, connect_timeout=5.0, read_timeout=ANSWER_S)


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts, reached with the key at ``private_key``, and a sentence for each cloud that could not be asked."""

    found: list[Host]
    private_key: Path
    unanswered: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values: of each host its name, its groups and its variables, none of which is secret."""
        return {
            "hosts": [
                {"name": host.name, "groups": list(host.groups), "variables": self._variables(host)}
                for host in self.found
            ],
            "unanswered": dict(self.unanswered),
        }

    def _variables(self, host: Host) -> dict[str, Any]:
        instance, ref = host.instance, host.instance.ref
        facts = {
            "provider": instance.provider,
            "instance_id": instance.id,
            "run": ref.run if ref else "",
            "workload": ref.workload if ref else "",
            "node": ref.node if ref else "",
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
        connection = ssh.ansible_vars(instance, SshKey(self.private_key, ""))
        return {f"gpuyard_{name}": value for name, value in facts.items()} | connection


def find(site: Site, *, taken: Collection[str] = ()) -> Hosts:
    """Return a host for each instance of gpuyard's at the clouds of ``site``, with names that are not in ``taken``.

    All clouds are asked at the same time, once, and have :data:`ANSWER_S` seconds altogether; one that does not answer
    hides nothing but its own. Where ``sandbox`` is ``None`` and no cloud has a key, what runs in the sandbox is listed.
    Nothing is started and no key is made.
    """
    config.check_provider(site.provider)
    problems: dict[str, str] = {}
    clouds = [] if site.sandbox else _connect(site, problems, sandbox=False)
    if site.sandbox or (site.sandbox is None and not clouds and not problems):
        clouds = _connect(site, problems, sandbox=True)
    seen = survey.take([cloud for cloud in clouds if site.provider in (None, cloud.name)], within_s=ANSWER_S)
    unanswered = {name: text for name, text in problems.items() if site.provider in (None, name)} | seen.unanswered()
    return Hosts(hosts.named(seen.instances, taken), config.key_path(site.ssh_key), unanswered)


def _connect(site: Site, problems: dict[str, str], *, sandbox: bool) -> list[Provider]:
    """Return the clouds that are configured. Each is looked for by itself: a damaged key file hides no other cloud."""
    found: list[Provider] = []
    for name in config.CLOUDS:
        try:
            found += config.connect(
                name, sandbox=sandbox, sandbox_state=site.sandbox_state, require=False, patience=_ONE_TRY
            )
        except UsageError as error:
            problems[name] = str(error)
    return found
