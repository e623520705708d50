# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run's stages are described, started and stopped, and no secret is ever shown. With a real tmux."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpuyard.cloud.plugins.modules import stage_session

from gpuyard.box.checkpoints import LocalStore, publish
from gpuyard.box.stages import surroundings

CANARY = "canary-wandb-20c4d7e1b6"


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Return the options for a box in a folder, with a tmux server of its own."""
    (tmp_path / "src").mkdir()
    # The path of a socket may have 107 characters, which a folder of pytest's own can exceed.
    sockets = tempfile.mkdtemp(prefix="yard", dir="/tmp")
    monkeypatch.setenv("TMUX_TMPDIR", sockets)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-process-environment")
    yield {
        "run": "canyon-0",
        "workload": {
            "name": "canyon",
            "persist": {"root": str(tmp_path / "persistent"), "directories": []},
            "checkpoints": {"every_s": 0},
            "stages": [{"name": "wait", "command": "echo $TOKEN >> told; while test ! -e go; do sleep 0.1; done"}],
        },
        "secrets": {"TOKEN": f"{CANARY} with 'quotes'\nand lines"},
        "repository": str(tmp_path / "src"),
        "settings": str(tmp_path / "run"),
        "python": sys.executable,
    }
    subprocess.run(["tmux", "kill-server"], capture_output=True, check=False)
    shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what the module warns of, as it comes."""
    texts: list[str] = []
    monkeypatch.setattr(stage_session.AnsibleModule, "warn", lambda self, text: texts.append(text))
    return texts


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def files(tmp_path: Path) -> dict[str, int]:
    folder = tmp_path / "run"
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} if folder.exists() else {}


def test_the_grid(run_module: Any, options: dict[str, Any], tmp_path: Path, warnings: list[str]) -> None:
    """Check mode predicts, start, same again, another setting, stop, stop again."""
    predicted = run_module("stage_session", check=True, **options)
    assert predicted["changed"] and predicted["session"] == {} and files(tmp_path) == {}

    started = run_module("stage_session", **options)
    assert started["changed"] and started["session"]["state"] == "running" and started["session"]["tmux"]
    assert started["restored"]["source"] == "nothing"
    assert files(tmp_path)["secrets.env"] == 0o600
    wait_for((tmp_path / "src/told").exists)
    assert (tmp_path / "src/told").read_text().startswith(CANARY)

    for check in (True, False):
        again = run_module("stage_session", check=check, **options)
        assert not again["changed"] and again["diff"] == []

    options["secrets"] = {"TOKEN": "canary-another-value-31", "MORE": "canary-more-value-42"}
    changed = run_module("stage_session", **options)
    assert changed["changed"]
    assert [text.partition(":")[0] for text in warnings] == ["canyon-0 is running already"]
    (shown,) = changed["diff"]
    assert (shown["before"], shown["after"]) == ("TOKEN\n", "MORE\nTOKEN (another value)\n")
    for result in (predicted, started, changed):
        assert "canary" not in json.dumps({**result, "invocation": None})

    status = run_module("stage_session", state="status", settings=options["settings"], python=options["python"])
    assert not status["changed"] and status["session"]["stage"] == "wait"
    stop = {"state": "stopped", "settings": options["settings"], "python": options["python"]}
    assert run_module("stage_session", check=True, **stop)["changed"]
    stopped = run_module("stage_session", **stop)
    assert stopped["changed"] and stopped["session"]["state"] == "interrupted"
    why = "No bucket is set for canyon-0, so its files are on this box only."
    assert stopped["saved"] == {"state": False, "sequence": None, "why": why}
    assert not run_module("stage_session", **stop)["changed"]


