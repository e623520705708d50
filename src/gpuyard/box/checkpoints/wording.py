"""Numbers and names in words, the first few of them."""

from __future__ import annotations

from collections.abc import Sequence

# So many of the files that are being written to are named; of the others, the number is.
MOST_NAMED = 5


def numbers_in_words(numbers: Sequence[int]) -> str:
    """Return the first few numbers in words: ``are 9, 8, 7, …``."""
    shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return f"{'is' if len(numbers) == 1 else 'are'} {shown}" if numbers else ""


def names_in_words(names: list[str]) -> str:
    few = ", ".join(sorted(names)[:MOST_NAMED])
    return few if len(names) <= MOST_NAMED else f"{few} and {len(names) - MOST_NAMED} more"
