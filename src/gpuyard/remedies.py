"""What to do next, as data: a verb with its options. How a command of it is written is the business of the front.

A sentence that tells a way out holds a :class:`Remedy`. Whoever shows the sentence has said before, with :func:`use`,
how its own commands look; without that they look as Ansible's plays do.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

_PLAIN = re.compile(r"[^\s'\"\\$`;&|<>(){}*?!#~\[\]]+").fullmatch


@dataclass(frozen=True, slots=True)
class Remedy:
    """A verb that may be run next, with its options; as text it is a command of the front."""

    verb: str
    options: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return _front.command(self.verb, self.options)


class Front(Protocol):
    """How a front writes its commands."""

    def command(self, verb: str, options: Mapping[str, object]) -> str:
        """Return a verb with its options as somebody would type it."""

    def option(self, name: str, value: object) -> str:
        """Return one option as somebody would type it behind a command."""


class Plays:
    """Ansible's way: a play a verb, its options as extra variables."""

    def command(self, verb: str, options: Mapping[str, object]) -> str:
        """Return the call of a play."""
        play = {"resume": "resume_search"}.get(verb, verb)
        return " ".join([f"ansible-playbook {play}.yml", *(self.option(*item) for item in options.items())])

    def option(self, name: str, value: object) -> str:
        """Return an extra variable, as JSON where a shell or Ansible would take its value apart."""
        plain = f"{name}={str(value).lower() if isinstance(value, bool) else value}"
        return f"-e {plain}" if _PLAIN(plain) else f"-e {shlex.quote(json.dumps({name: value}))}"


_front: Front = Plays()


def use(front: Front) -> None:
    """Let what is said from here on be in the words of ``front``."""
    global _front
    _front = front


def remedy(verb: str, **options: object) -> Remedy:
    """Return the remedy of this verb with these options."""
    return Remedy(verb, options)


def option(name: str, value: object = "…") -> str:
    """Return an option that may be added to the command at hand, in the words of the front."""
    return _front.option(name, value)