def test_the_machine_is_told_of_its_rental_what_it_has_to_know_u9(
    run_module: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    told = tmp_path / "run/settings.json"
    wanted = {**options, "state": "restored"}
    run_module("stage_session", **wanted, rental={"shutdown": False, "api": ""})
    assert "rental" not in json.loads(told.read_text())
    run_module("stage_session", **wanted, rental={"shutdown": True, "api": "http://clouds:8070"})
    assert json.loads(told.read_text())["rental"] == {"shutdown": True, "api": "http://clouds:8070"}


def test_a_finished_run_is_left_alone(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "src/go").touch()
    run_module("stage_session", **options)

    def state() -> str:
        asked = run_module("stage_session", state="status", settings=options["settings"], python=options["python"])
        return str(asked["session"]["state"])

    wait_for(lambda: state() == "finished")
    assert not run_module("stage_session", **options)["changed"]
    assert not run_module("stage_session", check=True, **options)["changed"]
    assert run_module("stage_session", check=True, only="wait", **options)["changed"]


def test_the_instance_and_what_the_controller_saw_reach_the_machine(
    run_module: Any, options: dict[str, Any], tmp_path: Path, warnings: list[str]
) -> None:
    """A bucket that the machine cannot read keeps a new run from nothing, once it is known to hold nothing of it."""
    (tmp_path / "file").touch()
    options["bucket"] = (tmp_path / "file/bucket").as_uri()
    options["instance"] = {"provider": "vast", "id": "7", "region": "SE", "ssh_host": "203.0.113.7"}
    refused = run_module("stage_session", **options)
    assert refused["failed"] and "cannot be used" in refused["msg"]
    started = run_module("stage_session", expected_checkpoint=0, **options)
    assert started["session"]["state"] == "running"
    assert ["as the controller has seen, so canyon-0 begins" in text for text in warnings] == [True], started
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["instance"] == {"provider": "vast", "id": "7", "region": "SE"}
    again = run_module("stage_session", expected_checkpoint=0, **{**options, "instance": {**options["instance"]}})
    assert not again["changed"]


def test_the_module_and_the_stage_runner_name_the_same_facts() -> None:
    assert tuple(surroundings.FACTS) == stage_session.FACTS


def test_restored_starts_nothing(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    options["bucket"] = (tmp_path / "bucket").as_uri()
    result = run_module("stage_session", **{**options, "state": "restored"})
    assert result["changed"] and result["restored"]["source"] == "nothing"
    assert result["session"]["state"] == "not-started" and not result["session"]["tmux"]
    assert not run_module("stage_session", **{**options, "state": "restored"})["changed"]


def test_an_older_checkpoint_is_restored_by_choice(
    run_module: Any, options: dict[str, Any], tmp_path: Path, warnings: list[str]
) -> None:
    store = LocalStore(tmp_path / "bucket")
    (tmp_path / "elsewhere/.gpuyard").mkdir(parents=True)
    (tmp_path / "elsewhere/.gpuyard/journal.jsonl").write_text('{"event": "run-start"}\n')
    for step in ("1", "2"):
        (tmp_path / "elsewhere/step").write_text(step)
        publish(store, "canyon-0", tmp_path / "elsewhere")
    store.put("canyon-0/checkpoints/000003/manifest.json", b"")
    options |= {"bucket": store.url, "state": "restored"}
    refused = run_module("stage_session", **options)
    assert refused["failed"] and "000003/manifest.json is empty" in refused["msg"] and "-e restore=2" in refused["msg"]
    assert "has no checkpoint 9" in run_module("stage_session", restore_sequence=9, **options)["msg"]
    restored = run_module("stage_session", restore_sequence=1, **options)
    assert (restored["restored"]["source"], restored["restored"]["sequence"]) == ("cloud", 1)
    assert (tmp_path / "persistent/step").read_text() == "1"
    assert run_module("stage_session", restore_sequence=2, **options)["restored"]["source"] == "local"
    assert "restore=2 was not used: this box has work of its own" in warnings[0]


def test_a_secret_file_that_others_can_read_is_closed(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    options["state"] = "restored"
    run_module("stage_session", **options)
    (tmp_path / "run/secrets.env").chmod(0o644)
    assert run_module("stage_session", check=True, **options)["changed"]
    assert run_module("stage_session", **options)["changed"]
    assert files(tmp_path)["secrets.env"] == 0o600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"secrets": {"A-B": "x"}}, "secrets: 'A-B' cannot be the name of an environment variable."),
        ({"python": "/nowhere/python"}, "the role gpuyard.cloud.checkpoints installs it"),
        ({"workload": {"name": "canyon"}}, "does not describe a workload"),
        ({"only": "nosuch"}, "There is no stage 'nosuch'; the stages are wait."),
        ({"only": "wait", "from_stage": "wait"}, "mutually exclusive"),
        ({"run": None}, "run"),
        ({"bucket": "b2://x"}, "is not an address of a bucket"),
        ({"bucket": "gs://x"}, "needs GOOGLE_APPLICATION_CREDENTIALS"),
        ({"bucket": "az://x"}, "needs its account"),
        ({"bucket": "file:///dev/null/x"}, "cannot be used"),
    ],
)
def test_bad_arguments_are_one_sentence(
    run_module: Any, options: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    result = run_module("stage_session", **{**options, **change})
    assert result["failed"] and message in result["msg"]
    assert "Traceback" not in result["msg"] and CANARY not in result["msg"]


def test_a_box_without_tmux_is_told_apart(
    run_module: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_module("stage_session", **options)
    monkeypatch.setenv("PATH", path)
    assert result["failed"] and result["tmux_missing"] and files(tmp_path) == {}


def test_secret_files(run_module: Any, options: dict[str, Any], tmp_path: Path) -> None:
    """Each is a file of mode 0600 that its variable names, and what is in it is shown nowhere."""
    canary = b"canary-file-8d20c5\xff"
    options |= {"state": "restored", "secret_files": {"KEY": base64.b64encode(canary).decode(), "OTHER": "eA=="}}
    first = run_module("stage_session", **options)
    place = tmp_path / "run/files"
    assert first["changed"] and (place / "KEY").read_bytes() == canary
    assert place.stat().st_mode & 0o777 == 0o700 and (place / "KEY").stat().st_mode & 0o777 == 0o600
    assert f"KEY={place}/KEY" in (tmp_path / "run/secrets.env").read_text()
    assert not run_module("stage_session", **options)["changed"]
    (place / "KEY").chmod(0o644)
    assert run_module("stage_session", **options)["changed"] and (place / "KEY").stat().st_mode & 0o777 == 0o600
    options["secret_files"] = {"KEY": base64.b64encode(canary + b"2").decode()}
    second = run_module("stage_session", **options)
    assert [path.name for path in place.iterdir()] == ["KEY"] and (place / "KEY").read_bytes() == canary + b"2"
    for result in (first, second):
        text = json.dumps({**result, "invocation": None})
        assert "canary" not in text and options["secret_files"]["KEY"] not in text
    for wrong, said in (({"a b": "eA=="}, "secret_files: 'a b' cannot be"), ({"KEY": "%"}, "for KEY is not Base64")):
        failed = run_module("stage_session", **{**options, "secret_files": wrong})
        assert failed["failed"] and said in failed["msg"]


def test_a_machine_keeps_the_pools_that_it_was_rented_for(
    run_module: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    settings = tmp_path / "run/settings.json"
    run_module("stage_session", **options | {"state": "restored", "turn_pools": ["train", "eval"]})
    assert json.loads(settings.read_text())["turn_pools"] == ["train", "eval"]
    # Prices of today make another choice of pools, and that is for the next machine.
    again = run_module("stage_session", **options | {"state": "restored", "turn_pools": ["train"]})
    assert not again["changed"] and json.loads(settings.read_text())["turn_pools"] == ["train", "eval"]
    run_module("stage_session", **options | {"state": "restored", "turn_pools": ["train"], "run": "canyon-1"})
    assert json.loads(settings.read_text())["turn_pools"] == ["train"]
