"""The checkout's own promises: entry points, site configuration, files that must not name this or that."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import yaml
from jinja2 import nodes

from gpuyard import demo, options

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
    assert f'VERSION = "{gpuyard.__version__}"' in (ROOT / "plugins/module_utils/_core.py").read_text()
    environment = yaml.safe_load((ROOT / "meta/execution-environment.yml").read_text())["dependencies"]
    assert (ROOT / environment["python"]).read_text() == f"gpuyard=={gpuyard.__version__}\n"
    assert (ROOT / environment["system"]).is_file()


def test_plays_run_from_any_folder_by_collection_name(tmp_path: Path) -> None:
    listed = run("ansible-playbook", "gpuyard.cloud.launch", "--list-tasks", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "Plan the run" in listed.stdout


def test_root_group_vars_reach_imported_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap: an imported playbook's folder, not the root, decides which group_vars lie next to it."""
    # The inventory of the checkout is used, which would list the developer's own account.
    for name in ("VAST_API_KEY", "VULTR_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "XDG_CONFIG_HOME", "GPUYARD_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
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


def test_what_a_box_installs_is_pinned_hashed_and_what_the_tests_have() -> None:
    """`make lock` writes both. The runtime of a box must not be another version than the one that is tested."""
    packages = yaml.safe_load((ROOT / "roles/checkpoints/vars/main.yml").read_text())["checkpoints__packages"]
    tested = (ROOT / "requirements/dev.txt").read_text().splitlines()
    for package in packages:
        # Some are for older Pythons only, and then the condition stands behind the pin.
        pin, *hashes = re.sub(r" ; [^-]+(?= --)", "", package).split()
        assert f"{pin} \\" in tested, pin
        assert hashes and all(word.startswith("--hash=sha256:") for word in hashes), package
    assert [package.split("==")[0] for package in packages if package.startswith("boto")] == ["boto3", "botocore"]


def test_runtime_names_every_module_of_ours_in_the_action_group() -> None:
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    verbs = {
        path.stem for path in (ROOT / "plugins/modules").glob("*.py") if "gpuyard.cloud.provider" in path.read_text()
    }
    assert set(runtime["action_groups"]["all"]) == verbs
    routes = {name: route["action_plugin"] for name, route in runtime["plugin_routing"]["modules"].items()}
    modules = {path.stem for path in (ROOT / "plugins/modules").glob("*.py")}
    own = {path.stem for path in (ROOT / "plugins/action").glob("*.py")} & modules
    assert {name for name, action in routes.items() if action == "gpuyard.cloud.verb"} == verbs
    # What works on a machine shows how far it is.
    assert {name for name, action in routes.items() if action == "gpuyard.cloud.watched"} == modules - verbs - own
    assert {name for name, action in routes.items() if action == f"gpuyard.cloud.{name}"} == own & routes.keys()


def test_the_demonstration_depends_on_no_configuration_of_the_user() -> None:
    said_each_time = {"sandbox", "sandbox_state"}
    # Of plays that the demonstration does not use.
    not_played = {"lines", "errors", "by", "format", "list_prices", "report"}
    not_played |= {"env_file", "env_names", "list", "overwrite", "everything", "partial", "reap", "source", "bid"}
    not_played |= {"stay", "interval_s", "losses_before_on_demand", "silent_minutes"}
    not_played |= {"to", "what", "from"}
    not_played |= {"do", "sequence", "against", "every", "path", "to", "keep_last", "keep_every"}
    assert options.OPTIONS.keys() - demo.UNSAID.keys() - said_each_time - not_played == set()


def variables_of(value: object) -> set[str]:
    """Return the variables that the templates and conditions of a part of a play read."""
    if isinstance(value, list):
        return set().union(*map(variables_of, value))
    if isinstance(value, dict):
        found = variables_of([part for name, part in value.items() if name not in ("when", "that", "changed_when")])
        conditions = [value.get(name) or [] for name in ("when", "that")]
        for condition in conditions:
            for one in condition if isinstance(condition, list) else [condition]:
                found |= variables_of("{{ " + str(one) + " }}")
        return found
    parsed = jinja2.Environment(autoescape=False).parse(str(value))
    return {node.name for node in parsed.find_all(nodes.Name)}


def test_the_options_are_those_that_the_plays_read_and_the_readme_explains() -> None:
    read = {}
    for file in (ROOT / "playbooks").glob("*.yml"):
        plays = yaml.safe_load(file.read_text())
        own = {"groups", "hostvars", "item", "lookup", "omit", "container_image_result"}.union(
            *(play.get("vars", ()) for play in plays)
        )
        found = {name for name in variables_of(plays) - own if not name.startswith(("ansible_", "gpuyard_"))}
        read[file.stem] = found
    for play in ("move", "resume_search", "start"):
        read[play] |= read["launch"]  # which they import
    # These go to each verb of a play by themselves.
    where = {"provider", "sandbox", "sandbox_state", "ssh_key", "bucket", "bucket_endpoint"}
    for play, names in read.items():
        assert names | where == set(options.taken_by(play)), play
        # What the first task checks types and choices by.
        specs = yaml.safe_load((ROOT / "playbooks/plays.meta.yaml").read_text())["argument_specs"]
        assert set(specs[play]["options"]) == set(options.taken_by(play)), play
    table = (ROOT / "README.md").read_text().split("| option |")[1].split("\n\n")[0]
    explained = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert explained == set(options.OPTIONS)


def test_every_environment_variable_of_ours_is_known() -> None:
    listed = run_git("grep", "-hIowE", "GPUYARD_[A-Z0-9_]+", "--", ".", ":!tests/unit")
    never_set_in_tests = {"GPUYARD_E2E_WANDB_KEY", "GPUYARD_E2E_OTHER"}
    assert set(listed.split()) - never_set_in_tests == set(options.ENVIRONMENT)


def test_a_play_of_ours_says_what_it_would_take_no_notice_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In extra variables, group_vars and the environment, in one message, and before anything is asked."""
    monkeypatch.setenv("GPUYARD_SANDBX", "1")
    monkeypatch.setenv("GPUYARD_HOME", str(tmp_path / "home"))
    (tmp_path / "inventory/group_vars").mkdir(parents=True)
    (tmp_path / "inventory/hosts.yml").write_text("all: {hosts: {localhost: {ansible_connection: local}}}")
    site = {
        "max_price_per_hor": 1,
        "workload": "{{ nobody_said_it }}",
        "shutdown": "perhaps",
        "stages": "needed by a play of the user",
        "gpuyard_other_variables": ["stages", "mine"],
    }
    (tmp_path / "inventory/group_vars/all.yml").write_text(yaml.safe_dump(site))
    given = (
        "gpu_name=RTX 4090",
        "worklaod=x",
        "mine=1",
        "rust_version=1.90",
        "sandbox=true",
        "market=spot",
        "follow=x",
    )
    words = [word for text in given for word in ("-e", text)]
    done = run("ansible-playbook", "-i", str(tmp_path / "inventory"), "gpuyard.cloud.launch", *words)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    for part in (
        "write -e gpu_name=RTX_4090 or",
        "workload cannot be worked out: 'nobody_said_it' is undefined.",
        "-e worklaod=… is no option of launch.yml; did you mean workload?",
        "max_price_per_hor, in group_vars or the like, is no option; did you mean max_price_per_hour?",
        "did you mean GPUYARD_SANDBOX?",
        "market='spot' must be one of: on-demand, interruptible, any.",
        "shutdown='perhaps' must be true or false.",
    ):
        assert part in said, said
    assert "stages" not in said and "mine=" not in said and "rust_version" not in said
    assert not (tmp_path / "home").exists()


def run_git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


def test_a_machine_that_does_not_answer_any_more_is_not_only_an_ssh_message(tmp_path: Path) -> None:
    # Nothing listens on port 1 of loopback.
    host = "127.0.0.1 ansible_port=1 ansible_ssh_common_args='-F /dev/null'"
    (tmp_path / "hosts.ini").write_text(
        f"[gpuyard_target]\na-0.search-1 ansible_host={host}\n[others]\nb-0 ansible_host={host}\n"
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
    assert "a-0.search-1 does not answer" in done.stdout and "resume_search.yml -e run=a-0`" in done.stdout
