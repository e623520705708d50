from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from gpuyard.errors import UsageError
from gpuyard.workload import load_workload, parse_workload

LEAST = """\
name: tiny
repository: {path: examples/tiny}
stages:
  - name: train
    command: python train.py
"""

WHOLE = """\
name: miniprover
description: one line
repository:
  url: https://example.com/x.git
  commit: 0123456789abcdef0123456789abcdef01234567
  submodules: true
needs: {gpu_count: 1, gpu_ram_gb: 8, gpu_names: [A16], cpu_cores: 2, ram_gb: 4, disk_gb: 30, cuda: "12.0",
        reliability: 0.9, regions: [ewr]}
market: interruptible
budget: {max_price_per_hour: 1.50}
image: vastai/pytorch
environment:
  required: [WANDB_API_KEY, HF_TOKEN]
  set: {RUST_BACKTRACE: "1"}
packages: [build-essential, git]
python: {version: ">=3.10,<3.14", requirements: requirements.txt}
rust: {version: "1.96.0", minimum: "1.85"}
build: ["cargo build --release --locked"]
persist: {root: /mnt/persistent/, directories: [models, checkpoints/]}
checkpoints: {every_s: 60, keep_last: 3, keep_every: 10}
iterations: 2
setup_hours: {expected: 0.05, worst: 0.2}
stages:
  - name: finetune
    command: a
    resume_command: b
    resume_if: models/step-*.pt
    resumable: true
    grace_s: 30
    retries: 1
    hours: {expected: 0.01, worst: 0.03}
windows:
  - {name: gpu, command: nvidia-smi}
"""


