"""What a workload says of a private repository, and what the controller must have for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuyard.errors import UsageError
from gpuyard.workload import load_workload

URL = {"token": "https://forge/a/b", "deploy_key": "git@forge:a/b", "agent": "ssh://git@forge/a/b"}


def written(folder: Path, repository: str) -> str:
    (folder / "workloads").mkdir(exist_ok=True)
    file = folder / "workloads" / "hidden.yml"
    file.write_text(f"name: hidden\nrepository: {{{repository}}}\nstages: [{{name: work, command: ls}}]\n")
    return str(file)


def repository(kind: str, more: str = "", url: str = "") -> str:
    return f"url: '{url or URL[kind]}', commit: {'a' * 40}, credentials: {{kind: {kind}{more}}}"


def test_the_machine_gets_no_secret_and_the_controller_is_told_what_it_lacks(tmp_path: Path) -> None:
    workload = load_workload(written(tmp_path, repository("token", ", variable: FORGE")))
    assert workload.to_box()["repository"]["credentials"] == {  # type: ignore[index]
        "kind": "token",
        "variable": "FORGE",
        "user": "x-access-token",
        "host_keys": [],
    }
    with pytest.raises(UsageError, match=r"repository\.credentials: FORGE must hold the token.*Nothing was rented"):
        workload.check_environment({})
    workload.check_environment({"FORGE": "canary"})

    workload = load_workload(written(tmp_path, repository("deploy_key", ", variable: FORGE")))
    with pytest.raises(UsageError, match="FORGE names /no/key, and there is no such file"):
        workload.check_environment({"FORGE": "/no/key"})
    (tmp_path / "key").write_text("a key")
    workload.check_environment({"FORGE": str(tmp_path / "key")})

    workload = load_workload(written(tmp_path, repository("agent")))
    with pytest.raises(UsageError, match="no SSH agent runs here"):
        workload.check_environment({})
    workload.check_environment({"SSH_AUTH_SOCK": "/agent"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (repository("token"), "must have variable, which names where it is, with kind: token"),
        (repository("agent", ", variable: FORGE"), "must not have variable with kind: agent"),
        (repository("token", ", variable: F", URL["agent"]), "must be of kind deploy_key or agent for an SSH address"),
        (repository("agent", "", URL["token"]), "must be of kind token for an https:// address"),
        ("path: code, credentials: {kind: agent}", "must have url where it has credentials"),
        (repository("token", ", variable: F, token: abc"), "credentials.token"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "code").mkdir()
    with pytest.raises(UsageError, match=complaint):
        load_workload(written(tmp_path, text))
