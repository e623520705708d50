"""The checkout's own promises: entry points, site configuration, files that must not name this or that."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gpuyard import demo

ROOT = Path(__file__).resolve().parents[3]
ENTRY_POINTS = sorted(path.name for path in (ROOT / "playbooks").glob("*.yml"))


def run(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run one of the environment's programs and return what it said."""
    program = Path(sys.executable).parent / words[0]
    return subprocess.run([str(program), *words[1:]], cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_playbook_has_a_root_entry_that_only_imports_it(name: str) -> None:
    (play,) = yaml.safe_load((ROOT / name).read_text())
    assert play["ansible.builtin.import_playbook"] == f"playbooks/{name}"
    assert set(play) == {"name", "ansible.builtin.import_playbook"}


def test_root_group_vars_are_the_inventories_group_vars() -> None:
    at_root = {path.name for path in (ROOT / "group_vars").iterdir()}
    linked = {path.name: path for path in (ROOT / "inventories" / "group_vars").iterdir()}
    assert at_root == set(linked)
    for name, path in linked.items():
        assert path.is_symlink() and path.resolve() == ROOT / "group_vars" / name


def test_the_checkout_is_the_collection() -> None:
    assert (ROOT / "collections/ansible_collections/gpuyard/cloud").resolve() == ROOT
    assert yaml.safe_load((ROOT / "galaxy.yml").read_text())["name"] == "cloud"


def test_versions_agree() -> None:
    import gpuyard

    assert yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"] == gpuyard.__version__
    assert f'version = "{gpuyard.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_plays_run_from_any_folder_by_collection_name(tmp_path: Path) -> None:
    listed = run("ansible-playbook", "gpuyard.cloud.launch", "--list-tasks", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "Plan the run" in listed.stdout


def test_root_group_vars_reach_imported_plays(tmp_path: Path) -> None:
    """The trap: an imported playbook's folder, not the root, decides which group_vars lie next to it."""
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [{"ansible.builtin.debug": {"var": "workload"}}]}
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "probe.yml").write_text(yaml.safe_dump([play]))
    entry = tmp_path / "probe.yml"
    entry.write_text(yaml.safe_dump([{"ansible.builtin.import_playbook": "playbooks/probe.yml"}]))
    answer = run("ansible-playbook", str(entry))
    assert "workload: miniprover" in answer.stdout, answer.stdout + answer.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_locks_pin_with_hashes_and_name_no_index(file: Path) -> None:
    text = file.read_text()
    pins = [line for line in text.splitlines() if "==" in line and not line.lstrip().startswith("#")]
    assert pins and text.count("--hash=sha256:") >= len(pins)
    assert "--index-url" not in text and "://" not in text


def test_runtime_names_every_module_of_ours_in_the_action_group() -> None:
    group = set(yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]["all"])
    ours = {path.stem for path in (ROOT / "plugins/action").glob("*.py")} - {"__init__"}
    documented = {
        name for name in ours if "gpuyard.cloud.provider" in (ROOT / f"plugins/modules/{name}.py").read_text()
    }
    assert group == documented


def test_the_demonstration_depends_on_no_configuration_of_the_user() -> None:
    options = set()
    for play in (ROOT / "playbooks").glob("*.yml"):
        options |= set(re.findall(r"(?<![\w.])(?<!\| )(\w+) \| default\(", play.read_text()))
    assert {"provider", "bucket", "gpu_name", "shutdown", "max_price_per_hour"} <= options
    options = {name for name in options if not name.startswith(("ansible_", "gpuyard_"))}
    said_each_time = {"sandbox", "sandbox_state"}
    said_of_logs = {"stage", "iteration", "lines", "errors"}  # which the demonstration does not play
    assert options - demo.UNSAID.keys() - said_each_time - said_of_logs == set()


def test_a_machine_that_does_not_answer_any_more_is_not_only_an_ssh_message(tmp_path: Path) -> None:
    # Nothing listens on port 1 of loopback.
    host = "127.0.0.1 ansible_port=1 ansible_ssh_common_args='-F /dev/null'"
    (tmp_path / "hosts.ini").write_text(
        f"[gpuyard_target]\na-0 ansible_host={host}\n[others]\nb-0 ansible_host={host}\n"
    )
    task = {"ansible.builtin.raw": "true"}
    plays = [
        {"hosts": "all", "gather_facts": False, "tasks": [{**task, "ignore_unreachable": True}]},
        {"hosts": "all", "gather_facts": False, "tasks": [task]},
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(plays))
    done = run("ansible-playbook", "-i", str(tmp_path / "hosts.ini"), str(tmp_path / "play.yml"))
    assert done.returncode != 0
    assert done.stdout.count("does not answer any more") == 1, done.stdout + done.stderr
    assert "resume_search.yml -e run=a-0" in done.stdout
