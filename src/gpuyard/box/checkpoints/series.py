"""Of the files or folders that follow each other, which belong into a set: the newest that are whole.

A series is what a rule with ``keep`` matches in one folder, say the models of each epoch. An older one leaves the set
only when enough newer ones are whole in that very set, since it is what a run would go on from.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gpuyard.box.checkpoints.rules import Rule, Rules
from gpuyard.box.checkpoints.scanning import Found
from gpuyard.formats.manifest import FileEntry, Manifest


@dataclass
class Unit:
    """A file, or a folder with its files."""

    path: str
    files: list[Found] = field(default_factory=list)

    @property
    def age(self) -> tuple[int, list[tuple[int, str]]]:
        """What orders units: the time of the last change, then the name, with its numbers as numbers."""
        words = re.findall(r"\d+|\D+", self.path)
        name = [(int(word), "") if word.isascii() and word.isdigit() else (-1, word) for word in words]
        return max(found.info.st_mtime_ns for found in self.files), name

    @property
    def is_folder(self) -> bool:
        """Whether it consists of files below it."""
        return any(found.path != self.path for found in self.files)


@dataclass
class Series:
    """The units of one rule in one folder, newest first; ``reached`` of them have been taken into the set."""

    rule: Rule
    units: list[Unit]
    reached: int = 0

    def advance(self, is_whole: Callable[[Rule, Unit], bool]) -> list[Found]:
        """Take as many further units as are missing, and return their files; none when there are enough."""
        missing = self.rule.keep - sum(is_whole(self.rule, unit) for unit in self.units[: self.reached])
        more = self.units[self.reached : self.reached + max(0, missing)]
        self.reached += len(more)
        return [found for unit in more for found in unit.files]


def choose(
    found: Sequence[Found],
    rules: Rules,
    previous: Manifest | None,
    send: Callable[[list[Found]], list[FileEntry]],
    unsure: Callable[[], Collection[str]],
) -> list[FileEntry]:
    """Send what belongs into the set, and return its entries.

    ``send`` stores files and returns the entries of those that it could; ``unsure`` returns the paths that are not in
    the set as they are on the disk.
    """
    plain, series = _sort(found, rules)
    before = {entry.path: entry for entry in (previous.files if previous else ())}
    entries: dict[str, FileEntry] = {}
    sent: set[str] = set()

    def is_whole(rule: Rule, unit: Unit) -> bool:
        paths = [file.path for file in unit.files]
        if not entries.keys() >= set(paths) or not set(unsure()).isdisjoint(paths):
            return False
        if not unit.is_folder:
            return True
        if rule.complete_if:
            return rule.is_complete(unit.path, paths)
        # Only the program knows when a save of several files is complete. One that has not changed since the last set
        # is taken for that.
        return _contents(entries, unit.path) == _contents(before, unit.path)

    todo = plain + [file for one in series for file in one.advance(is_whole)]
    while todo:
        new = [file for file in todo if file.path not in sent]
        sent |= {file.path for file in new}
        entries |= {entry.path: entry for entry in send(new)}
        todo = [file for one in series for file in one.advance(is_whole)]
    return list(entries.values())


def _contents(entries: Mapping[str, FileEntry], unit: str) -> set[object]:
    return {entry.content for path, entry in entries.items() if path.startswith(f"{unit}/")}


def _sort(found: Sequence[Found], rules: Rules) -> tuple[list[Found], list[Series]]:
    """Return the files that belong into the set in any case, and the series of the others."""
    plain: list[Found] = []
    units: dict[tuple[Rule, str], Unit] = {}
    for one in found:
        match = rules.match(one.path)
        # A link beside the units, such as latest.pt, is none of them; one inside a folder belongs to it.
        if match is None or not match[0].keep or (one.link is not None and match[1] == one.path):
            plain.append(one)
        else:
            units.setdefault(match, Unit(match[1])).files.append(one)
    by_folder: dict[tuple[Rule, str], list[Unit]] = {}
    for (rule, path), unit in units.items():
        # What a link leads to stays with it.
        if any(_is_below(_aim(one), path) for one in plain if one.link is not None):
            plain += unit.files
        by_folder.setdefault((rule, posixpath.dirname(path)), []).append(unit)
    series = [
        Series(rule, sorted(members, key=lambda unit: unit.age, reverse=True))
        for (rule, _), members in by_folder.items()
    ]
    return plain, series


def _aim(link: Found) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(link.path), link.link or ""))


def _is_below(path: str, unit: str) -> bool:
    return path == unit or path.startswith(f"{unit}/")
