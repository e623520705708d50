# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Variables that clouds keep for an account (U2): stored from a file or the environment, and shown nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuyard import config, env_file
from gpuyard.errors import InvalidRequestError, UsageError
from gpuyard.providers.resources import Kind

from .conftest import ROOT, Verb, World
from .shelf import FixedShelf

CANARY = "canary-9b1f6c02d7e84a53b0c6f7e2a1d94c38x"
OTHER = "canary-5e70d2b8a9c14f6fb1e3d8c7a0f25964y"


@pytest.fixture
def vast(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FixedShelf:
    """Return Vast's variables, in a folder of their own; Vultr keeps none."""
    assert len(CANARY) == len(OTHER) == 40
    monkeypatch.setattr(config, "known_clouds", lambda: [world.vast, world.vultr])
    monkeypatch.chdir(tmp_path)
    return FixedShelf(world.vast, Kind.VARIABLE)


def write(content: str, name: str = ".env", mode: int = 0o600) -> Path:
    file = Path(name)
    file.write_text(content)
    file.chmod(mode)
    return file


def shows_nothing(result: dict[str, Any], lines: list[str]) -> bool:
    """Tell whether neither what a task returns nor what it tells holds a secret."""
    said = json.dumps(result) + json.dumps(lines)
    return CANARY not in said and OTHER not in said


def test_u2_a_file_is_stored_once_and_its_values_are_shown_nowhere(
    vast: FixedShelf, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f"# ours\nexport WANDB_API_KEY={CANARY}\nB2_APP_KEY='{OTHER}'\nWANDB_PROJECT=burn # here\nB2_BUCKET=\n")
    monkeypatch.setenv("B2_BUCKET", "from-the-environment")
    lines: list[str] = []
    planned = verb("account_environment", check=True, lines=lines)
    assert planned["changed"] and len(planned["planned_calls"]) == 4 and not vast.held
    assert planned["planned_calls"][0]["body"]["value"] == "***" and shows_nothing(planned, lines)
    stored = verb("account_environment", lines=lines)
    assert stored["changed"] and shows_nothing(stored, lines)
    assert {spec.name: spec.content for spec in vast.made} == {
        "WANDB_API_KEY": CANARY,
        "B2_APP_KEY": OTHER,
        "WANDB_PROJECT": "burn",
        "B2_BUCKET": "from-the-environment",
    }
    assert "Vultr keeps no variables for an account: a launch delivers" in stored["text"]
    assert "in a file of mode 0600" in stored["text"]
    again = verb("account_environment", lines=lines)
    assert not again["changed"] and "stored already, and kept" in again["text"] and shows_nothing(again, lines)
    assert stored["diff"]["after"] == again["diff"]["before"] and len(vast.made) == 4
    newer = verb("account_environment", lines=lines, overwrite=True, names=["WANDB_API_KEY"])
    assert newer["changed"] and len(vast.made) == 5 and len(vast.held) == 4 and shows_nothing(newer, lines)
    listed = verb("account_environment", lines=lines, list=True)
    assert not listed["changed"] and "WANDB_API_KEY" in listed["text"] and shows_nothing(listed, lines)


SITE = """
from pathlib import Path
from gpuyard import config
from plugins.conftest import Cloud
from plugins.shelf import FixedShelf
from gpuyard.providers.resources import Kind

class Kept(FixedShelf):
    def create(self, spec, *, progress=None):
        with Path("stored").open("a") as file:
            file.write(f"{spec.name}={spec.content}\\n")
        return super().create(spec, progress=progress)

Cloud.clouds = [Cloud("vast"), Cloud("vultr")]
Kept(Cloud.clouds[0], Kind.VARIABLE)
config.connect = lambda *words, **options: Cloud.clouds
"""


def test_u2_the_play_shows_no_secret_with_vvv_diff_and_a_log(tmp_path: Path) -> None:
    """The whole program, with a cloud in memory behind it (STAND-IN) that keeps in a file what it gets."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/stand_in.py").write_text(SITE)
    (tmp_path / "site/stand_in.pth").write_text("import stand_in")
    (tmp_path / "start.py").write_text(
        "import runpy, site, sys\nsite.addsitedir('site')\nrunpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    env = tmp_path / ".env"
    env.write_text(f"WANDB_API_KEY={CANARY}\nB2_APP_KEY={OTHER}\n")
    env.chmod(0o600)
    ansible = Path(sys.executable).with_name("ansible-playbook")
    words = [sys.executable, "start.py", str(ansible), "-i", "localhost,", "gpuyard.cloud.setup_env", "-vvv", "--diff"]
    surroundings = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": f"{ROOT}/tests/unit",
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
        "ANSIBLE_LOG_PATH": str(tmp_path / "log"),
    }
    done = subprocess.run(
        words, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False, timeout=120
    )
    said = done.stdout + done.stderr + (tmp_path / "log").read_text()
    assert done.returncode == 0 and "stored variable WANDB_API_KEY at Vast" in said, said
    assert CANARY not in said and OTHER not in said
    assert (tmp_path / "stored").read_text() == f"WANDB_API_KEY={CANARY}\nB2_APP_KEY={OTHER}\n"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_may_read_is_refused(vast: FixedShelf, verb: Verb, mode: int) -> None:
    write(f"WANDB_API_KEY={CANARY}\n", mode=mode)
    refused = verb("account_environment")
    assert refused["msg"] == "Others may read .env, which holds secrets: chmod 600 .env"
    assert vast.asked == [] and shows_nothing(refused, [])


def test_without_a_file_the_usual_ones_come_from_the_environment(
    vast: FixedShelf, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "B2_KEY_ID", "B2_APP_KEY", "B2_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    nothing = verb("account_environment")
    assert "There is no file .env, and none of WANDB_API_KEY" in nothing["msg"] and "env_file" in nothing["msg"]
    monkeypatch.setenv("B2_APP_KEY", CANARY)
    assert verb("account_environment")["changed"] and [spec.name for spec in vast.made] == ["B2_APP_KEY"]
    missing = verb("account_environment", names=["B2_APP_KEY", "B2_BUCKET"])
    assert missing["msg"] == "B2_BUCKET has no value in the environment. Nothing was stored."


def test_one_variable_comes_from_the_environment_or_a_file(
    vast: FixedShelf, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", CANARY)
    lines: list[str] = []
    assert verb("account_variable", name="HF_TOKEN", variable="MY_TOKEN", lines=lines)["changed"]
    write(OTHER + "\n", "token")
    assert verb("account_variable", name="OTHER_TOKEN", file="token", lines=lines)["changed"]
    assert [spec.content for spec in vast.made] == [CANARY, OTHER]
    kept = verb("account_variable", name="HF_TOKEN", variable="MY_TOKEN", lines=lines)
    assert not kept["changed"] and shows_nothing(kept, lines)
    assert "is not set in the environment" in verb("account_variable", name="NOT_THERE")["msg"]
    assert "upper-case" in verb("account_variable", name="hf_token")["msg"]
    gone = verb("account_variable", name="HF_TOKEN", state="absent")
    assert gone["actions"] == ["delete vast stored variable HF_TOKEN (var-1)"] and len(vast.held) == 1
    assert not verb("account_variable", name="HF_TOKEN", state="absent")["changed"]
    none = verb("account_variable", provider="vultr", name="HF_TOKEN", variable="MY_TOKEN")
    assert none["msg"] == "Vultr keeps no stored variables with gpuyard; Vast can."


def test_a_cloud_that_repeats_a_secret_in_its_refusal_does_not_show_it(
    vast: FixedShelf, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f"WANDB_API_KEY={CANARY}\nB2_APP_KEY={OTHER}\n")
    vast.refusal = InvalidRequestError(f"Vast refused: {CANARY} is invalid.", provider="vast", status=400)
    lines: list[str] = []
    refused = verb("account_environment", lines=lines)
    assert CANARY not in json.dumps(lines) and "Vast tells ***." in lines
    assert refused["failed"] and "*** is invalid" in refused["msg"] and CANARY not in json.dumps(refused)
    # One that is refused keeps no other one from being tried.
    assert [said for said in vast.asked if said != "list"] == ["create WANDB_API_KEY", "create B2_APP_KEY"]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A = b", "b"),
        ("export A=b", "b"),
        ("A='b # c'", "b # c"),
        ('A="b" # c', "b"),
        ("A=b#c", "b#c"),
        ("A=b c  # d", "b c"),
        ("A=", ""),
        ("A= # nothing", ""),
        ("A=it's=so", "it's=so"),
        ("  A=b  ", "b"),
        ("A=$B", "$B"),
    ],
)
def test_a_line_is_read_as_it_is_meant(tmp_path: Path, line: str, value: str) -> None:
    (tmp_path / "env").write_text(f"\n# A=x\n{line}\n")
    (tmp_path / "env").chmod(0o600)
    assert env_file.read(tmp_path / "env") == {"A": value}


@pytest.mark.parametrize(
    "line", [CANARY, f"A='{CANARY}", f'A="{CANARY}" x', f"{CANARY}=1", f"={CANARY}", f"a={CANARY}"]
)
def test_a_line_that_is_none_is_named_by_its_number_only(tmp_path: Path, line: str) -> None:
    (tmp_path / "env").write_text(f"B=1\n{line}\n")
    (tmp_path / "env").chmod(0o600)
    with pytest.raises(UsageError) as caught:
        env_file.read(tmp_path / "env")
    assert "line 2" in str(caught.value) and CANARY not in str(caught.value)