def mistakes(content: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse_workload(content, "w.yml")
    return str(caught.value).splitlines()


def test_the_least_and_the_whole_are_read() -> None:
    least = parse_workload(LEAST, "w.yml")
    assert (least.market, least.iterations, least.persist.root) == ("any", 1, "/mnt/persistent")
    whole = parse_workload(WHOLE, "w.yml")
    assert whole.repository.submodules
    assert whole.stages[0].resume_command == "b"
    assert whole.persist.directories == ["models", "checkpoints"]


def test_the_box_learns_what_it_needs_and_nothing_else() -> None:
    box = parse_workload(WHOLE, "w.yml").to_box()
    assert json.loads(json.dumps(box)) == box
    assert {"needs", "market", "pools", "budget", "image", "setup_hours"}.isdisjoint(box)
    assert box["persist"] == {"root": "/mnt/persistent", "directories": ["models", "checkpoints"], "rules": []}
    assert box["checkpoints"] == {"every_s": 60.0, "keep_last": 3, "keep_every": 10, "bandwidth_mb_s": 0.0}
    assert box["stages"] == [
        {
            "name": "finetune",
            "command": "a",
            "resume_command": "b",
            "resume_if": "models/step-*.pt",
            "resumable": "yes",
            "run": "each",
            "first": None,
            "grace_s": 30.0,
            "timeout": None,
            "silent": None,
            "retries": 1,
            "retry_wait_s": 0.0,
            "restart_on": [],
            "after": None,
            "needed": True,
            "progress": None,
            "environment": {},
            "overrides": False,
            "pool": "main",
        }
    ]


def test_the_query_takes_the_lower_price_limit() -> None:
    workload = parse_workload(WHOLE, "w.yml")
    query = workload.query()
    assert (query.gpu_ram_gb, query.gpu_names, query.cuda, query.disk_gb) == (8.0, ("A16",), "12.0", 30.0)
    assert (query.market, query.regions, query.max_price_per_hour_usd) == ("interruptible", ("ewr",), 1.5)
    assert workload.query(max_price_per_hour_usd=0.5).max_price_per_hour_usd == 0.5
    assert workload.query(max_price_per_hour_usd=9, market="any").max_price_per_hour_usd == 1.5
    assert workload.query(market="any").market == "any"
    assert parse_workload(LEAST, "w.yml").query().max_price_per_hour_usd is None
    with pytest.raises(UsageError, match="market='spot' is not known"):
        workload.query(market="spot")


def test_missing_variables_are_all_named() -> None:
    workload = parse_workload(WHOLE, "w.yml")
    assert workload.missing_environment({"HF_TOKEN": "x", "WANDB_API_KEY": ""}) == ["WANDB_API_KEY"]
    workload.check_environment({"HF_TOKEN": "x", "WANDB_API_KEY": "y"})
    with pytest.raises(UsageError, match="needs WANDB_API_KEY, HF_TOKEN in the environment"):
        workload.check_environment({})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: tiny", "name: Tiny", "w.yml:1: name: must be 1 to 40 lower-case"),
        ("name: tiny", "nam: tiny", "w.yml:1: nam: is not a key here; did you mean 'name'?"),
        ("name: tiny", "x: tiny", "w.yml:1: x: is not a key here; known are: bid, budget, build,"),
        ("{path: examples/tiny}", "{path: ''}", "w.yml:2: repository.path: must not be empty"),
        (
            "{path: examples/tiny}",
            "{path: x, include: [../y]}",
            "w.yml:2: repository.include[0]: must be a pattern inside",
        ),
        (
            "{path: examples/tiny}",
            "{url: 'https://h/x', commit: " + "a" * 40 + ", include: [y]}",
            "w.yml:2: repository: must not have include with url",
        ),
        ("stages:", "python: {lock: poetry.lock}\nstages:", "w.yml:3: python: must have a lock that is called uv.lock"),
        (
            "stages:",
            "python: {lock: uv.lock, requirements: r.txt}\nstages:",
            "w.yml:3: python: must not have requirements with lock",
        ),
        ("stages:", "python: {extras: ['x y']}\nstages:", "w.yml:3: python.extras[0]: must be the name of an extra"),
        (
            "stages:",
            "environment: {required: [A], optional: [A]}\nstages:",
            "w.yml:3: environment: must say only once where A comes from",
        ),
        (
            "stages:",
            "environment: {files: {a-b: x}}\nstages:",
            "w.yml:3: environment.files.a-b: must be the name of an environment variable",
        ),
        ("{path: examples/tiny}", "{}", "w.yml:2: repository: must have either path"),
        ("{path: examples/tiny}", "{url: git@h:x}", "w.yml:2: repository: must have url and commit together"),
        ("{path: examples/tiny}", "{url: git@h:x, commit: main}", "w.yml:2: repository.commit: must be a commit of 40"),
        ("{path: examples/tiny}", "x", "w.yml:2: repository: must be a mapping of keys, not 'x'"),
        ("    command: python train.py", "    comand: x", "w.yml:4: stages[0].command: is missing"),
        ("    command: python train.py", "    command: ''", "w.yml:5: stages[0].command: must not be empty"),
        ("    command: python train.py", "    command: 3", "w.yml:5: stages[0].command: must be text, not 3"),
    ],
)
def test_a_mistake_is_named_with_line_and_key(old: str, new: str, said: str) -> None:
    assert any(line.startswith(said) for line in mistakes(LEAST.replace(old, new))), mistakes(LEAST.replace(old, new))


TOKEN = "canary-token-9b1e44"
GOOD_URLS = [
    *("https://example.com/x.git", "http://127.0.0.1:8080/x", "git://example.com/x", "ssh://git@example.com:22/x"),
    *("git@github.com:owner/name.git", "ssh://example.com/x"),
]
BAD_URLS = {
    f"https://user:{TOKEN}@example.com/x": "must not hold a user name, a password or a token",
    f"https://{TOKEN}@example.com/x": "must not hold",
    f"ssh://git:{TOKEN}@example.com/x": "must not hold",
    f"https://example.com/x?private_token={TOKEN}": "must not hold",
    f"--upload-pack=touch /tmp/x https://u:{TOKEN}@h/x": "must not hold",
    f"https:user:{TOKEN}@example.com/x": "must not hold",
    "--upload-pack=touch /tmp/x": "must be an address such as https://host/path",
    "ext::sh -c touch% /tmp/x": "must be an address",
    "fd::17": "must be an address",
    "-git@github.com:x": "must be an address",
    "git@github.com:-x": "must be an address",
    "https://-host/x": "must be an address",
    "examples/x": "must be an address",
}


