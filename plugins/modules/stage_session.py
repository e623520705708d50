#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stage_session
short_description: Run a workload's stages on a rented machine under tmux
description:
  - Tells the machine what to run, brings back the newest checkpoint when the machine has no work of its own, and sees
    to it that the stages run in a tmux session named after the workload, with a journal.
  - A session that runs stays as it is, and a run that is finished is not started again. A run that was interrupted or
    has failed goes on where it was.
  - Needs the runtime that the role P(gpuyard.cloud.checkpoints#role) installs, and C(tmux) for O(state=started).
version_added: "0.1.0"
author: gpuyard contributors (@gpuyard)
options:
  state:
    description:
      - V(started) writes the settings, restores, and starts the session.
      - V(restored) writes the settings and restores, and starts nothing.
      - V(stopped) ends the run in good order, with a last checkpoint, and removes the session.
      - V(status) only looks.
    type: str
    choices: [started, restored, stopped, status]
    default: started
  run:
    description: The run's name. Required to start and to restore.
    type: str
  workload:
    description: The workload's specification for the machine, without secrets. Required to start and to restore.
    type: dict
  node:
    description: The node that the machine serves, C(<pool>-<number>). Empty for the one node of a run.
    type: str
    default: ""
  pools:
    description: The pools whose stages the machine runs. Empty for all stages.
    type: list
    elements: str
    default: []
  place:
    description:
      - Where in the bucket the checkpoints of the node lie, C(<run>/nodes/<node>). Empty for the run's own place.
      - A node that has no checkpoint there yet begins with the run's newest one.
    type: str
    default: ""
  bucket:
    description: Where checkpoints go, C(s3://name/prefix) or C(file:///folder); empty to keep them on the machine.
    type: str
    default: ""
  bucket_endpoint:
    description: The address of an S3 service other than Amazon's, as the machine reaches it.
    type: str
    default: ""
  bucket_region:
    description: The region of the bucket.
    type: str
    default: ""
  instance:
    description:
      - The instance that the machine is, as M(gpuyard.cloud.instance) returns it. Stages are told its node, provider,
        id, region, market and price per hour in environment variables such as E(GPUYARD_PROVIDER).
    type: dict
    default: {}
  rental:
    description:
      - What the machine has to know of its rental. C(shutdown) says whether the machine ends it when the stages have
        ended and everything is in the bucket, C(api) where its cloud is, empty for the cloud's real address.
      - A machine can end its rental where its cloud gives it a key of its own, at Vast and RunPod. Elsewhere it writes
        into the run's record that it is over.
    type: dict
    default: {}
  expected_checkpoint:
    description:
      - The number of the run's newest checkpoint, as the controller has seen it in the bucket; V(0) for none.
      - With V(0) the stages start also when this machine cannot reach the bucket. With another number, a bucket in
        which this machine finds no checkpoint is an error.
      - When it is not said, a bucket that does not answer is an error, since there may be a checkpoint in it.
    type: int
  secrets:
    description:
      - Secret environment variables of the stages, among them the keys of the bucket (E(AWS_ACCESS_KEY_ID),
        E(AWS_SECRET_ACCESS_KEY)). They go into a file that only the user may read.
      - Never shown. A difference shows the names that changed.
    type: dict
    default: {}
  secret_files:
    description:
      - Secret files of the stages, their content in Base64, by the environment variable that is to hold their path.
      - Each becomes a file that only the user may read, in C(files) below O(settings). Files of an earlier call that
        are not named any more are removed.
    type: dict
    default: {}
  repository:
    description: The folder that the stages run in. By default C(/opt/gpuyard/src/) with the workload's name.
    type: path
  path:
    description: Folders that go in front of E(PATH) for the stages.
    type: list
    elements: path
    default: []
  turn_pools:
    description:
      - For a run that moves from box to box, the pools whose stages this machine runs. Where a stage of another pool
        comes next, the session ends, and the run waits for another machine. Empty for all stages.
      - A machine was rented for certain pools, so one that has been told of this run keeps what it was told first.
    type: list
    elements: str
    default: []
  restore:
    description: Whether O(state=started) first brings back the newest checkpoint, when the machine has no journal.
    type: bool
    default: true
  restore_sequence:
    description:
      - Bring back exactly the checkpoint with this number, whether there are newer ones or not.
      - A machine with work of its own keeps it, and a warning says that the number was not used.
    type: int
  at_boot:
    description:
      - Whether a run that was at work when the machine went down goes on by itself when the machine starts again. Not
        what was stopped with O(state=stopped), has ended, or was taken over by another machine.
      - Writes C(start-again) beside O(settings), and, where systemd runs the machine, C(gpuyard-run.service) that
        calls it, else, where there is cron, C(/etc/cron.d/gpuyard-run). At Vast.ai the instance's own start script
        calls it.
    type: bool
    default: false
  from_stage:
    description: Start at this stage, and run it and everything after it again.
    type: str
  only:
    description: Run this stage only.
    type: str
  until_stage:
    description:
      - The last stage to run, where it comes next after the place where the run begins. What comes later is left.
      - It must not be given with O(only), and not be before O(from_stage).
    type: str
  iteration:
    description: The iteration that O(from_stage) or O(only) means. By default the current one.
    type: int
  wait_s:
    description:
      - How long O(state=stopped) waits at most for the stage to save its work and for the last checkpoint, in seconds.
        By default the running stage's own C(grace_s) and 300 s.
    type: float
  settings:
    description: The folder for the settings on the machine.
    type: path
    default: /opt/gpuyard/run
  python:
    description: The Python that has gpuyard's runtime.
    type: path
    default: /opt/gpuyard/venv/bin/python
attributes:
  check_mode:
    description: Can run in check mode and tell what would change.
    support: full
  diff_mode:
    description: Shows what changed, without any secret.
    support: full
"""

EXAMPLES = r"""
- name: Have the stages run
  gpuyard.cloud.stage_session:
    run: miniprover-0
    workload: "{{ gpuyard_workload }}"
    bucket: s3://checkpoints
    secrets: "{{ gpuyard_secrets }}"

- name: Search again in the second iteration
  gpuyard.cloud.stage_session:
    run: miniprover-0
    workload: "{{ gpuyard_workload }}"
    bucket: s3://checkpoints
    secrets: "{{ gpuyard_secrets }}"
    from_stage: search
    iteration: 1

- name: End the run in good order
  gpuyard.cloud.stage_session:
    state: stopped
"""

RETURN = r"""
session:
  description:
    - Where the run stands. Empty when the machine has not been told of any run. C(state) is V(not-started), V(running),
      V(idle) (what was asked for is done, stages are left), V(waiting) (for a machine of the pool C(waits_for)),
      V(interrupted), V(failed) (C(failure) says how) or
      V(finished).
  type: dict
  returned: success
  sample:
    run: miniprover-0
    workload: miniprover
    state: running
    iteration: 0
    iterations: 2
    stage: search
    stages: [{iteration: 0, stage: finetune, outcome: done, seconds: 11.2, attempts: 1}]
    last_line: "theorem 41: proved"
    failure: null
    space_free_gb: 41.7
    tmux: true
saved:
  description:
    - Whether the bucket holds everything that is on the machine now (C(state)), as which checkpoint (C(sequence)), and
      why or why not (C(why)).
  type: dict
  returned: with O(state=stopped), when the machine has been told of a run
  sample: {state: true, sequence: 42, why: "The bucket holds everything that is on this box, as checkpoint 42."}
restored:
  description:
    - What was brought back. C(source) is V(cloud), V(local) when the machine had work of its own, or V(nothing).
  type: dict
  returned: when a checkpoint was looked for
  sample: {source: cloud, sequence: 42, files: 17, bytes: 1048576}
tmux_missing:
  description: V(true) when the failure is that the machine has no C(tmux).
  type: bool
  returned: failure
"""

import base64
import fcntl
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuyard.cloud.plugins.module_utils import _at_boot, _box

# What stages are told of their instance; gpuyard.box.stages.surroundings has the variables.
FACTS = ("node", "provider", "id", "region", "market", "price_per_hour_usd")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SecretFiles:
    """The files that only the user may read. ``contents`` holds them in Base64 by the variables that name them."""

    def __init__(self, folder: Path, contents: dict[str, Any]) -> None:
        self.folder = folder
        self.contents: dict[str, bytes] = {}
        for name, text in sorted(contents.items()):
            try:
                self.contents[name] = base64.b64decode(str(text), validate=True)
            except ValueError:
                raise _box.BoxError(f"secret_files: the content for {name} is not Base64.") from None
        self.variables = {name: str(folder / name) for name in self.contents}
        present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        self.gone = sorted(present - set(self.contents))
        self.stale = [name for name in self.contents if not self.is_there(name)]

    def is_there(self, name: str) -> bool:
        """Return whether a file is as it is to be, and read by nobody else."""
        path = self.folder / name
        try:
            return path.stat().st_mode & 0o777 == 0o600 and path.read_bytes() == self.contents[name]
        except OSError:
            return False

    def write(self) -> None:
        """Write what differs, and remove what is not named any more."""
        if self.stale:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.folder.chmod(0o700)
        for name in self.stale:
            _box.write_file(self.folder / name, self.contents[name], 0o600)
        for name in self.gone:
            (self.folder / name).unlink()


class Settings:
    """The three files that tell the machine what to run."""

    def __init__(self, options: dict[str, Any]) -> None:
        if not options["run"] or not options["workload"]:
            raise _box.BoxError("run and workload must not be empty: they say what this machine is to do.")
        self.folder = Path(options["settings"])
        settings: dict[str, Any] = {"turn_pools": self._turn_pools(options)}
        settings |= {name: options[name] for name in ("run", "bucket", "bucket_endpoint", "bucket_region", "path")}
        settings["instance"] = {name: options["instance"][name] for name in FACTS if name in options["instance"]}
        # What a run of one node does not need to know stays unsaid.
        settings.update({name: options[name] for name in ("node", "pools", "place") if options[name]})
        rental = {name: value for name, value in options["rental"].items() if value}
        settings.update({"rental": rental} if rental else {})
        if options["repository"]:
            settings["repository"] = options["repository"]
        for option in ("secrets", "secret_files"):
            for name in options[option]:
                if not VARIABLE.fullmatch(name):
                    raise _box.BoxError(f"{option}: {name!r} cannot be the name of an environment variable.")
        self.files = SecretFiles(self.folder / "files", options["secret_files"])
        secrets = {name: str(value) for name, value in options["secrets"].items()} | self.files.variables
        self.secrets: dict[str, str] = dict(sorted(secrets.items()))
        self.content = {
            "workload.json": json.dumps(options["workload"], indent=1, sort_keys=True) + "\n",
            "settings.json": json.dumps(settings, indent=1, sort_keys=True) + "\n",
            "secrets.env": "".join(f"{name}={shlex.quote(value)}\n" for name, value in self.secrets.items()),
        }
        self.present = {name: self._read(name) for name in self.content}

    @property
    def stale(self) -> list[str]:
        """The files that are missing or differ (a secret file that others can read differs, too)."""
        open_to_others = self._mode("secrets.env") not in (None, 0o600)
        return [
            name
            for name, content in self.content.items()
            if self.present[name] != content or (name == "secrets.env" and open_to_others)
        ]

    def write(self) -> None:
        """Write what is stale."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        # A stage that begins at this moment takes up all of them or none, see gpuyard.box.stages.taking_up.
        with (self.folder / "settings.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.write_stale()

    @property
    def changes(self) -> list[str]:
        """What differs, secret files as well."""
        return [*self.stale, *self.files.stale]

    def write_stale(self) -> None:
        """Write the files that differ."""
        self.files.write()
        for name in self.stale:
            _box.write_file(self.folder / name, self.content[name], 0o600 if name == "secrets.env" else 0o644)

    def diff(self) -> list[dict[str, str]]:
        """Return the difference by file; of secrets, the names and whether their values change."""
        shown = []
        for name in self.stale:
            before, after = self.present[name] or "", self.content[name]
            if name == "secrets.env":
                old = self._values(before)
                before = "".join(f"{key}\n" for key in old)
                changed = {key for key, value in self.secrets.items() if key in old and old[key] != value}
                after = "".join(f"{key}{' (another value)' if key in changed else ''}\n" for key in self.secrets)
            place = str(self.folder / name)
            shown.append({"before_header": place, "after_header": place, "before": before, "after": after})
        for name in self.files.stale:
            place = str(self.files.folder / name)
            shown.append({"before_header": place, "after_header": place, "before": "", "after": "(another content)\n"})
        return shown

    def _turn_pools(self, options: dict[str, Any]) -> list[str]:
        try:
            told = json.loads(self._read("settings.json") or "{}")
            if told["run"] == options["run"]:
                return [str(name) for name in told["turn_pools"]]
        except (ValueError, KeyError, TypeError):
            pass  # it was told nothing that can be read, or by an older version
        return list(options["turn_pools"])

    @staticmethod
    def _values(text: str) -> dict[str, str]:
        try:
            return {word.partition("=")[0]: word.partition("=")[2] for word in shlex.split(text)}
        except ValueError:
            return {}

    def _read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _mode(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_mode & 0o777
        except FileNotFoundError:
            return None


def ask(module: AnsibleModule, *arguments: str) -> dict[str, Any]:
    """Run a command of the stage runner and return its answer; its one sentence becomes the error."""
    options = module.params
    command = [options["python"], "-I", "-m", "gpuyard.box.stages", *arguments, "--settings", options["settings"]]
    try:
        code, output, errors = _box.execute(module, command)
    except OSError as error:
        raise _box.BoxError(
            f"{options['python']} cannot be run ({error.strerror}): the role gpuyard.cloud.checkpoints installs it."
        ) from error
    try:
        answer = json.loads(output)
    except ValueError:
        answer = None
    if code or not isinstance(answer, dict):
        said = _box.tail(errors) or f"exit code {code}"
        raise _box.BoxError(said, tmux_missing=False)
    return answer


def status(module: AnsibleModule) -> dict[str, Any]:
    """Return where the run stands, ``{}`` when there is none or no runtime to ask."""
    options = module.params
    known = Path(options["settings"], "settings.json").exists() and os.access(options["python"], os.X_OK)
    return ask(module, "status", "--json") if known else {}


def stop(module: AnsibleModule) -> dict[str, Any]:
    """End the session in good order."""
    session = status(module)
    if module.check_mode or not session:
        return {"changed": bool(session.get("tmux") or session.get("state") == "running"), "session": session}
    wait_s = module.params["wait_s"]
    answer = ask(module, "stop", *([] if wait_s is None else ["--wait", str(wait_s)]))
    return {name: answer[name] for name in ("changed", "session", "saved")}


def start(module: AnsibleModule) -> dict[str, Any]:
    """Write the settings, restore, and start what is to be started."""
    options = module.params
    wanted = options["state"] == "started"
    settings = Settings(options)
    changed_files, diff = settings.changes, settings.diff()
    boot = None
    if options["at_boot"] and wanted:
        persist = options["workload"].get("persist") or {}
        boot = _at_boot.AtBoot(Path(options["settings"]), options["python"], str(persist.get("root") or "/"))
    stale = boot.stale if boot else []
    chosen = [
        word
        for option, name in (
            ("--from", "from_stage"),
            ("--only", "only"),
            ("--until", "until_stage"),
            ("--iteration", "iteration"),
        )
        if options[name] is not None
        for word in (option, str(options[name]))
    ]
    if module.check_mode:
        session = status(module)
        state = session.get("state", "not-started")
        starts = wanted and state != "running" and (state != "finished" or bool(chosen))
        return {"changed": bool(changed_files or stale) or starts, "session": session, "diff": diff}
    if wanted and shutil.which("tmux") is None:
        raise _box.BoxError("tmux is not installed on this machine.", tmux_missing=True)
    settings.write()
    if boot:
        boot.write()
    restore = ["--restore"] if options["restore"] or not wanted else []
    if options["restore_sequence"] is not None:
        restore += ["--restore-sequence", str(options["restore_sequence"])]
    if options["expected_checkpoint"] is not None:
        restore += ["--expected-checkpoint", str(options["expected_checkpoint"])]
    answer = ask(module, "start", "--state", options["state"], *restore, *chosen)
    for warning in (answer["restored"] or {}).get("warnings", ()):
        module.warn(warning)
    if changed_files and answer["session"]["state"] == "running" and not answer["changed"]:
        module.warn(
            f"{options['run']} is running already: its next stage takes up the code, the environment and the commands "
            "of the new settings, and the run takes up everything else when it is next started."
        )
    return {
        "changed": bool(changed_files or stale) or answer["changed"],
        "session": answer["session"],
        "restored": answer["restored"] or {},
        "diff": diff,
    }


def work(module: AnsibleModule) -> dict[str, Any]:
    """Bring the session to the wanted state, or in check mode say what that would take."""
    state = module.params["state"]
    if state == "status":
        return {"changed": False, "session": status(module)}
    return stop(module) if state == "stopped" else start(module)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "restored", "stopped", "status"], "default": "started"},
            "run": {"type": "str"},
            "workload": {"type": "dict"},
            "node": {"type": "str", "default": ""},
            "pools": {"type": "list", "elements": "str", "default": []},
            "place": {"type": "str", "default": ""},
            "bucket": {"type": "str", "default": ""},
            "bucket_endpoint": {"type": "str", "default": ""},
            "bucket_region": {"type": "str", "default": ""},
            "instance": {"type": "dict", "default": {}},
            "rental": {"type": "dict", "default": {}},
            "expected_checkpoint": {"type": "int"},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "secret_files": {"type": "dict", "default": {}, "no_log": True},
            "repository": {"type": "path"},
            "path": {"type": "list", "elements": "path", "default": []},
            "turn_pools": {"type": "list", "elements": "str", "default": []},
            "restore": {"type": "bool", "default": True},
            "restore_sequence": {"type": "int"},
            "at_boot": {"type": "bool", "default": False},
            "from_stage": {"type": "str"},
            "until_stage": {"type": "str"},
            "only": {"type": "str"},
            "iteration": {"type": "int"},
            "wait_s": {"type": "float"},
            "settings": {"type": "path", "default": "/opt/gpuyard/run"},
            "python": {"type": "path", "default": "/opt/gpuyard/venv/bin/python"},
        },
        required_if=[("state", "started", ("run", "workload")), ("state", "restored", ("run", "workload"))],
        mutually_exclusive=[("from_stage", "only"), ("until_stage", "only")],
        supports_check_mode=True,
    )
    _box.guarded(module, work)


if __name__ == "__main__":
    main()
