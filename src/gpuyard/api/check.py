"""Whether everything is there that a launch needs, before anything is rented."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from gpuyard import config, records
from gpuyard.api import preconditions
from gpuyard.api.preconditions import Finding
from gpuyard.api.site import Site
from gpuyard.errors import UsageError
from gpuyard.providers.base import OWN
from gpuyard.remedies import option
from gpuyard.workload import resolve

WIDTH = 66
"""How wide a cell of the table is that holds a sentence, in characters."""


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """For which workload, a name or a path with its ``profiles``; ``None`` for none."""

    workload: str | None = None
    profiles: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """What was looked at, in the order in which it is told."""

    findings: list[Finding]

    @property
    def failed(self) -> list[str]:
        """What a launch would fail at."""
        return [finding.what for finding in self.findings if finding.level == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, without any secret."""
        return {"checks": [asdict(finding) for finding in self.findings], "failed_checks": self.failed}

    def render(self) -> str:
        """Return it as a table for people."""
        rows = [["what", "state", "found", "what to do"]]
        for one in self.findings:
            sentences = (textwrap.wrap(text or "-", WIDTH) for text in (one.found, one.todo))
            cells: list[list[str]] = [[one.what], [one.level], *sentences]
            rows += [list(row) for row in itertools.zip_longest(*cells, fillvalue="")]
        return "\n".join(records.table(rows))


def check(site: Site, request: CheckRequest) -> Checked:
    """Ask everything at the same time: the clouds of ``site``, the bucket, Weights & Biases, and this machine.

    The only thing written anywhere is a small object in the bucket, which is deleted again. What is missing is a
    finding, no error. Raises :class:`UsageError` for a workload that is none, and for an unknown provider.
    """
    config.check_provider(site.provider)
    if request.profiles and not request.workload:
        raise UsageError(
            f"profile={','.join(request.profiles)} is a workload's, and none is named: add {option('workload')}."
        )
    workload = resolve(request.workload, profiles=request.profiles).workload if request.workload else None
    asked: list[Callable[[], Finding | None]] = []
    absent: list[Finding] = []
    try:
        clouds = site.clouds()
    except UsageError as error:
        absent.append(Finding("clouds", "failed", str(error), "Set a key, or use the sandbox."))
    else:
        asked += [partial(preconditions.cloud, one) for one in clouds]
        absent += _without_key(site, {one.name for one in clouds})
    asked += [partial(step, site) for step in (preconditions.ssh_key, preconditions.bucket, preconditions.clock)]
    if workload:
        asked += [partial(step, workload) for step in (preconditions.environment, preconditions.wandb)]
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        found = list(pool.map(lambda step: step(), asked))
    known = [finding for finding in found if finding]
    at = next((place for place, finding in enumerate(known) if finding.what == "SSH key"), len(known))
    return Checked([*known[:at], *absent, *known[at:], *preconditions.programs()])


def _without_key(site: Site, names: set[str]) -> list[Finding]:
    """Return the clouds that are not asked because they have no key; nothing of a sandbox, which has them all."""
    if site.provider or config.World.of(site.sandbox, site.sandbox_state).sandbox:
        return []
    return [
        Finding(name, "skipped", f"No key; {cloud.credential.variable} or {cloud.credential.file} would hold it.")
        for name, cloud in config.CLOUDS.items()
        if name not in names and name != OWN
    ]
