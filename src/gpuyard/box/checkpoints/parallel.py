"""Doing many things with a bucket at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 8


_T = TypeVar("_T")


_R = TypeVar("_R")


def in_parallel(
    work: Callable[[_T], _R],
    items: Iterable[_T],
    threads: int = THREADS,
    begin: Callable[[], None] | None = None,
) -> list[_R]:
    """Apply ``work`` to every item with several threads, in order; the first failure cancels what has not begun.

    Each thread begins with ``begin``; without it a single item needs no thread.
    """
    todo = list(items)
    if not todo or (len(todo) < 2 and begin is None):
        return [work(item) for item in todo]
    pool = ThreadPoolExecutor(min(threads, len(todo)), thread_name_prefix="checkpoint", initializer=begin)
    try:
        return list(pool.map(work, todo))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
