#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: uv_environment
short_description: Bring a Python environment to a list of requirements with uv
description:
  - Uses the C(uv) that is on PATH, as on many machine-learning images, or installs a pinned and checksummed one.
  - Creates the virtual environment, or takes over the one that the machine's image brings with it.
  - Records a hash of everything that was asked for, so that an environment that matches costs no more than a look at
    three small files.
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  path:
    description: The virtual environment.
    type: path
    required: true
  python:
    description: The Python version that is wanted, such as V(3.12), or a condition on it.
    type: str
    default: ">=3.10"
  requirements:
    description: A requirements file on the machine.
    type: path
  packages:
    description:
      - Requirements besides, or instead of, O(requirements), each as a line of a requirements file, which may end in
        hashes as in V(six==1.17.0 --hash=sha256:…). What has a hash is installed only when it matches.
    type: list
    elements: str
    default: []
  repository:
    description: The folder that relative paths in O(requirements) and O(packages) refer to, such as V(-e .).
    type: path
  project:
    description:
      - The folder of a Python project, relative to O(repository). It is installed as editable, with O(extras).
    type: path
  extras:
    description: Extras of O(project) to install too.
    type: list
    elements: str
    default: []
  lock:
    description:
      - The project's C(uv.lock), relative to O(repository). It names every version, so the environment becomes exactly
        that, as C(uv sync --frozen) without development dependencies makes it, and O(base) is not used.
      - The lock of a workspace lies above the O(project) of its member.
    type: path
  by_content:
    description:
      - Whether each state of what is asked for has an environment of its own below O(path), so that what runs in one is
        never changed. An environment of the image (O(base)) stays one.
    type: bool
    default: false
  beside:
    description: Whether something runs in an environment below O(path). The image's own is then not changed.
    type: bool
    default: false
  base:
    description:
      - A virtual environment of the machine's image, such as V(/venv/main). Where it exists, O(path) becomes a link to
        it, and O(requirements) are installed into it. What it already has stays as it is as long as it satisfies
        them, so a torch that fits is not installed again.
      - Where it does not exist, O(path) is created as usual.
    type: path
  import_paths:
    description: Folders and zip files that every program of the environment can import from.
    type: list
    elements: path
    default: []
  wait:
    description:
      - Whether the task waits until everything is installed. Without, it only begins that, and a later task that waits
        follows it to its end and does the rest.
    type: bool
    default: true
  uv:
    description: The C(uv) to use. When it is not given, one on PATH is taken, and otherwise O(uv_root) is installed.
    type: path
  uv_root:
    description: The folder for our own C(uv).
    type: path
    default: /opt/gpuyard/uv
  uv_version:
    description: The version of our own C(uv).
    type: str
    required: true
  uv_sha256:
    description: The accepted SHA-256 sums of the packages that hold our own C(uv), one an architecture.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed.
    support: full
"""

EXAMPLES = r"""
- name: Have an environment for the training code
  gpuyard.cloud.uv_environment:
    path: /opt/gpuyard/envs/miniprover
    requirements: /opt/gpuyard/src/miniprover/requirements.txt
    uv_version: 0.13.9
    uv_sha256:
      - d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19
"""

RETURN = r"""
path:
  description: The environment.
  type: str
  returned: success
  sample: /opt/gpuyard/envs/miniprover/5b1d6a0e3c7f9821
uv:
  description: The C(uv) that is used; empty in check mode where it has yet to be installed.
  type: str
  returned: success
  sample: /opt/gpuyard/uv/bin/uv
base:
  description: The image's environment that is reused; empty when the environment is our own.
  type: str
  returned: success
  sample: /venv/main
under_way:
  description: Whether the environment is being made, see O(wait).
  type: bool
  returned: success
actions:
  description: What was done, or would be done in check mode.
  type: list
  elements: str
  returned: success
  sample: [install uv 0.13.9, create the environment, install 12 requirements]
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _box

UV_RECORD = "gpuyard-uv.json"
PTH = "gpuyard.pth"
# Where images keep a uv that a non-interactive shell's PATH does not name.
USUAL_PLACES = ("/usr/local/bin/uv", ".local/bin/uv", "/opt/uv/bin/uv")  # relative ones lie in the home folder

