"""A container image of a workload: a container of its base, which plays bring into shape, and what is made of it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuyard import config, fingerprint, registry
from gpuyard.api.site import Site
from gpuyard.errors import GpuyardError, UsageError
from gpuyard.providers.base import Progress
from gpuyard.renting import record
from gpuyard.sandbox import engine as engines
from gpuyard.sandbox.engine import Engine, EngineError
from gpuyard.workload import Workload, resolve

_TAG_DIGITS = 16
_LABEL = "gpuyard.fingerprint"
_BUILD_S = 3600.0
_NO_DIGEST = f"sha256:{'0' * 64}"
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
    push: bool = False,
    check: bool = False,
    progress: Progress,
) -> ImagePlan:
    """Return the image of a workload, and unless it is there or ``check`` says so, start a container of its base.

    ``options`` are further words for the engine's ``run``, such as ``--network=host``. With ``push``, its registry is
    asked first whether it will take the image. Raises :class:`UsageError` when the workload says nothing of an image or
    the registry refuses, and :class:`gpuyard.sandbox.engine.EngineError`.
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
    if push:
        check_registry(plan.image)
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


def finish(image: str, container: str) -> str:
    """Make the image of the container, remove that, and return the image's id.

    Nothing that belongs to one machine is in it: no host key, no log, no secret, no run. Raises
    :class:`gpuyard.sandbox.engine.EngineError`, and :class:`UsageError` when it does not fit on the disk.
    """
    engine = engines.find()
    engine.execute(container, "sh", "-c", _CLEAN)
    whole = (engine.state(container) or engines.ContainerState(container, False, 0, {})).labels.get(_LABEL, "")
    # The base's own way to start stays as it is.
    inherited = engine.run("inspect", "--format", "{{.Image}}", container).strip()
    changes = [f"LABEL {_LABEL}={whole}", *_start_of(engine, inherited)]
    words = [word for change in changes for word in ("--change", change)]
    try:
        made = engine.run("commit", *words, container, image, timeout_s=_BUILD_S).strip()
    except EngineError as error:
        raise UsageError(registry.explain(image, str(error), os.environ)) from None
    engine.remove(container)
    return made


def _start_of(engine: Engine, image: str) -> list[str]:
    """Return the instructions that start an image as ``image`` is started, since the container itself only sleeps."""

    settings = json.loads(engine.run("image", "inspect", image))[0].get("Config") or {}
    return [
        f"{word.upper()} {json.dumps(settings.get(name) or [])}"
        for word, name in (("entrypoint", "Entrypoint"), ("cmd", "Cmd"))
    ]


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image in its registry. ``reference`` names it by its digest, ``changed`` tells whether it was sent now."""

    reference: str
    changed: bool


def send(image: str, *, progress: Progress) -> Pushed:
    """Push an image to the registry that its name says, unless it is there, and pull it once by its digest.

    The login is that of the auth file which ``GPUYARD_REGISTRY_AUTH`` names, else the one that the engine has. Raises
    :class:`UsageError` with what the registry says.
    """
    engine, auth, plain = engines.find(), _auth(), registry.is_local(image)
    name = image.rpartition(":")[0]

    def pull(reference: str) -> str:
        engine.at_registry("pull", "--quiet", reference, auth=auth, plain=plain, timeout_s=_BUILD_S)
        return reference

    for known in _references(engine, image, name):
        # The engine also has a digest of its own for what was never pushed.
        with suppress(EngineError):
            return Pushed(pull(known), changed=False)
    progress(f"Pushing {image}.")
    before = set(_references(engine, image, name))
    try:
        with tempfile.TemporaryDirectory(prefix="gpuyard-push-") as folder:
            file = Path(folder) / "digest"
            words = [f"--digestfile={file}"] if engine.kind == "podman" else []
            engine.at_registry("push", "--quiet", *words, image, auth=auth, plain=plain, timeout_s=_BUILD_S)
            new = set(_references(engine, image, name)) - before  # Docker notes the digest that the registry gave
            return Pushed(pull(f"{name}@{file.read_text().strip()}" if words else new.pop()), changed=True)
    except EngineError as error:
        raise UsageError(
            f"{registry.explain(image, str(error), os.environ)} The image {image} is kept on this machine, so the same "
            "command again only sends it."
        ) from None


def _references(engine: Engine, image: str, name: str) -> list[str]:
    """Return the names by digest that the engine knows for ``image`` in the repository ``name``."""
    found = json.loads(engine.run("image", "inspect", image))[0].get("RepoDigests") or []
    return [one for one in found if one.startswith(f"{name}@")]


def _auth() -> bytes | None:
    file = registry.auth_file(os.environ)
    return file.read_bytes() if file else None


def check_registry(image: str) -> None:
    """Raise :class:`UsageError` when the registry of ``image`` does not answer, or does not take the auth file's login.

    For before an image is made. Whether the login may push there shows only when it does.
    """
    engine, auth, plain = engines.find(), _auth(), registry.is_local(image)
    try:
        engine.at_registry("pull", "--quiet", f"{image.rpartition(':')[0]}@{_NO_DIGEST}", auth=auth, plain=plain)
    except EngineError as error:
        if registry.is_silent(str(error)):
            raise UsageError(registry.explain(image, str(error), os.environ)) from None
    if registry.login(image, os.environ):
        try:
            engine.at_registry("login", registry.registry_of(image), auth=auth, plain=plain)
        except EngineError as error:
            raise UsageError(registry.explain(image, str(error), os.environ)) from None


def give_up(container: str) -> None:
    """Remove a container of which no image is to be made."""
    engines.find().remove(container)
