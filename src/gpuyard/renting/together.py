"""The same work on several machines at the same time, told by one voice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from gpuyard.providers.base import Progress

_MOST_AT_ONCE = 8
_LOOK_S = 0.1


def at_once[Item, Answer](
    work: Callable[[Item, Progress], Answer], items: Sequence[Item], progress: Progress, *, see_through: bool = True
) -> list[Answer]:
    """Apply ``work`` to all ``items`` at the same time, and return what it returned, in their order.

    What it tells is told from this thread. A signal is handled here, too, so it finds no other thread in the middle of
    a line, with the lock of whoever shows it. ``see_through``: whether what has begun is ended when a signal comes. The
    first error of ``work`` is raised when all is done.
    """
    told: SimpleQueue[str] = SimpleQueue()
    answers: dict[int, Answer] = {}
    errors: dict[int, BaseException] = {}
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in range(len(items)):
        waiting.put(number)

    def serve() -> None:
        while True:
            try:
                number = waiting.get_nowait()
            except Empty:
                return
            try:
                answers[number] = work(items[number], told.put)
            except BaseException as error:
                errors[number] = error

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(_MOST_AT_ONCE, len(items)))]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            with suppress(Empty):
                progress(told.get(timeout=_LOOK_S))
        while not told.empty():
            progress(told.get())
    finally:
        if see_through:
            for thread in threads:
                thread.join()
    for number in sorted(errors):
        raise errors[number]
    return [answers[number] for number in range(len(items))]
