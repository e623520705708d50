"""Measures publishing and restoring against programs that only copy files, on the same S3 server in the same run.

The server is SeaweedFS on this computer's loopback. Programs that this computer lacks (s5cmd, obstore) are left out of
the table. What is copied is read once beforehand, so that nobody waits for the disk alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpuyard.box.checkpoints import open_store, publish, restore

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "bench"
ACCESS_KEY, SECRET_KEY = "benchmark", "no-secret-1"
MB = 1_000_000
START_S = 60.0


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, and the most that it may be (``None``: it is only reported)."""

    title: str
    value: float
    unit: str = "s"
    most: float | None = None

    @property
    def held(self) -> bool:
        """Whether the limit is held."""
        return self.most is None or self.value <= self.most

    def line(self) -> str:
        """Return it for people."""
        limit = "" if self.most is None else f"at most {self.most:g}{self.unit}: {'held' if self.held else 'NOT held'}"
        return f"{self.title:<72}{self.value:9.3f}{self.unit:<3} {limit}".rstrip()


@dataclass(frozen=True)
class Server:
    """An S3 server, and how programs are told of it."""

    endpoint: str

    @property
    def env(self) -> dict[str, str]:
        """Variables for programs that speak S3."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Run SeaweedFS with its data below ``folder``."""
    weed = Path(sys.executable).with_name("weed")
    master, volume, filer, s3 = _free_ports(4)
    command = [
        *(str(weed), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"),
        *("-master.telemetry=false", f"-bucket={BUCKET}", "-webdav=false", "-admin.ui=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={"PATH": os.environ["PATH"], "HOME": str(folder), **keys}
        )
        try:
            found = Server(f"http://127.0.0.1:{s3}")
            _await(found, process)
            yield found
        finally:
            process.terminate()
            process.wait(timeout=60)


def _free_ports(count: int) -> list[int]:
    """Return free ports whose neighbours 10,000 above, which SeaweedFS also takes, are likely to be free as well."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in range(21_000 + os.getpid() % 1000, 30_000):
            sockets = [held.enter_context(socket.socket()) for _ in range(2)]
            with contextlib.suppress(OSError):
                for number, item in enumerate(sockets):
                    item.bind(("127.0.0.1", port + number * 10_000))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise SystemExit("There are no free ports for the S3 server.")


def _await(found: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    store = open_store(f"s3://{BUCKET}/ready", env=found.env)
    while True:
        with contextlib.suppress(Exception):
            store.put("ready", b"ready")
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("The S3 server does not start.")
        time.sleep(0.2)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long ``work`` takes, and what it returns."""
    began = time.monotonic()
    found = work()
    return time.monotonic() - began, found


def fill(folder: Path, files: int, size: int) -> Path:
    """Make so many files of random bytes."""
    folder.mkdir(parents=True)
    for number in range(files):
        (folder / f"file-{number:04d}.bin").write_bytes(os.urandom(size))
    return folder


def appended(found: Server, work: Path, rounds: int) -> list[Row]:
    """1 MB is appended to 200 MB: what is sent, and how long that takes as against the first time."""
    full: list[float] = []
    again: list[float] = []
    sent = 0
    for number in range(rounds):
        store = open_store(f"s3://{BUCKET}/appended-{number}", env=found.env)
        root = fill(work / f"appended-{number}", 1, 200 * MB)
        full.append(seconds(partial(publish, store, "run-0", root))[0])
        with (root / "file-0000.bin").open("ab") as stream:
            stream.write(os.urandom(MB))
        took, published = seconds(partial(publish, store, "run-0", root))
        again.append(took)
        sent = published.bytes_sent
        shutil.rmtree(root)
    return [
        Row("200 MB published", min(full)),
        Row("1 MB appended, published", min(again)),
        Row("1 MB appended, sent", sent / MB, " MB", 20.0),
        Row("1 MB appended ÷ published whole", min(again) / min(full), " ×", 0.2),
    ]


Copy = Callable[[Path, str], object]


def rivals(found: Server) -> dict[str, tuple[Copy, Copy]]:
    """Return what copies a folder to a prefix of the bucket, and back, by its name."""
    ways: dict[str, tuple[Copy, Copy]] = {"boto3": _boto3(found)}
    rclone = Path(sys.executable).with_name("rclone")
    config = {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_B_TYPE": "s3",
        "RCLONE_CONFIG_B_PROVIDER": "SeaweedFS",
        "RCLONE_CONFIG_B_ENDPOINT": found.endpoint,
        "RCLONE_CONFIG_B_ENV_AUTH": "true",
        "RCLONE_CONFIG_B_NO_CHECK_BUCKET": "true",
    }
    flags = ["--transfers=8", "--s3-chunk-size=16M"]
    ways["rclone"] = (
        lambda folder, prefix: _run(
            found, [str(rclone), "copy", *flags, str(folder), f"b:{BUCKET}/{prefix}"], **config
        ),
        lambda folder, prefix: _run(
            found, [str(rclone), "copy", *flags, f"b:{BUCKET}/{prefix}", str(folder)], **config
        ),
    )
    if s5cmd := shutil.which("s5cmd"):
        ways["s5cmd"] = (
            lambda folder, prefix: _run(
                found, [s5cmd, "--endpoint-url", found.endpoint, "cp", f"{folder}/", f"s3://{BUCKET}/{prefix}/"]
            ),
            lambda folder, prefix: _run(
                found, [s5cmd, "--endpoint-url", found.endpoint, "cp", f"s3://{BUCKET}/{prefix}/*", f"{folder}/"]
            ),
        )
    if importlib.util.find_spec("obstore"):
        ways["obstore"] = _obstore(found)
    return ways


def _run(found: Server, command: list[str], **more: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **found.env, **more})


def _boto3(found: Server) -> tuple[Copy, Copy]:
    import boto3

    client = boto3.client("s3", endpoint_url=found.endpoint, aws_access_key_id=ACCESS_KEY,
                          aws_secret_access_key=SECRET_KEY, region_name="us-east-1")  # fmt: skip

    def up(folder: Path, prefix: str) -> object:
        with ThreadPoolExecutor(8) as pool:
            return list(
                pool.map(lambda file: client.upload_file(str(file), BUCKET, f"{prefix}/{file.name}"), folder.iterdir())
            )

    def down(folder: Path, prefix: str) -> object:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda key: client.download_file(BUCKET, key, str(folder / key.split("/")[-1])), keys))

    return up, down


