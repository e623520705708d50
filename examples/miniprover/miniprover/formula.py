# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Formulas on the Python side: a parser of its own, truth tables, and the theorem lists.

Nothing here is shared with the Rust prover, so that the checker which stands on it (:mod:`miniprover.check`) repeats
none of the prover's mistakes. The syntax and the numbering of subformulas are described in ``src/formula.rs``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

TOKEN = re.compile(r"\s*(<->|->|[()~&|]|[A-Za-z][A-Za-z0-9_]*)")
APPLY: dict[str, Callable[[bool, bool], bool]] = {
    "~": lambda a, b: not a,
    "&": lambda a, b: a and b,
    "|": lambda a, b: a or b,
    "->": lambda a, b: (not a) or b,
    "<->": lambda a, b: a == b,
}
# Loosest first; the arrows group to the right.
LEVELS = ("<->", "->", "|", "&")
RIGHT = ("<->", "->")


@dataclass(frozen=True)
class Formula:
    """Distinct subformulas, children before parents: an atom's name, or a connective with two child numbers."""

    nodes: tuple[str | tuple[str, int, int], ...]

    @property
    def root(self) -> int:
        return len(self.nodes) - 1

    @property
    def atoms(self) -> list[str]:
        return [node for node in self.nodes if isinstance(node, str)]

    def truth_table(self, atoms: list[str] | None = None) -> int:
        """The truth table as one number: bit r is the value in row r, in which atom k is true if bit k of r is set.

        ``atoms`` names the columns (default: the formula's own, in order of appearance), so that the tables of several
        formulas can be combined.
        """
        atoms = self.atoms if atoms is None else atoms
        rows = 1 << len(atoms)
        full = (1 << rows) - 1
        tables: list[int] = []
        for node in self.nodes:
            if isinstance(node, str):
                # Blocks of 2^k zeros, then 2^k ones.
                block = 1 << atoms.index(node)
                tables.append(full // ((1 << (2 * block)) - 1) * (((1 << block) - 1) << block))
                continue
            op, a, b = node
            x, y = tables[a], tables[b]
            tables.append({"~": full & ~x, "&": x & y, "|": x | y, "->": (full & ~x) | y, "<->": full & ~(x ^ y)}[op])
        return tables[-1]

    def is_theorem(self) -> bool:
        return self.truth_table() == (1 << (1 << len(self.atoms))) - 1


def parse(text: str) -> Formula:
    """Parse ``text``; raises :class:`ValueError` that says where it went wrong."""
    tokens: list[str] = []
    at = 0
    while text[at:].strip():
        match = TOKEN.match(text, at)
        if not match:
            raise ValueError(f"unexpected text at character {at + 1} of {text!r}")
        tokens.append(match[1])
        at = match.end()
    tokens.reverse()
    nodes: dict[str | tuple[str, int, int], int] = {}

    def number(node: str | tuple[str, int, int]) -> int:
        return nodes.setdefault(node, len(nodes))

    def binary(level: int) -> int:
        if level == len(LEVELS):
            return unary()
        op = LEVELS[level]
        left = binary(level + 1)
        while tokens and tokens[-1] == op:
            tokens.pop()
            right = binary(level if op in RIGHT else level + 1)
            left = number((op, left, right))
        return left

    def unary() -> int:
        token = tokens.pop() if tokens else ""
        if token == "~":
            inner = unary()
            return number(("~", inner, inner))
        if token == "(":
            inner = binary(0)
            if not tokens or tokens.pop() != ")":
                raise ValueError(f"missing ')' in {text!r}")
            return inner
        if not token[:1].isalpha():
            raise ValueError(f"expected an atom, '~' or '(' instead of {token or 'the end'!r} in {text!r}")
        return number(token)

    binary(0)
    if tokens:
        raise ValueError(f"unexpected {tokens[-1]!r} in {text!r}")
    return Formula(tuple(nodes))


@dataclass(frozen=True)
class Theorem:
    """One line of a theorem list. ``status`` is ``theorem`` or ``non-theorem``; the prover never sees it."""

    id: str
    status: str
    text: str


def read_theorems(paths: Iterable[Path]) -> list[Theorem]:
    """Read lists of ``id<TAB>status<TAB>formula``; blank lines and ``#`` comments are skipped."""
    theorems = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            columns = line.split("\t")
            if len(columns) != 3 or columns[1] not in ("theorem", "non-theorem"):
                raise ValueError(f"{path}:{number}: expected id, theorem or non-theorem, and formula")
            theorems.append(Theorem(*columns))
    return theorems
