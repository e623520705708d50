# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the committed theorem lists ``data/{pigeonhole,train,heldout}.txt``; the same bytes each time.

A random problem is an entailment: premises, each a small random formula, and a random conclusion. Premises are added
until the conclusion follows, then those that are not needed are taken out again, so that every one matters. A
non-theorem is such a problem with one premise missing. Status is decided by the whole truth table, with no prover.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from pathlib import Path

from miniprover.formula import Formula, parse

SEED = 20260322
ATOMS = (10, 15)
# Share of all rows in which a premise holds.
STRONGEST, WEAKEST = 0.8, 0.95
SIZES = {"train": 240, "heldout": 100}
# One problem in this many is a non-theorem.
FALSE_EVERY = 8


def random_formula(rng: random.Random, atoms: list[str], leaves: int) -> str:
    """A random formula with ``leaves`` atoms, fully parenthesised."""
    if leaves == 1:
        return rng.choice(["", "~"]) + rng.choice(atoms)
    left = rng.randint(1, leaves - 1)
    op = rng.choices(["&", "|", "->", "<->"], [2, 4, 3, 1])[0]
    sign = rng.choices(["", "~"], [4, 1])[0]
    return f"{sign}({random_formula(rng, atoms, left)} {op} {random_formula(rng, atoms, leaves - left)})"


def entailment(premises: list[str], conclusion: str) -> str:
    return f"{' & '.join(premises)} -> {conclusion}"


def random_problem(rng: random.Random) -> tuple[list[str], str]:
    """Premises, all of them needed, and a conclusion that follows from them."""
    while True:
        atoms = [f"p{i}" for i in range(1, rng.randint(*ATOMS) + 1)]
        full = (1 << (1 << len(atoms))) - 1
        conclusion = random_formula(rng, atoms, rng.randint(1, 3))
        right = parse(conclusion).truth_table(atoms)
        # Rows in which the premises so far hold: with a false conclusion (to be excluded), and with a true one.
        goal = wrong = full & ~right
        premises: list[tuple[str, int]] = []
        while wrong and right:
            text = random_formula(rng, atoms, rng.randint(3, 4))
            formula = parse(text)
            share = formula.truth_table().bit_count() / (1 << len(formula.atoms))
            # Weak premises make hard problems: each excludes little by itself, but something that matters, and together
            # they stay consistent.
            if not STRONGEST <= share <= WEAKEST:
                continue
            table = formula.truth_table(atoms)
            if wrong & ~table and right & table:
                premises.append((text, table))
                wrong, right = wrong & table, right & table
        for premise in list(premises):
            others = goal
            for other in premises:
                if other is not premise:
                    others &= other[1]
            if not others:
                premises.remove(premise)
        if len(premises) >= len(atoms):
            return [text for text, _ in premises], conclusion


def random_list(rng: random.Random, prefix: str, count: int) -> list[str]:
    lines = []
    for i in range(count):
        premises, conclusion = random_problem(rng)
        if i % FALSE_EVERY == FALSE_EVERY - 1:
            premises.pop(rng.randrange(len(premises)))
        text = entailment(premises, conclusion)
        lines.append(line(f"{prefix}{i + 1:03d}", text))
    return lines


def line(name: str, text: str) -> str:
    formula: Formula = parse(text)
    return f"{name}\t{'theorem' if formula.is_theorem() else 'non-theorem'}\t{text}"


def pigeonhole(pigeons: int, holes: int) -> str:
    """If every pigeon has a hole, some hole has two pigeons."""
    placed = [f"({' | '.join(f'x{p}_{h}' for h in range(1, holes + 1))})" for p in range(1, pigeons + 1)]
    shared = [
        f"x{p}_{h} & x{q}_{h}" for h in range(1, holes + 1) for p, q in itertools.combinations(range(1, pigeons + 1), 2)
    ]
    return f"{' & '.join(placed)} -> {' | '.join(shared)}"


def build() -> dict[str, str]:
    """The text of every generated file, by file name."""
    rng = random.Random(SEED)
    lists = {
        "pigeonhole": [
            *(line(f"php-{n + 1}-{n}", pigeonhole(n + 1, n)) for n in (1, 2, 3)),
            # As many holes as pigeons: the principle no longer holds.
            *(line(f"php-{n}-{n}", pigeonhole(n, n)) for n in (2, 3)),
        ],
        **{name: random_list(rng, f"{name}-", count) for name, count in SIZES.items()},
    }
    head = "# Made by `python -m miniprover.generate`; status by truth table. Columns: id, status, formula.\n"
    return {f"{name}.txt": head + "\n".join(lines) + "\n" for name, lines in lists.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder to write to")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file differs")
    options = parser.parse_args()
    different = [name for name, text in build().items() if not same(options.data / name, text)]
    if options.check:
        print(f"different: {', '.join(different)}" if different else "all lists are as generated")
        return 1 if different else 0
    for name, text in build().items():
        (options.data / name).write_text(text, encoding="utf-8")
    return 0


def same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
