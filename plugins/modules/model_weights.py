#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model_weights
short_description: Bring model weights from the Hugging Face Hub onto a machine, verified
description:
  - Fetches the files of a repository at one commit with the real C(hf), which goes on where a connection was cut.
  - Checks each file against the checksum that the Hub names, which is a SHA-256 for a large file and git's own for any
    other one. A file that differs is fetched anew.
  - Writes down what was found right. Afterwards a file is known by its size and time, and the Hub is not asked.
  - A download goes on by itself when the connection to the machine is lost. The next command waits for it.
version_added: "0.2.0"
author: gpuyard contributors (@gpuyard)
options:
  weights:
    description:
      - What to fetch, by a name that is used in messages. Each value is a dictionary.
      - C(repository) is the repository on the Hub, such as V(deepseek-ai/DeepSeek-Prover-V2-7B).
      - C(revision) is the commit, all 40 hexadecimal digits.
      - C(directory) is where the files go, relative to O(root).
      - C(store) is the folder of a volume in which the files lie. The directory becomes a link to it.
      - C(include) and C(exclude) are lists of patterns of the files to fetch and to leave out.
      - C(gated) tells that the Hub asks for O(token), which then must not be empty.
    type: dict
    required: true
  root:
    description: The persistent folder.
    type: path
    default: /mnt/persistent
  endpoint:
    description: The Hub, or a mirror of it.
    type: str
    default: https://huggingface.co
  token:
    description: The token for gated and private repositories. It is handed to C(hf) in its environment.
    type: str
  hf:
    description: The program C(hf).
    type: path
    default: /opt/gpuyard/hf/bin/hf
attributes:
  check_mode:
    description: Can run in check mode and tell what would be fetched, in bytes.
    support: full
  diff_mode:
    description: Shows which files would be fetched.
    support: full
"""

EXAMPLES = r"""
- name: Have the prover's weights
  gpuyard.cloud.model_weights:
    weights:
      prover:
        repository: deepseek-ai/DeepSeek-Prover-V2-7B
        revision: "0123456789012345678901234567890123456789"
        exclude: ["*.bin"]
        directory: models/base
