from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gpuyard import repository
from gpuyard.errors import UsageError


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def commits(tmp_path: Path) -> tuple[str, str, str]:
    """Return the address of a real repository, and its two commits; only the second has a name."""
    git(tmp_path, "init", "-q", "code")
    folder = tmp_path / "code"
    for number in range(2):
        git(folder, "commit", "-q", "--allow-empty", "-m", str(number))
    return f"file://{folder}", git(folder, "rev-parse", "HEAD~1"), git(folder, "rev-parse", "HEAD")


def test_a_commit_that_is_there_is_found(commits: tuple[str, str, str]) -> None:
    url, older, newest = commits
    assert repository.look(url, newest) == repository.look(url, older) == ""


def test_what_is_not_there_is_refused(commits: tuple[str, str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"code at 000000000000 has no such commit, so no machine could fetch it"):
        repository.look(commits[0], "0" * 40)
    with pytest.raises(UsageError, match=r"nothing at 000000000000 cannot be read, .*does not appear to be a git"):
        repository.look(f"file://{tmp_path}/nothing", "0" * 40)


class Refusing(BaseHTTPRequestHandler):
    status = 404

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/owner/name"
        made.shutdown()


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_refuses_is_believed_and_nobody_is_asked_for_a_password(
    server: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusing, "status", status)
    with pytest.raises(UsageError, match=r"^repository.url: http.*name at 000000000000 cannot be read"):
        repository.look(server, "0" * 40)


def test_a_server_that_cannot_be_reached_is_a_warning() -> None:
    warning = repository.look("http://127.0.0.1:9/name", "0" * 40)
    assert warning.startswith("http://127.0.0.1:9/name at 000000000000 cannot be looked for from here, and")


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as silent:  # it takes the connection and never answers
        warning = repository.look(f"http://127.0.0.1:{silent.server_port}/name", "0" * 40, timeout_s=0.5)
    assert "could not be looked for within 0.5 s" in warning


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "data").symlink_to("/workspace/data")
    (tmp_path / "models").write_text("a file")
    (tmp_path / "requirements.txt").write_text("")
    return tmp_path


NAMES = ["data", "models", "src/main.py"]


@pytest.mark.parametrize(
    ("persist", "folders", "said"),
    [
        ("/mnt/x", ["data"], r"data is a link to /workspace/data in .*: with persist\.root: /workspace the link"),
        ("/mnt/x", ["data/out"], r"data is a link to /workspace/data in .*: with persist\.root: /workspace the"),
        ("/mnt/x", ["models/new"], r"models is a file in .*, so no folder can be kept under that name"),
    ],
)
def test_what_would_fail_on_the_machine_is_named(tree: Path, persist: str, folders: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        repository.check_tree(tree, NAMES, persist=persist, folders=folders)


def test_a_link_that_leads_to_the_kept_folder_is_not_in_the_way(tree: Path) -> None:
    repository.check_tree(tree, NAMES, persist="/workspace", folders=["data/out", "src"])


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ({"requirements": "requirements.txt"}, r"python\.requirements: the file requirements\.txt is ignored by git"),
        ({"requirements": "more.txt"}, r"python\.requirements: the file more\.txt is not in "),
        ({"lock": "uv.lock"}, r"python\.lock: the file uv\.lock is not in "),
        ({"project": "packages/core"}, r"python\.project: the file packages/core/pyproject\.toml is not in "),
    ],
)
def test_what_the_environment_needs_and_does_not_go_there_is_named(
    tree: Path, python: dict[str, str], said: str
) -> None:
    nothing = {"requirements": None, "project": None, "lock": None}
    with pytest.raises(UsageError, match=said):
        repository.check_python(tree, NAMES, **nothing | python)
    repository.check_python(tree, ["r.txt", "pyproject.toml"], requirements="./r.txt", project=".", lock=None)


def test_files_in_kept_folders_are_found() -> None:
    assert repository.kept(["data/a", "data2/b", "src/data/c", "data/d/e"], ["data", "src/d"]) == ["data/a", "data/d/e"]
