#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pantograph_build
short_description: Build Pantograph, with Mathlib's prebuilt files, and talk to it
description:
  - Takes Pantograph's source from a folder of the machine (O(src)), such as a submodule of a repository, or clones it
    (O(url), O(commit)).
  - Compares the C(lean-toolchain) files of Pantograph, of the project and of Mathlib before anything is built.
  - Fetches Mathlib's prebuilt files with C(lake exe cache get), and sees that every module of Mathlib has its own.
    Mathlib is never built here, which would take hours.
  - Builds the REPL, starts it, sends it one command, and reads the answer.
  - Each state has a folder of its own below O(root), and C(project) there is a link to the one that is in use.
version_added: "0.2.0"
author: gpuyard contributors (@gpuyard)
options:
  src:
    description: A folder on the machine that holds Pantograph's source.
    type: path
  url:
    description: A git repository that the machine can reach. It must not hold a user name with a password or a token.
    type: str
  commit:
    description: The full commit of O(url), 40 hexadecimal digits.
    type: str
  toolchain:
    description: The toolchain that the machine has, by its whole name. Pantograph's must be the same.
    type: str
  mathlib:
    description:
      - The tag or commit of Mathlib that is added to what Pantograph requires, such as V(v4.27.0).
      - Without it, and without O(project), Pantograph knows Lean's own library only.
    type: str
  mathlib_url:
    description: The git repository of Mathlib.
    type: str
    default: https://github.com/leanprover-community/mathlib4
  project:
    description:
      - A Lean project on the machine, in whose environment Pantograph is to work, in place of O(mathlib).
      - When its C(lake-manifest.json) names Mathlib, the prebuilt files are fetched there.
    type: path
  cache:
    description: The folder in which C(lake exe cache get) keeps what it has fetched (E(MATHLIB_CACHE_DIR)).
    type: path
  cache_url:
    description: A mirror of Mathlib's cache (E(MATHLIB_CACHE_GET_URL)).
    type: str
  root:
    description: The folder for all states.
    type: path
    default: /opt/gpuyard/pantograph
  bin_dir:
    description: The folder with the launchers of C(lake) and C(lean), in which C(pantograph-repl) is put too.
    type: path
    default: /usr/local/bin
  timeout_s:
    description: How long the REPL may take to load what it imports and to answer, in seconds.
    type: float
    default: 300.0
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
notes:
  - What C(lake) prints goes to C(.<state>.build.log) in O(root), where it can be followed.
  - A C(lake) that is at work goes on when this module is killed, and the next run waits for it and takes over.
"""

EXAMPLES = r"""
- name: Build the submodule with Mathlib
  gpuyard.cloud.pantograph_build:
    src: /opt/gpuyard/src/burnqed/vendor/Pantograph
    mathlib: v4.27.0

- name: Build a commit for a Lean project
  gpuyard.cloud.pantograph_build:
    url: https://github.com/leanprover/Pantograph
    commit: 5fcb75427604cd93219aca547feb75d79433d9e3
    project: /opt/gpuyard/src/prover/lean
"""

RETURN = r"""
path:
  description: The folder that holds Pantograph.
  type: str
  returned: success
  sample: /opt/gpuyard/pantograph/0d7c1f3a9be24c55
repl:
  description: The program.
  type: str
  returned: success
  sample: /opt/gpuyard/pantograph/0d7c1f3a9be24c55/.lake/build/bin/repl
toolchain:
  description: The toolchain of all of them; empty when it is not known yet in check mode.
  type: str
  returned: success
  sample: leanprover/lean4:v4.27.0
lean_path:
  description: E(LEAN_PATH) as C(lake env) has it; empty in check mode on a machine without it.
  type: str
  returned: success
modules:
  description: How many modules of Mathlib are there with their prebuilt files.
  type: int
  returned: success
  sample: 7251
log:
  description: The file on the machine with the output of the build.
  type: str
  returned: success
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: [bring Pantograph, "fetch Mathlib's prebuilt files", build Pantograph, talk to Pantograph, write launcher]
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box
from ansible_collections.gpuyard.cloud.plugins.module_utils import _lake

