# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""B13, U6 and V8: data sets, with the real ``rclone`` against real servers on loopback, which rclone is as well."""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

RCLONE = str(Path(sys.executable).with_name("rclone"))
KEY, SECRET = "dataset-canary-key", "dataset-canary-secret"
FILES = {"train/a.parquet": b"a" * 5000, "train/b.parquet": b"b" * 70_000, "README": b"pairs\n"}
Usage = namedtuple("Usage", "total used free")


@contextmanager
def serve(kind: str, folder: Path, *words: str) -> Iterator[str]:
    """Yield the address of a server of ``folder``."""
    command = [RCLONE, "serve", kind, "--addr", "127.0.0.1:0", "--config", os.devnull, *words, str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        try:
            yield address
        finally:
            server.terminate()


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def sums(files: dict[str, bytes]) -> bytes:
    """Return what sha256sum writes of these files."""
    return "".join(f"{hashlib.sha256(content).hexdigest()}  ./{name}\n" for name, content in files.items()).encode()


def held(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, without what gpuyard keeps there."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".gpuyard")}


class Site:
    """A bucket, a web server, and the persistent folder of a box."""

    def __init__(self, tmp_path: Path, run_module: Any, s3: str, web: str) -> None:
        self.run_module, self.s3, self.web = run_module, s3, web
        self.bucket, self.pages = tmp_path / "s3/bucket", tmp_path / "web"
        self.root, self.data = tmp_path / "persistent", tmp_path / "persistent/data/pairs"
        self.repository = tmp_path / "repository"

    def __call__(self, origin: str, *, check: bool = False, rclone: str = RCLONE, **entry: Any) -> dict[str, Any]:
        """Run the module with one data set."""
        result: dict[str, Any] = self.run_module(
            "dataset",
            check=check,
            datasets={"pairs": {"from": origin, "to": "data/pairs", **entry}},
            root=str(self.root),
            repository=str(self.repository),
            secrets={"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET},
            bucket="s3://bucket/mine",
            s3_endpoint=self.s3,
            rclone=rclone,
        )
        return result


@pytest.fixture
def site(tmp_path: Path, run_module: Any) -> Iterator[Site]:
    for name in ("s3/bucket", "web", "repository"):
        (tmp_path / name).mkdir(parents=True)
    with (
        serve("s3", tmp_path / "s3", "--auth-key", f"{KEY},{SECRET}") as s3,
        serve("http", tmp_path / "web") as web,
    ):
        yield Site(tmp_path, run_module, s3, web)


def test_a_bucket_is_fetched_once(site: Site) -> None:
    """U6 and V8: what lies on the volume is known there, and the bucket is not asked any more."""
    write(site.bucket / "pairs", FILES)
    predicted = site("s3://bucket/pairs", check=True)
    assert (
        predicted["actions"] == ["fetch 3 files (75.0 kB) of pairs from s3://bucket/pairs"] and not site.root.exists()
    )
    first = site("s3://bucket/pairs")
    assert first["actions"] == predicted["actions"] and first["bytes"] == 75006
    assert held(site.data) == FILES
    assert not site("s3://bucket/pairs", rclone="/nonexistent")["changed"]
    assert SECRET not in json.dumps(first)
    assert not any(SECRET.encode() in path.read_bytes() for path in site.root.rglob("*") if path.is_file())


def test_b12_weights_in_the_runs_own_bucket(site: Site, tmp_path: Path) -> None:
    """Against a list of checksums, onto a volume; there once, they are not asked for again."""
    write(site.bucket / "mine/models", {**FILES, "SHA256SUMS": sums(FILES)})
    volume = tmp_path / "volume/models"
    wanted = {"checksums": "SHA256SUMS", "store": str(volume)}
    result = site("bucket://models/", **wanted)
    assert result["actions"][0].endswith("of pairs from s3://bucket/mine/models/"), result
    assert held(volume) == FILES == held(site.data) and site.data.is_symlink()
    shutil.rmtree(site.bucket)
    assert site("bucket://models/", **wanted)["actions"] == []


def test_only_what_is_missing_or_differs_is_fetched(site: Site) -> None:
    write(site.bucket / "pairs", FILES)
    site("s3://bucket/pairs")
    (site.data / "README").unlink()
    (site.data / "train/a.parquet").write_bytes(b"x" * 5000)
    assert site("s3://bucket/pairs")["actions"] == ["fetch 2 files (5.0 kB) of pairs from s3://bucket/pairs"]
    assert held(site.data) == FILES
    # Another choice of files leaves none behind that nobody asks for.
    site("s3://bucket/pairs", include=["train/**"])
    assert set(held(site.data)) == {"train/a.parquet", "train/b.parquet"}


def test_a_list_of_checksums_says_what_is_wanted(site: Site) -> None:
    write(site.pages / "pairs", FILES | {"not-listed": b"", "SHA256SUMS": sums(FILES)})
    pinned = hashlib.sha256(sums(FILES)).hexdigest()
    site(f"{site.web}pairs/", checksums="SHA256SUMS", sha256=pinned)
    assert held(site.data) == FILES
    refused = site(f"{site.web}pairs/", checksums="SHA256SUMS", sha256="0" * 64)
    assert "but 000" in refused["msg"] and "is pinned: nothing was fetched" in refused["msg"]


def test_a_damaged_file_is_refused(site: Site) -> None:
    """The store has another content than the list says, and goes on sending it."""
    write(site.pages / "pairs", FILES | {"SHA256SUMS": sums(FILES), "README": b"pairz\n"})
    result = site(f"{site.web}pairs/", checksums="SHA256SUMS")
    assert "README from" in result["msg"] and "has not the sha256 checksum" in result["msg"]
    assert not (site.data / ".gpuyard-files.json").exists()


def test_a_single_file_of_a_web_server(site: Site) -> None:
    write(site.pages, {"trace.tar": b"trace" * 1000})
    digest = hashlib.sha256(b"trace" * 1000).hexdigest()
    assert site(f"{site.web}trace.tar", sha256=digest)["changed"] and held(site.data) == {"trace.tar": b"trace" * 1000}
    assert not site(f"{site.web}trace.tar", sha256=digest)["changed"]


def large_file(site: Site) -> bytes:
    """Have a file that is fetched by itself, which takes some seconds."""
    content = bytes(range(256)) * 280_000
    write(site.bucket / "pairs", {"large": content})
    return content


def in_background(site: Site, **entry: Any) -> Any:
    """Start the module in a process of its own, which can be killed."""
    module = multiprocessing.get_context("fork").Process(target=site, args=["s3://bucket/pairs"], kwargs=entry)
    module.start()
    return module


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_large_file_goes_on_where_it_was_cut(site: Site) -> None:
    content = large_file(site)
    site("s3://bucket/pairs", check=True)
    # What an earlier download left: its name says of which file and content it is.
    killed = in_background(site, rclone=slow_rclone(site, 0.0, 20_000_000))
    part = wait_for(lambda: [p for p in (site.data / ".gpuyard-parts").glob("*") if p.stat().st_size >= 20_000_000])[0]
    killed.kill()
    killed.join()
    result = site("s3://bucket/pairs", rclone=slow_rclone(site, 0.0, 10**9))
    assert result["changed"] and held(site.data) == {"large": content} and not part.exists()
    asked = (site.root.parent / "asked").read_text().splitlines()
    assert [line.split("--offset ")[1].split()[0] for line in asked if " cat " in line] == ["0", "20000000"]


def test_a_large_file_outlives_its_command(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next command follows the rclone that goes on, shows how far it is, and begins where that one has failed."""
    content = large_file(site)
    go, asked = site.root.parent / "go", site.root.parent / "asked"
    rclone = site.root.parent / "rclone-that-waits"
    waiting = f"{{ head -c 20000000; until [ -e {go} ]; do sleep 0.05; done; head -c 20000000; exit 1; }}"
    rclone.write_text(
        f'#!/bin/bash\nif [ "$1" = cat ]; then echo "$*" >> {asked}; {RCLONE} "$@" | {waiting}\n'
        f'else exec {RCLONE} "$@"; fi\n'
    )
    rclone.chmod(0o755)
    killed = in_background(site, rclone=str(rclone))
    wait_for(lambda: [p for p in (site.data / ".gpuyard-parts").glob("*") if p.stat().st_size >= 20_000_000])
    killed.kill()
    killed.join()
    progress = importlib.import_module("ansible_collections.gpuyard.cloud.plugins.module_utils._progress")
    written: list[dict[str, Any]] = []

    def write_down(record: dict[str, Any]) -> None:
        written.append(record)
        go.touch()

    monkeypatch.setattr(progress, "_write", write_down)
    assert site("s3://bucket/pairs", rclone=str(rclone))["changed"]
    assert held(site.data) == {"large": content}
    assert [line.split()[2] for line in asked.read_text().splitlines()] == ["0", "40000000"]
    assert (written[0]["what"], written[0]["total"]) == ("data set pairs", len(content))
    assert 20_000_000 <= written[0]["done"] < len(content)


def slow_rclone(site: Site, pause_s: float, most: int) -> str:
    """Return an rclone that is the real one, but writes down what it is asked and sends no more than ``most`` bytes."""
    script = site.root.parent / f"rclone-{most}"
    script.write_text(
        f'#!/bin/bash\necho " $* " >> {site.root.parent}/asked\n'
        f'if [ "$1" = cat ]; then {RCLONE} "$@" | head -c {most}; [ {most} -ge 1000000000 ] || exit 1; '
        f'else exec {RCLONE} "$@"; fi\n'
    )
    script.chmod(0o755)
    return str(script)


def test_the_fallback_is_taken_where_the_disk_is_too_small(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """B13: the full trace takes 100 GB; else the one that others have made of it."""
    write(site.bucket, {"full/trace": b"full", "small/trace": b"small"})
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, 60 * 10**9))
    entry = {"disk_gb": 100, "fallback": {"from": "s3://bucket/small"}}
    result = site("s3://bucket/full", **entry)
    assert result["actions"] == [
        f"take the fallback of pairs, because it needs 100.0 GB in {site.data}, and 59.5 GB are free there",
        "fetch 1 file (5 bytes) of pairs from s3://bucket/small",
    ]
    assert held(site.data) == {"trace": b"small"}
    assert not site("s3://bucket/full", rclone="/nonexistent", **entry)["changed"]
    alone = site("s3://bucket/full", disk_gb=100)
    assert "datasets.pairs needs 100.0 GB" in alone["msg"] and "take a machine with a larger disk" in alone["msg"]


def test_the_fallback_is_taken_where_there_is_nothing(site: Site) -> None:
    """B13, and an address with a slip in it is a sentence."""
    write(site.bucket, {"small/trace": b"small"})
    result = site("s3://bucket/full", fallback={"from": "s3://bucket/small/trace"})
    assert result["actions"][0] == "take the fallback of pairs, because there is nothing at s3://bucket/full"
    assert held(site.data) == {"trace": b"small"}
    alone = site(f"{site.web}ful/")
    assert alone["msg"] == f"datasets.pairs: there is nothing at {site.web}ful/: name where the data set is in from."


def test_prepare_runs_once_for_each_state(site: Site) -> None:
    """B13: the pairs are split into train and validation; what fails is said, and runs again."""
    write(site.bucket / "pairs", FILES)
    split = 'test -e go && cat "$DATASET"/README >> prepared'
    failed = site("s3://bucket/pairs", prepare=split)
    assert "datasets.pairs.prepare failed with exit code 1" in failed["msg"]
    (site.repository / "go").touch()
    assert site("s3://bucket/pairs", prepare=split)["actions"] == ["prepare pairs"]
    assert not site("s3://bucket/pairs", prepare=split)["changed"]
    (site.data / "README").unlink()
    write(site.bucket / "pairs", {"README": b"others\n"})
    assert site("s3://bucket/pairs", prepare=split)["actions"][-1] == "prepare pairs"
    assert (site.repository / "prepared").read_text() == "pairs\nothers\n"


def test_prepare_outlives_its_command(site: Site) -> None:
    """The command goes on when the module is killed, and the next one waits for it in place of a second."""
    write(site.bucket / "pairs", FILES)
    slow = "echo begun >> begun; sleep 1"
    killed = in_background(site, prepare=slow)
    wait_for((site.repository / "begun").exists)
    killed.kill()
    killed.join()
    site("s3://bucket/pairs", prepare=slow)
    assert (site.repository / "begun").read_text() == "begun\n"
    assert not site("s3://bucket/pairs", prepare=slow)["changed"]


@pytest.mark.parametrize(
    ("origin", "entry", "message"),
    [
        ("http://127.0.0.1:9/pairs/", {}, "http://127.0.0.1:9/pairs/ cannot be read: "),
        ("ftp://host/pairs", {}, "must begin with bucket://, s3://, b2://, gs://, az:// or https://"),
        ("b2://bucket/pairs", {}, "needs the bucket's S3 address: set B2_S3_ENDPOINT"),
        ("s3://bucket/pairs", {"to": "../x"}, "does not lie in its folder"),
        ("s3://bucket/pairs", {"fallback": {"form": "s3://x"}}, "datasets.pairs.fallback has a wrong key or value"),
    ],
)
def test_mistakes_are_sentences(site: Site, origin: str, entry: dict[str, Any], message: str) -> None:
    result = site(origin, **entry)
    assert result["failed"] and message in result["msg"] and "Traceback" not in result["msg"]


def test_a_list_cannot_lead_out_of_the_folder(site: Site) -> None:
    """A bucket may be in the wrong hands."""
    write(site.pages / "pairs", {"SHA256SUMS": b"0" * 64 + b"  ../../escaped\n"})
    assert "does not lie in its folder: nothing was fetched" in site(f"{site.web}pairs/", checksums="SHA256SUMS")["msg"]
