# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the Python package that this collection is made for is there. Private to this collection."""

from __future__ import annotations

import sys
from contextlib import suppress

INSTALLED: str | None = None
with suppress(ImportError):
    from gpuyard import __version__ as INSTALLED

VERSION = "0.1.0"
"""The version of this collection, and of the package that belongs to it."""


def core_problem() -> str | None:
    """Return why the package cannot be used, and the way out; ``None`` when nothing is wrong."""
    if INSTALLED == VERSION:
        return None
    found = "does not have it" if INSTALLED is None else f"has {INSTALLED}"
    return (
        f"The collection gpuyard.cloud {VERSION} needs the Python package gpuyard {VERSION}, and {sys.executable}, "
        f"which runs Ansible, {found}: pip install gpuyard=={VERSION}"
    )
