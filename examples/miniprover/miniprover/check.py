# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The second checker: it accepts a proof or a countermodel, or says what is wrong. ``src/checker.rs`` has the format.

Standard library only, and nothing from the prover: parser, numbering and every judgement are its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from miniprover.formula import APPLY, Formula, parse, read_theorems


class Wrong(Exception):
    """A proof or countermodel that does not hold; the message says why."""


def completions(formula: Formula, values: dict[int, bool], j: int) -> list[dict[int, bool]]:
    """All values of compound ``j`` and its children that agree with its truth table and with the branch."""
    node = formula.nodes[j]
    if isinstance(node, str):
        raise Wrong(f"subformula {j} is an atom")
    op, a, b = node
    rows = []
    for x, y in itertools.product([True, False], repeat=2):
        row = {a: x, b: y, j: APPLY[op](x, y)}
        if (a != b or x == y) and all(values.get(i, v) == v for i, v in row.items()):
            rows.append(row)
    return rows


def check_proof(formula: Formula, proof: str) -> int:
    """Raise :class:`Wrong` unless ``proof`` closes every branch; return the number of cuts."""
    values = {formula.root: False}
    waiting: list[dict[int, bool]] = []
    cuts = 0
    tokens = iter(proof.split())
    for token in tokens:
        try:
            kind = token[0]
            i, j = map(int, token[1:].split(":")) if kind in "+-" else (int(token[1:]), -1)
        except ValueError:
            raise Wrong(f"{token!r} is not a token") from None
        if not (0 <= i < len(formula.nodes) and -1 <= j < len(formula.nodes)) or (kind in "+-" and j < 0):
            raise Wrong(f"{token!r}: no such subformula")
        if kind in "+-":
            value = kind == "+"
            if any(row.get(i) != value for row in completions(formula, values, j)):
                raise Wrong(f"{token!r} does not follow")
            if values.setdefault(i, value) != value:
                raise Wrong(f"{token!r} contradicts the branch, which should have been closed")
        elif kind == "c":
            if i in values:
                raise Wrong(f"{token!r}: cut on a subformula that has a value")
            cuts += 1
            waiting.append({**values, i: False})
            values[i] = True
        elif kind == "x":
            if completions(formula, values, i):
                raise Wrong(f"{token!r}: the branch is not closed")
            if not waiting:
                if next(tokens, None) is not None:
                    raise Wrong("text after the end of the proof")
                return cuts
            values = waiting.pop()
        else:
            raise Wrong(f"{token!r} is not a token")
    raise Wrong("the proof ends with an open branch")


def check_countermodel(formula: Formula, model: str) -> None:
    """Raise :class:`Wrong` unless the formula is false when the listed atoms are true and those with ``~`` false."""
    literals = model.split()
    given = {literal.lstrip("~"): not literal.startswith("~") for literal in literals}
    if len(given) != len(literals) or set(given) != set(formula.atoms):
        raise Wrong("a countermodel gives each atom of the formula exactly one value")
    truth: list[bool] = []
    for node in formula.nodes:
        truth.append(given[node] if isinstance(node, str) else APPLY[node[0]](truth[node[1]], truth[node[2]]))
    if truth[-1]:
        raise Wrong("the formula is true in that model")


def check_result(formula: Formula, status: str, result: dict) -> None:
    """Raise :class:`Wrong` unless ``result`` holds and fits the known ``status`` of the formula."""
    if result["outcome"] == "proved":
        check_proof(formula, result["proof"])
    elif result["outcome"] == "refuted":
        check_countermodel(formula, result["countermodel"])
    elif result["outcome"] != "unknown":
        raise Wrong(f"unknown outcome {result['outcome']!r}")
    if (result["outcome"], status) in (("proved", "non-theorem"), ("refuted", "theorem")):
        raise Wrong(f"the list says that this is a {status}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m miniprover.check", description="Verify a result file.")
    parser.add_argument("--theorems", type=Path, nargs="+", required=True)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    theorems = {theorem.id: theorem for theorem in read_theorems(options.theorems)}
    wrong = 0
    lines = options.results.read_text(encoding="utf-8").splitlines()
    for result in map(json.loads, lines):
        theorem = theorems[result["id"]]
        try:
            check_result(parse(theorem.text), theorem.status, result)
        except Wrong as why:
            wrong += 1
            print(f"{theorem.id}: {why}", file=sys.stderr)
    print(f"{len(lines) - wrong} results hold, {wrong} do not")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
