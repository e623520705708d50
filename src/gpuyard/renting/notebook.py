"""The bucket as a place where commands leave notes for each other, beside the checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gpuyard.box.checkpoints import Store
from gpuyard.errors import GpuyardError


@dataclass(slots=True)
class Notebook:
    """Opens the bucket when it is first needed, and leaves it alone once it has failed.

    A bucket that is silent costs a minute with every question, and no note is worth that twice.
    """

    opening: Callable[[], Store | None] = lambda: None
    failed: bool = field(default=False, init=False)
    _opened: list[Store | None] = field(default_factory=list, init=False, repr=False)

    def store(self) -> Store | None:
        """Return the bucket, ``None`` when there is none or it has failed; raises the error of a wrong option."""
        if self.failed:
            return None
        if not self._opened:
            try:
                self._opened.append(self.opening())
            except GpuyardError:
                self.failed = True
                raise
        return self._opened[0]

    def give_up(self) -> None:
        """Say that the bucket has failed."""
        self.failed = True
