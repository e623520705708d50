"""The layers of a workload: file, profiles, options, overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuyard import records
from gpuyard.errors import UsageError
from gpuyard.providers.base import Query
from gpuyard.workload import Resolved, again, from_document, resolve, to_document

PROVER = """\
schema: 1
name: prover
repository: {path: tree}
needs: {gpu_ram_gb: 80, gpu_names: [A100]}
market: any
budget: {max_price_per_hour: 3}
parameters:
  epochs: {type: int, default: 3, minimum: 1, maximum: 10}
  learning_rate: {type: float, default: 1e-4}
  model: {type: str, default: llama-7b, choices: [llama-7b, llama-1.3b]}
  cautious: false
profiles:
  small:
    needs: {gpu_ram_gb: 24}
    parameters: {model: llama-1.3b}
    stages:
      finetune: {hours: {expected: 1}, market: on-demand}
  h100:
    needs: {gpu_names: [H100]}
    budget: {max_price_per_hour: 5}
stages:
  - {name: finetune, command: train, resumable: partial, hours: {expected: 2, worst: 4}, overrides: true}
  - {name: search, command: search, resumable: true}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prover.yml"
    path.write_text(PROVER)
    (tmp_path / "tree").mkdir()
    return path


def origins(resolved: Resolved) -> dict[str, tuple[object, str]]:
    return {origin.key: (origin.value, origin.layer) for origin in resolved.origins}


def refused(file: Path, **layers: Any) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(str(file), **layers)
    return str(caught.value)


def test_the_file_alone_has_no_origins(file: Path) -> None:
    resolved = resolve(str(file))
    assert resolved.origins == ()
    assert resolved.workload.parameters["learning_rate"].current == 1e-4  # which YAML takes for a text
    assert resolved.workload.source == file


def test_a_profile_may_say_the_value_of_a_bare_parameter_as_a_mapping(file: Path) -> None:
    file.write_text(PROVER.replace("{model: llama-1.3b}", "{model: llama-1.3b, cautious: {value: true}}"))
    found = resolve(str(file), profiles=["small"])
    cautious = found.workload.parameters["cautious"]
    assert (cautious.default, cautious.current, cautious.type) == (False, True, "bool")
    assert origins(found)["parameters.cautious"] == (True, "profile small")


def test_each_layer_lies_over_the_one_before_and_is_named(file: Path) -> None:
    resolved = resolve(
        str(file),
        profiles=["small", "h100"],
        options={"gpu_count": 2.0, "gpu_names": ["RTX 4090"]},
        overrides="needs.gpu_count=4 epochs=5 stages.finetune.grace_s=60 training.batch_size=4",
    )
    found = resolved.workload
    assert (found.needs.gpu_ram_gb, found.needs.gpu_names, found.needs.gpu_count) == (24, ["RTX 4090"], 4)
    assert found.parameters["model"].current == "llama-1.3b"
    assert found.parameters["epochs"].current == 5
    assert found.stages[0].grace_s == 60
    assert found.stages[0].hours and (found.stages[0].hours.expected, found.stages[0].hours.worst) == (1, 4)
    assert found.overrides == ["training.batch_size=4"]
    assert origins(resolved) == {
        "needs.gpu_ram_gb": (24, "profile small"),
        "parameters.model": ("llama-1.3b", "profile small"),
        "stages.finetune.hours.expected": (1, "profile small"),
        "stages.finetune.market": ("on-demand", "profile small"),
        "budget.max_price_per_hour": (5, "profile h100"),
        "needs.gpu_names": (["RTX 4090"], "-e gpu_name"),
        "needs.gpu_count": (4, "-e overrides"),
        "parameters.epochs": (5, "-e overrides"),
        "stages.finetune.grace_s": (60, "-e overrides"),
        "overrides": (["training.batch_size=4"], "-e overrides"),
    }


def test_the_lower_price_limit_counts_and_a_market_counts_for_all_stages(file: Path) -> None:
    resolved = resolve(str(file), profiles=["small"], options={"max_price_per_hour": 9.0, "market": "interruptible"})
    assert resolved.workload.budget.max_price_per_hour == 3
    assert resolved.workload.market_of() == ("interruptible", "")
    assert resolve(str(file), options={"max_price_per_hour": 1.0}).workload.budget.max_price_per_hour == 1


