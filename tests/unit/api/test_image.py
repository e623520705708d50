"""The image of a workload (B15, U11): what the container engine is asked for. The real one: integration tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuyard.api import image
from gpuyard.api.site import Site
from gpuyard.errors import UsageError
from gpuyard.sandbox.engine import ContainerState, EngineError

DOCUMENT = {
    "name": "tiny",
    "repository": {"path": "code"},
    "container": {"base": "docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04", "name": "localhost:5000/me/tiny"},
    "stages": [{"name": "one", "command": "true"}],
}


class Engine:
    """STAND-IN for the container engine: remembers what it was asked."""

    kind = "podman"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.removed: list[str] = []
        self.label: str | None = None
        self.python_fails = False

    def run(self, *words: str, **_options: Any) -> str:
        self.asked.append(list(words))
        if words[:2] == ("image", "inspect"):
            return json.dumps([{"Config": {"Entrypoint": ["/opt/start"], "Cmd": None}}])
        return "sha256:0123\n"

    def execute(self, *words: str, **_options: Any) -> str:
        self.asked.append(["exec", *words])
        if self.python_fails:
            raise EngineError("podman exec failed: no such package")
        return ""

    def remove(self, container: str) -> None:
        self.removed.append(container)

    def image_label(self, _image: str, _label: str) -> str | None:
        return self.label

    def state(self, container: str) -> ContainerState:
        return ContainerState(container, True, 0, {"gpuyard.fingerprint": "abcd"})


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(image.engines, "find", lambda: made)
    return made


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train.py").write_text("print()")
    file = tmp_path / "tiny.yml"
    file.write_text(yaml.safe_dump(DOCUMENT))
    return file


def prepare(workload: Path, **options: Any) -> image.ImagePlan:
    return image.prepare(Site(sandbox=False), str(workload), progress=lambda _line: None, **options)


def test_a_container_of_the_base_starts_and_the_tag_is_the_state(engine: Engine, workload: Path) -> None:
    plan = prepare(workload, options=["--network=host"])
    whole = plan.plan["fingerprint"]
    assert plan.image == f"localhost:5000/me/tiny:{whole[:16]}" and not plan.there
    run = engine.asked[0]
    assert run[0] == "run" and "--network=host" in run and run[-2:] == [DOCUMENT["container"]["base"], "infinity"]
    (workload.parent / "code/train.py").write_text("print(1)")
    assert prepare(workload).image != plan.image


def test_an_image_that_is_there_is_not_made_again(engine: Engine, workload: Path) -> None:
    engine.label = prepare(workload, check=True).plan["fingerprint"]
    assert engine.asked == []
    assert prepare(workload).there and engine.asked == []


def test_a_base_without_python_that_cannot_get_one_leaves_nothing(engine: Engine, workload: Path) -> None:
    engine.python_fails = True
    with pytest.raises(EngineError, match="no such package"):
        prepare(workload)
    assert len(engine.removed) == 2 and len(set(engine.removed)) == 1


def test_the_image_is_cleaned_starts_as_its_base_does_and_is_pushed(engine: Engine) -> None:
    image.finish("localhost:5000/me/tiny:abcd", "c", push=True, progress=lambda _line: None)
    clean, _inspect, _image, commit, push = engine.asked
    assert clean[:2] == ["exec", "c"] and "/opt/gpuyard/run" in clean[-1] and "/etc/ssh/ssh_host_*" in clean[-1]
    assert commit[-2:] == ["c", "localhost:5000/me/tiny:abcd"] and "LABEL gpuyard.fingerprint=abcd" in commit
    assert 'ENTRYPOINT ["/opt/start"]' in commit and "CMD []" in commit
    assert push == ["push", "--tls-verify=false", "localhost:5000/me/tiny:abcd"] and engine.removed == ["c"]


def test_a_workload_without_an_image_is_told_how_to_name_one(engine: Engine, workload: Path) -> None:
    workload.write_text(yaml.safe_dump({name: value for name, value in DOCUMENT.items() if name != "container"}))
    with pytest.raises(UsageError, match=r"says nothing of an image: add container: \{base: …, name: …\}"):
        prepare(workload)
