"""What a workload's ``persist.rules`` say of the files below the persistent root.

A rule is for the files and folders that its pattern matches, with all that lies in them; the first rule that matches a
path counts. In a pattern ``*`` and ``?`` stand for any part and any character of a name, ``**`` for any folders. What
no rule matches is published as it is, and gpuyard's own files always are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpuyard.formats.manifest import STATE

KINDS = ("checkpoint", "model", "results", "log", "cache", "data")
NOT_PUBLISHED = ("cache", "data")
"""The kinds that can be had again, so that no checkpoint holds them unless their rule says so."""


@dataclass(frozen=True)
class Rule:
    """One rule. ``keep`` is how many of what the pattern matches in one folder stay in a checkpoint, 0: all of it.

    ``complete_if`` is a pattern below a folder that the rule's pattern matches: the folder is whole when it matches.
    """

    path: str
    kind: str
    publish: bool
    keep: int = 0
    complete_if: str = ""

    @classmethod
    def from_workload(cls, item: Mapping[str, Any]) -> Rule:
        """Return the rule that a workload says, with what its kind stands for where it says nothing."""
        kind, publish, keep = str(item["kind"]), item.get("publish"), item.get("keep")
        publish = kind not in NOT_PUBLISHED if publish is None else bool(publish)
        if keep is None:
            keep = "latest" if kind == "model" else "all"
        count = {"latest": 1, "all": 0}.get(keep, keep)
        return cls(str(item["path"]), kind, publish, int(count), str(item.get("complete_if") or ""))

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(f"({_expression(self.path)})(?:/.*)?", re.DOTALL)

    def unit(self, path: str) -> str | None:
        """Return the file or folder that the pattern matches, at ``path`` or above it; ``None`` when none does."""
        found = self._compiled.fullmatch(path)
        return found[1] if found else None

    def is_complete(self, unit: str, paths: Iterable[str]) -> bool:
        """Tell whether the folder ``unit`` with the files ``paths`` has what ``complete_if`` asks for."""
        pattern = re.compile(_expression(self.complete_if), re.DOTALL)
        return any(pattern.fullmatch(path[len(unit) + 1 :]) for path in paths)


@dataclass(frozen=True)
class Rules:
    """The rules of a workload, in their order."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def from_workload(cls, items: Iterable[Mapping[str, Any]]) -> Rules:
        """Return the rules that a workload says."""
        return cls(tuple(map(Rule.from_workload, items)))

    def match(self, path: str) -> tuple[Rule, str] | None:
        """Return the rule for a file, and what its pattern matches there; ``None`` when no rule is for it."""
        if path.startswith(f"{STATE}/"):
            return None
        for rule in self.rules:
            if unit := rule.unit(path):
                return rule, unit
        return None

    def publishes(self, path: str) -> bool:
        """Tell whether a file belongs into a checkpoint at all."""
        found = self.match(path)
        return found is None or found[0].publish

    def is_log(self, path: str) -> bool:
        """Tell whether a file is written line by line, whatever its name is."""
        found = self.match(path)
        return found is not None and found[0].kind == "log"

    @property
    def leaves_out(self) -> bool:
        """Whether anything on the box may be in no checkpoint by intention."""
        return any(not rule.publish or rule.keep for rule in self.rules)

    def in_words(self) -> list[str]:
        """Return sentences that say what checkpoints will not hold."""
        left = [f"{rule.path} ({rule.kind})" for rule in self.rules if not rule.publish]
        few = [f"{rule.keep if rule.keep > 1 else 'newest'} of {rule.path}" for rule in self.rules if rule.keep]
        sentences = [f"Not in checkpoints, by persist.rules: {', '.join(left)}."] if left else []
        return sentences + ([f"Of each folder checkpoints hold only the {', the '.join(few)}."] if few else [])


def _expression(pattern: str) -> str:
    """Return the regular expression of a pattern; a ``**`` at its end adds nothing to the folder before it."""
    parts = pattern.split("/")
    while len(parts) > 1 and parts[-1] == "**":
        parts.pop()
    *folders, last = ["*" if parts == ["**"] else part for part in parts] if len(parts) == 1 else parts
    between = "".join("(?:[^/]+/)*" if part == "**" else f"{_name(part)}/" for part in folders)
    return between + _name(last)


def _name(part: str) -> str:
    return re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