def test_options_hold_for_pools_with_needs_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "w.yml"
    path.write_text(
        "name: w\nrepository: {path: .}\npools: {a: {needs: {gpu_count: 8}, market: on-demand}, b: {}}\n"
        "stages: [{name: x, command: x, pool: a}, {name: y, command: y, pool: b}]\n"
    )
    found = resolve(str(path), options={"gpu_count": 2.0, "market": "any"}).workload
    assert [found.pool(name).needs.gpu_count for name in found.pool_names] == [2, 2]  # type: ignore[union-attr]
    assert [found.pool(name).market for name in found.pool_names] == ["any", "any"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.b=1 c=2", ["a.b=1", "c=2"]),
        ("a.b=1,c=2", ["a.b=1", "c=2"]),
        ("layers=[1,2],+d=e,~f", ["layers=[1,2]", "+d=e", "~f"]),
        ("'prompt=two words'", ["prompt=two words"]),
        (["a.b=1", "c=x,y=z"], ["a.b=1", "c=x,y=z"]),
    ],
)
def test_f6_overrides_go_to_the_stage_as_they_are(file: Path, given: Any, expected: list[str]) -> None:
    assert resolve(str(file), overrides=given).workload.overrides == expected


def test_a_later_override_of_the_same_name_takes_its_place(file: Path) -> None:
    assert resolve(str(file), overrides="a.b=1 a.c=2 a.b=3").workload.overrides == ["a.b=3", "a.c=2"]


def test_a_name_that_the_workload_has_too_is_passed_on_with_a_plus(file: Path) -> None:
    resolved = resolve(str(file), overrides=["++market=spot"])
    assert (resolved.workload.market, resolved.workload.overrides) == ("any", ["++market=spot"])


def test_text_that_looks_like_a_number_stays_text_where_text_is_wanted(file: Path) -> None:
    content = PROVER.replace("parameters:\n", "parameters:\n  tag: {type: str, default: a}\n")
    file.write_text(content)
    found = resolve(str(file), overrides="tag=007 environment.set.LEVEL=3").workload
    assert found.parameters["tag"].current == "007"
    assert found.environment.set == {"LEVEL": "3"}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"profiles": ["smal"]}, "profile='smal' is not known to {file}; its profiles are: small, h100. Did you mean"),
        ({"overrides": "epochs=many"}, "-e overrides=epochs=many: parameters.epochs: must have a value of type int"),
        ({"overrides": "epochs=11"}, "parameters.epochs: must have a value of at most 10, not 11"),
        ({"overrides": "model=gpt"}, "must have a value among llama-7b, llama-1.3b, not 'gpt'"),
        ({"overrides": "cautious=1"}, "must have a value of type bool: true or false, not"),
        ({"overrides": "parameters.epoch=1"}, "epoch is no parameter of the workload; its parameters are: epochs,"),
        ({"overrides": "needs.gpu_cuont=2"}, "needs.gpu_cuont: is not a key here; did you mean 'gpu_count'?"),
        ({"overrides": "needs.gpu_count=two"}, "needs.gpu_count: must be a positive number, not 'two'"),
        ({"overrides": "market=spot"}, "market: must be on-demand, interruptible or any, not 'spot'"),
        ({"overrides": "stages.serch.grace_s=9"}, "there is no such stage; known are: finetune, search. Did you mean"),
        ({"overrides": "iterations.x=1"}, "iterations: must be a whole number of at least 1, not a mapping"),
        ({"overrides": "name=other"}, "-e overrides=name=other: must not change in a run; it is the file's own."),
        ({"overrides": "epochs"}, "overrides: 'epochs' is not of the form name=value."),
        ({"overrides": "'a=1"}, "cannot be taken apart: no closing quotation"),
        ({"overrides": {"a": 1}}, "overrides must be a text such as 'a=1 b=2' or a list"),
        ({"options": {"iterations": 0}}, "-e iterations: iterations: must be a whole number of at least 1, not 0"),
    ],
)
def test_a_layer_that_cannot_be_is_one_sentence(file: Path, layers: dict[str, Any], said: str) -> None:
    text = refused(file, **layers)
    assert said.format(file=file) in text and "\n" not in text, text


