# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""B13: data sets of Google and Azure, where ``gcp-storage-emulator`` (pip) and ``azurite`` (npm) are installed.

`make test` brings both, Azurite where there is an npm.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

RCLONE = str(Path(sys.executable).with_name("rclone"))
FILES = {"train/a.txt": b"a" * 5000, "README": b"pairs\n"}
# The account that every Azurite has.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def emulator(program: str, *words: str) -> Iterator[int]:
    """Start an emulator whose last word is the option for its port, and yield the port."""
    if not shutil.which(program):
        pytest.skip(f"there is no {program} here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with subprocess.Popen([program, *words, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        try:
            yield port
        finally:
            server.terminate()


def fill(tmp_path: Path, target: str, words: Sequence[str] = (), **settings: str) -> None:
    """Put the files into a bucket, which is called ``gpuyard``."""
    for name, content in FILES.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    env = {**os.environ, "RCLONE_CONFIG": os.devnull, **settings}
    command = [RCLONE, "copy", str(tmp_path / "source"), f"{target}gpuyard/pairs", *words]
    subprocess.run(command, env=env, check=True, timeout=120)


def check(run_module: Any, tmp_path: Path, origin: dict[str, Any], secrets: dict[str, str]) -> None:
    """Fetch the data set once, and not again."""
    options = {
        "datasets": {"pairs": {**origin, "to": "pairs"}},
        "root": str(tmp_path / "persistent"),
        "secrets": secrets,
    }
    first = run_module("dataset", rclone=RCLONE, **options)
    assert first.get("actions") == [f"fetch 2 files (5.0 kB) of pairs from {origin['from']}"], first
    for name, content in FILES.items():
        assert (tmp_path / "persistent/pairs" / name).read_bytes() == content
    assert not run_module("dataset", rclone="/nonexistent", **options)["changed"]


def test_azure_by_its_connection_string_and_in_public(run_module: Any, tmp_path: Path) -> None:
    words = ["--silent", "--skipApiVersionCheck", "--location", str(tmp_path / "azurite"), "--blobPort"]
    with emulator("azurite-blob", *words) as port:
        address = f"http://127.0.0.1:{port}/{ACCOUNT}"
        text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};BlobEndpoint={address};"
        public = ["--azureblob-public-access", "container"]
        fill(tmp_path, ":azureblob:", public, RCLONE_AZUREBLOB_CONNECTION_STRING=text)
        (tmp_path / "private").mkdir()
        (tmp_path / "open").mkdir()
        origin = {"from": "az://gpuyard/pairs"}
        check(run_module, tmp_path / "private", origin, {"AZURE_STORAGE_CONNECTION_STRING": text})
        check(run_module, tmp_path / "open", {**origin, "public": True, "endpoint": address}, {})
        refused = run_module("dataset", rclone=RCLONE, datasets={"pairs": {**origin, "to": "x"}}, root=str(tmp_path))
        assert "needs AZURE_STORAGE_CONNECTION_STRING" in refused["msg"]


def test_google_in_public(run_module: Any, tmp_path: Path) -> None:
    words = ["start", "--host", "127.0.0.1", "--in-memory", "--default-bucket", "gpuyard", "--port"]
    with emulator("gcp-storage-emulator", *words) as port:
        endpoint = f"http://127.0.0.1:{port}/storage/v1/"
        fill(
            tmp_path,
            ":google cloud storage:",
            RCLONE_GCS_ENDPOINT=endpoint,
            RCLONE_GCS_ANONYMOUS="true",
            RCLONE_GCS_BUCKET_POLICY_ONLY="true",
        )
        check(run_module, tmp_path, {"from": "gs://gpuyard/pairs", "public": True, "endpoint": endpoint}, {})
