"""Variables that a cloud keeps for an account and puts into the environment of its new machines.

Their values come from a file or the environment of the controller. No cloud gives a value back, so whether a stored
one is still the same cannot be known.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpuyard import env_file
from gpuyard.api.resources import HIDDEN, Outcome, Resources, ResourcesRequest, Steps, end, find, shelves_of
from gpuyard.api.site import Site
from gpuyard.errors import ProviderError, UsageError, listed
from gpuyard.providers.base import OWN, Progress
from gpuyard.providers.resources import Kind, ResourceSpec
from gpuyard.remedies import option

USUAL = (
    "WANDB_API_KEY",
    "WANDB_PROJECT",
    "WANDB_ENTITY",
    "B2_KEY_ID",
    "B2_APP_KEY",
    "B2_S3_ENDPOINT",
    "B2_S3_REGION",
    "B2_BUCKET",
)
"""The variables that are taken from the environment where no file and no names are given."""
_ELSEWHERE = (
    "{title} keeps no variables for an account: a launch delivers those that the workload names below `environment` to "
    "its machine, in a file of mode 0600."
)


def value_of(name: str, variable: str | None, file: str | None) -> str:
    """Return the value for ``name``: of the environment's ``variable`` (by default that name), or a file's content."""
    if variable and file:
        raise UsageError(f"{option('variable')} and {option('file')} both say where the value is: leave one out.")
    if file:
        value = env_file.read_secret(Path(file).expanduser()).strip()
        source = file
    else:
        source = variable or name
        value = os.environ.get(source, "")
    if not value:
        where = f"The file {file} is empty" if file else f"{source} is not set in the environment"
        raise UsageError(f"{where}, so there is no value for {name}. Nothing was stored.")
    return value


def collected(file: str | None, names: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables to store: those of ``names``, by default all of the file.

    ``file`` is ``.env`` by default, where there is one. What it does not set, or sets to nothing, comes from the
    environment. Raises :class:`UsageError` that names every variable without a value.
    """
    path = Path(file).expanduser() if file else Path(".env")
    known = env_file.read(path) if file or path.exists() else {}
    wanted = names or list(known) or [name for name in USUAL if os.environ.get(name)]
    if not wanted:
        raise UsageError(
            f"There is no file {path}, and none of {', '.join(USUAL)} is set in the environment: name a file with "
            f"{option('env_file')}."
        )
    for name in wanted:
        check_name(name)
    found = {name: known.get(name) or os.environ.get(name, "") for name in wanted}
    if missing := [name for name, value in found.items() if not value]:
        places = f"{path} and the environment" if known else "the environment"
        raise UsageError(f"{', '.join(missing)} has no value in {places}. Nothing was stored.")
    return found


def check_name(name: str) -> None:
    """Raise :class:`UsageError` for a name that would not come back from a cloud as it is."""
    if not env_file.NAME.fullmatch(name):
        raise UsageError(f"name={name!r} cannot be a variable's: use upper-case letters, digits and _.")


def stored(site: Site) -> Resources:
    """Return the variables that the clouds of ``site`` keep, by name. No cloud gives a value back."""
    return find(site, ResourcesRequest((Kind.VARIABLE,), foreign=True))


def store(
    site: Site, values: Mapping[str, str], *, overwrite: bool = False, check: bool = False, progress: Progress
) -> Outcome:
    """Store ``values`` at every cloud of ``site`` that keeps variables, and say how the others get them.

    One that is there is kept, unless ``overwrite``. One that a cloud refuses keeps no other one from being stored; the
    error comes last and names each of them.
    """

    def hide(text: str) -> str:
        """Take every value out of a cloud's words, which may repeat what was sent."""
        for value in sorted(values.values(), key=len, reverse=True):
            if len(value) > 3:  # a shorter one is no secret, and a part of many words
                text = text.replace(value, HIDDEN)
        return text

    def tell(line: str) -> None:
        progress(hide(line))

    clouds = site.clouds()
    outcomes = []
    errors: list[ProviderError] = []
    for placed in shelves_of(clouds, [Kind.VARIABLE], site.provider):
        there = {one.name: one for one in placed.shelf.all()}
        for name, value in values.items():
            steps = Steps(placed, check, tell)
            try:
                if (old := there.get(name)) is not None:
                    steps.start(old)
                    if not overwrite:
                        outcomes.append(steps.outcome(old))
                        continue
                # One that is there gets the new value by the same request.
                spec = ResourceSpec(name=name, content=value)
                outcomes.append(steps.outcome(steps.make(spec)))
            except ProviderError as error:
                errors.append(error)
    if errors:
        first, words = errors[0], listed([hide(str(error)) for error in errors])
        raise type(first)(words, provider=first.provider, status=first.status, code=first.code) from None
    result = Outcome.together(outcomes)
    kept = [one.name for part in outcomes if not part.changed for one in part.found]
    if kept:
        result.notes.append(
            f"{', '.join(dict.fromkeys(kept))}: stored already, and kept. No cloud gives a value back, so it is not "
            f"known whether it is the same; {option('overwrite', True)} stores it again."
        )
    result.notes.extend(
        _ELSEWHERE.format(title=cloud.title)
        for cloud in clouds
        if cloud.name != OWN and Kind.VARIABLE not in cloud.shelves()
    )
    return result


def remove(site: Site, names: Sequence[str], *, check: bool = False, progress: Progress) -> Outcome:
    """Delete the variables of these ``names`` from every cloud of ``site``. Machines that live keep them."""
    doomed = [
        (placed, one)
        for placed in shelves_of(site.clouds(), [Kind.VARIABLE], site.provider)
        for one in placed.shelf.all()
        if one.name in names
    ]
    return end(doomed, check=check, progress=progress)