def _obstore(found: Server) -> tuple[Copy, Copy]:
    # Not of this project, so there may be none.
    obstore = importlib.import_module("obstore")
    store = obstore.store.S3Store(
        BUCKET,
        endpoint=found.endpoint,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )

    def fetch(folder: Path, path: str) -> None:
        with (folder / path.split("/")[-1]).open("wb") as stream:
            for chunk in obstore.get(store, path):
                stream.write(chunk)

    def up(folder: Path, prefix: str) -> object:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda file: obstore.put(store, f"{prefix}/{file.name}", file), folder.iterdir()))

    def down(folder: Path, prefix: str) -> object:
        paths = [item["path"] for page in obstore.list(store, prefix) for item in page]
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda path: fetch(folder, path), paths))

    return up, down


def copied(found: Server, work: Path, title: str, files: int, size: int, rounds: int) -> list[Row]:
    """A folder is published and restored, and copied to and from the same bucket by each rival."""
    ways: dict[str, tuple[Copy, Copy]] = {"gpuyard": _gpuyard(found), **rivals(found)}
    source = fill(work / "source", files, size)
    up: dict[str, list[float]] = {name: [] for name in ways}
    down: dict[str, list[float]] = {name: [] for name in ways}
    processor: list[float] = []
    # One after another in each round, so that whatever else the computer does meets all of them.
    for number in range(rounds):
        for name, (send, fetch) in ways.items():
            prefix = f"{name}-{files}-{number}"
            shutil.rmtree(source / ".gpuyard", ignore_errors=True)
            before = resource.getrusage(resource.RUSAGE_SELF)
            up[name].append(seconds(partial(send, source, prefix))[0])
            after = resource.getrusage(resource.RUSAGE_SELF)
            if name == "gpuyard":
                processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            shutil.rmtree(source / ".gpuyard", ignore_errors=True)
            target = work / "target"
            target.mkdir()
            down[name].append(seconds(partial(fetch, target, prefix))[0])
            if len([file for file in target.iterdir() if file.is_file()]) != files:
                raise SystemExit(f"{name} has not brought back all files.")
            shutil.rmtree(target)
    shutil.rmtree(source)
    rows = []
    for verb, took in (("publish", up), ("restore", down)):
        least = {name: min(values) for name, values in took.items()}
        best = min(value for name, value in least.items() if name != "gpuyard")
        rows += [Row(f"{title}, {verb}: {name}", value) for name, value in least.items()]
        rows.append(Row(f"{title}, {verb}: gpuyard ÷ the best", least["gpuyard"] / best, " ×", 1.15))
    return [*rows, Row(f"{title}, publish: processor time of gpuyard", min(processor))]


def large(found: Server, work: Path, rounds: int) -> list[Row]:
    """A few large files."""
    return copied(found, work, "1 GB in 4 files", 4, 250 * MB, rounds)


def small(found: Server, work: Path, rounds: int) -> list[Row]:
    """Many small files."""
    return copied(found, work, "1,000 files of 16 KB", 1000, 16_000, rounds)


def _gpuyard(found: Server) -> tuple[Copy, Copy]:
    store = open_store(f"s3://{BUCKET}", env=found.env)
    return (
        lambda folder, prefix: publish(store, prefix, folder),
        lambda folder, prefix: restore(lambda: store, prefix, folder),
    )


def main() -> int:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    measures = {"appended": appended, "large": large, "small": small}
    parser.add_argument("--only", choices=measures, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/latest-checkpoints.json")
    options = parser.parse_args()
    wanted = options.only or list(measures)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="gpuyard-bench-") as folder:
        work = Path(folder)
        (work / "server").mkdir()
        with server(work / "server") as found:
            for name in wanted:
                measured = measures[name](found, work, options.rounds)
                print(*(row.line() for row in measured), sep="\n", flush=True)
                rows += measured
    if not options.only:
        figures = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    return 0 if all(row.held for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
