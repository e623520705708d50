#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: snapshot_bundle
short_description: Keep what a machine was brought to as a bundle in the bucket, and bring another one to it
description:
  - With O(state=present), packs the toolchains, environments, code and builds of this machine, and sends them to the
    bucket. Verified and cleaned first. Where the bucket has a bundle of this state already, nothing is done.
  - With O(state=restored), brings a machine without them to the same state, when the bucket has a bundle for it and
    that is faster than building. Otherwise nothing is changed and RV(reason) says why.
  - Where there is none of the very state, one of another state of the same O(workload) is taken that has a toolchain
    or an environment in O(lacking). Only the parts that fit count as brought.
  - A bundle consists of pieces of some 50 MB, each with its SHA-256. They are packed, sent, fetched and unpacked side
    by side, with C(tar) and C(zstd), beside what they replace. Only when all are whole they are put in place.
  - The action plugin on the controller talks to the bucket. The machine gets addresses that are good for these pieces
    and some hours, and never a key.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  state:
    description: Whether the bucket shall have a bundle of this machine, or this machine what the bundle holds.
    type: str
    choices: [present, restored]
    default: present
  parts:
    description: With O(state=restored), the parts of the wanted state, as P(gpuyard.cloud.run_plan#module) says them.
    type: dict
    default: {}
  paths:
    description:
      - With O(state=present), folders and files that belong into the bundle. One that is not there is passed over.
      - The code and the environment that the stages run in come in any case, and what is named, one path a line, in a
        file C(bundle.d/*.txt) of O(root).
    type: list
    elements: path
    default: []
  persist_root:
    description: With O(state=present), the folder of the persistent volume. Links into it are left out.
    type: path
    default: /mnt/persistent
  verify:
    description: With O(state=present), shell commands of the repository that have to succeed before anything is packed.
    type: list
    elements: str
    default: []
  environment:
    description: Variables for O(verify).
    type: dict
    default: {}
  always:
    description: With O(state=restored), whether to restore also where building looks faster.
    type: bool
    default: false
  lacking:
    description:
      - With O(state=restored), the parts that the machine does not have yet. Read on the controller.
      - Without them, only a bundle of the very state is taken.
    type: list
    elements: str
    default: []
  workload:
    description: The workload's name, for the list of bundles, and to find one of another state.
    type: str
    default: ""
  price_per_gb_month:
    description: With O(state=present), US dollars for a gigabyte and month in the bucket. Read on the controller.
    type: float
    default: 0.0
  launchers:
    description: The folder on PATH whose launchers of what is in the bundle come with it.
    type: path
    default: /usr/local/bin
  root:
    description: The folder in which gpuyard keeps what it brings to a machine.
    type: path
    default: /opt/gpuyard
  streams:
    description: How many pieces are sent or fetched at the same time.
    type: int
    default: 8
  bucket:
    description: The bucket, V(s3://name/prefix). Read on the controller.
    type: str
  bucket_endpoint:
    description: The address of the S3 service. Read on the controller.
    type: str
  sandbox:
    description: Whether the sandbox's bucket is meant. Read on the controller.
    type: bool
  sandbox_state:
    description: The folder of one of several sandboxes. Read on the controller.
    type: path
  step:
    description: Only for the action plugin, which part of O(state=present) this call is.
    type: str
    choices: [packed, sent]
  bundled:
    description: Only for the action plugin, the parts of a machine's state that a bundle can hold.
    type: list
    elements: str
    default: []
  there:
    description: Only for the action plugin, the bundles that the bucket has, each as C(<key>/<platform>).
    type: list
    elements: str
    default: []
  offers:
    description: Only for the action plugin, what the bundles of the wanted state hold.
    type: list
    elements: dict
    default: []
  addresses:
    description: Only for the action plugin, the addresses of the pieces by their SHA-256.
    type: dict
    default: {}
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
notes:
  - Needs C(tar), which every Debian has. C(zstd) is needed to pack; to restore it comes with the bundle.
"""

EXAMPLES = r"""
- name: Keep this machine's state in the bucket
  gpuyard.cloud.snapshot_bundle:
    paths: [/opt/gpuyard/rust, /opt/gpuyard/uv]
    verify: [target/release/prover-core search --dry-run]
    bucket: s3://my-bucket

- name: Bring a machine to the state of a plan, if the bucket has it
  gpuyard.cloud.snapshot_bundle:
    state: restored
    parts: "{{ plan.parts }}"
    bucket: s3://my-bucket
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: [verify with 1 command, pack 687 MB into 16 pieces]
restored:
  description: Whether the machine has got what the bundle holds.
  type: bool
  returned: with O(state=restored)
reason:
  description: Why no bundle was used.
  type: str
  returned: when it was not
manifest:
  description: What the bundle holds.
  type: dict
  returned: when one was made or restored
seconds:
  description: How long it took.
  type: float
  returned: success
"""

import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import threading
import time
import urllib.error
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
from ansible_collections.gpuyard.cloud.plugins.module_utils import _download
from ansible_collections.gpuyard.cloud.plugins.module_utils._progress import Progress

PIECE_BYTES = 48_000_000  # before packing
LEVEL = "-3"  # higher ones cost much and save little
ATTEMPTS = 3
TIMEOUT_S = 60.0
PROBE_S = 5.0  # so long the bucket's speed is measured before it is believed
SPARE_BYTES = 200_000_000
MOST_LAUNCHER_BYTES = 65_536
# Whatever can be had again; what a build needs, such as target/release, is none of them.
CACHES = ("rust/cargo/registry/cache", "rust/cargo/registry/src", "rust/cargo/git/checkouts")
HOME_CACHES = (".cache/uv", ".cache/pip")
PACKAGE_CACHE = Path("/var/cache/apt/archives")


class Unfit(Exception):
    """Why a bundle is not used; the machine is then built in the ordinary way."""


def os_release() -> dict[str, str]:
    """Return what this machine says of its distribution; Python 3.10's own function exists on every box."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def platform_name() -> str:
    """Return what programs must agree on to run here: ``x86_64-debian12-glibc2.36``."""
    release = os_release()
    library = "".join(platform.libc_ver())
    return f"{platform.machine()}-{release.get('ID', 'linux')}{release.get('VERSION_ID', '')}-{library or 'libc'}"


def key_of(parts: dict[str, str]) -> str:
    """Return the key of a bundle of these parts, as gpuyard.formats.bundle has it, which a box need not have yet."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def megabytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e6:.0f} MB"


def inside(path: str, folders: Iterable[str]) -> bool:
    """Tell whether ``path`` is one of ``folders`` or lies below one."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


class Machine:
    """Where things are on this machine."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.options: dict[str, Any] = module.params
        self.root = Path(self.options["root"])
        self.work = self.root / "bundle"
        self.pieces = self.work / "pieces"
        self.record_file = self.root / "converged.json"

    def run(self, name: str, task: Any, items: list[Any], at_once: int) -> None:
        """Do ``task`` for each of ``items``, ``at_once`` at a time; the first error ends it all."""
        with ThreadPoolExecutor(max_workers=max(1, at_once), thread_name_prefix=name) as pool:
            waiting = [pool.submit(task, item) for item in items]
            try:
                for future in waiting:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


# --- packing ---


class Packing(Machine):
    """A machine whose state goes into a bundle."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        record = _box.read_record(self.record_file)
        self.parts = {name: value for name, value in (record.get("parts") or {}).items() if name in self.bundled}
        self.repository = str(record.get("repository") or "")
        self.search_path = [str(path) for path in record.get("search_path") or []]
        if not self.parts:
            raise _box.BoxError(
                f"{self.record_file} does not say what this machine was brought to, so there is nothing to keep: "
                "launch a run on it first."
            )
        self.environments = [str(Path(path).parent) for path in self.search_path]
        self.held = dict(self.parts)
        if any(Path(path).is_symlink() for path in self.environments):
            # It is the image's own, with everything else that the image holds.
            self.held.pop("python", None)
        self.find_items()

    @property
    def bundled(self) -> list[str]:
        """The parts that a bundle can hold."""
        names: list[str] = self.options["bundled"]
        return names

    def find_items(self) -> None:
        """Find out which folders and files belong into the bundle."""
        listed = sorted((self.root / "bundle.d").glob("*.txt"))
        named = [*self.options["paths"], self.repository, *self.environments, str(self.root / "bundle.d")]
        for file in listed:
            named += [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        named += [str(self.root / name) for name in ("box.zip", "took.json")]
        paths = [os.path.normpath(path) for path in named if path.startswith("/")]
        for path in dict.fromkeys(paths):
            if inside(path, [str(self.root / "run"), str(self.work)]):
                raise _box.BoxError(f"{path} cannot be in a bundle: it holds what belongs to one run only.")
        there = [path for path in dict.fromkeys(paths) if os.path.exists(path) and not os.path.islink(path)]
        folders = [path for path in there if os.path.isdir(path)]
        # One that lies in another one comes with it.
        self.folders = [one for one in folders if not inside(one, [other for other in folders if other != one])]
        notes = [str(note) for path in map(Path, self.folders) for note in sorted(path.parent.glob(f".{path.name}.*"))]
        self.files = [path for path in there if not os.path.isdir(path) and not inside(path, self.folders)]
        self.files += [note for note in notes if os.path.isfile(note)] + self.find_launchers()
        # What is younger than the last of the notes was made by the stages, which begin after that.
        self.finished = max((os.lstat(note).st_ctime_ns for note in notes), default=time.time_ns())

    def find_launchers(self) -> list[str]:
        """Return the programs on PATH that lead to what is in the bundle."""
        found = []
        folder = Path(self.options["launchers"])
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.is_symlink():
                leads = inside(os.path.realpath(path), self.folders)
            elif path.is_file() and path.stat().st_size <= MOST_LAUNCHER_BYTES:
                content = path.read_bytes()
                leads = any(f"{item}/".encode() in content for item in self.folders)
            else:
                leads = False
            if leads:
                found.append(str(path))
        return found

    def verify(self) -> None:
        """Run the commands that say whether this machine's state is worth keeping."""
        path = os.pathsep.join([*self.search_path, os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")])
        variables = {key: str(value) for key, value in self.options["environment"].items()} | {"PATH": path}
        for command in self.options["verify"]:
            code, output, errors = _box.execute(
                self.module,
                ["bash", "-o", "pipefail", "-c", command],
                environment=variables,
                folder=Path(self.repository) if self.repository else None,
            )
            if code:
                said = _box.tail(f"{output}\n{errors}").strip()
                raise _box.BoxError(
                    f"Verifying with {command!r} failed with exit code {code}, so no bundle was made: mend the "
                    "machine, or verify in the workload, and try again." + (f"\n{said}" if said else "")
                )

    def caches(self) -> list[Path]:
        """Return the caches of this machine."""
        found = [self.root / name for name in CACHES] + [Path.home() / name for name in HOME_CACHES]
        found += Path(self.repository).glob("target/*/incremental") if self.repository else []
        return [path for path in found if path.is_dir()] + sorted(PACKAGE_CACHE.glob("*.deb"))

    def clean(self) -> None:
        """Remove the caches."""
        for path in self.caches():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yield every path of the bundle with its size, in an order that is always the same."""
        caches = {str(path) for path in self.caches()}
        for top in sorted(self.folders):
            of_run = self.finished if top == self.repository else None
            for folder, folders, names in os.walk(top):
                folders.sort()
                yield folder, 0
                for name in sorted([*folders, *names]):
                    path = os.path.join(folder, name)
                    found = os.lstat(path)
                    is_folder = name in folders and not os.path.islink(path)
                    if path in caches or (of_run and not is_folder and found.st_ctime_ns > of_run):
                        if is_folder:
                            folders.remove(name)
                    elif not is_folder and not self.leads_to_volume(path):
                        yield path, found.st_size
        for path in sorted(self.files):
            yield path, os.lstat(path).st_size

    def leads_to_volume(self, path: str) -> bool:
        """Tell whether it is a link into the persistent volume, which is another one on the next machine."""
        return os.path.islink(path) and inside(os.readlink(path), [os.path.normpath(self.options["persist_root"])])

    def pack(self) -> dict[str, Any]:
        """Pack everything into pieces, several at the same time, and return what the bundle holds."""
        program = shutil.which("zstd")
        if not program:
            raise _box.BoxError("A bundle is packed with zstd, which this machine lacks: install the package zstd.")
        shutil.rmtree(self.work, ignore_errors=True)
        self.pieces.mkdir(parents=True)
        self.work.chmod(0o700)
        groups: list[list[str]] = [[]]
        size = total = 0
        for path, count in self.entries():
            if size > PIECE_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(path)
            size, total = size + count, total + count
        packed: dict[int, dict[str, Any]] = {}

        def one(number: int) -> None:
            target = self.pieces / f"{number}.part"
            packed[number] = compress(program, groups[number], target)
            target.rename(self.pieces / packed[number]["sha256"])

        self.run("pack", one, list(range(len(groups))), os.cpu_count() or 1)
        own = self.pieces / "zstd.part"
        shutil.copyfile(program, own)
        digest = _box.file_sha256(own)
        own.rename(self.pieces / digest)
        seconds = _box.read_record(self.root / "took.json")
        return {
            "platform": platform_name(),
            "workload": self.options["workload"],
            "parts": self.parts,
            "held": sorted(self.held),
            "repository": self.repository,
            "search_path": self.search_path,
            "folders": sorted(self.folders),
            "files": sorted(self.files),
            "pieces": [packed[number] for number in sorted(packed)],
            "zstd": {"sha256": digest, "bytes": (self.pieces / digest).stat().st_size},
            "unpacked_bytes": total,
            "built_s": {path: took for path, took in seconds.items() if inside(path, self.folders)},
        }


def compress(program: str, names: list[str], target: Path) -> dict[str, Any]:
    """Pack ``names`` into ``target``; return its SHA-256 and size."""
    # GNU's format has no parts of a second; cargo, and our own notes of what was brought, go by them.
    words = ["tar", "--create", "--format=posix", "--numeric-owner", "--no-recursion", "--directory=/"]
    words += ["--pax-option=delete=atime,delete=ctime", "--null", "--verbatim-files-from", "--files-from=-"]
    listing = "".join(f"{name.lstrip('/')}\0" for name in names).encode(errors="surrogateescape")
    with target.open("wb") as stream:
        tar = subprocess.Popen(  # pylint: disable=ansible-bad-function
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        packing = subprocess.Popen(  # pylint: disable=ansible-bad-function
            [program, "-q", LEVEL], stdin=tar.stdout, stdout=stream, stderr=subprocess.PIPE
        )
        if not (tar.stdin and tar.stdout and tar.stderr and packing.stderr):
            raise AssertionError("all of them were asked for")
        tar.stdout.close()
        errors: list[bytes] = []
        reader = threading.Thread(target=lambda: errors.append(tar.stderr.read()))  # type: ignore[union-attr]
        reader.start()
        try:
            tar.stdin.write(listing)
            tar.stdin.close()
        except BrokenPipeError:
            pass  # its own words come below
        said = packing.stderr.read()
        reader.join()
        codes = (tar.wait(), packing.wait())
    # 1 says that a file changed meanwhile: it is seen as changed, too, on the machine that gets it.
    if codes[0] > 1 or codes[1]:
        raise _box.BoxError(f"Packing failed:\n{_box.tail((errors[0] + said).decode(errors='replace'))}")
    return {"sha256": _box.file_sha256(target), "bytes": target.stat().st_size}


def send(machine: Machine) -> None:
    """Send the pieces that have an address, several at the same time."""

    def one(digest: str) -> None:
        file, failure = machine.pieces / digest, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(2.0**attempt)
            try:
                with file.open("rb") as stream:
                    open_url(
                        machine.options["addresses"][digest],
                        method="PUT",
                        data=stream,
                        headers={
                            "Content-Length": str(file.stat().st_size),
                            "Content-Type": "application/octet-stream",
                        },
                        timeout=TIMEOUT_S,
                        use_netrc=False,
                    ).read()
                return
            except (OSError, ValueError) as error:
                failure = why(error)
        raise _box.BoxError(f"The bucket does not take the bundle, after {ATTEMPTS} attempts: {failure}.")

    machine.run("send", one, sorted(machine.options["addresses"]), machine.options["streams"])


def why(error: Exception) -> str:
    """Return the reason of a failed request, without its address, which lets in whoever has it."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    return str(getattr(error, "reason", "") or getattr(error, "strerror", "") or type(error).__name__)


# --- restoring ---


class Meter:
    """Measures the bucket's speed, and says when building is faster than what is left to fetch."""

    def __init__(self, total: int, building_s: float) -> None:
        self.left, self.building_s = total, building_s
        self.progress = Progress("restoring the bundle", count=lambda: total - self.left, total=total)
        self.fetched = 0
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    def pass_over(self, count: int) -> None:
        """Take away what need not be fetched."""
        with self.lock:
            self.left -= count

    def add(self, count: int) -> None:
        """Count what was fetched; raises :class:`Unfit` when it is too slow."""
        with self.lock:
            self.fetched += count
            self.left -= count
            passed = time.monotonic() - self.began
            speed = self.fetched / max(passed, 1e-6)
            left_s = self.left / max(speed, 1.0)
        self.progress.tick()
        if self.building_s and passed > PROBE_S and left_s > self.building_s:
            self.stopped.set()
            raise Unfit(
                f"the bucket gives {speed / 1e6:.1f} MB/s, so the bundle would take {left_s:.0f} s more, and building "
                f"takes {self.building_s:.0f} s"
            )
        if self.stopped.is_set():
            raise Unfit("another piece is too slow")


class Restoring(Machine):
    """A machine that gets what a bundle holds."""

    def __init__(self, module: AnsibleModule, manifest: dict[str, Any]) -> None:
        super().__init__(module)
        self.manifest = manifest
        self.tree = self.work / "tree"
        self.total = sum(piece["bytes"] for piece in [*manifest["pieces"], manifest["zstd"]])
        # A build of another state of the code has to be made all the same.
        own = [] if "build" in manifest["held"] else [manifest["repository"]]
        took = sum(seconds for path, seconds in manifest["built_s"].items() if not inside(path, own))
        self.meter = Meter(self.total, 0.0 if self.options["always"] else took)

    def check(self) -> None:
        """Raise :class:`Unfit` for a bundle that would not fit, or would write where nothing of ours is."""
        allowed = [str(self.root), self.options["launchers"], str(Path.home() / ".local"), *self.options["paths"]]
        for path in [*self.manifest["folders"], *self.manifest["files"]]:
            normal = os.path.normpath(path)
            if path != normal or not inside(path, allowed) or inside(path, [str(self.root / "run"), str(self.work)]):
                raise Unfit(f"it would write {path}, where a bundle has no business")
        parent = next(path for path in [self.root, *self.root.parents] if path.exists())
        free, needed = shutil.disk_usage(parent).free, self.total + self.manifest["unpacked_bytes"] + SPARE_BYTES
        if free < needed:
            raise Unfit(f"it needs {megabytes(needed)} of disk, and {megabytes(free)} are free")

    def restore(self) -> None:
        """Fetch and unpack everything beside, then put it in place."""
        # What an earlier attempt has fetched is used, what it has unpacked may be half.
        shutil.rmtree(self.tree, ignore_errors=True)
        self.pieces.mkdir(parents=True, exist_ok=True)
        self.work.chmod(0o700)
        self.tree.mkdir()
        streams, pieces = self.options["streams"], self.manifest["pieces"]
        with self.meter.progress:
            program = self.fetch(self.manifest["zstd"])
            program.chmod(0o700)
            self.run("restore", functools.partial(self.fetch_and_unpack, str(program)), pieces, streams)
        self.place()
        shutil.rmtree(self.work, ignore_errors=True)

    def fetch(self, piece: dict[str, Any]) -> Path:
        """Return the file of a piece, fetched and checked; raises :class:`Unfit` that names a damaged one."""
        digest, size = piece["sha256"], piece["bytes"]
        target: Path = self.pieces / digest
        part: Path = self.pieces / f"{digest}.part"
        if target.exists():
            self.meter.pass_over(size)
            return target
        if part.exists():
            self.meter.pass_over(part.stat().st_size)
        try:
            # A signed address lets in whoever has it, so it is in no message.
            name, address = f"its piece {digest[:12]}", self.options["addresses"][digest]
            _download.fetch(address, target, [digest], name=name, received=self.meter.add)
        except _download.WrongChecksumError as error:
            raise Unfit(f"its piece {digest[:12]} is damaged") from error
        except _box.BoxError as error:
            raise Unfit(str(error).rstrip(".")) from error
        return target

    def fetch_and_unpack(self, program: str, piece: dict[str, Any]) -> None:
        """Fetch a piece and unpack it beside."""
        file = self.fetch(piece)
        words = ["tar", "--extract", "--numeric-owner", f"--directory={self.tree}"]
        words += [f"--use-compress-program={program} -d -q", f"--file={file}"]
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            words, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode:
            said = _box.tail(done.stderr.decode(errors="replace"), 2)
            raise Unfit(f"its piece {piece['sha256'][:12]} cannot be unpacked: {said}")

    def place(self) -> None:
        """Put what was unpacked in place: folders first, since the notes in files claim that they are whole."""
        missing = [
            path
            for path in [*self.manifest["folders"], *self.manifest["files"]]
            if not os.path.lexists(self.tree / path.lstrip("/"))
        ]
        if missing:
            raise Unfit(f"it lacks {missing[0]}")
        old = self.work / "old"
        old.mkdir(exist_ok=True)
        for number, path in enumerate([*self.manifest["folders"], *self.manifest["files"]]):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                shutil.move(target, old / str(number))
            shutil.move(self.tree / path.lstrip("/"), target)

    def record(self) -> None:
        """Write down which parts of its wanted state the machine has now."""
        known = _box.read_record(self.record_file)
        held = {name: self.manifest["parts"][name] for name in self.manifest["held"]}
        _box.write_record(
            self.record_file,
            {
                "fingerprint": "",
                "parts": {**(known.get("parts") or {}), **held},
                "repository": self.manifest["repository"],
                "search_path": self.manifest["search_path"],
            },
        )


# --- the module ---


def packed(module: AnsibleModule) -> dict[str, Any]:
    """Verify, clean and pack."""
    began = time.monotonic()
    machine = Packing(module)
    place = f"{key_of(machine.parts)}/{platform_name()}"
    if place in module.params["there"]:
        return {"changed": False, "actions": [], "parts": machine.parts, "seconds": 0.0}
    running = _box.stages_run(machine.root / "run")
    count = len(module.params["verify"])
    caches = [] if running else machine.caches()
    actions = [f"verify with {count} command{'s' * (count != 1)}"] if count else []
    actions += [f"remove {len(caches)} cache{'s' * (len(caches) != 1)}"] if caches else []
    actions.append(f"pack {len(machine.folders)} folders")
    result: dict[str, Any] = {"changed": True, "actions": actions, "parts": machine.parts}
    if module.check_mode:
        return {**result, "seconds": 0.0, "diff": {"before": {}, "after": {"folders": machine.folders}}}
    machine.verify()
    if not running:
        machine.clean()
    manifest = machine.pack()
    return {
        **result,
        "manifest": manifest,
        "seconds": time.monotonic() - began,
        "diff": {"before": {}, "after": {"folders": manifest["folders"], "files": manifest["files"]}},
    }


def sent(module: AnsibleModule) -> dict[str, Any]:
    """Send what was packed, and forget it here."""
    began = time.monotonic()
    machine = Machine(module)
    send(machine)
    shutil.rmtree(machine.work, ignore_errors=True)
    return {"changed": True, "actions": [], "seconds": time.monotonic() - began}


def restored(module: AnsibleModule) -> dict[str, Any]:
    """Bring the machine to what the bundle for its platform holds."""
    began = time.monotonic()
    nothing: dict[str, Any] = {"changed": False, "actions": [], "restored": False, "seconds": 0.0}
    here = platform_name()
    offers = {manifest["platform"]: manifest for manifest in module.params["offers"]}
    if here not in offers:
        return {**nothing, "reason": f"there is one for {' and '.join(sorted(offers)) or 'no machine'}, not for {here}"}
    manifest = offers[here]
    machine = Restoring(module, manifest)
    changed = {
        **nothing,
        "changed": True,
        "actions": [f"restore {megabytes(manifest['unpacked_bytes'])} from {len(manifest['pieces'])} pieces"],
        "diff": {"before": {"folders": []}, "after": {"folders": manifest["folders"]}},
    }
    try:
        machine.check()
        if module.check_mode:
            return changed
        machine.restore()
    except Unfit as error:
        if not module.check_mode:
            shutil.rmtree(machine.work, ignore_errors=True)
        return {**nothing, "reason": str(error), "seconds": time.monotonic() - began}
    machine.record()
    shown = {name: manifest[name] for name in ("platform", "held", "unpacked_bytes", "built_s")}
    return {**changed, "restored": True, "manifest": shown, "seconds": time.monotonic() - began}


def work(module: AnsibleModule) -> dict[str, Any]:
    """Do one step of what the action plugin has planned."""
    if module.params["state"] == "restored":
        return restored(module)
    steps = {"packed": packed, "sent": sent}
    if module.params["step"] not in steps:
        raise _box.BoxError("The module snapshot_bundle needs its action plugin, which talks to the bucket.")
    return steps[module.params["step"]](module)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "parts": {"type": "dict", "default": {}},
            "paths": {"type": "list", "elements": "path", "default": []},
            "persist_root": {"type": "path", "default": "/mnt/persistent"},
            "verify": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "always": {"type": "bool", "default": False},
            "lacking": {"type": "list", "elements": "str", "default": []},
            "workload": {"type": "str", "default": ""},
            "price_per_gb_month": {"type": "float", "default": 0.0},
            "launchers": {"type": "path", "default": "/usr/local/bin"},
            "root": {"type": "path", "default": "/opt/gpuyard"},
            "streams": {"type": "int", "default": 8},
            "bucket": {"type": "str"},
            "bucket_endpoint": {"type": "str"},
            "sandbox": {"type": "bool"},
            "sandbox_state": {"type": "path"},
            "step": {"type": "str", "choices": ["packed", "sent"]},
            "bundled": {"type": "list", "elements": "str", "default": []},
            "there": {"type": "list", "elements": "str", "default": []},
            "offers": {"type": "list", "elements": "dict", "default": []},
            "addresses": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
