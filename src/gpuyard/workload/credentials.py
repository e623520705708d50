"""How a machine gets at a private repository."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from gpuyard.workload.values import Section, SomeWords, Variable

_SSH_KINDS = ("deploy_key", "agent")


class Credentials(Section):
    """What opens a private ``repository.url``, and its submodules at the same host. It is used for the fetch only: no
    secret is in the workload, on the machine's disk, in a command line or in a log."""

    kind: Literal["token", "deploy_key", "agent"]
    """``token``: of the forge, for an ``https://`` address. ``deploy_key``: an SSH key, for an SSH address. ``agent``:
    the SSH agent of the controller, which is forwarded to the machine while it fetches."""
    variable: Variable | None = None
    """The environment variable of the controller that holds the token, or the path of the private key file."""
    user: SomeWords = "x-access-token"
    """The user name that goes with a token."""
    host_keys: list[SomeWords] = []
    """Lines of a ``known_hosts`` file for the forge. None: the first key that the machine sees is kept there."""

    @model_validator(mode="after")
    def _whole(self) -> Credentials:
        if (self.kind == "agent") != (self.variable is None):
            must = "must not have variable" if self.variable else "must have variable, which names where it is,"
            raise ValueError(f"{must} with kind: {self.kind}")
        return self

    def why_not_for(self, url: str) -> str:
        """Return why they do not open ``url``, as the end of a sentence; ``""`` when they may."""
        web = url.startswith("https://")
        if self.kind == "token" and not web:
            return "must be of kind deploy_key or agent for an SSH address; a token goes over https:// only"
        if self.kind in _SSH_KINDS and (web or url.startswith(("http://", "git://"))):
            return (
                f"must be of kind token for an https:// address; {self.kind} needs ssh://git@host/path or git@host:path"
            )
        return ""

    def key_file(self, env: Mapping[str, str]) -> Path | None:
        """Return the deploy key's private file on the controller, ``None`` where there is none to be named."""
        path = env.get(self.variable or "", "")
        return Path(path).expanduser() if self.kind == "deploy_key" and path else None

    def missing(self, env: Mapping[str, str]) -> str:
        """Return what the controller lacks to give them to a machine, in words; ``""`` when nothing."""
        if self.kind == "agent":
            return "" if env.get("SSH_AUTH_SOCK") else "no SSH agent runs here: `eval $(ssh-agent); ssh-add` starts one"
        if not env.get(self.variable or ""):
            what = "the token" if self.kind == "token" else "the path of the private key"
            return f"{self.variable} must hold {what} in the environment of this machine"
        file = self.key_file(env)
        if file and not (file.is_file() and os.access(file, os.R_OK)):
            return f"{self.variable} names {file}, and there is no such file that can be read"
        return ""
