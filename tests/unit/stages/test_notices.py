"""Notices that a machine is taken away: real servers that speak as the clouds' metadata services do, real stages."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from stage_box import Box, wait_for

from gpuyard.box.monitor import notices, stopping
from gpuyard.box.monitor.notices import Aws, Azure, Gcp, Notice, SignalFile
from gpuyard.box.monitor.settings import NoticeFile
from gpuyard.box.monitor.stopping import Stop

NAME = "spot-1"


class Metadata(http.server.ThreadingHTTPServer):
    """STAND-IN for the metadata services: the answers of all three, on loopback. ``left_s`` is None until a notice."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.left_s: float | None = None
        self.rebalance = self.maintenance = False
        self.at = 0.0
        self.tokens: set[str] = set()
        self.asked: list[str] = []
        self.acknowledged: list[str] = []
        self.changed = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def announce(self, seconds: float) -> None:
        self.left_s, self.at = seconds, time.time() + seconds
        self.changed.set()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Metadata

    def answer(self, status: int, body: str = "") -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token" or not self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
            return self.answer(400)
        self.server.tokens.add(token := f"token-{len(self.server.tokens)}")
        return self.answer(200, token)

    def do_GET(self) -> None:
        cloud, path = self.server, self.path
        cloud.asked.append(path)
        if path.startswith("/latest/"):
            if self.headers["X-aws-ec2-metadata-token"] not in cloud.tokens:
                return self.answer(401)
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(cloud.at))
            if path.endswith("spot/instance-action") and cloud.left_s is not None:
                return self.answer(200, json.dumps({"action": "terminate", "time": when}))
            if path.endswith("recommendations/rebalance") and cloud.rebalance:
                return self.answer(200, json.dumps({"noticeTime": when}))
            return self.answer(404)
        if path.startswith("/computeMetadata/"):
            if self.headers["Metadata-Flavor"] != "Google":
                return self.answer(403)
            if "maintenance-event" in path:
                return self.answer(200, "TERMINATE_ON_HOST_MAINTENANCE" if cloud.maintenance else "NONE")
            if "wait_for_change" in path:
                cloud.changed.wait(float(path.partition("timeout_sec=")[2]))
            return self.answer(200, "FALSE" if cloud.left_s is None else "TRUE")
        if self.headers["Metadata"] != "true":
            return self.answer(400)
        if "compute/name" in path:
            return self.answer(200, NAME)
        events = [{"EventId": "of-another", "EventType": "Preempt", "NotBefore": "", "Resources": ["spot-2"]}]
        if cloud.left_s is not None:
            mine = {"EventId": "E-1", "EventType": "Preempt", "EventStatus": "Scheduled", "Resources": [NAME]}
            events.append({**mine, "NotBefore": formatdate(cloud.at, usegmt=True)})
        return self.answer(200, json.dumps({"DocumentIncarnation": 1, "Events": events}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.acknowledged += [one["EventId"] for one in body["StartRequests"]]
        self.answer(200)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def cloud() -> Iterator[Metadata]:
    server = Metadata()
    yield server
    server.changed.set()
    server.shutdown()
    server.server_close()


def test_amazon_says_it_two_minutes_before(cloud: Metadata) -> None:
    source = Aws(cloud.address)
    assert source.is_here() and source.wait() is None
    cloud.rebalance = True
    advice = source.wait()
    assert advice is not None and advice.at is None, "advice is no end"
    cloud.announce(120)
    cloud.tokens.clear()  # it has run out: another one is asked for
    notice = source.wait()
    assert notice is not None and notice.at == pytest.approx(cloud.at, abs=1.1)


def test_google_says_it_at_once_though_nobody_asks_again(cloud: Metadata) -> None:
    source = Gcp(cloud.address, hang_s=60)
    assert source.is_here()
    threading.Timer(0.3, cloud.announce, [30]).start()
    began = time.time()
    notice = source.wait()
    assert notice is not None and notice.at == pytest.approx(began + 30, abs=10)
    cloud.maintenance, cloud.left_s = True, None
    source = Gcp(cloud.address)
    notice = source.wait()
    assert notice is not None and notice.at is not None and notice.at > time.time() + 3000
    assert source.wait() == notice, "it is one notice, however often it is asked for"


def test_azure_says_it_of_this_machine_and_is_answered(cloud: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Azure(cloud.address)
    assert source.is_here() and source.wait() is None, "the event of another machine of the set"
    cloud.announce(45)
    notice = source.wait()
    assert notice is not None and notice.at == pytest.approx(cloud.at, abs=1.1)
    notices.acknowledge("azure", notice.acknowledge, {notices.VARIABLE: f"azure={cloud.address}"})
    assert cloud.acknowledged == ["E-1"]


def test_a_file_says_it_when_it_is_new(tmp_path: Path) -> None:
    file = tmp_path / "SIGNAL.yml"
    source = SignalFile(NoticeFile(str(file), 300.0))
    assert source.wait() is None
    file.touch()
    notice = source.wait()
    assert notice is not None and notice.at == pytest.approx(time.time() + 300, abs=30)
    assert SignalFile(NoticeFile(str(file), 0.0)).wait() is None, "one that was there before this machine lived on"


def test_only_the_service_of_the_cloud_that_the_firmware_names_is_asked(tmp_path: Path, cloud: Metadata) -> None:
    def firmware(**said: str) -> Path:
        folder = tmp_path / "-".join(said)
        folder.mkdir()
        for name, text in said.items():
            (folder / name).write_text(f"{text}\n")
        return folder

    assert notices.cloud_of(tmp_path / "none") == "", "a container that sees no firmware asks nobody"
    assert notices.cloud_of(firmware(sys_vendor="Amazon EC2")) == "aws"
    assert notices.cloud_of(firmware(product_name="Google Compute Engine")) == "gcp"
    assert notices.cloud_of(firmware(chassis_asset_tag="7783-7084-3265-9085-8269-3286-77")) == "azure"
    assert notices.cloud_of(firmware(sys_vendor="Supermicro", product_name="H12")) == ""
    assert notices.sources((), {}, tmp_path / "none") == []
    # A container on a machine of Amazon's: nothing answers, and it is asked once.
    heard: list[Notice] = []
    silent = Aws("http://127.0.0.1:1")
    tries: list[int] = []
    silent.wait = lambda: tries.append(1)  # type: ignore[method-assign,func-returns-value]
    listener = notices.Listener(silent, heard.append, every_s=0.01)
    listener.start()
    listener._thread.join(10)
    assert not listener._thread.is_alive() and tries == [] and heard == []


def test_the_stage_and_its_checkpoint_share_a_time_that_is_short() -> None:
    soon = Stop("preemption", "it goes", until=1030.0)
    assert soon.grace_s(60, 1000.0) == 15
    assert soon.grace_s(10, 1000.0) == 10
    assert soon.grace_s(60, 1040.0) == 1
    assert Stop("lease", "it is over").grace_s(60, 1000.0) == 60


# A stage that saves when it hears SIGINT, as a prover does, and takes a while for it.
SAVES = """
import os, signal, sys, time
def save(*_):
    time.sleep(float(sys.argv[1]))
    open(os.environ["GPUYARD_PERSIST"] + "/models/saved", "w").write("all")
    sys.exit(0)
signal.signal(signal.SIGINT, save)
open("begun", "w").close()
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("name", "notice_s", "saves_in_s"), [("aws", 120.0, 0.2), ("gcp", 30.0, 0.2), ("azure", 5.0, 0.2)]
)
def test_a_stage_saves_its_work_within_the_notice(
    box: Box, cloud: Metadata, monkeypatch: pytest.MonkeyPatch, name: str, notice_s: float, saves_in_s: float
) -> None:
    """B25: the stage is told, what it saves is published, and the run knows why it was interrupted."""
    monkeypatch.setattr(Box, "env", property(lambda self: {**_env(self), notices.VARIABLE: f"{name}={cloud.address}"}))
    (box.repository / "saves.py").write_text(SAVES)
    bucket = box.base / "bucket"
    stage = {"name": "search", "command": f"exec python3 saves.py {saves_in_s}", "grace_s": 60, "resumable": True}
    box.describe([stage], bucket=bucket.as_uri(), monitoring={"every_s": 1})
    runner = box.start("run")
    wait_for(lambda: (box.repository / "begun").exists() and cloud.asked, what="the stage and the first question")
    cloud.announce(notice_s)
    assert runner.wait(timeout=120) == 3
    assert (box.root / "models/saved").read_text() == "all"
    [end] = box.events("run-end")
    assert end["outcome"] == "interrupted" and "this machine" in end["reason"]
    [told] = box.events("notice")
    assert told["source"] == name and told["at"] == pytest.approx(cloud.at, abs=5)
    saved = [file for file in bucket.rglob("*") if file.name == "saved"]
    assert saved, "what it saved is in the bucket"
    assert "preemption" in {one["alert"] for one in box.status()["alerts"]}
    beats = [json.loads(file.read_bytes()) for file in bucket.rglob("heartbeat/*.json")]
    assert [beat["state"] for beat in beats] == ["interrupted"]
    if name == "azure":
        wait_for(lambda: cloud.acknowledged == ["E-1"], what="the answer to Azure")
    # The next runner goes on, and knows nothing of it any more.
    assert box.outcomes() == [(0, "search", "interrupted")]


_env: Callable[[Box], dict[str, str]] = Box.env.fget  # type: ignore[attr-defined]


def test_a_stage_that_needs_longer_than_the_notice_leaves_room_for_the_checkpoint(
    box: Box, cloud: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five seconds the stage has half, whatever its grace_s is, so that what it had is published in time."""
    monkeypatch.setattr(Box, "env", property(lambda self: {**_env(self), notices.VARIABLE: f"gcp={cloud.address}"}))
    (box.repository / "saves.py").write_text(SAVES)
    box.describe(
        [{"name": "search", "command": "exec python3 saves.py 300", "grace_s": 300}],
        bucket=(box.base / "bucket").as_uri(),
        monitoring={"every_s": 1},
    )
    runner = box.start("run")
    wait_for(lambda: (box.repository / "begun").exists() and cloud.asked)
    monkeypatch.setattr(Gcp, "GOES_AFTER_S", 30.0)
    began = time.monotonic()
    cloud.announce(5)
    assert runner.wait(timeout=120) == 3
    assert time.monotonic() - began < 60, "it was not given its 300 s"
    note = stopping.read(box.settings)
    assert note is not None and note.kind == "preemption"
