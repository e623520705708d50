"""The way to a machine that another controller has rented: its host key is pinned, and our SSH key let in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from gpuyard import ssh
from gpuyard.config import SshKey
from gpuyard.errors import GpuyardError
from gpuyard.providers.base import Instance, Progress, Provider, State
from gpuyard.renting import ready

_AT_ONCE = 8


def let_in(
    clouds: Sequence[Provider],
    instances: Iterable[Instance],
    key: SshKey,
    *,
    timeout_s: float = 30.0,
    progress: Progress | None = None,
) -> None:
    """Make the running machines of runs reachable with ``key`` that this controller has never reached.

    A machine that refuses the key gets it where its cloud, one of ``clouds``, can do that. Nothing is raised: what
    cannot be reached is told, and whoever asks that machine next finds out. Machines that this controller knows are not
    asked, so that nothing is waited for.
    """
    by_name = {cloud.name: cloud for cloud in clouds}
    strangers = [
        instance
        for instance in instances
        if instance.ref
        and instance.ssh_host
        and instance.state is State.RUNNING
        and instance.provider in by_name
        and ssh.host_key_fingerprint(instance) is None
    ]

    def reach(instance: Instance) -> str:
        cloud = by_name[instance.provider]
        try:
            ready.wait_ssh(
                instance,
                key,
                new=False,
                account_keys=cloud.ssh_keys,
                add_key=partial(cloud.add_ssh_key, instance.id, key.public_text),
                timeout_s=timeout_s,
            )
        except GpuyardError as error:
            # Its next visit is a first one again, and may come with another key.
            ssh.forget_host_key(instance)
            return str(error)
        return ""

    if strangers:
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            for trouble in filter(None, pool.map(reach, strangers)):
                if progress:
                    progress(trouble)
