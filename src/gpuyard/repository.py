"""Addresses of Git repositories: which can be used, and how they look in a message."""

from __future__ import annotations

import re

# plugins/modules/work_tree.py has the same rules, for whoever uses it alone; there file:// is a folder of the machine.
_HOST = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_WEB = re.compile(rf"(?:https?|git)://{_HOST}(?::\d+)?/[^\s?#]+")
_SSH = re.compile(rf"ssh://(?:[A-Za-z0-9._-]+@)?{_HOST}(?::\d+)?/[^\s?#]+|[A-Za-z0-9._]+@{_HOST}:[^\s?#:-][^\s?#:]*")
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s'\"]*@|\?[^\s'\"]+")
_PERHAPS = re.compile(r"[:/=][^\s]*@|\?")  # what may hold a token is not shown
_SHOWN = 100  # characters


def why_not(url: str) -> str:
    """Return why ``url`` cannot be used, as the end of a sentence that shows no token; ``""`` when it can."""
    if _WEB.fullmatch(url) or _SSH.fullmatch(url):
        return ""
    if _PERHAPS.search(url):
        return (
            "must not hold a user name, a password or a token: a workload can be read in plans, logs and on the "
            "machine. Write the address without them; of a private repository, name a local clone with repository.path"
        )
    if url.startswith("file:"):
        return "must be an address that the machine can reach; a folder of this one is named with repository.path"
    shown = url if len(url) <= _SHOWN else url[:_SHOWN] + "…"
    return f"must be an address such as https://host/path, ssh://git@host/path or git@host:path, not {shown!r}"


def redacted(text: str) -> str:
    """Return ``text`` without what stands for a user in its addresses, and without what follows a question mark."""
    return _CREDENTIALS.sub(lambda found: "…@" if found[0].endswith("@") else "?…", text)
