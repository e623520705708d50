# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A private repository at a commit (rows B9, V6): from git's real server behind TLS, and its secret is left nowhere."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpuyard import repository
from gpuyard.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent))
from private_forge import Forge

TOKEN = "canary-token-83c1f0be5d7a4429"
USER = "deploy-bot"
CREDENTIALS = {"kind": "token", "user": USER, "variable": "FORGE_TOKEN"}


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def serving(folder: Path, certificate: Path) -> Iterator[Forge]:
    forge = Forge(folder, certificate, certificate.with_suffix(".key"), USER, TOKEN)
    thread = threading.Thread(target=lambda: forge.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield forge
    finally:
        forge.hold.set()
        forge.shutdown()
        forge.server_close()
        thread.join()


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "forge.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    words += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    words += ["-keyout", str(file.with_suffix(".key")), "-out", str(file)]
    subprocess.run(words, check=True, capture_output=True)
    monkeypatch.setenv("GIT_SSL_CAINFO", str(file))
    monkeypatch.setenv("HOME", str(tmp_path))
    return file


@pytest.fixture
def forge(tmp_path: Path, certificate: Path) -> Iterator[Forge]:
    with serving(tmp_path / "served", certificate) as forge:
        yield forge


@pytest.fixture
def source(forge: Forge, tmp_path: Path) -> dict[str, str]:
    """The address and the commit of a private repository with a private submodule that is named by an SSH address."""
    base = f"https://localhost:{forge.server_address[1]}"
    for name in ("part", "whole"):
        folder = forge.folder / f"{name}.git"
        folder.mkdir(parents=True)
        git(folder, "init", "-q")
        (folder / "file.txt").write_text(f"{name}\n")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", name)
    whole = forge.folder / "whole.git"
    git(whole, "submodule", "--quiet", "add", str(forge.folder / "part.git"), "part")
    # As a developer names it, for whom an SSH key opens it.
    address = f"ssh://git@localhost:{forge.server_address[1]}/part.git"
    git(whole, "config", "-f", ".gitmodules", "submodule.part.url", address)
    git(whole, "commit", "-qam", "with a part")
    return {"url": f"{base}/whole.git", "commit": git(whole, "rev-parse", "HEAD")}


def everywhere(folder: Path) -> bytes:
    """Return all that lies below a folder, unpacked objects of git included."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_b9_v6_a_token_opens_it_and_is_left_nowhere(
    run_module: Any, forge: Forge, source: dict[str, str], tmp_path: Path
) -> None:
    box = tmp_path / "box"
    # A machine on which somebody has configured that passwords are kept.
    (tmp_path / ".gitconfig").write_text(f"[credential]\n helper = store --file={box}/kept\n")
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout)
            time.sleep(0.01)

    watching = threading.Thread(target=watch)
    watching.start()
    options = {**source, "submodules": True, "dest": str(box / "code"), "credentials": CREDENTIALS}
    result = run_module("work_tree", **options, secret=TOKEN)
    done.set()
    watching.join()
    assert result["changed"], result
    assert (box / "code/file.txt").read_text() == "whole\n" and (box / "code/part/file.txt").read_text() == "part\n"
    assert any("git" in text for text in seen) and not any(TOKEN in text for text in seen)
    assert TOKEN not in json.dumps(result) and TOKEN.encode() not in everywhere(box)
    assert git(box / "code", "config", "remote.origin.url") == source["url"]
    assert not run_module("work_tree", **options, secret=TOKEN)["changed"]


def test_the_token_goes_to_its_own_host_only(
    run_module: Any, forge: Forge, source: dict[str, str], tmp_path: Path, certificate: Path
) -> None:
    """A repository may name a submodule at a server that collects tokens."""
    with serving(forge.folder, certificate) as other:
        whole = forge.folder / "whole.git"
        stranger = f"https://127.0.0.1:{other.server_address[1]}/part.git"
        git(whole, "config", "-f", ".gitmodules", "submodule.part.url", stranger)
        git(whole, "commit", "-qam", "a part elsewhere")
        options = {"url": source["url"], "commit": git(whole, "rev-parse", "HEAD"), "submodules": True}
        result = run_module("work_tree", **options, dest=str(tmp_path / "code"), credentials=CREDENTIALS, secret=TOKEN)
        assert result["failed"] and "Fetching the submodules" in result["msg"] and TOKEN not in json.dumps(result)
        assert set(other.seen) == {""} and forge.wanted in forge.seen


def test_a_wrong_token_is_one_sentence_on_both_sides(
    run_module: Any, forge: Forge, source: dict[str, str], tmp_path: Path
) -> None:
    wrong = "canary-wrong-token"
    result = run_module("work_tree", **source, dest=str(tmp_path / "code"), credentials=CREDENTIALS, secret=wrong)
    assert result["failed"] and "Authentication failed" in result["msg"] and wrong not in json.dumps(result)
    with pytest.raises(UsageError, match="cannot be read, so no machine could fetch it either") as caught:
        repository.look(**source, way=repository.with_token(source["url"], USER, wrong))
    assert wrong not in str(caught.value)
    way = repository.with_token(source["url"], USER, TOKEN)
    assert repository.look(**source, way=way) == "" and TOKEN not in repr(way)
    with pytest.raises(UsageError, match="has no such commit"):
        repository.look(source["url"], "0" * 40, way=way)


def test_after_a_kill_nothing_is_left_and_the_next_run_goes_on(
    run_module: Any, forge: Forge, source: dict[str, str], tmp_path: Path
) -> None:
    box = tmp_path / "box"
    options = {**source, "dest": str(box / "code"), "credentials": CREDENTIALS, "secret": TOKEN}
    forge.hold.clear()
    runner = (
        "import sys, importlib; sys.path.insert(0, sys.argv[1]); import conftest; "
        "from ansible.module_utils.testing import patch_module_args; import json; "
        "module = importlib.import_module('ansible_collections.gpuyard.cloud.plugins.modules.work_tree')\n"
        "with patch_module_args(json.load(sys.stdin)): module.main()"
    )
    words = [sys.executable, "-c", runner, str(Path(__file__).parent)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(options))
    process.stdin.close()
    until = time.monotonic() + 60
    while forge.wanted not in forge.seen and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert TOKEN.encode() not in everywhere(box)
    forge.hold.set()
    assert run_module("work_tree", **options)["changed"]
    assert (box / "code/file.txt").exists() and TOKEN.encode() not in everywhere(box)


@pytest.mark.parametrize(
    ("url", "credentials", "secret", "complaint"),
    [
        ("git@forge:a.git", {"kind": "token"}, "x", "a token goes over https only"),
        ("https://forge/a.git", {"kind": "token"}, "", "needs secret, one line"),
        ("https://forge/a.git", {"kind": "deploy_key"}, "x", "deploy_key is for an SSH address"),
        ("git@forge:a.git", {"kind": "deploy_key"}, "", "needs secret, the content of the private key"),
        ("git@forge:a.git", {"kind": "agent"}, "", "no SSH agent reaches this machine"),
    ],
)
def test_credentials_that_cannot_work_are_one_sentence(
    run_module: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    credentials: dict[str, str],
    secret: str,
    complaint: str,
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    options = {"url": url, "commit": "0" * 40, "dest": str(tmp_path / "code")}
    result = run_module("work_tree", **options, credentials=credentials, secret=secret)
    assert result["failed"] and complaint in result["msg"]


def test_an_agent_is_forwarded_for_this_task_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    action = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.action.work_tree")

    class Options:
        """STAND-IN for a plugin of Ansible's that has options."""

        transport, name = "ssh", "ansible.builtin.sudo"

        def __init__(self, **options: str) -> None:
            self.options = options

        def get_option(self, name: str) -> str:
            return self.options[name]

        def set_option(self, name: str, value: str) -> None:
            self.options[name] = value

    connection: Any = Options(ssh_extra_args="-o A=b")
    connection.become = Options(become_flags="-H -S -n")
    module = action.ActionModule.__new__(action.ActionModule)
    module._connection = connection
    monkeypatch.setattr(module, "_execute_module", lambda **_: {}, raising=False)
    module._module({"credentials": {"kind": "deploy_key"}}, {})
    assert connection.options == {"ssh_extra_args": "-o A=b"}
    module._module({"credentials": {"kind": "agent"}}, {})
    assert connection.options == {"ssh_extra_args": "-o A=b -o ForwardAgent=yes -o ControlPath=none"}
    assert connection.become.options == {"become_flags": "-H -S -n --preserve-env=SSH_AUTH_SOCK"}
