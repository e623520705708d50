"""What rented machines are called as hosts, and which groups they are in: in the inventory, for SSH, and in a play.

A machine that alone serves its run has the run's name. Where a run has several nodes, each is ``<run>.<node>``; a run's
name holds no dot, so the two cannot meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from gpuyard.formats.label import FIRST_NODE, pool_of
from gpuyard.providers.base import Instance, State

# Which of several machines of one node has the node's name: the first of these.
_RANK = (State.RUNNING, State.PENDING, State.STOPPED, State.UNKNOWN)
_END_OF_ID = 6


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of a run as a host. ``groups`` are ``<kind>_<value>``, not yet in the letters that Ansible allows."""

    name: str
    instance: Instance
    groups: tuple[str, ...]


def host_name(run: str, node: str, nodes: Collection[str]) -> str:
    """Return what the host is called that serves ``node``, where ``nodes`` are all nodes of its run."""
    return run if {node, *nodes} == {FIRST_NODE} else f"{run}.{node}"


def named(instances: Iterable[Instance], taken: Collection[str] = ()) -> list[Host]:
    """Return a host for every machine of a run among ``instances``, with names that differ and are not in ``taken``.

    A machine that was taken away, or a second one of its node, has the end of its id behind the node's name. The same
    machines have the same names in whatever order they come. Machines that are not gpuyard's are left out.
    """
    ours = [(instance, instance.ref) for instance in instances if instance.ref is not None]
    nodes: dict[str, set[str]] = {}
    for _, ref in ours:
        nodes.setdefault(ref.run, set()).add(ref.node)
    used = set(taken)
    hosts = []
    for instance, ref in sorted(ours, key=lambda pair: _order(pair[0])):
        plain = host_name(ref.run, ref.node, nodes[ref.run])
        wanted = [f"{plain}-{instance.id[-_END_OF_ID:]}", f"{plain}-{instance.id}"]
        if instance.alive:
            wanted.insert(0, plain)
        name = next((candidate for candidate in wanted if candidate not in used), wanted[-1])
        used.add(name)
        hosts.append(Host(name, instance, groups(instance)))
    return hosts


def groups(instance: Instance) -> tuple[str, ...]:
    """Return the groups of a machine that gpuyard has rented, by what it is and what it is for."""
    ref = instance.ref
    values: Sequence[tuple[str, str]] = [
        ("provider", instance.provider),
        ("run", ref.run if ref else ""),
        ("workload", ref.workload if ref else ""),
        ("pool", pool_of(ref.node) if ref else ""),
        ("gpu", instance.gpu_name.lower()),
        ("region", instance.region.lower().split(",")[-1].strip()),  # "Sweden, SE" at Vast, "ewr" at Vultr
        ("state", str(instance.state)),
    ]
    return ("gpuyard", *(f"{kind}_{value}" for kind, value in values if value))


def _order(instance: Instance) -> tuple[int, float, str]:
    rank = _RANK.index(instance.state) if instance.alive else len(_RANK)
    return rank, instance.created_at or 0.0, instance.id
