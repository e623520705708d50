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
    Only what differs crosses the network, as one archive.
  - Files that are gone from the source are removed. What the source never had is left alone, so build outputs and files
    behind links to a persistent volume stay.
  - A newer version of a file that lies behind such a link is brought when the file is still as it was brought before.
    One that was changed there stays, and is named in a warning. What was brought is noted on the volume, see
    M(gpuyard.cloud.persistent_links).
  - Runs the build commands once for each state of the tree, and shows the end of the log when one of them fails.
  - With O(by_content), each state of the tree has a folder of its own, so that what runs in one is never rewritten.
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
    description:
      - Whether to bring submodules too. Those of O(url) are fetched at the commits that the repository names, those of
        O(src) come as they are on the controller.
    type: bool
    default: false
  credentials:
    description:
      - What opens a private O(url), and its submodules at the same host. It is used for the fetch only, and kept
        nowhere.
      - A task with V(agent) forwards the SSH agent of the controller to the machine as long as it runs.
    type: dict
    suboptions:
      kind:
        description: A token for C(https), an SSH key, or the SSH agent of the controller.
        type: str
        choices: [token, deploy_key, agent]
        required: true
      variable:
        description: Not used here. Where the controller has the secret from.
        type: str
      user:
        description: The user name that goes with a token.
        type: str
        default: x-access-token
      host_keys:
        description:
          - Lines of a C(known_hosts) file; the forge may show no other key over SSH.
          - By default, the first key that the machine sees is kept in C(.git_known_hosts) beside O(dest).
        type: list
        elements: str
        default: []
  secret:
    description: The token, or the content of the private key.
    type: str
  include:
    description: Patterns, as in C(.gitignore), of files of O(src) that are brought although git ignores them.
    type: list
    elements: str
    default: []
  by_content:
    description:
      - Whether the repository goes to a folder of its own below O(dest), named after what is in it and how it is built.
      - A new folder takes from the newest of its neighbours what has not changed, its links to folders outside, and
        C(target), which cargo builds into.
    type: bool
    default: false
  variant:
    description: What else has a folder of its own with O(by_content), such as the environment that it is built with.
    type: raw
  beside:
    description:
      - Whether something runs in one of the folders of O(by_content). A folder that is complete is then left as it is,
        whatever has become of its files.
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
  skip_build:
    description: Only bring the repository; a later task builds it.
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
path:
  description: The folder that holds the repository.
  type: str
  returned: success
  sample: /opt/gpuyard/src/miniprover/0d7c1f3a9be24c55
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
  description: The files whose content has to be sent. Only for the action plugin.
  type: list
  elements: str
  returned: when the content differs
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import tarfile
import time
from collections.abc import Collection
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
# All commands in one script, which goes on without this module.
BUILD = """
for command in "$@"; do
    printf '$ %s\\n' "$command"
    bash -o pipefail -c "$command" || exit
done
"""
# What git runs to get at user and token; it asks for nothing but the one host.
TOKEN_HELPER = (
    '!f() { test "$1" != get || printf "username=%s\\npassword=%s\\n" "$REPOSITORY_USER" "$REPOSITORY_SECRET"; }; f'
)
# By itself an agent lives up to ten seconds longer than what it was started for, with the key in its memory.
WITH_KEY = (
    'printf "%s" "$REPOSITORY_SECRET" | ssh-add -q - || exit; unset REPOSITORY_SECRET; '
    '"$@"; code=$?; ssh-agent -k >/dev/null; exit $code'
)


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

    def newest_neighbour(self) -> Place | None:
        """Return the folder beside this one that was brought last and is whole, ``None`` when there is none."""
        files = sorted(self.dest.parent.glob(".*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for file in files:
            place = Place(file.with_name(file.name[1 : -len(".json")]))
            if place.dest != self.dest and place.record.get("digest") and place.dest.is_dir():
                return place
        return None

    def begin_like(self, other: Place) -> None:
        """Have the links to folders outside that ``other`` has, and know what of the repository lies behind them."""
        self.dest.mkdir(parents=True, exist_ok=True)
        files = other.record.get("files") or {}
        for link in outside_links(other.dest, files):
            copy = self.dest / link
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(copy):
                copy.symlink_to((other.dest / link).readlink())
        behind = {name: content for name, content in files.items() if self.is_linked(name)}
        self.record = {"digest": "", "files": behind}
        self.save()

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


def outside_links(root: Path, files: Collection[str]) -> list[Path]:
    """Return the links to folders elsewhere that are no entries of the repository, such as persistent_links makes."""
    found: list[Path] = []
    for folder, folders, _names in os.walk(root):
        for name in folders:
            path = Path(folder, name)
            relative = path.relative_to(root)
            if path.is_symlink() and os.path.isabs(path.readlink()) and relative.as_posix() not in files:
                found.append(relative)
        folders[:] = [name for name in folders if name not in (".git", "target")]
    return found


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
        self.neighbour: Place | None = None
        self.digest: str = tree["digest"]
        self.files: dict[str, str] = tree["files"]
        self.archive = archive
        check_names(self.files)
        self.compare()

    def compare(self) -> None:
        """Find out what differs from what was brought last."""
        place = self.place
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

    def to_copy(self) -> list[str]:
        """Return what the neighbour has as the source has it, so that it need not be sent."""
        if self.neighbour is None:
            return []
        other = self.neighbour
        recorded, stamps = other.record.get("files") or {}, other.record.get("stamps") or {}
        return [
            name
            for name in self.stale
            if recorded.get(name) == self.files[name]
            and not other.is_linked(name)
            and not self.place.is_linked(name)
            and other.stamp(name) is not None
            and stamps.get(name) == other.stamp(name)
        ]

    def to_send(self) -> list[str]:
        """Return what has to come from the controller."""
        copied = set(self.to_copy())
        return [name for name in self.stale if name not in copied]

    def bring(self) -> None:
        """Write what differs and remove what is gone. Unchanged files keep their times, which build tools go by."""
        copied = self.to_copy()
        if len(copied) < len(self.stale) and not self.archive:
            raise _box.BoxError("The module work_tree needs its action plugin to send the content of src.")
        place = self.place
        place.record = {**place.record, "digest": ""}
        place.dest.mkdir(parents=True, exist_ok=True)
        place.save()
        for name in self.gone:
            self.remove(place.dest / name)
        if self.neighbour is not None:
            for name in copied:
                target = place.dest / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.neighbour.dest / name, target, follow_symlinks=False)
        if self.archive:
            self.unpack(set(self.stale) - set(copied))
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


class Way:
    """How git gets at a private repository. The secret is in no file and no command line, so a kill leaves none behind.

    A token is in the environment of git alone, a key in an ``ssh-agent`` that ends with git.
    """

    def __init__(self, options: dict[str, Any], url: str, place: Place) -> None:
        found = options["credentials"] or {}
        self.kind: str = found.get("kind") or ""
        self.before: list[str] = []
        self.words: list[str] = []
        self.environment: dict[str, str] = {}
        if not self.kind:
            return
        secret = options["secret"] or ""
        if self.kind == "token":
            self._token(url, found["user"], secret)
            return
        if not re.match(r"ssh://|[A-Za-z0-9._]+@", url):
            raise _box.BoxError(f"credentials: {self.kind} is for an SSH address, and url={url!r} is none.")
        if self.kind == "deploy_key":
            if not secret:
                raise _box.BoxError("credentials: deploy_key needs secret, the content of the private key.")
            self.before = ["ssh-agent", "sh", "-c", WITH_KEY, "sh"]
            self.environment["REPOSITORY_SECRET"] = secret.strip() + "\n"
        elif not os.environ.get("SSH_AUTH_SOCK"):
            raise _box.BoxError(
                "credentials: no SSH agent reaches this machine: run `eval $(ssh-agent); ssh-add` on the controller, "
                "and see that sshd here has AllowAgentForwarding yes."
            )
        self._ssh(place.dest.with_name(".git_known_hosts"), found["host_keys"])

    def _token(self, url: str, user: str, token: str) -> None:
        if not url.startswith("https://"):
            raise _box.BoxError(f"credentials: a token goes over https only, and url={url!r} is no such address.")
        if not token or "\n" in token:
            raise _box.BoxError("credentials: token needs secret, one line with the token.")
        host = "/".join(url.split("/")[:3])
        name = host.removeprefix("https://")
        # A helper that the machine's own configuration names may write a password to the disk: it is left out.
        self.words = ["-c", "credential.helper=", "-c", f"credential.{host}.helper={TOKEN_HELPER}"]
        for address in (f"git@{name}:", f"ssh://git@{name}/"):
            self.words += ["-c", f"url.{host}/.insteadOf={address}"]
        self.environment = {"REPOSITORY_USER": user, "REPOSITORY_SECRET": token}

    def _ssh(self, known_hosts: Path, host_keys: list[str]) -> None:
        if host_keys:
            _box.write_file(known_hosts, "".join(f"{line}\n" for line in host_keys))
        known_hosts.parent.mkdir(parents=True, exist_ok=True)
        options = {
            "BatchMode": "yes",
            "IdentityFile": "none",  # only what the agent has
            "StrictHostKeyChecking": "yes" if host_keys else "accept-new",
            "UserKnownHostsFile": shlex.quote(str(known_hosts)),
            "GlobalKnownHostsFile": "/dev/null",
            "ForwardAgent": "no",
        }
        words = " ".join(f"-o {name}={value}" for name, value in options.items())
        self.environment["GIT_SSH_COMMAND"] = f"ssh -F /dev/null {words}"


class GitTree:
    """A tree that the machine fetches itself."""

    def __init__(self, module: AnsibleModule, place: Place) -> None:
        commit: str = module.params["commit"]
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise _box.BoxError(f"commit={commit!r} must be a full commit of 40 hexadecimal digits.")
        check_url(module.params["url"])
        self.module, self.place, self.digest = module, place, commit
        self.neighbour: Place | None = None
        self.url: str = module.params["url"]
        self.submodules: bool = module.params["submodules"]

    def git(self, *arguments: str, purpose: str, way: Way | None = None) -> str:
        """Run git in the tree, never asking for a password; ``way`` opens what is private for this one command."""
        command = ["git", "-C", str(self.place.dest), "-c", "advice.detachedHead=false", *arguments]
        environment = {"GIT_TERMINAL_PROMPT": "0"}
        if way is not None:
            command = [*way.before, *command[:3], *way.words, *command[3:]]
            environment |= way.environment
        try:
            return _box.run(self.module, command, purpose=purpose, environment=environment)
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
        self.take_objects()
        place.record = {"built": built}
        place.save()
        purpose = f"Fetching {self.url} at {self.digest[:12]}"
        way = Way(self.module.params, self.url, place)
        self.git("init", "--quiet", purpose="git init")
        fetch = ["fetch", "--quiet", "--depth", "1", "--no-tags", "--", self.url, self.digest]
        self.git(*fetch, purpose=purpose, way=way)
        self.renew_linked()
        self.git("checkout", "--quiet", "--force", "--detach", self.digest, purpose=f"Checking out {self.digest[:12]}")
        if self.submodules:
            # Relative submodule URLs are relative to this one.
            self.git("config", "--", "remote.origin.url", self.url, purpose="git config")
            update = ["submodule", "update", "--init", "--recursive", "--force", "--depth", "1", "--quiet"]
            self.git(*update, purpose=f"Fetching the submodules of {self.url}", way=way)
        place.record |= {"digest": self.digest, "url": self.url, "submodules": self.submodules}
        place.save()

    def take_objects(self) -> None:
        """Begin with what the neighbour has fetched, so that only the difference crosses the network."""
        theirs = self.neighbour.dest / ".git" if self.neighbour else None
        ours = self.place.dest / ".git"
        if theirs is None or not theirs.is_dir() or ours.exists():
            return
        scratch = self.place.dest / ".git.incoming"
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(theirs, scratch, symlinks=True, ignore=lambda _folder, _names: ["index", "index.lock"])
        scratch.rename(ours)

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


def build(module: AnsibleModule, place: Place, key: str) -> None:
    """Run the build commands, all output to the log. They go on when the connection is lost."""
    options = module.params
    path = os.pathsep.join([*options["path"], os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")])
    variables = {name: str(value) for name, value in options["environment"].items()}
    started = time.monotonic()
    try:
        _box.detached(
            ["bash", "-c", BUILD, "bash", *options["build"]],
            slot=build_slot(place),
            key=key,
            purpose="The build",
            environment={**variables, "PATH": path},
            folder=place.dest,
            log=place.log,
        )
    except _box.BoxError as error:
        code = error.details.get("rc")
        if not code:
            raise
        log = place.log.read_text(encoding="utf-8", errors="replace")
        begun = [line[2:] for line in log.splitlines() if line.startswith("$ ")]
        command = next((line for line in reversed(begun) if line in options["build"]), options["build"][0])
        raise _box.BoxError(
            f"The build command {command!r} failed with exit code {code} after "
            f"{time.monotonic() - started:.0f} s; the end of {place.log}:\n{_box.tail(log, LOG_LINES)}",
            rc=code,
            log=str(place.log),
        ) from None


def build_slot(place: Place) -> str:
    """Return what names the build that goes on in this folder without this module."""
    return f"build {place.dest}"


def warn_of_kept(module: AnsibleModule, names: list[str]) -> None:
    """Name the files of which the repository has another version than the one that stays."""
    if names:
        more = f" and {len(names) - KEPT_NAMED} more" if len(names) > KEPT_NAMED else ""
        named = ", ".join(names[:KEPT_NAMED]) + more
        module.warn(
            f"The repository has another version of {named}. What is on the persistent volume "
            "is not as it was brought there and may be the run's work, so it stays; remove it to have the repository's."
        )


def folder_name(options: dict[str, Any], digest: str) -> str:
    """Return the name of the folder for this content, built in this way."""
    parts = [digest, *(options[name] for name in ("url", "submodules", "build", "environment", "variant"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def take_cargo_target(module: AnsibleModule, place: Place, neighbour: Place) -> None:
    """Copy what cargo has built in the neighbour: it builds anew only what differs. Other tools' folders stay there."""
    theirs, ours = neighbour.dest / "target", place.dest / "target"
    if (theirs / "CACHEDIR.TAG").is_file() and not theirs.is_symlink() and not os.path.lexists(ours):
        scratch = place.dest / ".target.incoming"
        shutil.rmtree(scratch, ignore_errors=True)
        command = ["cp", "-a", "--reflink=auto", str(theirs), str(scratch)]
        _box.run(module, command, purpose=f"Copying {theirs}")
        scratch.rename(ours)


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring the tree and build it, or in check mode say what that would take."""
    options = module.params
    if not options["url"] and not options["tree"]:
        raise _box.BoxError("The module work_tree needs its action plugin to read src.")
    dest = Path(options["dest"])
    if options["by_content"]:
        dest = dest / folder_name(options, options["commit"] if options["url"] else options["tree"]["digest"])
    place = Place(dest)
    neighbour = place.newest_neighbour() if options["by_content"] else None
    if neighbour and not place.record and not module.check_mode:
        place.begin_like(neighbour)
    tree: LocalTree | GitTree
    tree = GitTree(module, place) if options["url"] else LocalTree(place, options["tree"], options["archive"])
    tree.neighbour = neighbour
    before = place.record.get("digest", "")
    parts = [tree.digest, options["build"], options["environment"], options["path"]]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    wants_build = bool(options["build"]) and not options["skip_build"]
    is_built = not wants_build or place.record.get("built") == key
    result: dict[str, Any] = {
        "path": str(dest),
        "digest": tree.digest,
        "log": str(place.log),
        "diff": {"before": {"digest": before}, "after": {"digest": tree.digest, **tree.plan()}},
    }
    if options["by_content"] and options["beside"] and before == tree.digest and is_built:
        return {**result, "changed": False, "actions": []}
    in_order = tree.in_order
    actions = [] if in_order else tree.actions()
    must_build = wants_build and (not in_order or not is_built or options["rebuild"])
    if isinstance(tree, LocalTree):
        result["kept"] = tree.kept
        to_send = tree.to_send()
        if to_send and not options["archive"] and not module.check_mode:
            return {**result, "changed": False, "actions": [], "needs_archive": to_send}
        warn_of_kept(module, tree.kept)
    if must_build:
        count = len(options["build"])
        actions = [*actions, f"run {count} build command{'s' * (count != 1)}"]
    if not module.check_mode:
        if not in_order:
            _box.take_over(build_slot(place), None)  # a build must not see its files change
            place.record["built"] = None
            tree.bring()
        if must_build:
            if neighbour:
                _box.take_over(build_slot(neighbour), None)
                take_cargo_target(module, place, neighbour)
            place.record["built"] = None
            place.save()
            build(module, place, key)
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
            "credentials": {
                "type": "dict",
                "options": {
                    "kind": {"type": "str", "choices": ["token", "deploy_key", "agent"], "required": True},
                    "variable": {"type": "str"},
                    "user": {"type": "str", "default": "x-access-token"},
                    "host_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
                },
            },
            "secret": {"type": "str", "no_log": True},
            "include": {"type": "list", "elements": "str", "default": []},
            "by_content": {"type": "bool", "default": False},
            "variant": {"type": "raw"},
            "beside": {"type": "bool", "default": False},
            "build": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "path": {"type": "list", "elements": "path", "default": []},
            "rebuild": {"type": "bool", "default": False},
            "skip_build": {"type": "bool", "default": False},
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
