# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Large downloads on a box, which go on where they were cut off: standard library only, Python 3.10 or newer.

Private to this collection.
"""

from __future__ import annotations

import errno
import http.client
import time
import urllib.error
from collections.abc import Sequence
from pathlib import Path

from ansible.module_utils.urls import open_url
from ansible_collections.gpuyard.cloud.plugins.module_utils._box import BoxError, file_sha256

_BLOCK = 1 << 20
_ATTEMPTS = 4
_TIMEOUT_S = 60.0


def fetch(url: str, target: Path, accepted: Sequence[str]) -> None:
    """Fetch ``url`` to ``target`` and check it against the SHA-256 sums in ``accepted``, any of which will do.

    What has come so far is in ``target`` with ``.part`` behind its name. It stays when the connection or the program is
    cut off, and the next call asks for the rest. A wrong checksum leaves nothing. Raises :class:`BoxError`.
    """
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists()
    _complete(url, part)
    found = file_sha256(part)
    if found not in accepted and resumed:
        # What was there may have been of another file of the same name.
        part.unlink()
        _complete(url, part)
        found = file_sha256(part)
    if found not in accepted:
        part.unlink()
        raise BoxError(f"{url} has the SHA-256 {found}, but {' or '.join(accepted)} is pinned: nothing was installed.")
    part.replace(target)


def _complete(url: str, part: Path) -> None:
    """Have all of ``url`` in ``part``; a connection that breaks is tried again from where it was."""
    failure = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        try:
            _receive(url, part)
            return
        except urllib.error.HTTPError as error:
            failure = f"the server answered {error.code} {error.reason}"
            if error.code == 416:  # there is nothing behind what has come
                return
            if error.code < 500 and error.code != 429:
                raise BoxError(f"{url} cannot be fetched: {failure}.") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise BoxError(
                    f"{url} cannot be fetched: the disk of {part.parent} is full; make room there."
                ) from error
            failure = str(getattr(error, "reason", error))
    raise BoxError(f"{url} cannot be fetched after {_ATTEMPTS} attempts: {failure}.")


def _receive(url: str, part: Path) -> None:
    """Append to ``part`` what it lacks of ``url``; raise :class:`OSError` when the connection ends too early."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    # The bytes as they are, and no password from a file that is meant for other programs.
    with open_url(url, timeout=_TIMEOUT_S, decompress=False, use_netrc=False, headers=headers) as answer:
        goes_on = have and answer.status == 206
        length = answer.headers.get("Content-Length")
        came = 0
        with part.open("ab" if goes_on else "wb") as stream:
            while block := answer.read(_BLOCK):
                stream.write(block)
                came += len(block)
    if length is not None and came < int(length):
        raise OSError(f"the connection ended after {came} of {length} bytes")
