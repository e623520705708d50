"""The image of a workload (B15, U11): what the container engine is asked for. The real one: integration tests."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuyard import registry
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


PUSHED = f"sha256:{'2' * 64}"
TINY = "localhost:5000/me/tiny:abcd"


class Engine:
    """STAND-IN for the container engine: remembers what it was asked."""

    kind = "podman"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.removed: list[str] = []
        self.label: str | None = None
        self.python_fails = False
        self.full = False
        self.answer = ""  # what the registry says to a push, pull or login
        self.references = [f"localhost:5000/me/tiny@sha256:{'1' * 64}"]
        self.there: list[str] = []
        self.given: bytes | None = None

    def run(self, *words: str, **_options: Any) -> str:
        self.asked.append(list(words))
        if words[0] == "commit" and self.full:
            raise EngineError("podman commit failed: Error: writing blob: no space left on device")
        if words[:2] == ("image", "inspect"):
            settings = {"Entrypoint": ["/opt/start"], "Cmd": None}
            return json.dumps([{"Config": settings, "RepoDigests": self.references}])
        return "sha256:0123\n"

    def at_registry(self, verb: str, *words: str, auth: bytes | None = None, plain: bool, **_options: Any) -> str:
        assert plain
        self.asked.append([verb, *words])
        self.given = auth
        if verb == "push" and self.answer:
            raise EngineError(self.answer)
        if verb == "pull" and words[-1] not in self.there:
            raise EngineError(self.answer or "podman pull failed: Error: manifest unknown")
        if verb == "login" and self.answer:
            raise EngineError("podman login failed: Error: getting username and password: reading username: EOF")
        if verb == "push":
            Path(words[1].removeprefix("--digestfile=")).write_text(f"{PUSHED}\n")
            self.there.append(f"localhost:5000/me/tiny@{PUSHED}")
        return ""

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


def test_the_image_is_cleaned_and_starts_as_its_base_does(engine: Engine) -> None:
    image.finish(TINY, "c")
    clean, _inspect, _image, commit = engine.asked
    assert clean[:2] == ["exec", "c"] and "/opt/gpuyard/run" in clean[-1] and "/etc/ssh/ssh_host_*" in clean[-1]
    assert commit[-2:] == ["c", TINY] and "LABEL gpuyard.fingerprint=abcd" in commit
    assert 'ENTRYPOINT ["/opt/start"]' in commit and "CMD []" in commit
    assert engine.removed == ["c"]


def test_an_image_that_does_not_fit_is_one_sentence(engine: Engine) -> None:
    engine.full = True
    with pytest.raises(UsageError, match=rf"^The image {TINY} does not fit: .*no space left on device\. Make room and"):
        image.finish(TINY, "c")
    assert engine.removed == []


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {"localhost:5000": {"auth": base64.b64encode(b"me:secret").decode()}}}))
    monkeypatch.setenv(registry.VARIABLE, str(file))
    return file


def test_an_image_is_pushed_once_and_pinned_by_the_digest_of_the_registry(engine: Engine, login: Path) -> None:
    pushed = image.send(TINY, progress=lambda _line: None)
    assert pushed == image.Pushed(f"localhost:5000/me/tiny@{PUSHED}", changed=True)
    assert engine.given == login.read_bytes()
    assert not [words for words in engine.asked if "secret" in " ".join(words)]
    engine.references.append(pushed.reference)
    engine.asked.clear()
    assert image.send(TINY, progress=lambda _line: None) == image.Pushed(pushed.reference, changed=False)
    assert "push" not in [words[0] for words in engine.asked]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("podman push failed: Error: unauthorized: authentication required", "does not take the login in GPUYARD_REGI"),
        ("podman push failed: Error: dial tcp 127.0.0.1:5000: connect: connection refused", "does not answer: podman"),
        ("podman push failed: Error: blob upload invalid", "^podman push failed: Error: blob upload invalid"),
    ],
)
def test_a_push_that_fails_is_one_sentence_and_keeps_the_image(
    engine: Engine, login: Path, answer: str, sentence: str
) -> None:
    engine.answer = answer
    with pytest.raises(UsageError, match=rf"{sentence}.*is kept on this machine, so the same command again only sends"):
        image.send(TINY, progress=lambda _line: None)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("podman pull failed: Error: unauthorized: authentication required", "does not take the login in GPUYARD_REG"),
        ("podman pull failed: Error: dial tcp: lookup localhost: no such host", "does not answer: podman pull"),
    ],
)
def test_a_registry_is_asked_before_all_work(
    engine: Engine, workload: Path, login: Path, answer: str, sentence: str
) -> None:
    engine.answer = answer
    with pytest.raises(UsageError, match=sentence):
        prepare(workload, push=True)
    assert "run" not in [words[0] for words in engine.asked]
    engine.answer = ""
    assert not prepare(workload, push=True).there


def test_a_workload_without_an_image_is_told_how_to_name_one(engine: Engine, workload: Path) -> None:
    workload.write_text(yaml.safe_dump({name: value for name, value in DOCUMENT.items() if name != "container"}))
    with pytest.raises(UsageError, match=r"says nothing of an image: add container: \{base: …, name: …\}"):
        prepare(workload)
