"""What every cloud behind an HTTP API has in common: its key, its address, its patience."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import ClassVar

from gpuyard.errors import ProviderError
from gpuyard.providers.base import Provider
from gpuyard.providers.credentials import BearerKey
from gpuyard.providers.http import Answer, Client, Patience
from gpuyard.providers.rental import Waits


class Cloud(Provider):
    """A cloud that is asked over HTTP with a key. A subclass says where, and what an answer means."""

    api_url: ClassVar[str]
    waits: ClassVar[Waits] = Waits()

    def __init__(
        self,
        key: str,
        *,
        base_url: str = "",
        emulated: bool = False,
        sandbox: str = "",
        patience: Patience | None = None,
        waits: Waits | None = None,
    ) -> None:
        """Send nothing yet. ``base_url`` is another address than the cloud's own: a sandbox's, named ``sandbox``."""
        self.emulated = emulated
        self.sandbox = sandbox
        self._waits = waits or self.waits
        self._api = Client(
            self.name, self.title, base_url or self.api_url, BearerKey(key), self.meaning, patience or Patience()
        )
        self._creating = threading.Lock()  # one create at a time gets its turn, and one adds our SSH key

    @staticmethod
    @abstractmethod
    def meaning(answer: Answer) -> ProviderError | None:
        """Return the error that an answer means, ``None`` for a success."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._api.base_url!r})"