# A requirement that is a file or folder of the machine and not of an index.
LOCAL = re.compile(r"^\s*(?:-e\b|--editable\b|[./~])|file:|@\s*[./~]|^\s*[^:\s]+\.(?:whl|tar\.gz|zip)\s*$")


def included(requirements: Path) -> list[Path]:
    """Return ``requirements`` and the files that it includes with ``-r`` or ``-c``, each once."""
    files: list[Path] = []
    waiting = [requirements]
    while waiting:
        file = waiting.pop(0)
        if file in files:
            continue
        if not file.is_file():
            raise _box.BoxError(f"The requirements file {file} does not exist on this machine.")
        files.append(file)
        for line in file.read_text(encoding="utf-8").splitlines():
            option, _space, name = line.strip().replace("=", " ", 1).partition(" ")
            if option in ("-r", "-c", "--requirement", "--constraint") and name.strip():
                waiting.append(file.parent / name.strip())
    return files


def pip_archive() -> Path | None:
    """Return the archive of pip that belongs to this Python, from which pip can run; ``None`` where there is none."""
    # Debian keeps it apart from Python; the package python3-venv brings it.
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR"), Path(os.__file__).parent / "ensurepip" / "_bundled"]
    found = [file for folder in folders if folder for file in sorted(Path(folder).glob("pip-*.whl"))]
    return found[-1] if found else None


