"""Snapshots: which machine of a run one is made of and how, which there are, and their end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuyard import bundles, ssh
from gpuyard.api.site import Site
from gpuyard.errors import UsageError
from gpuyard.formats.bundle import Bundle
from gpuyard.providers.base import Progress, Provider
from gpuyard.remedies import option, remedy
from gpuyard.renting import access, record, survey
from gpuyard.workload import Workload, from_document


@dataclass(frozen=True, slots=True)
class Target:
    """The machine that a snapshot is made of, and the workload that the bucket says its run has, if it says so.

    ``way`` is how: see :func:`way_of`. ``connection`` holds Ansible's variables.
    """

    host: str
    way: str
    connection: dict[str, str | int]
    workload_name: str
    workload: Workload | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, without any secret."""
        workload = self.workload
        return {
            "name": self.host,
            "way": self.way,
            "vars": self.connection,
            "workload": self.workload_name,
            "verify": list(workload.verify) if workload else [],
            "environment": dict(workload.environment.set) if workload else {},
            "persist_root": workload.persist.root if workload else "",
            "price_per_gb_month": workload.storage.price_per_gb_month if workload and workload.storage else 0.0,
        }


def way_of(cloud: Provider) -> str:
    """Return how a machine of ``cloud`` is kept for the next one: ``bundle``, in the bucket.

    The one place that decides it: a cloud with snapshots of its own says so here.
    """
    return "bundle"


def prepare(site: Site, run: str, *, progress: Progress) -> Target:
    """Return the machine of ``run`` that a snapshot can be made of; raises :class:`UsageError` when there is none."""
    if not run:
        raise UsageError(f"A snapshot is made of the machine of a run: name it with {option('run', '…')}.")
    shelf = bundles.shelf(site.bucket_settings())
    clouds, key = site.clouds(), site.key()
    machines = [one for one in survey.find(clouds, run) if one.runs and one.ssh_host]
    if not machines:
        raise UsageError(
            f"Run {run} has no running machine, so there is nothing to make a snapshot of: "
            f"`{remedy('launch', run=run)}` rents one."
        )
    access.let_in(clouds, machines, key, progress=progress)
    machine = machines[0]
    kept = record.read(shelf.store, run)
    workload = from_document(kept.made_of.workload).workload if kept.made_of else None
    if workload is None:
        progress(f"The bucket does not say what run {run} is made of, so nothing is verified before the snapshot.")
    name = machine.ref.workload if machine.ref else run
    cloud = next(cloud for cloud in clouds if cloud.name == machine.provider)
    return Target(run, way_of(cloud), ssh.ansible_vars(machine, key), name, workload)


def listed(site: Site) -> list[Bundle]:
    """Return the bundles in the bucket, the newest first."""
    return bundles.shelf(site.bucket_settings()).all()


def delete(site: Site, key: str, *, check: bool = False) -> list[Bundle]:
    """Delete the bundles whose key begins with ``key``, or with ``check`` only return them.

    Raises :class:`UsageError` when there is none, or when they have different keys.
    """
    if not key:
        raise UsageError(f"Which bundle? Name it with {option('bundle', '…')}; {option('state', 'listed')} lists them.")
    shelf = bundles.shelf(site.bucket_settings())
    found = [bundle for bundle in shelf.all() if bundle.key.startswith(key)]
    keys = sorted({bundle.key for bundle in found})
    if len(keys) != 1:
        known = f"{len(keys)} of them begin like that: {', '.join(keys)}" if keys else "the bucket has none like that"
        raise UsageError(f"bundle={key} names no one bundle: {known}; {option('state', 'listed')} lists them.")
    return found if check else shelf.delete(keys[0])


def describe(bundle: Bundle) -> str:
    """Return a line about a bundle: key, workload, platform, sizes and age."""
    return (
        f"{bundle.key[:12]}  {bundle.workload or '-':<16} {bundle.platform}  {bundle.size / 1e6:.0f} MB "
        f"({bundle.unpacked_bytes / 1e6:.0f} MB on a machine), {', '.join(bundle.held)}  {bundle.created}"
    )