def test_an_address_with_a_token_or_an_option_is_refused_and_not_shown() -> None:
    for url in GOOD_URLS:
        content = LEAST.replace("{path: examples/tiny}", json.dumps({"url": url, "commit": "0" * 40}))
        assert parse_workload(content, "w.yml").repository.url == url
    for url, said in {**BAD_URLS, "file:///srv/x": "is named with repository.path"}.items():
        (line,) = mistakes(LEAST.replace("{path: examples/tiny}", json.dumps({"url": url, "commit": "0" * 40})))
        assert line.startswith("w.yml:2: repository.url: must") and said in line and TOKEN not in line, line


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("needs: {gpu_count: 0}", "needs.gpu_count: must be a positive number, not 0"),
        ("needs: {gpu_count: true}", "needs.gpu_count: must be a positive number, not true"),
        ("needs: {gpu_ram_gb: .inf}", "needs.gpu_ram_gb: must be a positive number, not inf"),
        ("needs: {gpu_ram_gb: .nan}", "needs.gpu_ram_gb: must be a positive number, not nan"),
        ("needs: {cuda: 12.4}", "needs.cuda: must be text, not 12.4; put it in quotes"),
        ("needs: {cuda: new}", "needs.cuda: must be a version such as '1.85', not 'new'"),
        ("needs: {reliability: 98}", "needs.reliability: must be a number from 0 to 1, not 98"),
        ("needs: {gpu_names: A16}", "needs.gpu_names: must be a list, not 'A16'"),
        ("needs: {gpu_nmaes: []}", "needs.gpu_nmaes: is not a key here; did you mean 'gpu_names'?"),
        ("needs:", "needs: must be a mapping of keys, not nothing"),
        ("market: spot", "market: must be on-demand, interruptible or any, not 'spot'"),
        ("budget: {max_price_per_hour: free}", "budget.max_price_per_hour: must be a positive number, not 'free'"),
        ("environment: {required: [A B]}", "environment.required[0]: must be the name of an environment variable"),
        ("environment: {set: {2b: x}}", "environment.set.2b: must be the name of an environment variable"),
        ("environment: {set: {B: 1}}", "environment.set.B: must be text, not 1; put it in quotes"),
        ("python: {version: 3.10}", "python.version: must be text, not 3.1; put it in quotes"),
        ("python: {version: '3.10'}", "python.version: must be a version condition such as"),
        ("rust: {}", "rust.version: is missing"),
        ("persist: {root: relative}", "persist.root: must be an absolute path below /"),
        ("persist: {root: /}", "persist.root: must be an absolute path below /"),
        (
            "persist: {root: /etc}",
            "persist.root: must not be /etc, which the system or gpuyard itself uses: all",
        ),
        ("persist: {root: //etc//ssh/}", "persist.root: must not be /etc/ssh, which"),
        ("persist: {root: /opt/gpuyard/src}", "persist.root: must not be /opt/gpuyard/src, which"),
        ("persist: {directories: [.]}", "persist.directories[0]: must be a folder inside the repository, such as"),
        ("persist: {directories: [./]}", "persist.directories[0]: must be a folder inside the repository, such as"),
        ("persist: {directories: [.gpuyard/x]}", "persist.directories[0]: must not be .gpuyard, where gpuyard"),
        ("persist: {directories: [a, b/../a]}", "persist.directories[1]: must be a relative path"),
        ("persist: {directories: [a, ./a/]}", "persist.directories: must not name a twice"),
        ("persist: {directories: [a/b, a]}", "persist.directories: must not name a/b, which lies in a and is kept"),
        ("persist: {directories: [../x]}", "persist.directories[0]: must be a relative path"),
        ("checkpoints: {every_s: 0}", "checkpoints.every_s: must be a positive number, not 0"),
        ("checkpoints: {keep_last: 0}", "checkpoints.keep_last: must be a whole number of at least 1, not 0"),
        ("checkpoints: {keep_every: 1.5}", "checkpoints.keep_every: must be a whole number"),
        ("iterations: two", "iterations: must be a whole number of at least 1, not 'two'"),
        ("setup_hours: {expected: 2, worst: 1}", "setup_hours: must have a worst that is not less than expected"),
        ("windows: [{name: a, command: x}, {name: a, command: y}]", "windows: must not have two windows of the same"),
        ("image: [x]", "image: must be text, not a list"),
        ("build: cargo build", "build: must be a list, not 'cargo build'"),
    ],
)
def test_every_kind_of_wrong_value_has_its_sentence(extra: str, said: str) -> None:
    [line] = mistakes(LEAST + extra + "\n")
    assert line.startswith(f"w.yml:6: {said}"), line


