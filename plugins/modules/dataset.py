#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: dataset
short_description: Bring data sets from a bucket or a web server onto a machine, once for each volume
description:
  - Fetches with the real C(rclone) what is missing or differs, from S3 and its like, Backblaze B2, Google Cloud
    Storage, Azure Blob Storage, or a web server. A large file goes on where an earlier download was cut.
  - Checks each file against the checksum that a list at the origin or the store itself names, else its size.
  - Writes down what was found right, in the folder itself. Afterwards a file is known by its size and time, and the
    origin is not asked, on whatever machine the volume is.
  - A download goes on by itself when the connection to the machine is lost. The next command waits for it.
version_added: "0.2.0"
author: gpuyard contributors (@gpuyard)
options:
  datasets:
    description:
      - What to fetch, by a name that is used in messages. Each value is a dictionary.
      - C(from) is the origin, such as V(s3://bucket/path), V(b2://bucket/path), V(gs://bucket/path),
        V(az://container/path), V(https://host/path), or V(bucket://path) in O(bucket).
      - C(to) is where the files go, relative to O(root).
      - C(store) is the folder of a volume in which the files lie. C(to) becomes a link to it.
      - C(include) and C(exclude) are lists of rclone's patterns.
      - C(checksums) is a file at the origin as C(sha256sum) writes it; C(sha256) is that file's checksum, or that of a
        single file.
      - C(endpoint) is the address of an S3 service, and C(public) tells that no keys are needed.
      - C(disk_gb) is the disk that it takes in all, in gigabytes.
      - C(fallback) is another origin, taken when the first one is not there or its C(disk_gb) is not free.
      - C(prepare) is a shell command, run once for each state of the data in O(repository).
    type: dict
    required: true
  root:
    description: The persistent folder.
    type: path
    default: /mnt/persistent
  repository:
    description: The folder in which C(prepare) runs. By default the data set's own.
    type: path
  search_path:
    description: Folders that come first on the PATH of C(prepare).
    type: list
    elements: path
    default: []
  environment:
    description: Plain variables of C(prepare).
    type: dict
    default: {}
  secrets:
    description:
      - The keys by the names of their variables, such as C(AWS_ACCESS_KEY_ID), C(AWS_SECRET_ACCESS_KEY), C(B2_KEY_ID),
        C(B2_APP_KEY) and C(AZURE_STORAGE_CONNECTION_STRING).
      - C(GOOGLE_CREDENTIALS) is the content of a service account's file.
      - C(rclone) has them in its environment, each kind of origin only its own.
    type: dict
    default: {}
  bucket:
    description: The run's own bucket, V(s3://name/prefix), in which V(bucket://path) lies.
    type: str
    default: ""
  s3_endpoint:
    description: The S3 service of those V(s3://) origins that name none. Empty means Amazon's.
    type: str
    default: ""
  s3_region:
    description: Its region.
    type: str
    default: ""
  rclone:
    description: The program C(rclone).
    type: path
    default: /opt/gpuyard/rclone/bin/rclone
attributes:
  check_mode:
    description: Can run in check mode and tell what would be fetched, in bytes.
    support: full
  diff_mode:
    description: Shows which files would be fetched.
    support: full
"""

EXAMPLES = r"""
- name: Have the tactic pairs, whose files are listed with their checksums
  gpuyard.cloud.dataset:
    datasets:
      pairs:
        from: https://data.example.org/pairs/
        checksums: SHA256SUMS
        to: data/pairs
        prepare: python scripts/split.py "$DATASET" data/sft
    repository: /opt/gpuyard/src/prover
"""

RETURN = r"""
bytes:
  description: The bytes that were fetched, or would be in check mode, as far as the origins say sizes.
  type: int
  returned: success
  sample: 5368709120
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: ["fetch 12 files (5.4 GB) of pairs from https://data.example.org/pairs/", "prepare pairs"]
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box, _fetch
from ansible_collections.gpuyard.cloud.plugins.module_utils._progress import Progress

ORIGIN = {
    "from": {"type": "str", "required": True},
    "endpoint": {"type": "str"},
    "public": {"type": "bool", "default": False},
    "include": {"type": "list", "elements": "str", "default": []},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "checksums": {"type": "str"},
    "sha256": {"type": "str"},
    "disk_gb": {"type": "float"},
}
ENTRY = {
    **ORIGIN,
    "to": {"type": "str", "required": True},
    "store": {"type": "path"},
    "fallback": {"type": "dict"},
    "prepare": {"type": "str"},
}
# What decides which files it is.
IDENTITY = ("from", "include", "exclude", "checksums", "sha256")
# Checksums that a store may list, the best first, as rclone and Python call them.
HASHES = ("sha256", "sha1", "md5")
SUM_LINE = re.compile(r"([0-9a-f]{64})[ \t]+\*?(.+)")
NOT_THERE = (3, 4)  # rclone's exit codes for a folder and a file
RUN_BUCKET = "bucket://"
PARTS = ".gpuyard-parts"
PREPARED = ".gpuyard-prepared"
# The key of the work on one part: whatever was asked for, the next one goes on behind it.
APPENDING = "append"
# From this size on a file is fetched by itself, so that it can be gone on with; one rclone fetches all smaller ones.
LARGE_BYTES = 64_000_000
ATTEMPTS = 3
AT_ONCE = 8
PATIENCE = (
    "--contimeout",
    "20s",
    "--timeout",
    "60s",
    "--stats",
    "10s",
    "--stats-one-line",
    "--stats-log-level",
    "NOTICE",
)
# bash leaves the mark by itself when the command is through, also where nobody waits for it any more.
PREPARE = 'bash -euo pipefail -c "$1" && printf %s "$2" > "$3.part" && mv "$3.part" "$3"'


class NotThereError(Exception):
    """There is nothing at the origin."""


class Origin:
    """Where a data set comes from, and how rclone gets at it."""

    def __init__(self, module: AnsibleModule, option: str, entry: dict[str, Any]) -> None:
        self.module, self.option = module, option
        self.url: str = entry["from"]
        if self.url.startswith(RUN_BUCKET):
            bucket = module.params["bucket"].rstrip("/")
            if not bucket.startswith("s3://"):
                raise _box.BoxError(f"{option}.from={self.url} needs the run's bucket in S3, and there is none.")
            self.url = f"{bucket}/{self.url.removeprefix(RUN_BUCKET)}"
        self.entry = {**entry, "from": self.url}
        address = urlsplit(self.url)
        self.scheme, self.host = address.scheme, address.netloc
        self.path = unquote(address.path).lstrip("/")
        self.environment = self.settings()

    @property
    def identity(self) -> dict[str, Any]:
        """What the files that come from here are known by."""
        return {key: self.entry[key] for key in IDENTITY}

    @property
    def remote(self) -> str:
        """The origin as rclone is given it; its settings are in the environment."""
        return f"src:{self.path}" if self.scheme.startswith("http") else f"src:{self.host}/{self.path}"

    def below(self, path: str) -> str:
        """Return a file of the origin as rclone is given it."""
        return f"{self.remote}{'' if self.remote.endswith(('/', ':')) else '/'}{path}"

    def settings(self) -> dict[str, str]:
        """Return rclone's settings for this kind of origin."""
        options, public = self.module.params, self.entry["public"]
        keys: dict[str, str] = {} if public else options["secrets"]
        endpoint = self.entry["endpoint"]
        if self.scheme in ("http", "https"):
            own = {"type": "http", "url": f"{self.scheme}://{self.host}/"}
        elif self.scheme in ("s3", "b2"):
            names = (
                ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if self.scheme == "s3" else ("B2_KEY_ID", "B2_APP_KEY")
            )
            default = options["s3_endpoint"] if self.scheme == "s3" else options["secrets"].get("B2_S3_ENDPOINT")
            endpoint = endpoint or default or ""
            if self.scheme == "b2" and not endpoint:
                raise _box.BoxError(
                    f"{self.option}.from={self.url} needs the bucket's S3 address: set B2_S3_ENDPOINT, or the key "
                    "endpoint."
                )
            if endpoint and "://" not in endpoint:
                endpoint = f"https://{endpoint}"
            access, secret = (keys.get(name, "") for name in names)
            own = {
                "type": "s3",
                "provider": "Other" if endpoint else "AWS",
                "endpoint": endpoint,
                "region": options["s3_region"] if self.scheme == "s3" else keys.get("B2_S3_REGION", ""),
                "access_key_id": access,
                "secret_access_key": secret,
                # Where there are no keys the machine may have a role of its own.
                "env_auth": "false" if access or public else "true",
            }
        elif self.scheme == "gs":
            own = {
                "type": "google cloud storage",
                "service_account_credentials": keys.get("GOOGLE_CREDENTIALS", ""),
                "anonymous": "true" if public else "false",
                "endpoint": endpoint or "",
            }
        elif self.scheme == "az":
            account = keys.get("AZURE_STORAGE_CONNECTION_STRING", "")
            if not account and not (public and endpoint):
                raise _box.BoxError(
                    f"{self.option}.from={self.url} needs AZURE_STORAGE_CONNECTION_STRING, or public and the account's "
                    "address as endpoint."
                )
            # Of a container that everybody may read the address is all that is needed.
            own = {"connection_string": account} if account else {"sas_url": f"{endpoint.rstrip('/')}/{self.host}"}
            own["type"] = "azureblob"
        else:
            raise _box.BoxError(
                f"{self.option}.from={self.url} must begin with bucket://, s3://, b2://, gs://, az:// or https://."
            )
        settings = {f"RCLONE_CONFIG_SRC_{key.upper()}": value for key, value in own.items() if value}
        # A configuration of the machine's user is none of our business.
        return {"RCLONE_CONFIG": os.devnull, **settings}

    def ask(self, *words: str) -> str:
        """Return what rclone says; raise :class:`NotThereError` when there is nothing."""
        command = [self.module.params["rclone"], *words, *PATIENCE, "--low-level-retries", "2"]
        code, output, errors = _box.execute(self.module, command, environment=self.environment)
        if code in NOT_THERE:
            raise NotThereError
        if code:
            raise _box.BoxError(f"{self.option}: {self.url} cannot be read: {_fetch.last_line(errors)}.")
        return output

    def listed(self) -> list[_fetch.File]:
        """Return the files that are wanted; the path of a single one is its name, and ``self.path`` its folder."""
        if not self.path.endswith("/") and self.path:
            found = json.loads(self.ask("lsjson", "--stat", "--hash", "--no-mimetype", self.remote))
            if found is None:
                raise NotThereError
            if not found["IsDir"]:
                self.path = f"{os.path.dirname(self.path)}/".lstrip("/")
                return [self.file(found, {found["Name"]: self.entry["sha256"]} if self.entry["sha256"] else {})]
        sums = self.checksums()
        try:
            entries = self.entries()
        except (NotThereError, _box.BoxError):
            if not sums:
                raise
            # A web server that lists nothing gives the files all the same.
            entries = []
        files = [self.file(entry, sums) for entry in entries if not sums or entry["Path"] in sums]
        if sums:
            unlisted = sorted(sums.keys() - {file.path for file in files})
            if entries and unlisted:
                raise _box.BoxError(
                    f"{self.option}: {self.url} has no file {unlisted[0]}, which {self.entry['checksums']} names."
                )
            files += [_fetch.File(path, -1, "sha256", sums[path]) for path in unlisted]
        if not files:
            raise NotThereError
        return files

    def entries(self) -> list[dict[str, Any]]:
        """Return what rclone lists below the origin."""
        words = [
            "lsjson",
            "--recursive",
            "--files-only",
            "--hash",
            "--no-mimetype",
            "--use-server-modtime",
            self.remote,
        ]
        for key in ("include", "exclude"):
            words += [word for pattern in self.entry[key] for word in (f"--{key}", pattern)]
        listed: list[dict[str, Any]] = json.loads(self.ask(*words))
        return listed

    def checksums(self) -> dict[str, str]:
        """Return the SHA-256 of each wanted file by its path, where the origin has a list of them."""
        name = self.entry["checksums"]
        if not name:
            return {}
        text = self.ask("cat", self.below(name))
        found = hashlib.sha256(text.encode()).hexdigest()
        if self.entry["sha256"] and found != self.entry["sha256"]:
            raise _box.BoxError(
                f"{self.option}: {name} of {self.url} has the SHA-256 {found}, but {self.entry['sha256']} is pinned: "
                "nothing was fetched."
            )
        lines = [SUM_LINE.fullmatch(line.rstrip()) for line in text.splitlines() if line.strip()]
        sums = {_fetch.check_path(line[2].removeprefix("./"), self.url): line[1] for line in lines if line}
        if not sums or None in lines:
            raise _box.BoxError(f"{self.option}: {name} of {self.url} has not the lines that sha256sum writes.")
        return sums

    def file(self, entry: dict[str, Any], sums: dict[str, str]) -> _fetch.File:
        """Return what rclone lists as a file that is wanted."""
        path = _fetch.check_path(entry["Path"], self.url)
        if path in sums:
            return _fetch.File(path, entry["Size"], "sha256", sums[path])
        hashes = entry.get("Hashes") or {}
        algorithm = next((name for name in HASHES if hashes.get(name)), "")
        return _fetch.File(path, entry["Size"], algorithm, hashes.get(algorithm, ""))


class Dataset:
    """One data set: what is wanted, where it lies, and how it is had."""

    def __init__(self, module: AnsibleModule, name: str, entry: dict[str, Any]) -> None:
        self.module, self.name, self.entry = module, name, entry
        self.option = f"datasets.{name}"
        _fetch.check_path(entry["to"], f"{self.option}.to")
        self.where = (module.params["root"], entry["to"], entry["store"])
        self.folder = _fetch.Folder(_fetch.place(*self.where))
        self.origins = [Origin(module, self.option, entry)]
        if entry["fallback"]:
            option = f"{self.option}.fallback"
            self.origins.append(Origin(module, option, _fetch.checked(option, entry["fallback"], ORIGIN)))
        self.notes: list[str] = []

    def is_whole(self) -> bool:
        """Tell whether it was fetched from one of its origins, and has not changed since."""
        return any(self.folder.is_whole(origin.identity) for origin in self.origins)

    def choose(self) -> tuple[Origin, list[_fetch.File], list[_fetch.File]]:
        """Return the origin to take, its files, and those that are missing.

        Raises :class:`BoxError` when no origin has files for which there is disk.
        """
        for origin in self.origins:
            is_last = origin is self.origins[-1]
            try:
                files = origin.listed()
            except NotThereError:
                why = f"there is nothing at {origin.url}"
                if is_last:
                    raise _box.BoxError(f"{origin.option}: {why}: name where the data set is in from.") from None
            else:
                missing = self.folder.missing(files)
                try:
                    self.check_space(origin, missing)
                except _box.BoxError as error:
                    if is_last:
                        raise
                    why = str(error).replace(origin.option, "it", 1).partition(":")[0]
                else:
                    return origin, files, missing
            self.notes.append(f"take the fallback of {self.name}, because {why}")
        raise AssertionError

    def check_space(self, origin: Origin, missing: list[_fetch.File]) -> None:
        """Raise :class:`BoxError` when what is missing, or what it takes in all, is more than the disk has left."""
        if not missing:
            return
        needed = sum(max(file.size, 0) for file in missing) - self.partial()
        if origin.entry["disk_gb"]:
            needed = max(needed, origin.entry["disk_gb"] * 1e9 - self.here())
        self.folder.check_space(needed, origin.option, "take a machine with a larger disk (needs.disk_gb)")

    def here(self) -> int:
        """Return the bytes of all that is in the folder."""
        return size_of(self.folder.path)

    def partial(self) -> int:
        """Return the bytes that earlier downloads left."""
        return size_of(self.folder.path / PARTS)

    def fetch(self, origin: Origin, files: list[_fetch.File], size: int) -> None:
        """Have the files here, each with its content, and write that down. Some ``size`` bytes of them are missing."""
        before = self.here() - self.partial()
        progress = Progress(f"data set {self.name}", count=lambda: max(self.here() - before, 0), total=size)
        with progress, self.folder.locked(self.entry, progress):
            missing = self.folder.missing(files)
            for _attempt in range(ATTEMPTS):
                if not missing:
                    break
                for file in missing:
                    (self.folder.path / file.path).unlink(missing_ok=True)
                large = [file for file in missing if not 0 <= file.size < LARGE_BYTES]
                self.fetch_large(origin, large, progress)
                self.fetch_small(origin, [file for file in missing if file not in large], progress)
                missing = self.folder.missing(missing)
            if missing:
                file = missing[0]
                wanted = f"{file.algorithm} checksum {file.digest}" if file.digest else f"size of {file.size} bytes"
                raise _box.BoxError(
                    f"{self.option}: {file.path} from {origin.url} has not the {wanted} that is named there, after "
                    f"{ATTEMPTS} downloads."
                )
            shutil.rmtree(self.folder.path / PARTS, ignore_errors=True)
            for left in self.folder.path.rglob("*.gpuyard"):
                left.unlink()
            self.folder.keep(origin.identity, files)

    def fetch_small(self, origin: Origin, files: list[_fetch.File], progress: Progress) -> None:
        """Let one rclone fetch many files side by side."""
        if not files:
            return
        names = self.folder.path / PARTS / "names"
        _box.write_file(names, "".join(f"{file.path}\n" for file in files))
        command = [self.module.params["rclone"], "copy", origin.remote, str(self.folder.path), *PATIENCE]
        command += ["--files-from-raw", str(names), "--no-traverse", "--ignore-times", "--partial-suffix", ".gpuyard"]
        command += ["--transfers", str(AT_ONCE)]
        purpose = f"{self.option}: fetching {origin.url}"
        self.folder.run(command, self.entry, purpose=purpose, environment=origin.environment, progress=progress)

    def fetch_large(self, origin: Origin, files: list[_fetch.File], progress: Progress) -> None:
        """Fetch each file by itself, from where an earlier download was cut on."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(self.fetch_one, origin, file, progress) for file in files]:
                done.result()

    def fetch_one(self, origin: Origin, file: _fetch.File, progress: Progress) -> None:
        """Fetch one file, and give it its name when it is whole."""
        # A part of another content is not gone on with.
        known = hashlib.sha256(f"{origin.url} {file}".encode()).hexdigest()[:16]
        part = self.folder.path / PARTS / known
        part.parent.mkdir(exist_ok=True)
        remote = origin.below(file.path)
        # What a killed command has begun may still make the part longer.
        _box.take_over(str(part), APPENDING, progress)
        for attempt in range(ATTEMPTS):
            start = part.stat().st_size if part.exists() else 0
            if start and start == file.size:
                break
            code, errors = self.append(origin, ["cat", "--offset", str(start), remote], part, progress)
            now = part.stat().st_size
            if code == 0 and file.size in (-1, now):
                break
            if code == 0 or now == start:
                # A server that knows no ranges sends all of it again, and one that has no more refuses.
                part.unlink()
            if attempt == ATTEMPTS - 1:
                raise _box.BoxError(
                    f"{self.option}: fetching {file.path} from {origin.url} failed: {_fetch.last_line(errors)}."
                )
            time.sleep(2.0**attempt)
        target = self.folder.path / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)

    def append(self, origin: Origin, words: Sequence[str], part: Path, progress: Progress) -> tuple[int, str]:
        """Append rclone's output to a file; return its exit code and errors. rclone outlives this module."""
        errors = part.with_name(f"{part.name}.log")
        try:
            _box.detached(
                ["bash", "-c", 'exec "$@" >>"$0"', str(part), self.module.params["rclone"], *words, *PATIENCE],
                slot=str(part),
                key=APPENDING,
                purpose=self.option,
                environment=origin.environment,
                log=errors,
                limit_s=_fetch.LIMIT_S,
                progress=progress,
            )
        except _box.BoxError as error:
            return error.details.get("rc") or 1, errors.read_text(encoding="utf-8", errors="replace")
        return 0, ""

    @property
    def state(self) -> str:
        """What ``prepare`` is done for: the data as they are recorded, and the command."""
        digests = {path: [entry["size"], entry["digest"]] for path, entry in self.folder.files.items()}
        value = [self.folder.record.get("identity"), digests, self.entry["prepare"]]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def is_prepared(self) -> bool:
        """Tell whether the command has run for the data as they are."""
        try:
            return (self.folder.path / PREPARED).read_text(encoding="utf-8") == self.state
        except (OSError, ValueError):
            return False

    def prepare(self) -> None:
        """Run the command, unless one that a lost command had begun has done it meanwhile."""
        options = self.module.params
        with self.folder.locked(self.entry):
            if self.is_prepared():
                return
            command = [
                "bash",
                "-c",
                PREPARE,
                "bash",
                self.entry["prepare"],
                self.state,
                str(self.folder.path / PREPARED),
            ]
            path = ":".join([*options["search_path"], os.environ.get("PATH", "/usr/bin:/bin")])
            self.folder.run(
                command,
                self.entry,
                purpose=f"{self.option}.prepare",
                environment={**options["environment"], "PATH": path, "DATASET": str(self.folder.path)},
                folder=Path(options["repository"] or self.folder.path),
            )


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder; a download may take away one of them meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def count(files: Iterable[_fetch.File]) -> str:
    """Return how many files and bytes these are, in words."""
    sizes = [file.size for file in files]
    size = _fetch.in_words(sum(sizes)) if min(sizes) >= 0 else "of unknown size"
    return f"{len(sizes)} file{'s' if len(sizes) > 1 else ''} ({size})"


def work(module: AnsibleModule) -> dict[str, Any]:
    """Have all data sets, or in check mode say what would be fetched."""
    actions: list[str] = []
    fetched: dict[str, list[str]] = {}
    total = 0
    everything = [
        Dataset(module, name, _fetch.checked(f"datasets.{name}", entry, ENTRY))
        for name, entry in module.params["datasets"].items()
    ]
    for data in everything:
        whole = data.is_whole()
        if not whole:
            origin, files, missing = data.choose()
            for note in data.notes:
                module.warn(note)
            actions += data.notes
            actions.append(
                f"fetch {count(missing)} of {data.name} from {origin.url}" if missing else f"verify {data.name}"
            )
            if missing:
                fetched[data.name] = [file.path for file in missing]
            size = sum(max(file.size, 0) for file in missing)
            total += size
            if not module.check_mode:
                data.fetch(origin, files, size)
        if not _fetch.is_linked(*data.where):
            actions.append(f"link {data.entry['to']} to {data.entry['store']}")
            if not module.check_mode:
                _fetch.link(*data.where)
        if data.entry["prepare"] and not (whole and data.is_prepared()):
            actions.append(f"prepare {data.name}")
            if not module.check_mode:
                data.prepare()
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
            "datasets": {"type": "dict", "required": True},
            "root": {"type": "path", "default": "/mnt/persistent"},
            "repository": {"type": "path"},
            "search_path": {"type": "list", "elements": "path", "default": []},
            "environment": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "bucket": {"type": "str", "default": ""},
            "s3_endpoint": {"type": "str", "default": ""},
            "s3_region": {"type": "str", "default": ""},
            "rclone": {"type": "path", "default": "/opt/gpuyard/rclone/bin/rclone"},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
