from __future__ import annotations

import pytest

from gpuyard.errors import UsageError
from gpuyard.formats.label import RunRef, check_name, next_name


@pytest.mark.parametrize("name", ["a", "miniprover-0", "a" * 40, "x--y"])
def test_names_that_every_label_can_hold(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "0a", "a" * 41, "a_b", "a/b", "a b", "ä", "a\n", "a.b"])
def test_names_that_cannot_be_one(name: str) -> None:
    with pytest.raises(UsageError, match="1 to 40 lower-case letters"):
        check_name(name)
    with pytest.raises(UsageError):
        RunRef(name, "miniprover")


def test_label_and_tags_lead_back() -> None:
    ref = RunRef("miniprover-0", "miniprover")
    assert RunRef.from_label(ref.label) == ref
    assert RunRef.from_label(f" {ref.label}/stopped\n") == ref
    assert RunRef.from_tags([*reversed(ref.tags), "other:tag", "team"]) == ref
    assert len(RunRef("a" * 40, "b" * 40).label) <= 256


def test_a_node_is_said_in_label_and_tags() -> None:
    ref = RunRef("a-0", "tiny", "search-3")
    assert ref.label == "gpuyard/a-0/tiny/search-3"
    assert RunRef.from_label(f"{ref.label}/stopped") == ref
    assert RunRef.from_tags(ref.tags) == ref
    assert RunRef("a-0", "tiny").label == "gpuyard/a-0/tiny"


@pytest.mark.parametrize("more", ["/z", "/stoppedx", "/search-3/later/parts", "//", "/Node"])
def test_a_label_with_further_parts_is_ours(more: str) -> None:
    ref = RunRef.from_label(f"gpuyard/a-0/tiny{more}")
    assert ref is not None and (ref.run, ref.workload) == ("a-0", "tiny")


@pytest.mark.parametrize(
    "label", [None, "", "mine", "gpuyard/x", "gpuyard/X/y", "gpuyard/x/Y/z", "xgpuyard/x/y", "gpuyard//y"]
)
def test_labels_of_others(label: str | None) -> None:
    assert RunRef.from_label(label) is None


@pytest.mark.parametrize(
    "tags", [[], ["run:x", "workload:y"], ["gpuyard"], ["gpuyard", "run:x"], ["gpuyard", "run:X", "workload:y"]]
)
def test_tags_of_others(tags: list[str]) -> None:
    assert RunRef.from_tags(tags) is None


def test_the_next_free_number() -> None:
    assert next_name("miniprover", []) == "miniprover-0"
    assert next_name("miniprover", ["miniprover-0", "miniprover-2", "other-1"]) == "miniprover-1"
    with pytest.raises(UsageError):
        next_name("a" * 40, [])


@pytest.mark.parametrize("name", ["all", "localhost", "ungrouped", "gpuyard"])
def test_names_that_mean_something_to_ansible_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="choose another name"):
        check_name(name)


@pytest.mark.parametrize("node", ["main-0", "search-3"])
def test_a_lease_is_said_in_label_and_tags_and_makes_no_other_run(node: str) -> None:
    leased, plain = RunRef("a-0", "tiny", node, 1772373600), RunRef("a-0", "tiny", node)
    assert leased.label == f"gpuyard/a-0/tiny/{node}/until-1772373600"
    assert leased == plain  # a new machine is looked for by its run
    for read in (RunRef.from_label(f"{leased.label}/stopped"), RunRef.from_tags(leased.tags)):
        assert read is not None and (read.node, read.lease_end) == (node, 1772373600)


@pytest.mark.parametrize("said", ["", "soon", "-1", "1e9", "9" * 12])
def test_a_lease_that_is_none_makes_it_no_less_ours(said: str) -> None:
    ref = RunRef.from_label(f"gpuyard/a-0/tiny/main-0/until-{said}")
    assert ref is not None and ref.lease_end is None
    ref = RunRef.from_tags(["gpuyard", "run:a-0", "workload:tiny", f"until:{said}"])
    assert ref is not None and ref.lease_end is None