def test_stages_are_checked_as_the_contract_shows() -> None:
    content = LEAST + "    grace_s: soon\n    resumable: maybe\n    retries: -1\n    hours: {expected: 1}\n"
    assert mistakes(content) == [
        "w.yml:6: stages[0].grace_s: must be a positive number, not 'soon'",
        "w.yml:7: stages[0].resumable: must be true or false, or one of yes, partial and no, not 'maybe'",
        "w.yml:8: stages[0].retries: must be a whole number that is not negative, not -1",
        "w.yml:9: stages[0].hours.worst: is missing",
    ]
    assert mistakes(LEAST + "    resume_command: x\n") == [
        "w.yml:4: stages[0]: has a resume_command but resumable is not true"
    ]
    assert mistakes(LEAST + "    resume_if: x\n") == ["w.yml:4: stages[0]: has a resume_if but no resume_command"]
    [line] = mistakes(LEAST + "    resumable: true\n    resume_command: x\n    resume_if: ../x\n")
    assert line.startswith("w.yml:8: stages[0].resume_if: must be a relative path")
    assert mistakes(LEAST.split("stages")[0] + "stages: []\n") == ["w.yml:3: stages: must name at least one stage"]
    twice = LEAST + "  - {name: train, command: x}\n"
    assert mistakes(twice) == ["w.yml:3: stages: must not have two stages of the same name: train"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("run: never", "w.yml:6: stages[0].run: must be each, once, first or later, not 'never'"),
        (
            "timeout: soon",
            "w.yml:6: stages[0].timeout: must be a time such as 7200, '90s', '15m', '2h' or '1h30m', not",
        ),
        ("silent: 0", "w.yml:6: stages[0].silent: must be a time such as 7200, '90s',"),
        ("timeout: 0s", "w.yml:6: stages[0].timeout: must be a time above 0, not 0.0"),
        ("environment: {A: 1}", "w.yml:6: stages[0].environment.A: must be text, not 1; put it in quotes"),
        ("overrides: [a=1]", "w.yml:6: stages[0].overrides: must be true or false, not a list"),
        ("first: {comand: x}", "w.yml:6: stages[0].first.comand: is not a key here; did you mean 'command'?"),
        (
            "run: later\n    first: {}",
            "w.yml:4: stages[0]: has first, but with run: later no iteration differs from the",
        ),
        (
            "resumable: true\n    resume_command: x\n    first: {command: y}",
            "w.yml:4: stages[0]: has a first.command and a resume_command, so it needs a first.resume_command as well",
        ),
        ("first: {resume_command: y}", "w.yml:4: stages[0]: has a resume_command but resumable is not true"),
        (
            "hours: {expected: 1, worst: 2, by_gpu: {RTX: {expected: 1, worst: 2}}}",
            "w.yml:6: stages[0].hours.by_gpu: must name whole GPU models, such as A100 or RTX 4090, not 'RTX'",
        ),
        (
            "hours: {expected: 1, worst: 2, by_gpu: {A100: {expected: 1}}}",
            "w.yml:6: stages[0].hours.by_gpu.A100.worst: is missing",
        ),
    ],
)
def test_what_a_stage_cannot_be(keys: str, said: str) -> None:
    [line] = mistakes(f"{LEAST}    {keys}\n")
    assert line.startswith(said), line


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("parameters: {Epochs: 1}", "parameters.Epochs: must be lower-case letters, digits and _, beginning with a"),
        ("parameters: {epochs: [1]}", "parameters.epochs: must be a mapping of keys, not a list"),
        ("parameters: {epochs: {}}", "parameters.epochs.type: is missing"),
        (
            "parameters: {epochs: {type: number}}",
            "parameters.epochs.type: must be int, float, str or bool, not 'number'",
        ),
        (
            "parameters: {a: {type: int, default: x}}",
            "parameters.a: must have a default of type int: a whole number, not",
        ),
        (
            "parameters: {a: {type: int, choices: [1, x]}}",
            "parameters.a: must have choices of type int: a whole number",
        ),
        ("parameters: {a: {default: x, minimum: 1}}", "parameters.a: must have a minimum of type str: text, not 1"),
        ("parameters: {a: {default: 1, minimum: 2}}", "parameters.a: must have a default of at least 2, not 1"),
        (
            "parameters: {path: x}",
            "the file: has the parameter path, and its variable PATH is also set elsewhere; rename",
        ),
        ("parameters: {a: 1}\nenvironment: {set: {A: x}}", "the file: has the parameter a, and its variable A is also"),
        ("overrides: [a=1]", "the file: has overrides (a=1, …), and no stage takes them with overrides: true"),
        ("overrides: [a]", "overrides[0]: must be of the form name=value, not 'a'"),
        ("storage: {gb_per_iteration: 1}", "storage.price_per_gb_month: is missing"),
        ("sizes: {lora: {gb: 0}}", "sizes.lora.gb: must be a positive number, not 0"),
        (
            "sizes: {lora: {gb: 1, keep: newest}}",
            "sizes.lora.keep: must be latest, all, or a whole number of at least 1",
        ),
        ("sizes: {lora: {gb: 1, place: cache}}", "the file: has sizes.lora with place: cache, which is none of: disk"),
        ("volumes: {much-too-long: {mount: /mnt/x, size_gb: 1}}", "volumes.much-too-long: must be a name of at most"),
        ("volumes: {disk: {mount: /mnt/x, size_gb: 1}}", "volumes.disk: must be a name of at most nine lower-case"),
        ("volumes: {c: {mount: /etc, size_gb: 1}}", "volumes.c.mount: must be a folder of its own, such as /mnt/cache"),
        ("volumes: {c: {mount: mnt, size_gb: 1}}", "volumes.c.mount: must be an absolute path below /, without '..'"),
        (
            "volumes: {a: {mount: /mnt/a, size_gb: 1}, b: {mount: /mnt/b, size_gb: 1}}",
            "the file: has a and b both with source: attached, so it is not known which disk is meant: name one by",
        ),
        (
            "volumes: {a: {mount: /mnt/a, size_gb: 1}, b: {mount: /mnt/a/b, source: x, size_gb: 1}}",
            "the file: has the volume b at /mnt/a/b, which lies in that of a, /mnt/a",
        ),
        ("pools: {main: {nods: 2}}", "pools.main.nods: is not a key here; did you mean 'nodes'?"),
        ("profiles: {small: 3}", "profiles.small: must be a mapping of keys, not 3"),
    ],
)
def test_what_values_of_a_run_cannot_be(extra: str, said: str) -> None:
    [line] = mistakes(f"{LEAST}{extra}\n")
    assert line.partition(" ")[2].startswith(said), line


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("1.5h", 5400)])
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_workload(f"{LEAST}    timeout: {text}\n", "w.yml").stages[0].timeout == seconds


