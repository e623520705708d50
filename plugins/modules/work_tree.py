#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: work_tree
short_description: Bring a repository to a machine and build it once
description:
  - Brings a folder of the controller (O(src)), or a git repository at a full commit (O(url), O(commit)), to O(dest).
  - Of a folder under git, what git tracks and what it does not ignore is taken; of another one, everything but caches.
    It crosses the network only when the machine has something else.
  - Files that are gone from the source are removed. What the source never had is left alone, so build outputs and files
    behind links to a persistent volume stay.
  - A newer version of a file that lies behind such a link is brought when the file is still as it was brought before.
    One that was changed there stays, and is named in a warning. What was brought is noted on the volume, see
    M(gpuyard.cloud.persistent_links).
  - Runs the build commands once for each state of the tree, and shows the end of the log when one of them fails.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  dest:
    description: The folder on the machine.
    type: path
    required: true
  src:
    description: A folder on the controller.
    type: path
  url:
    description:
      - A git repository that the machine can reach, by C(https), C(http), C(ssh), C(git), C(file), or as
        V(git@host:path).
      - It must not hold a user name with a password or a token, since it is shown in results and kept on the machine.
    type: str
  commit:
    description: The full commit, 40 hexadecimal digits.
    type: str
  submodules:
    description: Whether to bring submodules too, at the commits that the repository names.
    type: bool
    default: false
  build:
    description: Shell commands (bash) that are run in O(dest), in order.
    type: list
    elements: str
    default: []
  environment:
    description: Environment variables for O(build). Not for secrets.
    type: dict
    default: {}
  path:
    description: Folders that go in front of PATH for O(build).
    type: list
    elements: path
    default: []
  rebuild:
    description: Build again although nothing changed.
    type: bool
    default: false
  tree:
    description: Set by the action plugin. What O(src) holds.
    type: dict
  archive:
    description: Set by the action plugin. The file on the machine that holds the content of O(src).
    type: path
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
notes:
  - What was brought is remembered in a file beside O(dest), with the sizes and times of what was unpacked, so that a
    file that was edited on the machine is noticed and put right.
"""

EXAMPLES = r"""
- name: Bring a folder of the controller and build it
  gpuyard.cloud.work_tree:
    src: examples/miniprover
    dest: /opt/gpuyard/src/miniprover
    build: [cargo build --release --locked]

- name: Bring a repository at a commit
  gpuyard.cloud.work_tree:
    url: https://github.com/mike1729/BurnQED
    commit: 9053d51000000000000000000000000000000000
    submodules: true
    dest: /opt/gpuyard/src/burnqed
"""

RETURN = r"""
digest:
  description: The SHA-256 of the tree, or the commit.
  type: str
  returned: success
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: [write 12 files, remove 1 file, run 1 build command]
kept:
  description: Files behind links that differ from the source and stay, because they were changed on the machine.
  type: list
  elements: str
  returned: when the content comes from O(src)
log:
  description: The file on the machine with the output of the build.
  type: str
  returned: success
  sample: /opt/gpuyard/src/.miniprover.build.log
needs_archive:
  description: Whether the content has to be sent. Only for the action plugin.
  type: bool
  returned: when the content differs