class Environment:
    """The environment as it is on this machine, and the steps to the wanted one."""

    def __init__(self, module: AnsibleModule) -> None:
        options: dict[str, Any] = module.params
        self.module, self.options = module, options
        base = options["base"]
        fits = bool(base) and not options["lock"] and Path(base, "bin", "python").exists()
        self.base = Path(base) if fits else None
        self.place(Path(options["path"]))
        self.repository = Path(options["repository"]) if options["repository"] else None
        self.uv = self.find_uv()
        # Certificates as everything else on the machine has them, behind a company's proxy too.
        self.settings = {"UV_NATIVE_TLS": "true", "UV_NO_PROGRESS": "1"}
        if _box.CERTIFICATES.exists():
            self.settings["PIP_CERT"] = str(_box.CERTIFICATES)

    def place(self, path: Path) -> None:
        """Say where the environment is."""
        self.path = path
        # Beside the environment, not in it: two workloads may share an image's environment.
        self.record = path.with_name(f".{path.name}.json")

    def run(self, command: list[str], purpose: str) -> None:
        """Run pip or uv with its settings, see :func:`_box.run`; relative paths are the repository's."""
        _box.run(self.module, command, purpose=purpose, environment=self.settings, folder=self.repository)

    def find_uv(self) -> Path | None:
        """Return the uv to use, or None when our own has yet to be installed in the wanted version."""
        options = self.options
        if options["uv"]:
            if not os.access(options["uv"], os.X_OK):
                raise _box.BoxError(f"uv={options['uv']} is not a program on this machine.")
            return Path(options["uv"])
        places = [Path.home() / place for place in USUAL_PLACES]
        found = shutil.which("uv") or next((place for place in places if os.access(place, os.X_OK)), None)
        if found:
            return Path(found)
        own = Path(options["uv_root"], "bin", "uv")
        recorded = _box.read_record(Path(options["uv_root"], UV_RECORD)).get("uv")
        return own if recorded == options["uv_version"] and own.exists() else None

    def install_uv(self) -> None:
        """Install our own uv from the package index, by checksum."""
        root, version = Path(self.options["uv_root"]), self.options["uv_version"]
        # Installing pip there takes longer than all that it is needed for, so it runs from its own archive.
        archive = pip_archive()
        try:
            command = [sys.executable, "-m", "venv", "--clear", *(["--without-pip"] if archive else []), str(root)]
            _box.run(self.module, command, purpose="Creating the environment of uv")
        except _box.BoxError as error:
            raise _box.BoxError(
                f"uv {version} cannot be installed, because this machine's Python cannot make virtual environments: "
                "install the package python3-venv (role base)."
            ) from error
        with tempfile.TemporaryDirectory() as scratch:
            wanted = Path(scratch, "requirements.txt")
            hashes = " ".join(f"--hash=sha256:{value}" for value in self.options["uv_sha256"])
            wanted.write_text(f"uv=={version} {hashes}\n", encoding="utf-8")
            command = [
                *(["env", f"PYTHONPATH={archive}"] if archive else []),
                str(root / "bin" / "python"),
                "-m",
                "pip",
                "--disable-pip-version-check",
                "install",
                "--quiet",
                "--require-hashes",
                "--only-binary",
                ":all:",
                "-r",
                str(wanted),
            ]
            self.run(command, f"Installing uv {version}")
        _box.write_record(root / UV_RECORD, {"uv": version})
        self.uv = root / "bin" / "uv"

    def link(self) -> None:
        """Link the image's environment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_symlink():
            self.path.unlink()
        elif self.path.exists():
            shutil.rmtree(self.path)
        self.path.symlink_to(self.base or "")

    def complete(self, wanted: dict[str, Any], *, keep: bool) -> None:
        """Let uv create the environment, unless it is kept, and install what is missing; with a lock, what that names.

        This goes on when the connection is lost, so it is one command, which the next module finds by ``wanted``.
        """
        commands = [*([] if keep or self.base else [self.creation()]), *self.installations()]
        if not commands:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _box.detached(
            ["sh", "-c", " && ".join(map(shlex.join, commands))],
            slot=f"environment {self.path}",
            key=wanted,
            purpose="Installing requirements" if self.has_requirements else "Creating the environment",
            environment=self.settings,
            folder=self.repository,
            wait=self.options["wait"],
        )

    def creation(self) -> list[str]:
        """Return the command that creates the environment."""
        if self.path.is_symlink():
            self.path.unlink()
        return [str(self.uv), "venv", "--clear", "--python", self.options["python"], str(self.path)]

    def installations(self) -> list[list[str]]:
        """Return the commands that install what is asked for."""
        uv, options = str(self.uv), self.options
        project = str(self.project or ".")
        extras = [word for extra in options["extras"] for word in ("--extra", extra)]
        commands = []
        if options["lock"]:
            self.settings["UV_PROJECT_ENVIRONMENT"] = str(self.path)
            commands.append([uv, "sync", "--frozen", "--no-dev", "--project", project, *extras])
        command = [uv, "pip", "install", "--python", str(self.path / "bin" / "python")]
        if options["requirements"]:
            command += ["--requirements", options["requirements"]]
        if self.project and not options["lock"]:
            named = f"[{','.join(options['extras'])}]" if options["extras"] else ""
            command += ["--editable", f"{project}{named}"]
        if options["packages"]:
            # A hash, and `-e .`, are words of a file's line, and none of a command line.
            packages = self.path.with_name(f".{self.path.name}.packages.txt")
            _box.write_file(packages, "".join(f"{line}\n" for line in options["packages"]))
            command += ["--requirements", str(packages)]
        if options["requirements"] or options["packages"] or (self.project and not options["lock"]):
            commands.append(command)
        return commands

    @property
    def project(self) -> Path | None:
        """The folder of the project to install, ``None`` for none."""
        options = self.options
        if not (options["project"] or options["extras"] or options["lock"]):
            return None
        return Path(self.repository or Path.cwd(), options["project"] or ".")

    @property
    def has_requirements(self) -> bool:
        """Whether anything is to be installed."""
        return bool(self.options["requirements"] or self.options["packages"] or self.project)

    def wanted(self) -> dict[str, Any]:
        """Return what is asked for. Two environments with the same answer are the same."""
        options = self.options
        digest = hashlib.sha256()
        count = len(options["packages"])
        local = any(LOCAL.search(package) for package in options["packages"])
        files = included(Path(options["requirements"])) if options["requirements"] else []
        project = self.project
        if project:
            files.append(project / "pyproject.toml")
        if options["lock"]:
            files.append(Path(self.repository or Path.cwd(), options["lock"]))
        for file in files:
            if not file.is_file():
                raise _box.BoxError(f"The file {file} does not exist on this machine.")
            content = file.read_bytes()
            digest.update(b"%d " % len(content) + content)
            lines = content.decode(errors="replace").splitlines()
            if file.suffix not in (".toml", ".lock"):
                count += sum(line[:1].isalnum() for line in lines)
                local = local or any(LOCAL.search(line) for line in lines)
        digest.update(json.dumps(options["packages"]).encode())
        wanted = {
            "python": options["python"],
            "base": str(self.base or ""),
            "requirements": count + bool(project),
            "requirements_sha256": digest.hexdigest(),
        }
        if project:
            wanted |= {"project": str(project), "extras": sorted(options["extras"]), "lock": options["lock"] or ""}
        if local:
            # What is installed from the repository itself belongs to this state of it.
            wanted["repository"] = str(self.repository or "")
        return wanted

    def state(self) -> dict[str, Any]:
        """Return the answer that was recorded when the environment was last complete; ``{}`` when it is not."""
        if not (self.path / "bin" / "python").exists():
            return {}
        recorded = _box.read_record(self.record)
        if os.path.realpath(self.path) != os.path.realpath(self.base or self.path):
            return {}
        return recorded

    def import_paths(self) -> list[str]:
        """Return the import paths that the environment has from us."""
        for file in self.path.glob(f"lib/python3*/site-packages/{PTH}"):
            return file.read_text(encoding="utf-8").split("\n")[:-1]
        return []

    def write_import_paths(self) -> None:
        """Write the file that adds import paths."""
        content = "".join(f"{path}\n" for path in self.options["import_paths"])
        for folder in self.path.glob("lib/python3*/site-packages"):
            _box.write_file(folder / PTH, content)


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring the environment to the wanted state, or in check mode say what that would take."""
    options = module.params
    environment = Environment(module)
    try:
        wanted = environment.wanted()
    except _box.BoxError:
        # A dry run on a machine that has no repository yet cannot know the file either.
        if not module.check_mode:
            raise
        wanted = {}
    if options["by_content"]:
        name = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
        environment.place(Path(options["path"], "image" if environment.base else name))
    before = environment.state()
    same = before == wanted and bool(before)
    keep = bool(before) and all(before.get(key) == wanted.get(key) for key in ("python", "base"))
    if not same and environment.base and options["beside"]:
        raise _box.BoxError(
            f"Other packages are asked for, and {environment.base}, the environment of this machine's image, is in use "
            "by the stage that runs: they can be installed when the stages have ended."
        )
    paths_before = environment.import_paths()
    paths_differ = paths_before != options["import_paths"]
    count = wanted.get("requirements", 0)
    install_uv = environment.uv is None and not same
    actions = [f"install uv {options['uv_version']}"] if install_uv else []
    if not same:
        actions += [] if keep else [f"link {environment.base}" if environment.base else "create the environment"]
        actions += [f"install {count} requirements"] if environment.has_requirements else []
    if paths_differ:
        actions.append("write import paths")
    under_way = not same and not options["wait"] and not module.check_mode
    if not module.check_mode:
        if install_uv:
            environment.install_uv()
        if not same:
            # Until it is complete again, nothing may claim that it is.
            environment.record.unlink(missing_ok=True)
            if environment.base and not keep:
                environment.link()
            environment.complete(wanted, keep=keep)
        if not under_way:
            if not same:
                _box.write_record(environment.record, wanted)
            if paths_differ:
                environment.write_import_paths()
    return {
        "changed": bool(actions),
        "under_way": under_way,
        "actions": actions,
        "path": str(environment.path),
        "uv": str(environment.uv or ""),
        "base": str(environment.base or ""),
        "diff": {
            "before": {**before, "import_paths": paths_before},
            "after": {**wanted, "import_paths": options["import_paths"]},
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "python": {"type": "str", "default": ">=3.10"},
            "requirements": {"type": "path"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "repository": {"type": "path"},
            "project": {"type": "path"},
            "extras": {"type": "list", "elements": "str", "default": []},
            "lock": {"type": "path"},
            "by_content": {"type": "bool", "default": False},
            "beside": {"type": "bool", "default": False},
            "base": {"type": "path"},
            "import_paths": {"type": "list", "elements": "path", "default": []},
            "wait": {"type": "bool", "default": True},
            "uv": {"type": "path"},
            "uv_root": {"type": "path", "default": "/opt/gpuyard/uv"},
            "uv_version": {"type": "str", "required": True},
            "uv_sha256": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