def test_an_override_of_nothing_says_what_there_is(file: Path) -> None:
    file.write_text(PROVER.replace(", overrides: true", ""))
    text = refused(file, overrides="epoch=3")
    assert text == (
        "overrides=epoch=3: epoch is neither a parameter nor a key of the workload, and no stage of it takes other "
        "overrides with `overrides: true`. Did you mean epochs? "
        "Its parameters are: epochs, learning_rate, model, cautious."
    )


def test_a_parameter_without_a_value_has_to_be_set(file: Path) -> None:
    file.write_text(PROVER.replace("  cautious: false", "  cautious: {type: bool}"))
    assert "has no value for cautious: set it with -e overrides=cautious=…" in refused(file)
    assert resolve(str(file), overrides="cautious=true").workload.parameters["cautious"].current is True


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gpu_ram_gb: 24", "gpu_ram: 24", "{file}:14: profiles.small.needs.gpu_ram: is not a key here; did you mean"),
        (
            "model: llama-1.3b",
            "model: gpt",
            "{file}:15: profiles.small.parameters.model: must have a value among",
        ),
        ("      finetune: {", "      fine: {", "{file}:17: profiles.small.stages.fine: there is no such stage; known"),
        ("{hours: {expected: 1}", "{hours: {expected: 9}", "{file}:17: profiles.small.stages.finetune.hours: must"),
        ("  h100:\n", "  h100:\n    name: x\n", "{file}:19: profiles.h100.name: must not change in a run"),
        ("  h100:\n", "  h100:\n    rust: {minimum: '1.8'}\n", "{file}:19: profiles.h100.rust.version: is missing"),
        ("  h100:\n", "  H100:\n", "{file}:18: profiles.H100: must be 1 to 40 lower-case letters"),
        (
            "  h100:\n",
            "".join(f"  p{number}: {{}}\n" for number in range(60)) + "  h100:\n",
            "{file}:12: profiles: must be at most 50, not 62",
        ),
        ("    needs: {gpu_names: [H100]}", "    needs: H100", "{file}:19: profiles.h100.needs: must be a mapping of"),
    ],
)
def test_every_profile_is_checked_whether_it_is_chosen_or_not(file: Path, old: str, new: str, said: str) -> None:
    file.write_text(PROVER.replace(old, new))
    text = refused(file)
    assert text.startswith(said.format(file=file)) and "\n" not in text, text


def test_a_resolved_workload_is_read_back_as_it_was(file: Path) -> None:
    resolved = resolve(
        str(file), profiles=["small"], options={"iterations": 4}, overrides="epochs=5 training.batch_size=4"
    )
    document = to_document(resolved)
    read = from_document(json.loads(json.dumps(document)), source=file)
    assert read == resolved
    assert read.workload.to_box() == resolved.workload.to_box()
    assert document["schema"] == 1


def test_a_stored_workload_can_have_further_layers(file: Path) -> None:
    first = resolve(str(file), profiles=["small"], options={"max_price_per_hour": 1.0}, overrides="epochs=5 a.b=1")
    stored = from_document(json.loads(json.dumps(to_document(first))), source=file)
    file.unlink()  # the controller that goes on need not have it
    assert again(stored) is stored
    more = again(stored, overrides="epochs=6 a.b=2", options={"max_price_per_hour": 2.0})
    assert more.workload.parameters["epochs"].current == 6
    assert more.workload.overrides == ["a.b=2"]
    assert more.workload.needs.gpu_ram_gb == 24  # of the profile that it began with
    assert more.workload.budget.max_price_per_hour == 2
    other = again(stored, profiles=["h100"])
    assert (other.workload.needs.gpu_ram_gb, other.workload.needs.gpu_names) == (80, ["H100"])