def test_b27_resumability_has_three_values() -> None:
    for text, value in [("yes", "yes"), ("true", "yes"), ("partial", "partial"), ("no", "no"), ("'no'", "no")]:
        assert parse_workload(f"{LEAST}    resumable: {text}\n", "w.yml").stages[0].resumable == value


def test_a_key_that_is_there_twice_is_a_mistake() -> None:
    assert mistakes(LEAST + "name: other\n") == ["w.yml:6: name: is here a second time, first in line 1"]
    assert mistakes(LEAST + "    name: other\n") == ["w.yml:6: stages[0].name: is here a second time, first in line 4"]


def test_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    content = "name: Tiny\niterations: 0\nstages:\n  - name: a\n    command: x\n    grace_s: soon\n"
    assert [line.split(":")[1] for line in mistakes(content)] == ["1", "1", "2", "6"]


def test_anchors_and_merges_are_plain_yaml() -> None:
    content = LEAST.replace("  - name: train", "  - &first\n    name: train") + "  - {<<: *first, name: more}\n"
    assert [stage.name for stage in parse_workload(content, "w.yml").stages] == ["train", "more"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"w\.yml:1: a workload is a mapping of keys, not nothing"),
        ("a key of somebody's\n", r"w\.yml:1: a workload is a mapping of keys, not text\.$"),
        ("- a\n", r"w\.yml:1: a workload is a mapping of keys, not a list"),
        ("name: a\n  b: c\n", r"w\.yml:2: not valid YAML: mapping values are not allowed here"),
        ("name: [a\n", r"w\.yml:2: not valid YAML"),
        ("name: !!python/object:os.system x\n", r"w\.yml:1: not valid YAML: could not determine a constructor"),
        ("name: a\x01\n", r"w\.yml:1: not valid YAML"),
    ],
)
def test_what_is_no_workload_at_all(content: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_workload(content, "w.yml")


BOMB = "".join(f"x{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]\n" for level in range(1, 9))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"x0: &l0 [a]\n{BOMB}", "w.yml:6: not valid YAML: more than 20000 values, aliases counted as what they stand"),
        ("a: &a [*a]\n", "w.yml:1: not valid YAML: 'a' holds itself"),
        ("a: &a {b: {c: *a}}\n", "w.yml:1: not valid YAML: 'a' holds itself"),
        (f"a: {'[' * 5000}{']' * 5000}\n", "w.yml:1: not valid YAML: more than 64 levels deep"),
        (f"a: {{{'b: {' * 1500}{'}' * 1501}\n", "w.yml:1: not valid YAML: more than 64 levels deep"),
        (f"{LEAST}description: {'x' * 1_000_000}\n", "w.yml: a workload has at most 1000 kB."),
        (f"{LEAST}iterations: 999999999999\n", "w.yml:6: iterations: must be at most 100000, not 999999999999"),
        (f"{LEAST}iterations: {'9' * 5000}\n", "w.yml:6: not valid YAML: this looks like a date or a"),
        (f"{LEAST}iterations: 0x{'f' * 5000}\n", "w.yml:6: iterations: must be at most 100000, not a number that long"),
        (f"{LEAST}image: !!timestamp x\n", "w.yml:6: not valid YAML: this looks like a date or a"),
        (f"{LEAST}image: 2026-13-45\n", "w.yml:6: not valid YAML: this looks like a date or a"),
    ],
    ids=lambda value: value[:12],
)
def test_what_would_never_end_is_refused(content: str, said: str) -> None:
    (line,) = mistakes(content)
    assert line.startswith(said) and len(line) < 200, line


