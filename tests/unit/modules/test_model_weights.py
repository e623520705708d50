# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""B11 and B12: weights from the Hub, with the real ``hf`` against the sandbox's stand-in for the Hub."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gpuyard.sandbox import hub
from gpuyard.workload import data

HF = shutil.which("hf") or str(Path(sys.executable).with_name("hf"))
REVISION = "a" * 40
FILES = {".gitattributes", "README.md", "config.json", "tokenizer/vocab.txt", hub.LARGE}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def server() -> Iterator[hub.Hub]:
    with hub.Hub(("127.0.0.1", 0)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def options(server: hub.Hub, tmp_path: Path, repository: str, **changes: Any) -> dict[str, Any]:
    token = changes.pop("token", None)
    entry = {"repository": repository, "revision": REVISION, "directory": "models/base", **changes}
    return {
        "weights": {"prover": entry},
        "root": str(tmp_path / "persistent"),
        "endpoint": f"http://127.0.0.1:{server.server_address[1]}",
        "token": token,
        "hf": HF,
    }


def held(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, without what gpuyard and hf keep there."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith((".gpuyard", ".cache/"))}


def test_weights_are_fetched_once_and_verified(run_module: Any, server: hub.Hub, tmp_path: Path) -> None:
    """B11: all files over several pages of the Hub's list; then the Hub is not asked any more."""
    wanted = options(server, tmp_path, "org/tiny")
    predicted = run_module("model_weights", check=True, **wanted)
    assert predicted["changed"] and not (tmp_path / "persistent").exists()
    first = run_module("model_weights", **wanted)
    assert first["actions"] == predicted["actions"] == ["fetch 5 files (12.6 MB) of prover from org/tiny"]
    content = hub.content("org/tiny", REVISION)
    assert held(tmp_path / "persistent/models/base") == content and set(content) == FILES
    assert first["bytes"] == predicted["bytes"] == sum(map(len, content.values()))
    assert not (tmp_path / "persistent/models/base/.cache").exists()
    gone = wanted | {"endpoint": "http://127.0.0.1:9", "hf": "/nonexistent"}
    assert not run_module("model_weights", **gone)["changed"]


def test_a_damaged_download_is_noticed_and_fetched_anew(run_module: Any, server: hub.Hub, tmp_path: Path) -> None:
    """B11: hf itself compares sizes only."""
    assert run_module("model_weights", **options(server, tmp_path, "org/damaged"))["changed"]
    assert held(tmp_path / "persistent/models/base") == hub.content("org/damaged", REVISION)
    assert server.sent > 2 * len(hub.content("org/damaged", REVISION)[hub.LARGE])


def test_only_what_differs_is_fetched(run_module: Any, server: hub.Hub, tmp_path: Path) -> None:
    wanted = options(server, tmp_path, "org/tiny")
    run_module("model_weights", **wanted)
    before = server.sent
    (tmp_path / "persistent/models/base/config.json").write_text("{}")
    assert run_module("model_weights", **wanted)["actions"] == ["fetch 1 file (50 bytes) of prover from org/tiny"]
    assert server.sent - before == 50
    # A file that was only touched is read once, and known again.
    os.utime(tmp_path / "persistent/models/base" / hub.LARGE)
    assert run_module("model_weights", **wanted)["actions"] == ["verify prover"]
    assert not run_module("model_weights", **wanted)["changed"]


def test_patterns_choose_and_another_choice_leaves_nothing_behind(
    run_module: Any, server: hub.Hub, tmp_path: Path
) -> None:
    run_module("model_weights", **options(server, tmp_path, "org/tiny", include=["*.json", "tokenizer/"]))
    assert set(held(tmp_path / "persistent/models/base")) == {"config.json", "tokenizer/vocab.txt"}
    run_module("model_weights", **options(server, tmp_path, "org/tiny", exclude=["tokenizer/*", ".git*", "*.md"]))
    assert set(held(tmp_path / "persistent/models/base")) == {"config.json", hub.LARGE}


def test_a_volume_that_holds_them_is_linked(run_module: Any, server: hub.Hub, tmp_path: Path) -> None:
    """B12: what another run or the user has put onto the volume is verified, and not fetched."""
    store = tmp_path / "volume/prover"
    for name, content in hub.content("org/tiny", REVISION).items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(content)
    wanted = options(server, tmp_path, "org/tiny", store=str(store))
    result = run_module("model_weights", **wanted)
    assert result["actions"] == ["verify prover", f"link models/base to {store}"]
    assert server.sent == 0 and (tmp_path / "persistent/models/base").readlink() == store
    assert not run_module("model_weights", **wanted)["changed"]


def test_a_folder_with_files_is_not_replaced_by_a_link(run_module: Any, server: hub.Hub, tmp_path: Path) -> None:
    """B12: nothing of the user's is lost."""
    (tmp_path / "persistent/models/base").mkdir(parents=True)
    (tmp_path / "persistent/models/base/mine").touch()
    result = run_module("model_weights", **options(server, tmp_path, "org/tiny", store=str(tmp_path / "volume")))
    assert result["failed"] and "is a folder with files, so it cannot become a link to" in result["msg"]
    assert (tmp_path / "persistent/models/base/mine").exists()


def test_a_gated_repository_needs_the_token_which_is_written_nowhere(
    run_module: Any, server: hub.Hub, tmp_path: Path
) -> None:
    refused = run_module("model_weights", **options(server, tmp_path, "org/gated"))
    assert "it is gated or private, and HF_TOKEN is not set where the play runs" in refused["msg"]
    wrong = run_module("model_weights", **options(server, tmp_path, "org/gated", token="hf_canary"))
    assert "HF_TOKEN is wrong" in wrong["msg"] and "hf_canary" not in wrong["msg"]
    result = run_module("model_weights", **options(server, tmp_path, "org/gated", token=hub.TOKEN))
    assert held(tmp_path / "persistent/models/base") == hub.content("org/gated", REVISION)
    assert hub.TOKEN not in json.dumps(result)
    assert not any(hub.TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("module", "table", "section"),
    [("dataset", "ENTRY", data.Dataset), ("dataset", "ORIGIN", data.Origin)],
)
def test_a_workload_says_what_the_module_takes(module: str, table: str, section: type[BaseModel]) -> None:
    found = importlib.import_module(f"ansible_collections.gpuyard.cloud.plugins.modules.{module}")
    assert {entry.alias or name for name, entry in section.model_fields.items()} == set(getattr(found, table))


def test_a_workload_says_what_this_module_takes() -> None:
    found = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.modules.model_weights")
    assert set(found.ENTRY) == {*data.HUB_KEYS} <= set(data.Weights.model_fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repository": "org/absent"}, "it has no such repository or commit"),
        (
            {"revision": "main"},
            "must be a commit of 40 hexadecimal digits, because a branch names other files tomorrow",
        ),
        ({"repository": "tiny"}, "must be of the form owner/name"),
        ({"include": ["*.gguf"]}, "no file of org/tiny matches include and exclude"),
        ({"directory": "../models"}, "does not lie in its folder"),
        ({"gated": True}, "weights.prover is gated, and HF_TOKEN is not set where the play runs"),
        ({"branch": "main"}, "weights.prover has a wrong key or value: branch"),
    ],
)
def test_mistakes_are_sentences(
    run_module: Any, server: hub.Hub, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    wanted = options(server, tmp_path, "org/tiny")
    wanted["weights"]["prover"] |= changes
    result = run_module("model_weights", **wanted)
    assert result["failed"] and message in result["msg"] and "Traceback" not in result["msg"]
    assert not (tmp_path / "persistent").exists()


def test_a_server_that_is_not_there_is_a_sentence(run_module: Any, server: hub.Hub, tmp_path: Path) -> None:
    result = run_module("model_weights", **options(server, tmp_path, "org/tiny") | {"endpoint": "http://127.0.0.1:9"})
    assert "http://127.0.0.1:9 cannot be asked for org/tiny" in result["msg"]


def test_a_disk_that_is_too_small_is_a_sentence(
    run_module: Any, server: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 0, 510_000_000))
    result = run_module("model_weights", **options(server, tmp_path, "org/tiny"))
    assert "weights.prover needs 12.6 MB in" in result["msg"] and "10.0 MB are free there" in result["msg"]
    assert server.sent == 0


def start_and_cut(run_module: Any, server: hub.Hub, wanted: dict[str, Any]) -> int:
    """Kill the module, as a lost machine or an impatient user does, when half of the large file is there.

    Return the process id of hf, which goes on; what watches it has begun before it.
    """
    module = multiprocessing.get_context("fork").Process(target=run_module, args=["model_weights"], kwargs=wanted)
    module.start()
    half = len(hub.content("org/hanging", REVISION)[hub.LARGE]) // 2
    deadline = time.monotonic() + 60
    while server.sent < half and time.monotonic() < deadline:
        time.sleep(0.02)
    module.kill()
    module.join()
    pattern = f"--local-dir {wanted['root']}"
    found = subprocess.run(["pgrep", "-n", "-f", "--", pattern], capture_output=True, text=True, check=True)
    return int(found.stdout)


def test_a_download_outlives_its_command_and_is_waited_for(
    run_module: Any, server: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B11: a lost connection costs nothing: hf goes on by itself, and nothing is fetched twice. It can be watched."""
    wanted = options(server, tmp_path, "org/hanging", include=[hub.LARGE])
    server.hanging_s = 2.0
    start_and_cut(run_module, server, wanted)
    progress = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._progress")
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_write", written.append)
    assert run_module("model_weights", **wanted)["changed"]
    content = hub.content("org/hanging", REVISION)[hub.LARGE]
    assert held(tmp_path / "persistent/models/base") == {hub.LARGE: content} and server.sent == len(content)
    assert written[0]["what"] == "weights prover" and {record["total"] for record in written} == {len(content)}
    assert len(content) // 4 < written[-1]["done"] <= len(content)
    assert not run_module("model_weights", **wanted)["changed"]


def test_what_a_killed_download_had_whole_is_kept(run_module: Any, server: hub.Hub, tmp_path: Path) -> None:
    """B11: hf 2 begins a file anew in another process, and a file that is whole stays."""
    wanted = options(server, tmp_path, "org/hanging")
    hf = start_and_cut(run_module, server, wanted)
    folder = tmp_path / "persistent/models/base"
    deadline = time.monotonic() + 60
    while set(held(folder)) != FILES - {hub.LARGE} and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(hf, signal.SIGKILL)
    cut_at = server.sent
    result = run_module("model_weights", **wanted)
    assert result["actions"] == ["fetch 1 file (12.6 MB) of prover from org/hanging"]
    content = hub.content("org/hanging", REVISION)
    assert held(folder) == content and server.sent - cut_at == len(content[hub.LARGE])
    assert not list(tmp_path.rglob("*.incomplete"))
