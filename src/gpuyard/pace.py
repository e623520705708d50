"""How long to wait between two looks at something that changes by itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True, slots=True)
class Clock:
    """Time and the pace of polling, in seconds; tests bring their own."""

    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic
    date: Callable[[], float] = time.time  # seconds since 1970
    first_delay: float = 0.3
    factor: float = 1.5
    longest_delay: float = 3.0

    def delays(self) -> Iterator[float]:
        """Yield the pauses between looks: small at first, capped."""
        delay = self.first_delay
        while True:
            yield delay
            delay = min(self.longest_delay, delay * self.factor)