def test_at_most_twenty_mistakes_are_listed() -> None:
    said = mistakes(LEAST + "".join(f"key{number}: 1\n" for number in range(5000)))
    assert len(said) == 21 and said[-1] == "… and 4980 more."
    assert [line.split(":")[1] for line in said[:20]] == [str(line) for line in range(6, 26)]


def test_what_is_left_to_run_is_known_without_counting_to_it() -> None:
    workload = parse_workload(f"{BY_STAGE.replace('iterations: 2', 'iterations: 100000')}", "w.yml")
    done = [(iteration, "finetune") for iteration in range(100_000)]
    assert workload.market_of(done[:-1])[0] == "on-demand"
    assert workload.market_of(done)[0] == "interruptible"


# -- finding -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "site"
    (base / "workloads").mkdir(parents=True)
    (base / "workloads" / "tiny.yml").write_text(LEAST)
    (base / "examples" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(base)
    return base


def test_a_workload_is_found_by_name_and_by_path(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_workload("tiny").local_tree == folder / "examples" / "tiny"
    assert load_workload("workloads/tiny.yml").root == folder
    monkeypatch.chdir(tmp_path)
    assert load_workload("tiny", root=folder).source == folder / "workloads" / "tiny.yml"
    elsewhere = tmp_path / "mine.yaml"
    elsewhere.write_text(LEAST)
    assert load_workload("mine.yaml").root == tmp_path


def test_the_working_directory_wins_over_the_home(folder: Path, own_home: Path) -> None:
    for name in ("tiny", "other"):
        path = own_home / ".gpuyard" / "workloads" / f"{name}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LEAST)
    assert load_workload("tiny").root == folder
    assert load_workload("other").root == own_home / ".gpuyard"


def test_an_unknown_workload_lists_the_known_ones(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"workload='tini' is not known; known are: .*tiny.*Did you mean tiny\?"):
        load_workload("tini")
    with pytest.raises(UsageError, match=r"workload=\./x\.yml: there is no such file"):
        load_workload("./x.yml")
    with pytest.raises(UsageError, match=r"workload=/etc/passwd: a workload is a file whose name ends in .yml or"):
        load_workload("/etc/passwd")


def test_messages_name_the_file_from_the_working_directory(folder: Path) -> None:
    (folder / "workloads" / "bad.yml").write_text(LEAST + "x: 1\n")
    with pytest.raises(UsageError, match=re.escape("workloads/bad.yml:6: x: is not a key here")):
        load_workload("bad")


def test_a_tree_that_is_not_there_is_named(folder: Path) -> None:
    (folder / "examples" / "tiny").rmdir()
    with pytest.raises(UsageError, match=r"repository\.path: there is no folder .*examples/tiny"):
        _ = load_workload("tiny").local_tree
    assert parse_workload(WHOLE, "w.yml").local_tree is None


def test_a_file_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "workloads" / "bin.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"bin\.yml cannot be read: it is not UTF-8 text"):
        load_workload("bin")


BY_STAGE = """\
name: prover
repository: {path: examples/tiny}
iterations: 2
stages:
  - {name: finetune, command: a, market: on-demand}
  - {name: search, command: b, market: interruptible, resumable: true}
"""


def test_one_stage_that_wants_on_demand_decides_until_it_is_done() -> None:
    workload = parse_workload(BY_STAGE, "w.yml")
    assert workload.market_of() == ("on-demand", "Market on-demand, because finetune asks for it.")
    assert workload.market_of([(0, "finetune"), (0, "search")])[0] == "on-demand"
    last_search = [(0, "finetune"), (0, "search"), (1, "finetune")]
    assert workload.market_of(last_search) == ("interruptible", "Market interruptible, because search asks for it.")
    assert workload.query().market == "on-demand"
    assert workload.query(market="any").market == "any"


def test_stages_without_a_market_have_the_workloads() -> None:
    assert parse_workload(LEAST, "w.yml").market_of() == ("any", "")
    assert parse_workload(f"{LEAST}market: interruptible\n", "w.yml").market_of() == ("interruptible", "")


def test_a_stages_market_is_checked_and_stays_on_the_controller() -> None:
    assert "stages[0].market" in mistakes(BY_STAGE.replace("market: on-demand", "market: spot"))[0]
    stages = parse_workload(BY_STAGE, "w.yml").to_box()["stages"]
    assert isinstance(stages, list) and "market" not in stages[0]


MARKET = """\
name: picky
repository: {path: examples/tiny}
needs:
  gpu_names: [A100]
  gpu_ram_gb: 80
  most_gpu_ram_gb: 96
  driver: "535.86"
  compute_capability: "8.0"
  internet_mbit_s: 500
  static_ip: true
  data_center: true
  regions: [sjc, sea, lax]
  countries: [us, "NO"]
  prefer: regions
  alternatives:
  - {gpu_names: [H100]}
  - {gpu_names: [RTX A6000], gpu_ram_gb: 48, gpu_count: 2}
bid: {at_most_usd_per_hour: 0.5}
stages: [{name: train, command: python train.py}]
"""


def test_everything_that_a_machine_may_need_reaches_the_market() -> None:
    query = parse_workload(MARKET, "w.yml").query()
    assert (query.most_gpu_ram_gb, query.driver, query.compute_capability) == (96.0, "535.86", "8.0")
    assert (query.internet_mbit_s, query.static_ip, query.data_center) == (500.0, True, True)
    assert (query.regions, query.countries, query.rank) == (("sjc", "sea", "lax"), ("US", "NO"), "regions")
    assert (query.bid_times, query.bid_at_most_usd) == (1.2, 0.5)
    first, second, third = query.choices
    assert first == dataclasses.replace(query, alternatives=())
    assert second == dataclasses.replace(first, gpu_names=("H100",))
    assert third == dataclasses.replace(first, gpu_names=("RTX A6000",), gpu_ram_gb=48.0, gpu_count=2.0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '"NO"',
            "NO",
            "needs.countries[1]: must be a country of two letters, such as 'SE', not false; put it in quotes",
        ),
        ('"8.0"', "8.0", "needs.compute_capability: must be a compute capability such as '8.0', not 8.0; put it in"),
        ("prefer: regions", "prefer: speed", "needs.prefer: must be "),
        ("{gpu_names: [H100]}", "{disk_gb: 5}", "needs.alternatives[0].disk_gb: is not a key here"),
        ("bid: {", "bid: {times: 0.9, ", "bid.times: must be a number from 1 to 100, not 0.9"),
    ],
)
def test_a_mistake_in_what_the_market_is_asked_is_named(old: str, new: str, said: str) -> None:
    assert any(said in line for line in mistakes(MARKET.replace(old, new))), mistakes(MARKET.replace(old, new))