"""

RETURN = r"""
bytes:
  description: The bytes that were fetched, or would be in check mode.
  type: int
  returned: success
  sample: 13821071360
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: ["fetch 2 files (13.8 GB) of prover from deepseek-ai/DeepSeek-Prover-V2-7B"]
"""

import json
import re
import shutil
import urllib.error
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box, _fetch
from ansible_collections.gpuyard.cloud.plugins.module_utils._progress import Progress

REVISION = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
NEXT_PAGE = re.compile(r'<([^>]+)>;\s*rel="next"')
ENTRY = {
    "repository": {"type": "str", "required": True},
    "revision": {"type": "str", "required": True},
    "directory": {"type": "str", "required": True},
    "store": {"type": "path"},
    "include": {"type": "list", "elements": "str", "default": []},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "gated": {"type": "bool", "default": False},
}
ATTEMPTS = 3
TIMEOUT_S = 60.0
# More names than these do not go onto one command line.
MOST_NAMES = 2000
# Where hf keeps what it knows of a folder, and files that it has not got whole. It begins such a file anew in another
# process, so that what a killed one leaves there is of no use.
NOTES = Path(".cache/huggingface")
# What the Hub's answers mean for the user.
REFUSALS = {
    401: "it is gated or private, and {token}",
    403: "the token in HF_TOKEN may not read it: accept its terms on its page, or use another token",
    404: "it has no such repository or commit; a private one looks the same where {token}",
}


class Weights:
    """One model: what is wanted, where it lies, and how it is had."""

    def __init__(self, module: AnsibleModule, name: str, entry: dict[str, Any]) -> None:
        self.module, self.name, self.entry = module, name, entry
        options: dict[str, Any] = module.params
        self.endpoint = options["endpoint"].rstrip("/")
        self.token = options["token"] or ""
        self.repository, self.revision = entry["repository"], entry["revision"]
        if not REVISION.fullmatch(self.revision):
            raise _box.BoxError(
                f"weights.{name}.revision={self.revision} must be a commit of 40 hexadecimal digits, because a branch "
                f"names other files tomorrow: {self.endpoint}/{self.repository}/commits/main lists the commits."
            )
        if not REPOSITORY.fullmatch(self.repository):
            raise _box.BoxError(
                f"weights.{name}.repository={self.repository} must be of the form owner/name, as on the Hub."
            )
        if entry["gated"] and not self.token:
            raise _box.BoxError(f"weights.{name} is gated, and HF_TOKEN is not set where the play runs.")
        _fetch.check_path(entry["directory"], f"weights.{name}.directory")
        self.where = (options["root"], entry["directory"], entry["store"])
        self.folder = _fetch.Folder(_fetch.place(*self.where))
        self.identity = {key: entry[key] for key in ("repository", "revision", "include", "exclude")}

    @property
    def environment(self) -> dict[str, str]:
        """What ``hf`` is told. Nothing of it is kept in the home folder of the user."""
        settings = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.folder.path / NOTES),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_COLOR": "1",
            # Set for the stages, and of no use to who fetches.
            "HF_HUB_OFFLINE": "0",
            # A token of the machine's user is not asked for.
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "" if self.token else "1",
        }
        if _box.CERTIFICATES.exists():
            settings["SSL_CERT_FILE"] = str(_box.CERTIFICATES)
        return settings

    def chosen(self, path: str) -> bool:
        """Tell whether a file is asked for, by the rules of ``hf`` itself."""
        include, exclude = (
            [f"{pattern}*" if pattern.endswith("/") else pattern for pattern in self.entry[key]]
            for key in ("include", "exclude")
        )
        if include and not any(fnmatch(path, pattern) for pattern in include):
            return False
        return not any(fnmatch(path, pattern) for pattern in exclude)

    def listed(self) -> list[_fetch.File]:
        """Ask the Hub for the files that are wanted, with their sizes and checksums."""
        files = []
        for entry in self.pages():
            if entry.get("type") != "file" or not self.chosen(str(entry.get("path"))):
                continue
            path = _fetch.check_path(str(entry["path"]), self.repository)
            large = entry.get("lfs")
            algorithm, digest = ("sha256", large["oid"]) if large else ("git", entry["oid"])
            files.append(_fetch.File(path, int(entry["size"]), algorithm, str(digest)))
        if not files:
            raise _box.BoxError(f"weights.{self.name}: no file of {self.repository} matches include and exclude.")
        return files

    def pages(self) -> Iterator[dict[str, Any]]:
        """Yield what the repository has at the revision."""
        url = f"{self.endpoint}/api/models/{quote(self.repository)}/tree/{self.revision}?recursive=true&expand=false"
        while url:
            try:
                with open_url(
                    url,
                    headers={"Authorization": f"Bearer {self.token}"} if self.token else {},
                    unredirected_headers=["Authorization"],
                    timeout=TIMEOUT_S,
                    use_netrc=False,
                ) as answer:
                    yield from json.load(answer)
                    following = NEXT_PAGE.search(answer.headers.get("Link") or "")
            except urllib.error.HTTPError as error:
                reason = REFUSALS.get(error.code, f"the answer is {error.code} {error.reason}")
                token = "HF_TOKEN is wrong" if self.token else "HF_TOKEN is not set where the play runs"
                raise _box.BoxError(
                    f"weights.{self.name}: {self.endpoint} does not give {self.repository} at {self.revision}: "
                    f"{reason.format(token=token)}."
                ) from error
            except (OSError, ValueError) as error:
                reason = str(getattr(error, "reason", error))
                raise _box.BoxError(
                    f"weights.{self.name}: {self.endpoint} cannot be asked for {self.repository}: {reason}."
                ) from error
            url = urljoin(url, following[1]) if following else ""
            if url and urlsplit(url)[:2] != urlsplit(self.endpoint)[:2]:
                # The token is for this server alone.
                raise _box.BoxError(f"weights.{self.name}: {self.endpoint} sends to another server, {url}.")

    def fetch(self, files: list[_fetch.File], wanted: list[_fetch.File]) -> None:
        """Have the files here, each with its content, and write that down; ``wanted`` are those that are missing."""
        size = sum(file.size for file in wanted)
        progress = Progress(f"weights {self.name}", count=lambda: self.already(wanted), total=size)
        with progress, self.folder.locked(self.identity, progress):
            missing = self.folder.missing(files)
            for _attempt in range(ATTEMPTS):
                if not missing:
                    break
                self.download(missing, progress)
                # What is right is not read once more.
                missing = self.folder.missing(missing)
            if missing:
                raise _box.BoxError(
                    f"weights.{self.name}: {missing[0].path} of {self.repository} has not the {missing[0].algorithm} "
                    f"checksum {missing[0].digest} that the Hub names, after {ATTEMPTS} downloads from {self.endpoint}."
                )
            self.forget_notes()
            self.folder.keep(self.identity, files)

    def already(self, files: list[_fetch.File]) -> int:
        """Return the bytes on the disk that these files need no more: what was cut, and what is replaced."""
        there = [*(self.folder.path / NOTES).rglob("*.incomplete"), *(self.folder.path / file.path for file in files)]
        return sum(path.stat().st_size for path in there if path.is_file())

    def forget_notes(self) -> None:
        """Remove what hf keeps in the folder."""
        shutil.rmtree(self.folder.path / NOTES, ignore_errors=True)
        with suppress(OSError):  # somebody else's, or none
            (self.folder.path / NOTES).parent.rmdir()

    def download(self, files: list[_fetch.File], progress: Progress) -> None:
        """Let ``hf`` fetch files; what lies there with another content goes first."""
        self.forget_notes()
        for file in files:
            (self.folder.path / file.path).unlink(missing_ok=True)
        for start in range(0, len(files), MOST_NAMES):
            names = [file.path for file in files[start : start + MOST_NAMES]]
            command = [self.module.params["hf"], "download", self.repository, *names]
            command += ["--revision", self.revision, "--local-dir", str(self.folder.path)]
            purpose = f"weights.{self.name}: fetching {self.repository} from {self.endpoint}"
            self.folder.run(command, self.identity, purpose=purpose, environment=self.environment, progress=progress)


def work(module: AnsibleModule) -> dict[str, Any]:
    """Have all weights, or in check mode say what would be fetched."""
    actions: list[str] = []
    total = 0
    fetched: dict[str, list[str]] = {}
    everything = [
        Weights(module, name, _fetch.checked(f"weights.{name}", entry, ENTRY))
        for name, entry in module.params["weights"].items()
    ]
    for weights in everything:
        if not weights.folder.is_whole(weights.identity):
            files = weights.listed()
            missing = weights.folder.missing(files)
            size = sum(file.size for file in missing)
            if missing:
                count = f"{len(missing)} file{'s' if len(missing) > 1 else ''} ({_fetch.in_words(size)})"
                actions.append(f"fetch {count} of {weights.name} from {weights.repository}")
                fetched[weights.name] = [file.path for file in missing]
                total += size
                weights.folder.check_space(
                    size - weights.already(missing),
                    f"weights.{weights.name}",
                    "take a machine with a larger disk, or fewer files by include",
                )
            else:
                actions.append(f"verify {weights.name}")
            if not module.check_mode:
                weights.fetch(files, missing)
        if not _fetch.is_linked(*weights.where):
            actions.append(f"link {weights.entry['directory']} to {weights.entry['store']}")
            if not module.check_mode:
                _fetch.link(*weights.where)
    return {
        "changed": bool(actions),
        "actions": actions,
        "bytes": total,
        "diff": {"before": {}, "after": {"fetched": fetched} if fetched else {}},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "weights": {"type": "dict", "required": True},
            "root": {"type": "path", "default": "/mnt/persistent"},
            "endpoint": {"type": "str", "default": "https://huggingface.co"},
            "token": {"type": "str", "no_log": True},
            "hf": {"type": "path", "default": "/opt/gpuyard/hf/bin/hf"},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
