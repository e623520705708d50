"""Where checkpoints go: a bucket that speaks S3, or a folder.

A :class:`Store` holds objects under plain keys (``run/checkpoints/000001/files/models/policy.npz``), so that
``aws s3 ls`` or a file manager shows what a person expects. Every failure of a store is a :class:`BucketError` whose
text names the bucket and the endpoint and never a key. This module runs on the rented box: Python 3.10, standard
library, and boto3 (imported when an S3 bucket is opened, not before).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from gpuyard.errors import BucketError

# Who only wants to know whether the bucket is there waits so long for its first answer.
ANSWER_S = 20.0
# Below this size an object is sent and fetched with a single request.
SINGLE_REQUEST_BYTES = 8 * 1024 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing: its key below the store's prefix, its size in bytes, and the store's own mark of it.

    ``tag`` changes when the object is written again with other content; ``""`` where the store has none. S3 calls it
    ETag; a folder has the time of the last change. ``modified`` is that time in seconds, by the store's clock.
    """

    key: str
    size: int
    tag: str = ""
    modified: float = 0.0


@dataclass(frozen=True)
class Piece:
    """``size`` bytes of an object that is made of pieces: those of the object ``key`` from ``offset`` on.

    ``tag`` is the store's mark of that object when it was listed. A piece without a key is yet to be sent.
    """

    size: int
    key: str = ""
    offset: int = 0
    tag: str = ""


class Store(ABC):
    """A flat set of objects. Keys are relative to the store's prefix, with ``/`` between their parts."""

    url: str
    tags_tell_content = False
    """Whether an object whose tag is as it was has the content that it had. Elsewhere only reading it tells."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return the whole object, or raise :class:`MissingObjectError`."""

    @abstractmethod
    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield the object's content piece by piece, or raise :class:`MissingObjectError`."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store ``data`` under ``key``; a reader sees the old object or the new one, never a part."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Store ``data`` unless there is an object under ``key``; return whether ``data`` is there now."""

    @abstractmethod
    def put_stream(self, key: str, stream: BinaryIO) -> None:
        """Store what ``stream`` yields until its end; it is read once, from its start to its end, in order."""

    def compose(self, key: str, pieces: Sequence[Piece], stream: BinaryIO) -> bool:
        """Store an object that consists of ``pieces``, in their order, and return ``True``.

        ``stream`` yields the bytes of those that have no key, one after another, and is read once. Those that have one
        are copied within the store: each is at least 5 MiB long unless it is the last, none is longer than 64 MiB, and
        there are at most 10,000. ``False``, with nothing stored under ``key``, where the store cannot do that, or one
        of the objects is no longer what its tag says: then the caller sends the whole. Raises :class:`BucketError`, and
        whatever ``stream`` raises; then, too, nothing is stored.
        """
        return False

    @abstractmethod
    def fetch(self, key: str, target: Path, size: int) -> None:
        """Write the object of ``size`` bytes to the file ``target`` (not in one step); :class:`MissingObjectError`."""

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """Yield every object whose key begins with ``prefix``."""

    @abstractmethod
    def folders(self, prefix: str = "") -> list[str]:
        """Return the names of the folders directly below ``prefix`` (which is empty or ends with ``/``), sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; one that is not there is no error."""

    @abstractmethod
    def abort_unfinished(self, prefix: str, spare: Callable[[str], bool] = lambda key: False) -> int:
        """Remove what uploads under ``prefix`` left when they were cut off, and return how many there were.

        No listing shows it, and it takes room, which S3 bills. An upload that goes on at this moment looks the same:
        ``spare`` says of a key whether to leave its upload alone.
        """

    def ends_unfinished(self) -> bool | None:
        """Tell whether the store ends such uploads by itself some day; ``None`` where that is not known."""
        return None

    def keeps_versions(self) -> bool | None:
        """Tell whether the store keeps what is overwritten or removed; ``None`` where that is not known."""
        return None

    def keep_versions(self) -> None:
        """Have the store keep what is overwritten or removed from now on, or raise :class:`BucketError`."""
        raise BucketError(f"{self.url} is no store that gpuyard could have keep versions.")


def answer_soon(question: Callable[[], _T], where: str) -> _T:
    """Return the answer of ``question``, which asks the bucket called ``where``; raises whatever it raises.

    Raises :class:`BucketError` when the answer takes longer than :data:`ANSWER_S`. A bucket that takes connections and
    says nothing costs a minute with every request, and nobody who waits for something else should pay that.
    """
    answers: list[_T] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:  # whatever it is: it is raised by whoever waits
            errors.append(error)

    thread = threading.Thread(target=ask, name="ask the bucket", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if errors:
        raise errors[0]
    if not answers:
        raise BucketError(f"The bucket {where} has not answered within {ANSWER_S:.0f} s.")
    return answers[0]
