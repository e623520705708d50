from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ACCESS_KEY = "canary-access-5b1e77d0c2"
SECRET_KEY = "canary-secret-9f4c1a6e8803b7d2"


@dataclass(frozen=True)
class Bucket:
    """A real S3 server on loopback, with one bucket."""

    endpoint: str
    name: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """rclone's S3 server over a folder: it starts in a tenth of a second, and checks signatures."""
    program = Path(sys.executable).with_name("rclone")
    rclone = str(program) if program.exists() else shutil.which("rclone")
    assert rclone, "rclone is part of the test requirements"
    folder = tmp_path_factory.mktemp("s3")
    (folder / "yard").mkdir()
    said = folder.parent / "rclone.log"
    log = said.open("wb")
    # Port 0: it takes a free one itself, and says which. One that was chosen here could be somebody else's by then.
    server = subprocess.Popen(
        [rclone, "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(folder)],
        stdout=log,
        stderr=log,
        env={"PATH": os.environ["PATH"], "HOME": str(folder.parent), "RCLONE_CONFIG": "/dev/null"},
    )
    try:
        deadline = time.monotonic() + 120
        while not (endpoint := re.search(r"http://127\.0\.0\.1:\d+", said.read_text())):
            assert server.poll() is None and time.monotonic() < deadline, "the S3 server does not start"
            time.sleep(0.05)
        yield Bucket(endpoint[0], "yard")
    finally:
        server.terminate()
        server.wait(timeout=60)
        log.close()
