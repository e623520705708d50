# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Downloads on a box, which go on where they were cut off: standard library only, Python 3.10 or newer.

Private to this collection.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import time
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.urls import open_url
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
from ansible_collections.gpuyard.cloud.plugins.module_utils._progress import Progress

_BLOCK = 1 << 20
_ATTEMPTS = 4
_TIMEOUT_S = 60.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class WrongChecksumError(_box.BoxError):
    """What came is not what was asked for."""


def fetch(
    url: str,
    target: Path,
    accepted: Sequence[str] = (),
    *,
    name: str = "",
    received: Callable[[int], None] | None = None,
) -> None:
    """Fetch ``url`` (https, http or file) to ``target``, and check it against the SHA-256 sums in ``accepted``.

    Any of them will do; without any nothing is checked. What has come so far is in ``target`` with ``.part`` behind its
    name. It stays when the connection or the program is cut off, and the next call asks for the rest, provided that the
    file is still the same on the server. Bad connections and busy servers are tried again, as long as anything comes,
    and three times when nothing does. A wrong checksum leaves nothing.

    ``name`` is what messages call it, by default the address without what may let somebody in. ``received`` is told how
    many bytes have come since it was told last; without it the play shows them. Raises :class:`BoxError`.
    """
    with Progress(f"fetching {target.name}") as progress:
        download = _Download(url, target, name or _plain(url), bool(accepted), received, progress)
        resumed = download.have > 0
        download.complete()
        if accepted and resumed and download.sum.hexdigest() not in accepted:
            # What was there may have been of another file of the same name.
            download.begin_anew()
            download.complete()
        if accepted and (found := download.sum.hexdigest()) not in accepted:
            download.begin_anew()
            pinned = " or ".join(accepted)
            raise WrongChecksumError(
                f"{download.name} has the SHA-256 {found}, but {pinned} is pinned: nothing was installed."
            )
        download.part.replace(target)
        download.note.unlink(missing_ok=True)


def _plain(url: str) -> str:
    """Return an address without user, password and signature."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class _Download:
    """One file on its way: what has come of it, its checksum so far, and what the server said of it."""

    def __init__(
        self,
        url: str,
        target: Path,
        name: str,
        checked: bool,
        received: Callable[[int], None] | None,
        progress: Progress,
    ) -> None:
        self.url, self.name = url, name
        self.part = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.from")
        self.checked, self.received, self.progress = checked, received, progress
        self.sum = hashlib.sha256()
        self.have = 0
        progress.count = lambda: self.have
        noted = _box.read_record(self.note)
        self.validator = str(noted.get("validator") or "") if noted.get("url") == _plain(url) else ""
        # Without a word of the server's, and without a checksum, nobody could tell that it is another file by now.
        if not self.part.exists() or (noted and not self.validator) or not (self.validator or checked):
            self.begin_anew()
            return
        with self.part.open("rb") as stream:
            while block := stream.read(_BLOCK):
                self.sum.update(block)
                self.have += len(block)

    def begin_anew(self) -> None:
        """Forget what has come."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.sum, self.have, self.validator = hashlib.sha256(), 0, ""

    def complete(self) -> None:
        """Have all of the file; raise :class:`BoxError` when that cannot be."""
        attempts = 1 if self.url.startswith("file:") else _ATTEMPTS
        failures, most = 0, self.have
        while True:
            try:
                self._receive()
                return
            except urllib.error.HTTPError as error:
                failure = f"the server answered {error.code} {error.reason}"
                if error.code == 416 and self.have:
                    if self._is_all(error):
                        return
                    self.begin_anew()
                elif error.code < 500 and error.code != 429:
                    raise _box.BoxError(f"{self.name} cannot be fetched: {failure}.") from error
            except (OSError, ValueError, http.client.HTTPException) as error:
                failure = str(getattr(error, "reason", "") or getattr(error, "strerror", "") or error)
                if getattr(error, "errno", None) in _NO_ROOM:
                    raise _box.BoxError(
                        f"{self.name} cannot be fetched: {failure} in {self.part.parent}; make room there."
                    ) from error
            # One that ever goes on is not given up.
            failures = 1 if self.have > most else failures + 1
            most = max(most, self.have)
            if failures >= attempts:
                tries = f" after {attempts} attempts" if attempts > 1 else ""
                raise _box.BoxError(f"{self.name} cannot be fetched{tries}: {failure}.")
            time.sleep(2.0 ** (failures - 1))

    def _is_all(self, error: urllib.error.HTTPError) -> bool:
        """Tell whether a server that has nothing more is right: by the size that it names, else by the checksum."""
        size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        return int(size) == self.have if size.isdigit() else self.checked

    def _receive(self) -> None:
        """Ask for what is missing and append it; raise :class:`OSError` when the connection ends too early."""
        headers = {"Range": f"bytes={self.have}-"} if self.have else {}
        if self.have and self.validator:
            headers["If-Range"] = self.validator
        # The bytes as they are, and no password from a file that is meant for other programs.
        with open_url(self.url, timeout=_TIMEOUT_S, decompress=False, use_netrc=False, headers=headers) as answer:
            whole = self._begin(answer)
            self.progress.total = whole
            with self.part.open("ab") as stream:
                while block := answer.read(_BLOCK):
                    stream.write(block)
                    self.sum.update(block)
                    self.have += len(block)
                    if self.received:
                        self.received(len(block))
                    else:
                        self.progress.tick()
        if self.have < whole:
            raise OSError(f"the connection ended after {self.have} of {whole} bytes")

    def _begin(self, answer: Any) -> int:
        """Look where the answer begins, and return the size of the whole file, 0 where the server does not say it."""
        length = int(answer.headers.get("Content-Length") or 0)
        validator = _validator(answer.headers)
        if self.have and answer.status == 206:
            found = _RANGE.fullmatch(answer.headers.get("Content-Range") or "")
            if found and int(found[1]) != self.have:
                self.begin_anew()
                raise OSError(f"the server sent the bytes from {found[1]} on, which were not asked for")
            if self.validator and validator and validator != self.validator:
                self.begin_anew()
                raise OSError("the file has changed on the server meanwhile")
            return self.have + length
        self.begin_anew()
        if validator:
            self.validator = validator
            _box.write_record(self.note, {"url": _plain(self.url), "validator": validator})
        return length


def _validator(headers: Any) -> str:
    """Return what tells this content of the file from another one, as ``If-Range`` takes it; "" for nothing."""
    tag = str(headers.get("ETag") or "")
    return tag if tag.startswith('"') else str(headers.get("Last-Modified") or "")
