"""The public SSH keys that an account lets into its new machines."""

from __future__ import annotations

from pathlib import Path

from gpuyard.api.resources import Outcome, Steps, end, shelves_of
from gpuyard.api.site import Site
from gpuyard.errors import UsageError
from gpuyard.providers.base import Progress
from gpuyard.providers.resources import Kind, Resource, ResourceSpec
from gpuyard.providers.values import same_ssh_key
from gpuyard.remedies import option


def public_key(site: Site, text: str | None, file: str | None) -> str:
    """Return the public key that is meant: a text, that of a file, or by default the one that gpuyard connects with."""
    if text and file:
        raise UsageError(f"{option('public_key')} and {option('public_key_file')} name two keys: leave one out.")
    if file:
        path = Path(file).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise UsageError(f"public_key_file={file} cannot be read: {reason}.") from None
    if not text:
        return site.key().public_text
    key = text.strip()
    if "PRIVATE KEY" in key:
        raise UsageError("That is a private key: name the public half, the file that ends in .pub.")
    if "\n" in key or len(key.split()) < 2:
        raise UsageError("A public key is one line, `type body comment`, such as `ssh-ed25519 AAAA… me`.")
    return key


def add(site: Site, name: str, key: str, *, check: bool = False, progress: Progress) -> Outcome:
    """Give ``key`` to every cloud of ``site`` that keeps keys, under ``name``, unless it has it under any name.

    Raises :class:`UsageError` where another key has that name.
    """
    outcomes = []
    there = [(placed, placed.shelf.all()) for placed in shelves_of(site.clouds(), [Kind.SSH_KEY], site.provider)]
    for placed, held in there:
        if any(one.name == name and not is_key(one, key) for one in held):
            raise UsageError(
                f"{placed.cloud.title} has another SSH key called {name}: choose another {option('name')}, or delete "
                f"that one with {option('state', 'absent')}."
            )
    for placed, held in there:
        steps = Steps(placed, check, progress)
        same = next((one for one in held if is_key(one, key)), None)
        if same is not None:
            steps.start(same)
        else:
            spec = ResourceSpec(name=name, content=key, known_ids=frozenset(one.id for one in held))
            same = steps.make(spec)
        outcomes.append(steps.outcome(same))
    return Outcome.together(outcomes)


def remove(site: Site, name: str | None, key: str | None, *, check: bool = False, progress: Progress) -> Outcome:
    """Take the key of that ``name``, or that ``key`` itself, from every cloud of ``site``. Machines keep it."""
    doomed = [
        (placed, one)
        for placed in shelves_of(site.clouds(), [Kind.SSH_KEY], site.provider)
        for one in placed.shelf.all()
        if (is_key(one, key) if key else one.name == name)
    ]
    return end(doomed, check=check, progress=progress)


def is_key(found: Resource, key: str) -> bool:
    """Tell whether a listed key is ``key``."""
    return same_ssh_key(key, found.detail.get("public_key", ""))
