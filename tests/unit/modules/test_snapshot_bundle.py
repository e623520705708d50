# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""X10: a machine's state is packed, lost and restored, with the real tar and zstd and a server on loopback."""

from __future__ import annotations

import hashlib
import http.server
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuyard.formats import bundle

PARTS = {"rust": "aa", "repository": "bb", "python": "cc", "build": "dd"}
COLLECTIONS = Path(__file__).resolve().parents[3] / "collections"
CANARY = "canary-bundle-3b7f19d0c2"
Restore = Callable[..., dict[str, Any]]


# Runs the module in a process of its own, which can be killed; its options come as JSON.
KILLABLE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader([sys.argv[1]])
from ansible_collections.gpuyard.cloud.plugins.modules import snapshot_bundle
with patch_module_args(json.loads(sys.argv[2])):
    snapshot_bundle.main()
"""


def pause(seconds: float) -> None:
    """Wait, also where the module's own waiting is switched off."""
    threading.Event().wait(seconds)


class Bucket(http.server.BaseHTTPRequestHandler):
    """STAND-IN for the S3 server behind signed addresses: keeps what is put, answers ranges, and fails on demand."""

    objects: dict[str, bytes]
    asked: list[tuple[str, str]]
    cut: dict[str, int]  # by name, after how many bytes the first answer breaks off
    stall: threading.Event | None
    pause_s: float

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        begin = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        self.asked.append((self.path, self.headers.get("Range", "")))
        if self.stall is not None and len(self.asked) > 2:
            self.stall.wait(60)
        pause(self.pause_s)
        body = self.objects[self.path][begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cut.pop(self.path, len(body))])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def bucket() -> Iterator[tuple[str, type[Bucket]]]:
    handler = type("Handler", (Bucket,), {"objects": {}, "asked": [], "cut": {}, "stall": None, "pause_s": 0.0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", handler
        server.shutdown()


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine in shape, with what belongs to its run beside it; returns the module's options for it."""
    module = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.modules.snapshot_bundle")
    monkeypatch.setattr(module, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(module, "PACKAGE_CACHE", tmp_path / "archives")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    root, volume = tmp_path / "gpuyard", tmp_path / "volume"
    code, environment = root / "src/tiny/0123", root / "envs/tiny/4567"
    for number in range(5):
        (path := write(root / f"rust/lib/{number}.so", "x")).write_bytes(os.urandom(60_000))
        os.utime(path, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    write(root / "rust/cargo/registry/cache/a.crate", "can be had again")
    write(code / "train.py", "print('trained')")
    write(code / "target/release/prover", "#!/bin/sh\necho verified $TOLD", 0o755)
    write(volume / "models/weights", CANARY)
    (code / "models").symlink_to(volume / "models")
    (code / "latest").symlink_to("train.py")
    write(environment / "bin/python", "#!/bin/sh", 0o755)
    write(environment.with_name(".4567.json"), "{}")
    write(code.with_name(".0123.json"), json.dumps({"built": "dd"}))
    pause(0.02)  # the clock of a file system has steps
    write(code / "wandb/run", CANARY)
    write(root / "run/secrets.env", CANARY, 0o600)
    write(root / "took.json", json.dumps({str(root / "rust"): 30.0, str(code): 12.5, "/elsewhere": 99.0}))
    write(tmp_path / "bin/cargo", f'#!/bin/sh\nexec "{root}/rust/bin/cargo" "$@"', 0o755)
    write(tmp_path / "bin/other", "#!/bin/sh\n", 0o755)
    record = {"fingerprint": "ff", "parts": PARTS | {"packages": "ee"}, "repository": str(code)}
    write(root / "converged.json", json.dumps(record | {"search_path": [str(environment / "bin")]}))
    return {
        "root": str(root),
        "paths": [str(root / "rust")],
        "persist_root": str(volume),
        "launchers": str(tmp_path / "bin"),
        "bundled": list(PARTS),
        "workload": "tiny",
    }


def wanted(manifest: dict[str, Any], url: str) -> dict[str, Any]:
    """Return the options that restore a bundle from the bucket at ``url``."""
    digests = [piece["sha256"] for piece in [*manifest["pieces"], manifest["zstd"]]]
    return {"state": "restored", "offers": [manifest], "addresses": {digest: url + digest for digest in digests}}


@pytest.fixture
def packed(run_module: Any, machine: dict[str, Any], bucket: tuple[str, type[Bucket]]) -> dict[str, Any]:
    """Pack and send the machine's state, and return what the bundle holds."""
    done = run_module("snapshot_bundle", **machine, step="packed")
    manifest: dict[str, Any] = done["manifest"]
    addresses = wanted(manifest, bucket[0])["addresses"]
    assert run_module("snapshot_bundle", **machine, step="sent", addresses=addresses)["changed"]
    return manifest


@pytest.fixture
def restore(run_module: Any, machine: dict[str, Any], bucket: tuple[str, type[Bucket]]) -> Restore:
    """Return a function that restores a bundle onto the machine."""

    def run(manifest: dict[str, Any], **options: Any) -> dict[str, Any]:
        result: dict[str, Any] = run_module("snapshot_bundle", **(machine | wanted(manifest, bucket[0]) | options))
        return result

    return run


def lose(machine: dict[str, Any]) -> Path:
    """Make an empty machine of it."""
    shutil.rmtree(machine["root"])
    shutil.rmtree(machine["launchers"])
    return Path(machine["root"])


def test_a_machine_gets_what_another_one_was_brought_to(
    machine: dict[str, Any], packed: dict[str, Any], restore: Restore, tmp_path: Path
) -> None:
    root = lose(machine)
    assert restore(packed)["restored"]
    library = root / "rust/lib/3.so"
    # cargo goes by the billionth of a second, and so do our notes of what was brought.
    assert library.stat().st_mtime_ns == 1_700_000_000_123_456_789 and library.stat().st_size == 60_000
    code = root / "src/tiny/0123"
    assert (code / "latest").readlink() == Path("train.py") and os.access(code / "target/release/prover", os.X_OK)
    assert json.loads((root / "src/tiny/.0123.json").read_text()) == {"built": "dd"}
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["cargo"]
    record = json.loads((root / "converged.json").read_text())
    assert record["parts"] == PARTS and record["fingerprint"] == ""
    assert (record["repository"], record["search_path"]) == (str(code), [f"{root}/envs/tiny/4567/bin"])
    assert not (root / "bundle").exists() and not (root / "rust/cargo/registry/cache").exists()
    # Only what differs is to do: the packages, which no bundle holds.
    assert packed["built_s"] == {f"{root}/rust": 30.0, str(code): 12.5}


def test_nothing_of_the_run_is_in_a_bundle(
    machine: dict[str, Any], packed: dict[str, Any], bucket: tuple[str, type[Bucket]]
) -> None:
    assert len(packed["pieces"]) > 2
    for piece in packed["pieces"]:
        data = bucket[1].objects[f"/{piece['sha256']}"]
        assert hashlib.sha256(data).hexdigest() == piece["sha256"]
        assert (
            CANARY.encode() not in subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
        )
    assert "gpuyard/run" not in json.dumps(packed)


def test_the_same_state_makes_the_same_pieces(run_module: Any, machine: dict[str, Any], packed: dict[str, Any]) -> None:
    """So that what is in the bucket already is not sent again."""
    assert run_module("snapshot_bundle", **machine, step="packed")["manifest"]["pieces"] == packed["pieces"]


def test_a_state_that_the_bucket_has_is_not_packed_again(
    run_module: Any, machine: dict[str, Any], packed: dict[str, Any]
) -> None:
    there = [f"{bundle.Bundle.from_dict(packed).key}/{packed['platform']}"]
    done = run_module("snapshot_bundle", **machine, step="packed", there=there, verify=["exit 3"])
    assert not done["changed"] and "manifest" not in done


def test_the_state_is_verified_before_and_the_release_build_stays(run_module: Any, machine: dict[str, Any]) -> None:
    """B14: the workload's own commands say whether it is worth keeping; clean-up does not delete what they use."""
    verify = ["test \"$(target/release/prover)\" = 'verified yes'"]
    code = Path(machine["root"], "src/tiny/0123")
    write(code / "target/release/incremental/x", "can be had again")
    done = run_module("snapshot_bundle", **machine, step="packed", verify=verify, environment={"TOLD": "yes"})
    assert done["actions"][0] == "verify with 1 command"
    assert (code / "target/release/prover").exists() and not (code / "target/release/incremental").exists()
    assert not Path(machine["root"], "rust/cargo/registry/cache").exists()
    failed = run_module("snapshot_bundle", **machine, step="packed", verify=["echo why >&2; exit 3"])
    words = r"Verifying with 'echo why >&2; exit 3' failed with exit code 3, so no bundle was made: mend .*\.\nwhy"
    assert failed["failed"] and re.fullmatch(words, failed["msg"])


def test_a_damaged_piece_is_named_and_nothing_is_changed(
    machine: dict[str, Any], packed: dict[str, Any], restore: Restore, bucket: tuple[str, type[Bucket]]
) -> None:
    root = lose(machine)
    digest = packed["pieces"][1]["sha256"]
    body = bytearray(bucket[1].objects[f"/{digest}"])
    body[100] ^= 1
    bucket[1].objects[f"/{digest}"] = bytes(body)
    result = restore(packed)
    assert not result["restored"] and not result["changed"]
    assert f"its piece {digest[:12]} is damaged" in result["reason"]
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_a_connection_that_breaks_off_is_taken_up(
    machine: dict[str, Any], packed: dict[str, Any], restore: Restore, bucket: tuple[str, type[Bucket]]
) -> None:
    lose(machine)
    digest = packed["pieces"][0]["sha256"]
    bucket[1].cut[f"/{digest}"] = 1000
    assert restore(packed)["restored"]
    assert [asked for path, asked in bucket[1].asked if path == f"/{digest}"] == ["", "bytes=1000-"]


def test_a_restore_that_was_killed_leaves_nothing_half_and_the_next_one_goes_on(
    machine: dict[str, Any], packed: dict[str, Any], restore: Restore, bucket: tuple[str, type[Bucket]]
) -> None:
    root = lose(machine)
    bucket[1].stall = threading.Event()
    words = [sys.executable, "-c", KILLABLE, str(COLLECTIONS), json.dumps(machine | wanted(packed, bucket[0]))]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    whole: set[str] = set()
    while not whole or len(bucket[1].asked) < 3:
        assert time.monotonic() < deadline and child.poll() is None
        pause(0.01)
        whole = {f"/{path.name}" for path in root.glob("bundle/pieces/*") if path.suffix != ".part"}
    child.kill()
    child.wait()
    bucket[1].stall.set()
    assert {path.name for path in root.iterdir()} == {"bundle"}
    asked = len(bucket[1].asked)
    assert restore(packed)["restored"] and (root / "rust/lib/0.so").exists()
    assert not whole & {path for path, _asked in bucket[1].asked[asked:]}, "what was whole is not fetched again"


def test_of_a_bundle_of_another_state_only_what_fits_counts_as_brought(
    run_module: Any, machine: dict[str, Any], packed: dict[str, Any], restore: Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.modules.snapshot_bundle")
    budgets: list[float] = []
    meter = module.Meter
    monkeypatch.setattr(module, "Meter", lambda total, took: budgets.append(took) or meter(total, took))
    root = lose(machine)
    assert restore({**packed, "held": ["rust"]})["restored"]
    record = json.loads((root / "converged.json").read_text())
    assert record["parts"] == {"rust": PARTS["rust"]}
    # The build is there to go on from, and its time does not speak for the bundle.
    assert (root / "src/tiny/0123/target/release/prover").exists() and budgets == [30.0]


def test_building_is_preferred_where_the_bucket_is_slow(
    machine: dict[str, Any],
    packed: dict[str, Any],
    restore: Restore,
    bucket: tuple[str, type[Bucket]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.modules.snapshot_bundle")
    monkeypatch.setattr(module, "PROBE_S", 0.01)
    root = lose(machine)
    bucket[1].pause_s = 0.1
    soon = {**packed, "built_s": {"/opt/gpuyard/rust": 0.001}}
    result = restore(soon, streams=1)
    assert not result["restored"] and "and building takes 0 s" in result["reason"] and not (root / "rust").exists()
    assert restore(soon, streams=1, always=True)["restored"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"platform": "riscv64-plan9-none"}, "there is one for riscv64-plan9-none, not for"),
        ({"files": ["/etc/cron.d/root"]}, "it would write /etc/cron.d/root, where a bundle has no business"),
        ({"unpacked_bytes": 10**18}, "it needs 1000000000"),
    ],
)
def test_a_bundle_that_does_not_fit_is_not_used(
    machine: dict[str, Any], packed: dict[str, Any], restore: Restore, changes: dict[str, Any], reason: str
) -> None:
    lose(machine)
    result = restore({**packed, **changes})
    assert not result["restored"] and reason in result["reason"]


def test_the_environment_of_an_image_stays_with_the_image(run_module: Any, machine: dict[str, Any]) -> None:
    root = Path(machine["root"])
    shutil.rmtree(root / "envs/tiny/4567")
    write(root.parent / "venv/main/bin/python", "#!/bin/sh")
    (root / "envs/tiny/4567").symlink_to(root.parent / "venv/main")
    manifest = run_module("snapshot_bundle", **machine, step="packed")["manifest"]
    assert manifest["held"] == ["build", "repository", "rust"] and manifest["parts"] == PARTS


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [("/opt/elsewhere-not-there", ""), ("{root}/run", "cannot be in a bundle: it holds what belongs to one run only")],
)
def test_a_role_says_what_belongs_into_a_bundle(
    run_module: Any, machine: dict[str, Any], tmp_path: Path, listed: str, sentence: str
) -> None:
    write(tmp_path / "elan/lean", "lean")
    lines = f"{tmp_path}/elan\n{listed.format(root=machine['root'])}\n"
    write(Path(machine["root"], "bundle.d/lean.txt"), lines)
    result = run_module("snapshot_bundle", **machine, step="packed")
    if sentence:
        assert sentence in result["msg"]
    else:
        assert str(tmp_path / "elan") in result["manifest"]["folders"]


def test_a_machine_that_is_not_in_shape_has_nothing_to_keep(run_module: Any, machine: dict[str, Any]) -> None:
    Path(machine["root"], "converged.json").unlink()
    assert "launch a run on it first" in run_module("snapshot_bundle", **machine, step="packed")["msg"]


def test_how_long_it_took_is_noted(run_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """X10: what fetching is compared with. A later, smaller change does not make it less."""
    box = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._box")
    lock = write(tmp_path / "gpuyard/modules.lock", "")
    monkeypatch.setattr(box, "MODULES_LOCK", lock)

    class Module:
        params = {"root": "/opt/gpuyard/rust"}
        check_mode = False

    for seconds in (20.04, 1.0):
        box.note_time(Module, {"changed": True}, seconds)
    box.note_time(Module, {"changed": False}, 50.0)
    assert json.loads((tmp_path / "gpuyard/took.json").read_text()) == {"/opt/gpuyard/rust": 20.0}
