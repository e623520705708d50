"""A container image of a workload: a container of its base, which plays bring into shape, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpuyard import config, fingerprint
from gpuyard.api.site import Site
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.providers.base import Progress
from gpuyard.renting import record
from gpuyard.sandbox import engine as engines
from gpuyard.sandbox.engine import Engine
from gpuyard.workload import Workload, resolve

_TAG_DIGITS = 16
_LABEL = "gpuyard.fingerprint"
_BUILD_S = 3600.0
# What a base lacks before a role can do anything in it; python3-apt is what installs the rest.
_PYTHON = "command -v python3 >/dev/null || { apt-get update && apt-get install -y --no-install-recommends python3; }"
# Whatever belongs to one machine, or can be had again.
_CLEAN = (
    "rm -rf /opt/gpuyard/run /opt/gpuyard/bundle /opt/gpuyard/*.lock /root/.ssh /root/.ansible /root/.cache /tmp/* "
    "/etc/ssh/ssh_host_* /var/cache/apt/archives/*.deb /var/lib/apt/lists/*"
)


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """An image that is to be made: ``image`` is its name with the tag, ``there`` whether this machine has it already.

    ``plan`` is what the plays take, in the form of a run's plan.
    """

    image: str
    base: str
    container: str
    there: bool
    plan: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "changed": not self.there,
            "image": self.image,
            "base": self.base,
            "container": self.container,
            "there": self.there,
            "plan": self.plan,
        }


def prepare(
    site: Site,
    name_or_path: str,
    *,
    profiles: Sequence[str] = (),
    options: Sequence[str] = (),
    check: bool = False,
    progress: Progress,
) -> ImagePlan:
    """Return the image of a workload, and unless it is there or ``check`` says so, start a container of its base.

    ``options`` are further words for the engine's ``run``, such as ``--network=host``. Raises :class:`UsageError` when
    the workload says nothing of an image, and :class:`gpuyard.sandbox.engine.EngineError`.
    """
    workload = resolve(name_or_path, profiles=profiles).workload
    if workload.container is None:
        raise UsageError(
            f"{workload.source} says nothing of an image: add container: {{base: …, name: …}}, such as base: "
            "docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04."
        )
    source, _tree = record.source_of(workload.local_tree, workload)
    parts = fingerprint.parts(workload.to_box(), source.digest if workload.local_tree else "")
    whole = fingerprint.fingerprint(parts)
    plan = ImagePlan(
        image=f"{workload.container.name}:{whole[:_TAG_DIGITS]}",
        base=workload.container.base,
        container=f"gpuyard-image-{whole[:_TAG_DIGITS]}",
        there=False,
        plan=_plan(site, workload, parts, whole),
    )
    engine = engines.find()
    if engine.image_label(plan.image, _LABEL) == whole:
        progress(f"The image {plan.image} is there already.")
        return ImagePlan(plan.image, plan.base, plan.container, True, plan.plan)
    if not check:
        _start(engine, plan, whole, options, progress)
    return plan


def _plan(site: Site, workload: Workload, parts: dict[str, str], whole: str) -> dict[str, Any]:
    """Return what the plays read of a run's plan."""
    tree = workload.local_tree
    return {
        "workload": workload.to_box(),
        "parts": parts,
        "fingerprint": whole,
        "tree": str(tree or ""),
        "mirrors": config.mirrors(sandbox=site.sandbox, sandbox_state=site.sandbox_state),
    }


def _start(engine: Engine, plan: ImagePlan, whole: str, options: Sequence[str], progress: Progress) -> None:
    """Start a container of the base, with a Python in it. What is left of an earlier attempt goes first."""
    engine.remove(plan.container)
    progress(f"Starting a container of {plan.base}.")
    words = ["--detach", "--name", plan.container, "--label", f"{_LABEL}={whole}", *options]
    engine.run("run", *words, "--entrypoint", "sleep", "--", plan.base, "infinity", timeout_s=_BUILD_S)
    try:
        engine.execute(plan.container, "sh", "-c", _PYTHON, timeout_s=_BUILD_S)
    except GpuyardError:
        engine.remove(plan.container)
        raise


def finish(plan_image: str, container: str, *, push: bool = False, progress: Progress) -> str:
    """Make the image of the container, remove that, and with ``push`` send the image to its registry; return its id.

    Nothing that belongs to one machine is in it: no host key, no log, no secret, no run. Raises
    :class:`gpuyard.sandbox.engine.EngineError`.
    """
    engine = engines.find()
    engine.execute(container, "sh", "-c", _CLEAN)
    whole = (engine.state(container) or engines.ContainerState(container, False, 0, {})).labels.get(_LABEL, "")
    # The base's own way to start stays as it is.
    inherited = engine.run("inspect", "--format", "{{.Image}}", container).strip()
    changes = [f"LABEL {_LABEL}={whole}", *_start_of(engine, inherited)]
    words = [word for change in changes for word in ("--change", change)]
    made = engine.run("commit", *words, container, plan_image, timeout_s=_BUILD_S).strip()
    engine.remove(container)
    if push:
        send(plan_image, progress=progress)
    return made


def _start_of(engine: Engine, image: str) -> list[str]:
    """Return the instructions that start an image as ``image`` is started, since the container itself only sleeps."""

    settings = json.loads(engine.run("image", "inspect", image))[0].get("Config") or {}
    return [
        f"{word.upper()} {json.dumps(settings.get(name) or [])}"
        for word, name in (("entrypoint", "Entrypoint"), ("cmd", "Cmd"))
    ]


def send(image: str, *, progress: Progress) -> None:
    """Push an image to the registry that its name says. Whoever pushes has logged in there with the engine itself."""
    progress(f"Pushing {image}.")
    plain = image.startswith(("localhost:", "127.0.0.1:")) and engines.find().kind == "podman"
    engines.find().run("push", *(["--tls-verify=false"] if plain else []), image, timeout_s=_BUILD_S)


def give_up(container: str) -> None:
    """Remove a container of which no image is to be made."""
    engines.find().remove(container)
