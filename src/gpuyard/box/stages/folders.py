"""Which folders cannot be a persistent root: all that lies there is published to a bucket."""

from __future__ import annotations

import os
import re

# Patterns of whole paths. plugins/module_utils/_box.py has the same, for boxes that do not have this file yet.
_REFUSED = re.compile(
    r"(?:/(?:bin|boot|dev|etc|lib(?:x?32|64)?|proc|run|sbin|snap|sys|usr|var)|/opt/gpuyard)(?:/.*)?"  # with all below
    r"|(?:/root|/home/[^/]+)/\.[^/]+(?:/.*)?"  # .ssh, .aws and their like
    r"|/|/home|/home/[^/]+|/lost\+found|/opt|/root|/srv|/tmp"  # but folders in them will do
)


def why_not(root: str, *, here: bool = True) -> str:
    """Return why ``root`` cannot be the persistent root, as the end of a sentence about it; ``""`` when it can be.

    Where it is not a folder of this machine (``here``), it is only a name: no link is looked at.
    """
    for path in (os.path.normpath("/" + root.lstrip("/")), os.path.realpath(root) if here else root):
        if _REFUSED.fullmatch(path):
            return (
                f"must not be {path}, which the system or gpuyard itself uses: all that is in it, keys too, would go "
                "to the bucket; name a folder of its own, such as /mnt/persistent"
            )
    return ""