LINK = "project"
LAUNCHER = "pantograph-repl"
STATE = re.compile(r"[0-9a-f]{16}(\.part)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
# What lake and git make, which is no source.
MADE = (".git", ".lake", "build", "lake-packages")
# As in doc/repl.md of leanprover/Pantograph: the same command as a prover begins with.
REQUEST = {"cmd": "goal.start", "payload": {"expr": "∀ (n : Nat), n = n"}}
IMPORT = re.compile(r"^(?:public )?(?:meta )?import (?:all )?(Mathlib(?:\.[^\s.]+)+)", re.MULTILINE)
REQUIRES_MATHLIB = re.compile(r"""require\s+(?:"[^"]*"\s*/\s*)?"?«?mathlib|^name\s*=\s*"mathlib\"""", re.MULTILINE)


def toolchain_of(folder: Path, owner: str) -> str:
    """Return what the ``lean-toolchain`` file in ``folder`` says."""
    try:
        return (folder / "lean-toolchain").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        raise _box.BoxError(f"{owner} has no file lean-toolchain in {folder}, which names its toolchain.") from None


def compare(toolchains: dict[str, str]) -> str:
    """Return the one toolchain of all; raise :class:`BoxError` that names two that differ."""
    (first, wanted), *others = toolchains.items()
    for owner, found in others:
        if found != wanted:
            raise _box.BoxError(
                f"{first} is for the toolchain {wanted}, but {owner} for {found}: what one has built, the other cannot "
                "load; bring both to the same toolchain. Nothing was built."
            )
    return wanted


def digest_of(folder: Path) -> str:
    """Return the SHA-256 of a source tree: the names, kinds and contents of its files."""
    digest = hashlib.sha256()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in MADE)
        for name in sorted(names):
            path = Path(place, name)
            if name != ".git" and path.is_file():
                digest.update(f"{path.relative_to(folder)}\0{os.access(path, os.X_OK)}\0".encode())
                digest.update(_box.file_sha256(path).encode())
    return digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a folder, which need not be there."""
    if path.exists():
        shutil.rmtree(path)


class Pantograph:
    """Pantograph as it is on this machine, and the steps to the wanted state."""

    def __init__(self, module: AnsibleModule) -> None:
        options: dict[str, Any] = module.params
        self.module, self.options = module, options
        self.root = Path(options["root"])
        self.src = Path(options["src"]) if options["src"] else None
        self.check_options()
        source = digest_of(self.src) if self.src else [options["url"], options["commit"]]
        inputs = [source, options["mathlib"] and [options["mathlib_url"], options["mathlib"]]]
        self.name = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
        self.place = self.root / self.name
        self.repl = self.place / ".lake/build/bin/repl"
        self.log = self.root / f".{self.name}.build.log"
        self.record_file = self.root / f".{self.name}.json"
        # Where Mathlib is, if anywhere.
        self.workspace = Path(options["project"]) if options["project"] else self.place
        self.mathlib = self.workspace / ".lake/packages/mathlib"
        self.environment = {
            "PATH": f"{options['bin_dir']}:{os.environ.get('PATH', os.defpath)}",
            "MATHLIB_CACHE_DIR": options["cache"] or str(self.root / "cache"),
            # The prebuilt files are fetched in a step of its own.
            "MATHLIB_NO_CACHE_ON_UPDATE": "1",
            "GIT_TERMINAL_PROMPT": "0",
            # No tidying of git's in the background, which would outlive lake.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "gc.auto",
            "GIT_CONFIG_VALUE_0": "0",
        }
        if options["cache_url"]:
            self.environment["MATHLIB_CACHE_GET_URL"] = options["cache_url"]

    def check_options(self) -> None:
        """Raise :class:`BoxError` for options that cannot be followed, before anything is changed."""
        if self.src and not (self.src / "lean-toolchain").is_file():
            raise _box.BoxError(
                f"{self.src} holds no source of Pantograph: there is no lean-toolchain. A submodule has to be brought "
                "with the repository (repository.submodules: true)."
            )
        if self.options["commit"] and not COMMIT.fullmatch(self.options["commit"]):
            raise _box.BoxError(f"commit must be 40 hexadecimal digits, not {self.options['commit'][:60]!r}.")
        project = self.options["project"]
        if project and not any((Path(project) / name).is_file() for name in ("lakefile.lean", "lakefile.toml")):
            raise _box.BoxError(
                f"project={project} is no Lean project: it has neither lakefile.lean nor lakefile.toml."
            )

    @property
    def slot(self) -> str:
        """What names lake's work that goes on without this module."""
        return f"pantograph {self.root}"

    def record(self) -> dict[str, Any]:
        """Return what was noted about the folder; nothing when the folder is not there."""
        return _box.read_record(self.record_file) if self.place.is_dir() else {}

    def note(self, **values: Any) -> None:
        """Note what has come to pass."""
        _box.write_record(self.record_file, {**self.record(), **values})

    def mathlib_source(self) -> tuple[str, str] | None:
        """Return address and commit or tag of the Mathlib that is wanted, ``None`` when none is."""
        if not self.options["project"]:
            return (self.options["mathlib_url"], self.options["mathlib"]) if self.options["mathlib"] else None
        entry = self.listed_mathlib()
        return (str(entry["url"]), str(entry["rev"])) if entry.get("url") and entry.get("rev") else None

    def listed_mathlib(self) -> dict[str, Any]:
        """Return what ``lake-manifest.json`` says of Mathlib; nothing when it does not name it."""
        packages = _box.read_record(self.workspace / "lake-manifest.json").get("packages") or []
        return next((entry for entry in packages if entry.get("name") == "mathlib"), {})

    def mathlib_is_cut_off(self) -> bool:
        """Return whether git was ended while it brought Mathlib's source."""
        git = ["git", "-C", str(self.mathlib), "rev-parse", "--verify", "-q", "HEAD"]
        code, _output, _errors = _box.execute(self.module, git)
        return bool(code) or (self.mathlib / ".git/index.lock").exists() or not (self.mathlib / "Mathlib.lean").exists()

    def modules(self) -> tuple[int, list[str]]:
        """Return how many modules Mathlib has, and those without a prebuilt file."""
        try:
            names = IMPORT.findall((self.mathlib / "Mathlib.lean").read_text(encoding="utf-8"))
        except OSError:
            return 0, ["Mathlib"]
        # Lake keeps them in lib/lean, and did in lib until Lean 4.16.
        folders = [self.mathlib / ".lake/build/lib/lean", self.mathlib / ".lake/build/lib"]
        files = {
            name: f"{name.replace('.', '/').replace('«', '').replace('»', '')}.olean" for name in ["Mathlib", *names]
        }
        missing = [name for name, file in files.items() if not any((folder / file).is_file() for folder in folders)]
        return len(files), missing

    def launcher(self) -> str:
        """Return the text of the launcher that lies on PATH."""
        record = self.record()
        return (
            "#!/bin/sh\n"
            "# Made by gpuyard.cloud.pantograph_build: the REPL needs to know where the libraries are.\n"
            f'LEAN_PATH="{record.get("lean_path", "")}${{LEAN_PATH:+:$LEAN_PATH}}"\n'
            f'ELAN_TOOLCHAIN="{record.get("toolchain", "")}"\n'
            "export LEAN_PATH ELAN_TOOLCHAIN\n"
            f'exec "{self.repl}" "$@"\n'
        )

    def launcher_is_right(self) -> bool:
        """Return whether launcher and link lead to the wanted state."""
        link = self.root / LINK
        leads_here = link.is_symlink() and os.readlink(link) == self.name
        return leads_here and _box.has_program(Path(self.options["bin_dir"], LAUNCHER), self.launcher())

    def state(self) -> dict[str, Any]:
        """Return what there is, in the words in which it is wanted."""
        record = self.record()
        return {
            "source": self.name if self.place.is_dir() else None,
            "mathlib": bool(self.mathlib_source()) and not self.modules()[1],
            "built": bool(record.get("built")) and self.repl.is_file(),
            "spoken": record.get("spoken") == self.spoken(),
            "launcher": self.launcher_is_right(),
        }

    def wanted(self) -> dict[str, Any]:
        """Return the wanted state."""
        mathlib = bool(self.mathlib_source())
        return {"source": self.name, "mathlib": mathlib, "built": True, "spoken": True, "launcher": True}

    def spoken(self) -> list[Any]:
        """Return with what the REPL has to have been talked to."""
        return [str(self.workspace), *(self.mathlib_source() or ())]

    def git(self, folder: Path, *words: str, purpose: str) -> str:
        """Run git, see :func:`_box.run`."""
        command = ["git", "-C", str(folder), *words]
        return _box.run(self.module, command, purpose=purpose, environment=self.environment)

    def lake(self, *words: str, purpose: str, folder: Path) -> None:
        """Run lake for as long as it takes. It goes on when this module ends."""
        command = [str(Path(self.options["bin_dir"], "lake")), *words]
        _box.detached(
            command,
            slot=self.slot,
            key=self.name,
            purpose=purpose,
            environment=self.environment,
            folder=folder,
            log=self.log,
        )

    def clone(self, scratch: Path) -> None:
        """Fetch the commit into ``scratch``."""
        url, commit = self.options["url"], self.options["commit"]
        purpose = f"Fetching Pantograph's commit {commit} from {url}"
        scratch.mkdir(parents=True)
        self.git(scratch, "init", "-q", purpose=purpose)
        self.git(scratch, "fetch", "-q", "--depth", "1", url, commit, purpose=purpose)
        self.git(scratch, "checkout", "-q", "FETCH_HEAD", purpose=purpose)

    def toolchain_of_mathlib(self, url: str, revision: str) -> str:
        """Return what Mathlib's ``lean-toolchain`` says, without fetching more of it than need be."""
        purpose = f"Asking {url} for Mathlib {revision}"
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            self.git(folder, "init", "-q", "--bare", purpose=purpose)
            for key, value in (("url", url), ("promisor", "true"), ("partialclonefilter", "blob:none")):
                self.git(folder, "config", f"remote.origin.{key}", value, purpose=purpose)
            fetch = ["fetch", "-q", "--depth", "1", "--filter=blob:none", "origin", revision]
            self.git(folder, *fetch, purpose=purpose)
            return self.git(folder, "show", "FETCH_HEAD:lean-toolchain", purpose=purpose).strip()

    def toolchain(self, source: Path, *, ask: bool = True) -> str:
        """Return the toolchain of all; raise :class:`BoxError` when they differ. ``ask``: Mathlib's server, too."""
        found = {"Pantograph": toolchain_of(source, "Pantograph")}
        if self.options["toolchain"]:
            found["this machine"] = self.options["toolchain"]
        if self.options["project"]:
            found["the project"] = toolchain_of(self.workspace, "The project")
        mathlib = self.mathlib_source()
        compare(found)
        if mathlib and ask:
            found["Mathlib"] = self.toolchain_of_mathlib(*mathlib)
        return compare(found)

    def bring(self) -> None:
        """Have the source in the folder of its own, whole, with Mathlib among what it requires."""
        scratch = self.root / f"{self.name}.part"
        remove(scratch)
        try:
            if self.src:
                self.toolchain(self.src)
                shutil.copytree(self.src, scratch, symlinks=True, ignore=shutil.ignore_patterns(*MADE))
            else:
                self.clone(scratch)
                self.toolchain(scratch)
            if self.options["mathlib"]:
                self.require_mathlib(scratch)
            self.record_file.unlink(missing_ok=True)
            scratch.rename(self.place)
        finally:
            remove(scratch)

    def require_mathlib(self, folder: Path) -> None:
        """Add Mathlib to what Pantograph requires, as BurnQED's scripts/setup_pantograph.sh does."""
        url, revision = self.options["mathlib_url"], self.options["mathlib"]
        lean, toml = folder / "lakefile.lean", folder / "lakefile.toml"
        if lean.is_file():
            file, text = lean, f'\nrequire mathlib from git\n  "{url}" @ "{revision}"\n'
        elif toml.is_file():
            file, text = toml, f'\n[[require]]\nname = "mathlib"\ngit = "{url}"\nrev = "{revision}"\n'
        else:
            raise _box.BoxError("Pantograph's source has neither lakefile.lean nor lakefile.toml.")
        content = file.read_text(encoding="utf-8")
        if not REQUIRES_MATHLIB.search(content):
            file.write_text(content + text, encoding="utf-8")

    def fetch_mathlib(self) -> None:
        """Have Mathlib's source and the prebuilt file of every module, and never build it."""
        if self.mathlib.is_dir() and self.mathlib_is_cut_off():
            remove(self.mathlib)
        if not self.options["project"] and not (self.listed_mathlib() and self.mathlib.is_dir()):
            self.lake("update", "mathlib", purpose="Fetching Mathlib's source", folder=self.workspace)
        self.lake("exe", "cache", "get", purpose="Fetching Mathlib's prebuilt files", folder=self.workspace)
        count, missing = self.modules()
        if missing:
            raise _box.BoxError(
                f"{len(missing)} of {count} modules of Mathlib have no prebuilt file after lake exe cache get, such as "
                f"{missing[0]}. The cache has them only for commits that Mathlib's own tests have built, and to build "
                f"them takes hours: choose a release of Mathlib. See {self.log} on the machine."
            )

    def build(self) -> None:
        """Let lake build the REPL; what it has built already it does not build again."""
        self.lake("build", purpose="Building Pantograph", folder=self.place)
        if not self.repl.is_file():
            raise _box.BoxError(f"lake build has made no {self.repl}, see {self.log} on the machine.")
        self.note(built=True)

    def speak(self) -> None:
        """See that the REPL loads what it imports, and that it can begin a proof."""
        imports = "Mathlib" if self.mathlib_source() else "Init"
        lake = str(Path(self.options["bin_dir"], "lake"))
        answer = _lake.talk(
            [lake, "env", str(self.repl), imports],
            REQUEST,
            folder=self.workspace,
            environment=self.environment,
            timeout_s=self.options["timeout_s"],
        )
        if "stateId" not in answer:
            raise _box.BoxError(f"Pantograph cannot begin a proof; it answered {json.dumps(answer)[:500]}")
        command = ["printenv", "LEAN_PATH"]
        path = _box.run(
            self.module,
            [lake, "env", *command],
            purpose="Asking lake for LEAN_PATH",
            environment=self.environment,
            folder=self.workspace,
        ).strip()
        toolchain = toolchain_of(self.place, "Pantograph")
        self.note(spoken=self.spoken(), lean_path=path, toolchain=toolchain)

    def lead_here(self) -> None:
        """Write launcher and link, and remove what belongs to other states."""
        _box.write_file(Path(self.options["bin_dir"], LAUNCHER), self.launcher(), 0o755)
        scratch = self.root / f".{LINK}.incoming"
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(self.name)
        scratch.replace(self.root / LINK)
        for path in self.root.iterdir():
            name = path.name.lstrip(".").split(".")[0]
            if name != self.name and STATE.fullmatch(name):
                remove(path) if path.is_dir() else path.unlink()


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring Pantograph to the wanted state, or in check mode say what that would take."""
    pantograph = Pantograph(module)
    if module.check_mode:
        return converge(pantograph, check=True)
    with _lake.alone(pantograph.root / ".lock"):
        # What a killed command has begun still changes what is looked at here.
        _box.take_over(pantograph.slot, pantograph.name)
        return converge(pantograph, check=False)


def converge(pantograph: Pantograph, *, check: bool) -> dict[str, Any]:
    """Compare, take the steps that are needed, and return the module's result."""
    before, wanted = pantograph.state(), pantograph.wanted()
    source = pantograph.place if before["source"] else pantograph.src
    # The machine's and the project's toolchains may have changed since; Mathlib's, of a commit, does not.
    toolchain = pantograph.toolchain(source, ask=False) if source else ""
    again = before["source"] != wanted["source"]
    steps = [
        (again, "bring Pantograph", pantograph.bring),
        (before["mathlib"] != wanted["mathlib"], "fetch Mathlib's prebuilt files", pantograph.fetch_mathlib),
        (again or not before["built"], "build Pantograph", pantograph.build),
        (again or not before["built"] or not before["spoken"], "talk to Pantograph", pantograph.speak),
    ]
    steps.append(
        (
            not before["launcher"] or any(needed for needed, _name, _step in steps),
            "write launcher",
            pantograph.lead_here,
        )
    )
    actions = [name for needed, name, _step in steps if needed]
    if not check:
        for needed, _name, step in steps:
            if needed:
                step()
        toolchain = toolchain_of(pantograph.place, "Pantograph")
    count, missing = pantograph.modules() if pantograph.mathlib_source() else (0, [])
    return {
        "changed": bool(actions),
        "actions": actions,
        "path": str(pantograph.place),
        "repl": str(pantograph.repl),
        "toolchain": toolchain,
        "lean_path": str(pantograph.record().get("lean_path") or ""),
        "modules": 0 if missing else count,
        "log": str(pantograph.log),
        "diff": {"before": before, "after": wanted},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path"},
            "url": {"type": "str"},
            "commit": {"type": "str"},
            "toolchain": {"type": "str"},
            "mathlib": {"type": "str"},
            "mathlib_url": {"type": "str", "default": "https://github.com/leanprover-community/mathlib4"},
            "project": {"type": "path"},
            "cache": {"type": "path"},
            "cache_url": {"type": "str"},
            "root": {"type": "path", "default": "/opt/gpuyard/pantograph"},
            "bin_dir": {"type": "path", "default": "/usr/local/bin"},
            "timeout_s": {"type": "float", "default": 300.0},
        },
        mutually_exclusive=[("src", "url"), ("mathlib", "project")],
        required_one_of=[("src", "url")],
        required_together=[("url", "commit")],
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
