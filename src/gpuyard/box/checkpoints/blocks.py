"""Of a large file, which blocks are in the store already, and the reading of those that are not.

A block is known by its hash, which the last set's manifest has. So what is copied within the store has the right
content as far as that manifest and the tag of the object tell: the same that a file which is not sent at all rests on.
What is sent is hashed once more as it is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpuyard.box.checkpoints.stores import Piece
from gpuyard.formats.manifest import BLOCK, FileEntry

# As S3 has it.
MOST_PIECES = 10_000
LARGEST_COPY = 8 * BLOCK
_LARGEST_SENT = 2 * BLOCK
_DIGEST_LENGTH = 64


class ChangedError(Exception):
    """A file changed while it was read, so what was read may never have been its content."""


def blocks_in_store(entries: Iterable[FileEntry]) -> dict[str, Piece]:
    """Return where in the store each block of these files lies, by the block's hash."""
    found: dict[str, Piece] = {}
    for entry in entries:
        # Without a tag nobody can tell whether the object is still the one that the entry speaks of.
        for number in range(len(entry.blocks) // _DIGEST_LENGTH if entry.tag else 0):
            digest = entry.blocks[number * _DIGEST_LENGTH : (number + 1) * _DIGEST_LENGTH]
            offset = number * BLOCK
            found.setdefault(digest, Piece(min(BLOCK, entry.size - offset), entry.key, offset, entry.tag))
    return found


def pieces_of(blocks: Sequence[str], size: int, there: Mapping[str, Piece]) -> list[Piece]:
    """Return the pieces that a file of ``size`` bytes with these blocks consists of.

    None when no block is in the store, or there would be too many pieces.
    """
    pieces: list[Piece] = []
    for number, digest in enumerate(blocks):
        piece = there.get(digest) or Piece(min(BLOCK, size - number * BLOCK))
        last = pieces[-1] if pieces else None
        if last is not None and _follows(piece, last):
            pieces[-1] = replace(last, size=last.size + piece.size)
        else:
            pieces.append(piece)
    return pieces if any(piece.key for piece in pieces) and len(pieces) <= MOST_PIECES else []


def _follows(piece: Piece, last: Piece) -> bool:
    """Tell whether a piece can be had in one with the one before it."""
    if not piece.key:
        return not last.key and last.size + piece.size <= _LARGEST_SENT
    return (piece.key, piece.offset) == (last.key, last.offset + last.size) and last.size + piece.size <= LARGEST_COPY


class UnsentReader:
    """Reads those pieces of a file that are not in the store, one after another, and checks each block's hash.

    Raises :class:`ChangedError` where a block is not what it was when it was hashed.
    """

    def __init__(self, source: Any, pieces: Sequence[Piece], blocks: Sequence[str]) -> None:
        self._source = source
        self._blocks = self._read(pieces, blocks)
        self._ready = b""

    def read(self, amount: int) -> bytes:
        while len(self._ready) < amount and (data := next(self._blocks, b"")):
            self._ready += data
        data, self._ready = self._ready[:amount], self._ready[amount:]
        return data

    def _read(self, pieces: Sequence[Piece], blocks: Sequence[str]) -> Iterator[bytes]:
        offset = 0
        for piece in pieces:
            end = offset + piece.size
            for start in range(offset, end, BLOCK) if not piece.key else ():
                self._source.seek(start)
                data: bytes = self._source.read(min(BLOCK, end - start))
                if hashlib.sha256(data).hexdigest() != blocks[start // BLOCK]:
                    raise ChangedError
                yield data
            offset = end