"""

import hashlib
import json
import os
import re
import tarfile
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

LOG_LINES = 20
KEPT_NAMED = 5
# The same rules as in gpuyard.repository, but for file://, which here is a folder of the machine.
HOST = r"[A-Za-z0-9][A-Za-z0-9._-]*"
URL = re.compile(
    rf"(?:https?|git)://{HOST}(?::\d+)?/[^\s?#]+|file:///[^\s?#]+"
    rf"|ssh://(?:[A-Za-z0-9._-]+@)?{HOST}(?::\d+)?/[^\s?#]+|[A-Za-z0-9._]+@{HOST}:[^\s?#:-][^\s?#:]*"
)
CREDENTIALS = re.compile(r"(?<=//)[^/@\s'\"]*@|\?[^\s'\"]+")
PERHAPS_CREDENTIALS = re.compile(r"[:/=][^\s]*@|\?")
# The output goes straight to the log, which can be followed while the command runs.
LOGGED = 'exec >>"$0" 2>&1; exec bash -o pipefail -c "$1"'


class Place:
    """The folder on this machine, and what was recorded when it was last in order."""

    def __init__(self, dest: Path) -> None:
        self.dest = dest
        self.record_file = dest.with_name(f".{dest.name}.json")
        self.log = dest.with_name(f".{dest.name}.build.log")
        self.record = _box.read_record(self.record_file)

    def save(self) -> None:
        """Write the record."""
        _box.write_record(self.record_file, self.record)

    def is_linked(self, name: str) -> bool:
        """Return whether ``name`` lies behind a link inside the tree, such as one to the persistent volume."""
        return any((self.dest / parent).is_symlink() for parent in Path(name).parents if parent != Path("."))

    def stamp(self, name: str) -> list[int] | None:
        """Return what shows that the entry ``name`` was not touched since: size and time of change."""
        try:
            found = (self.dest / name).lstat()
        except OSError:
            return None
        return [found.st_size, found.st_mtime_ns]

    def note_brought(self, names: list[str]) -> None:
        """Note on a persistent volume which of the files ``names`` were brought there, behind a link."""
        volumes: dict[Path, dict[str, str]] = {}
        for name in names:
            path = self.dest / name
            if path.is_symlink() or not self.is_linked(name):
                continue
            # The volume has the folder under the name that it has in the repository.
            real = str(path.resolve())
            root = Path(real.removesuffix(f"/{name}"))
            if str(root) != real and (root / ".gpuyard").is_dir():
                volumes.setdefault(root, {})[name] = _box.file_sha256(path)
        for root, found in volumes.items():
            _box.note_brought(root, found)


def check_names(files: dict[str, str]) -> None:
    """Raise :class:`BoxError` when a path would leave the folder."""
    for name in files:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise _box.BoxError(f"The path {name!r} would lie outside of the repository.")


def entry_hashes(path: Path) -> set[str]:
    """Return the hashes that gpuyard.tree gives an entry of this kind and content, as a program and as none.

    Not every volume and bucket keeps the mode of a file.
    """
    if path.is_symlink():
        return {hashlib.sha256(b"link\0" + os.fsencode(path.readlink())).hexdigest()}
    if not path.is_file():
        return set()
    digests = [hashlib.sha256(kind) for kind in (b"program\0", b"file\0")]
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            for digest in digests:
                digest.update(block)
    return {digest.hexdigest() for digest in digests}


class LocalTree:
    """A tree that comes from the controller. ``files``: relative path → hash of its kind and content."""

    def __init__(self, place: Place, tree: dict[str, Any], archive: str | None) -> None:
        self.place = place
        self.digest: str = tree["digest"]
        self.files: dict[str, str] = tree["files"]
        self.archive = archive
        check_names(self.files)
        recorded = place.record.get("files") or {}
        stamps = place.record.get("stamps") or {}
        # What lies behind a link is on the volume, where the run may change it: only what it left alone is replaced.
        self.kept: list[str] = []
        self.brought: dict[str, str] = {}
        self.stale: list[str] = []
        for name, content in self.files.items():
            if place.is_linked(name):
                self.judge_linked(name, content, recorded.get(name))
            elif recorded.get(name) != content or stamps.get(name) != place.stamp(name) or place.stamp(name) is None:
                self.stale.append(name)
        self.gone = [name for name in recorded if name not in self.files and not place.is_linked(name)]

    def judge_linked(self, name: str, content: str, before: str | None) -> None:
        """Decide about a file on the volume; ``before`` is the hash of what was brought there last, if known."""
        if before:
            self.brought[name] = before
        if self.place.stamp(name) is None:
            self.stale.append(name)
        elif before == content:
            return  # what was brought is still what the source has, so what is there now is the run's
        else:
            found = entry_hashes(self.place.dest / name)
            if content in found:
                self.brought[name] = content
            elif before in found:
                self.stale.append(name)
            else:
                self.kept.append(name)

    @property
    def in_order(self) -> bool:
        """Whether nothing has to be done."""
        return not self.stale and not self.gone

    def actions(self) -> list[str]:
        """Return what there is to do, in words."""
        counted = ((self.stale, "write"), (self.gone, "remove"))
        return [f"{verb} {len(names)} file{'s' * (len(names) != 1)}" for names, verb in counted if names]

    def plan(self) -> dict[str, Any]:
        """Return what the diff shows besides the digest."""
        return {"write": self.stale, "remove": self.gone}

    def bring(self) -> None:
        """Write what differs and remove what is gone. Unchanged files keep their times, which build tools go by."""
        if self.stale and not self.archive:
            raise _box.BoxError("The module work_tree needs its action plugin to send the content of src.")
        place = self.place
        place.record = {**place.record, "digest": ""}
        place.dest.mkdir(parents=True, exist_ok=True)
        place.save()
        for name in self.gone:
            self.remove(place.dest / name)
        if self.stale:
            self.unpack(set(self.stale))
            place.note_brought(self.stale)
        stamps = {name: place.stamp(name) for name in self.files}
        linked = {name for name in self.files if place.is_linked(name)} - set(self.stale)
        place.record = {
            "digest": self.digest,
            # Of what lies on the volume, what was brought there, which need not be what the source has now.
            "files": {
                name: self.brought.get(name, "") if name in linked else content for name, content in self.files.items()
            },
            "stamps": stamps,
            "built": place.record.get("built"),
        }
        place.save()

    def remove(self, path: Path) -> None:
        """Remove an entry and the folders that it leaves empty."""
        if path.is_symlink() or path.is_file():
            path.unlink()
        for parent in path.parents:
            if parent == self.place.dest or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()

    def unpack(self, wanted: set[str]) -> None:
        """Write the members in ``wanted``, each one whole or not at all."""
        with tarfile.open(str(self.archive)) as archive:
            for member in archive:
                if member.name not in wanted:
                    continue
                target = self.place.dest / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                scratch = target.with_name(f".{target.name}.incoming")
                scratch.unlink(missing_ok=True)
                if member.issym():
                    scratch.symlink_to(member.linkname)
                else:
                    content = archive.extractfile(member)
                    if content is None:
                        raise _box.BoxError(f"{member.name} in {self.archive} is neither a file nor a link.")
                    scratch.write_bytes(content.read())
                    scratch.chmod(member.mode)
                if target.is_dir() and not target.is_symlink():
                    raise _box.BoxError(f"{target} is a folder on the machine and a file in src: move it away first.")
                scratch.replace(target)


def check_url(url: str) -> None:
    """Raise :class:`BoxError` for an option, a program or a token in place of an address; a token is not shown."""
    if URL.fullmatch(url):
        return
    if PERHAPS_CREDENTIALS.search(url):
        raise _box.BoxError(
            "url must not hold a user name, a password or a token: it is shown and kept in many places."
        )
    raise _box.BoxError(f"url={url!r} must be an address such as https://host/path or git@host:path.")


def redacted(text: str) -> str:
    """Return ``text`` without the users, passwords and tokens in its addresses."""
    return CREDENTIALS.sub(lambda found: "…@" if found[0].endswith("@") else "?…", text)


class GitTree:
    """A tree that the machine fetches itself."""

    def __init__(self, module: AnsibleModule, place: Place) -> None:
        commit: str = module.params["commit"]
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise _box.BoxError(f"commit={commit!r} must be a full commit of 40 hexadecimal digits.")
        check_url(module.params["url"])
        self.module, self.place, self.digest = module, place, commit
        self.url: str = module.params["url"]
        self.submodules: bool = module.params["submodules"]

    def git(self, *arguments: str, purpose: str) -> str:
        """Run git in the tree, never asking for a password."""
        command = ["git", "-C", str(self.place.dest), "-c", "advice.detachedHead=false", *arguments]
        try:
            return _box.run(self.module, command, purpose=purpose, environment={"GIT_TERMINAL_PROMPT": "0"})
        except _box.BoxError as error:
            # The repository itself may name submodules by addresses with a token in them.
            raise _box.BoxError(redacted(str(error)), **error.details) from None

    @property
    def in_order(self) -> bool:
        """Whether the commit is checked out and nobody has changed what it tracks."""
        wanted = {"digest": self.digest, "url": self.url, "submodules": self.submodules}
        if any(self.place.record.get(key) != value for key, value in wanted.items()):
            return False
        try:
            head = self.git("rev-parse", "HEAD", purpose="git").strip()
            return head == self.digest and not self.changes()
        except _box.BoxError:
            return False

    def changes(self) -> list[str]:
        """Return the tracked paths that differ from the commit, without those that a persistent link stands for."""
        output = self.git(
            "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=no", purpose="git status"
        )
        names = [line[3:] for line in output.split("\0") if line]
        return [name for name in names if not self.place.is_linked(name)]

    def actions(self) -> list[str]:
        """Return what there is to do, in words."""
        return [f"check out {self.digest[:12]}"]

    def plan(self) -> dict[str, Any]:
        """Return what the diff shows besides the digest."""
        return {"url": self.url}

    def bring(self) -> None:
        """Fetch the one commit, check it out, and its submodules too."""
        place = self.place
        built = place.record.get("built")
        place.dest.mkdir(parents=True, exist_ok=True)
        place.record = {"built": built}
        place.save()
        purpose = f"Fetching {self.url} at {self.digest[:12]}"
        self.git("init", "--quiet", purpose="git init")
        self.git("fetch", "--quiet", "--depth", "1", "--no-tags", "--", self.url, self.digest, purpose=purpose)
        self.renew_linked()
        self.git("checkout", "--quiet", "--force", "--detach", self.digest, purpose=f"Checking out {self.digest[:12]}")
        if self.submodules:
            # Relative submodule URLs are relative to this one.
            self.git("config", "--", "remote.origin.url", self.url, purpose="git config")
            update = ["submodule", "update", "--init", "--recursive", "--force", "--depth", "1", "--quiet"]
            self.git(*update, purpose=f"Fetching the submodules of {self.url}")
        place.record |= {"digest": self.digest, "url": self.url, "submodules": self.submodules}
        place.save()

    def renew_linked(self) -> None:
        """Bring the new version of files behind links, where the volume still has the one of the commit before."""
        try:
            listing = ["--raw", "--no-abbrev", "--no-renames", "-z", "HEAD", self.digest]
            changed = self.git("diff", *listing, purpose="git diff")
        except _box.BoxError:
            return  # this is the first commit that is brought, so there is none to compare with
        fields = changed.split("\0")
        for about, name in zip(fields[0::2], fields[1::2], strict=False):
            _mode, mode, old, _new, status = about.removeprefix(":").split()
            target = self.place.dest / name
            is_file = status == "M" and mode.startswith("100") and target.is_file() and not target.is_symlink()
            if not is_file or not self.place.is_linked(name):
                continue
            if self.git("hash-object", f"--path={name}", "--", str(target), purpose="git hash-object").strip() != old:
                continue
            scratch = target.with_name(f".{target.name}.incoming")
            words = ["sh", "-c", 'exec git -C "$1" cat-file --filters "$2" >"$3"', "sh"]
            words += [str(self.place.dest), f"{self.digest}:{name}", str(scratch)]
            _box.run(self.module, words, purpose=f"Bringing {name}")
            scratch.chmod(0o755 if mode == "100755" else 0o644)
            scratch.replace(target)


def build(module: AnsibleModule, place: Place) -> None:
    """Run the build commands, all output to the log."""
    options = module.params
    path = os.pathsep.join([*options["path"], os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")])
    variables = {key: str(value) for key, value in options["environment"].items()}
    environment = {**variables, "PATH": path}
    place.log.write_bytes(b"")
    for command in options["build"]:
        with place.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {command}\n")
        started = time.monotonic()
        code, _output, _errors = _box.execute(
            module, ["bash", "-c", LOGGED, str(place.log), command], environment=environment, folder=place.dest
        )
        if code:
            said = _box.tail(place.log.read_text(encoding="utf-8", errors="replace"), LOG_LINES)
            raise _box.BoxError(
                f"The build command {command!r} failed with exit code {code} after "
                f"{time.monotonic() - started:.0f} s; the end of {place.log}:\n{said}",
                rc=code,
                log=str(place.log),
            )


def warn_of_kept(module: AnsibleModule, names: list[str]) -> None:
    """Name the files of which the repository has another version than the one that stays."""
    if names:
        more = f" and {len(names) - KEPT_NAMED} more" if len(names) > KEPT_NAMED else ""
        named = ", ".join(names[:KEPT_NAMED]) + more
        module.warn(
            f"The repository has another version of {named}. What is on the persistent volume "
            "is not as it was brought there and may be the run's work, so it stays; remove it to have the repository's."
        )


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring the tree and build it, or in check mode say what that would take."""
    options = module.params
    place = Place(Path(options["dest"]))
    tree: LocalTree | GitTree
    if options["url"]:
        tree = GitTree(module, place)
    elif options["tree"]:
        tree = LocalTree(place, options["tree"], options["archive"])
    else:
        raise _box.BoxError("The module work_tree needs its action plugin to read src.")
    before = place.record.get("digest", "")
    actions = [] if tree.in_order else tree.actions()
    parts = [tree.digest, options["build"], options["environment"], options["path"]]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    must_build = bool(options["build"]) and (bool(actions) or place.record.get("built") != key or options["rebuild"])
    result: dict[str, Any] = {
        "digest": tree.digest,
        "log": str(place.log),
        "diff": {"before": {"digest": before}, "after": {"digest": tree.digest, **tree.plan()}},
    }
    if isinstance(tree, LocalTree):
        result["kept"] = tree.kept
        if tree.stale and not options["archive"] and not module.check_mode:
            return {**result, "changed": False, "actions": [], "needs_archive": True}
        warn_of_kept(module, tree.kept)
    if must_build:
        count = len(options["build"])
        actions = [*actions, f"run {count} build command{'s' * (count != 1)}"]
    if not module.check_mode:
        if not tree.in_order:
            tree.bring()
        if must_build:
            place.record["built"] = None
            place.save()
            build(module, place)
            place.record["built"] = key
            place.save()
    return {**result, "changed": bool(actions), "actions": actions}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "src": {"type": "path"},
            "url": {"type": "str"},
            "commit": {"type": "str"},
            "submodules": {"type": "bool", "default": False},
            "build": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "path": {"type": "list", "elements": "path", "default": []},
            "rebuild": {"type": "bool", "default": False},
            "tree": {"type": "dict"},
            "archive": {"type": "path"},
        },
        mutually_exclusive=[("src", "url")],
        required_one_of=[("src", "url")],
        required_together=[("url", "commit")],
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