def test_a_stored_workload_of_a_later_version_is_read_as_far_as_it_is_known(file: Path) -> None:
    document: Any = to_document(resolve(str(file)))
    document["workload"]["needs"]["quantum"] = True
    document["workload"]["stages"][0]["new"] = {"a": 1}
    assert from_document(document).workload.stages[0].command == "train"
    with pytest.raises(UsageError, match=r"version 2, which a newer gpuyard than \S+ reads; this one reads version 1"):
        from_document({**document, "schema": 2})
    for damaged in ({"schema": 1}, {"schema": 1, "workload": []}, {"schema": 1, "workload": {"name": "x"}}, {}):
        with pytest.raises(UsageError, match="A stored workload cannot be used: "):
            from_document(damaged)


def test_another_schema_is_named_and_nothing_else_is_said(file: Path) -> None:
    file.write_text(PROVER.replace("schema: 1", "schema: 3").replace("market: any", "market: moon"))
    text = refused(file)
    assert text.startswith(f"{file}:1: schema: this workload is of version 3, which a newer gpuyard than ")
    file.write_text(PROVER.replace("schema: 1", "schema: one"))
    assert refused(file).endswith("must be the number of the format's version, which is 1, not 'one'.")


FETCHED = """\
name: fetched
repository: {url: https://forge.example/a.git, commit: %s, credentials: {kind: token, variable: FORGE_TOKEN}}
stages: [{name: work, command: work}]
""" % ("a" * 40)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["repository.path=/code"], {"path": "/code"}),
        (["repository.include=[text]", "repository.path=/code"], {"path": "/code", "include": ["text"]}),
        (["repository.path=/code", "repository.url=", "repository.commit="], {"path": "/code"}),
        (["repository.url=https://forge.example/fork.git"], {"url": "https://forge.example/fork.git"}),
        (
            ["repository.path=/code", "repository.url=https://forge.example/b.git", f"repository.commit={'b' * 40}"],
            {"url": "https://forge.example/b.git", "commit": "b" * 40},
        ),
    ],
)
def test_code_from_elsewhere_takes_the_place_of_the_source(
    tmp_path: Path, overrides: list[str], wanted: dict[str, object]
) -> None:
    (tmp_path / "fetched.yml").write_text(FETCHED)
    resolved = resolve(str(tmp_path / "fetched.yml"), overrides=overrides)
    said = resolved.workload.repository.model_dump(exclude_defaults=True, exclude={"credentials"})
    kept = {"commit": "a" * 40} if overrides == ["repository.url=https://forge.example/fork.git"] else {}
    assert said == kept | wanted
    assert {key.split(".")[1] for key, (value, _) in origins(resolved).items() if value} == set(wanted)


def test_a_path_and_an_address_in_one_layer_are_still_a_mistake(file: Path) -> None:
    file.write_text(
        PROVER.replace("profiles:\n", "profiles:\n  both: {repository: {path: a, url: https://b.example/c}}\n")
    )
    assert "must have either path (a local tree) or url and commit" in refused(file)


def test_an_option_counts_for_the_alternatives_too(file: Path) -> None:
    needs = "needs: {gpu_ram_gb: 80, gpu_names: [A100], alternatives: [{gpu_ram_gb: 40}, {gpu_names: [H100]}]}"
    file.write_text(file.read_text().replace("needs: {gpu_ram_gb: 80, gpu_names: [A100]}", needs))
    query = resolve(str(file), options={"gpu_ram_gb": 48.0, "prefer": "value"}).workload.query()
    assert [(one.gpu_ram_gb, one.gpu_names) for one in query.choices] == [
        (48.0, ("A100",)),
        (48.0, ("A100",)),
        (48.0, ("H100",)),
    ]
    assert query.rank == "value"


def test_conditions_make_alternatives_one_that_are_then_the_same() -> None:
    wanted = Query(gpu_ram_gb=80, alternatives=(Query(gpu_ram_gb=40), Query(gpu_ram_gb=80, gpu_names=("H100",))))
    found = records.with_conditions(wanted, {"gpu_ram_gb": 48.0, "gpu_names": ["A100"]})
    assert found == Query(gpu_ram_gb=48.0, gpu_names=("A100",))
    assert records.query_to_dict(wanted)["alternatives"] == [{"gpu_ram_gb": 40}, {"gpu_names": ("H100",)}]
