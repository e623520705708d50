"""The monitor: alerts that begin once and end once, bands, those who are told, and that it harms nobody."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from stage_box import CANARY, RUN, Box, alive, until, wait_for

from gpuyard.box import machine
from gpuyard.box.monitor import alerts, checks, notify
from gpuyard.box.monitor.loop import Monitor

STAGE = {"name": "search", "command": until("test -e go"), "grace_s": 5}


def gpu(folder: Path, monkeypatch: pytest.MonkeyPatch, *rows: str) -> None:
    """Have a STAND-IN for nvidia-smi that answers these rows: index, name, use (%), used and whole memory (MiB)."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(rows) + "\nEND\n")
    program.chmod(0o755)
    path = os.environ["PATH"]
    if not path.startswith(f"{program.parent}:"):
        monkeypatch.setenv("PATH", f"{program.parent}:{path}")


def lines(box: Box) -> list[dict[str, Any]]:
    file = box.root / ".gpuyard/alerts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def told(box: Box) -> list[tuple[str, str]]:
    return [(line["event"], line["alert"]) for line in lines(box)]


def running(box: Box, stage: str = "search", iteration: int = 0) -> Path:
    """Write a journal in which a stage runs, and return its log."""
    log = box.root / f".gpuyard/logs/{iteration}-{stage}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    event = {"event": "stage-start", "iteration": iteration, "stage": stage, "attempt": 1, "token": "t"}
    with (box.root / ".gpuyard/journal.jsonl").open("a") as journal:
        journal.write(json.dumps({"time": "2026-01-01T00:00:00Z", **event}) + "\n")
    return log


class Clock:
    """The time that the monitor sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr("gpuyard.box.monitor.loop.time.time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def fill(monkeypatch: pytest.MonkeyPatch, percent: float, used_gb: float = 50.0) -> None:
    """Have every file system this full."""
    monkeypatch.setattr(
        machine, "disk", lambda folder: machine.Disk(str(folder), 100.0, used_gb, 100.0 - used_gb, percent)
    )
    monkeypatch.setattr(checks, "disk", machine.disk)


# --- what the machine says -------------------------------------------------------------------------------------------


def test_the_machine_says_what_its_gpus_its_disk_and_its_processors_do(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U5: in the answer to the one question that status.yml asks."""
    gpu(box.base, monkeypatch, "0, NVIDIA A100-SXM4-80GB, 97, 32000, 81920", "1, NVIDIA A100, [N/A], [N/A], 81920")
    box.describe([STAGE])
    box.root.mkdir()
    facts = box.status()["machine"]
    first, second = facts["gpus"]
    assert (first["name"], first["use_percent"], first["memory_used_gb"]) == ("NVIDIA A100-SXM4-80GB", 97.0, 33.55)
    assert (second["use_percent"], second["memory_used_gb"], second["memory_total_gb"]) == (None, None, 85.9)
    df = subprocess.run(["df", "--output=pcent", str(box.root)], capture_output=True, text=True, check=True).stdout
    assert abs(facts["disk"]["used_percent"] - float(df.split()[1].rstrip("%"))) <= 1.1
    assert facts["cores"] == len(os.sched_getaffinity(0)) and facts["load"] >= 0


def test_a_machine_without_a_gpu_or_with_a_driver_that_hangs_answers_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setattr(machine, "_LIMIT_S", 0.2)
    assert machine.gpus() == []


def test_a_runner_that_is_dead_does_not_read_as_running(box: Box) -> None:
    """U5: the box looks at the runner's lock, whatever the journal says."""
    box.describe([STAGE])
    runner = box.start("run")
    wait_for(lambda: box.status()["state"] == "running")
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    assert (box.status()["state"], box.status()["stage"]) == ("interrupted", "search")
    (box.repository / "go").touch()


# --- alerts ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_once_when_it_begins_and_once_when_it_ends(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B24: at 90 percent, of each file system of the run, by whichever runner's monitor."""
    box.describe([STAGE])
    box.root.mkdir()
    fill(monkeypatch, 89.9)
    monitor = Monitor(box.settings)
    assert monitor.monitoring.every_s == 600
    monitor.look()
    assert told(box) == []
    fill(monkeypatch, 90.0)
    monitor.look()
    monitor.look()
    name = f"disk {box.root}"
    assert ("begin", name) in told(box) and len(told(box)) == len(set(told(box)))
    begun = told(box)
    # A monitor that knows nothing but the file: after a kill, or on another machine.
    monitor = Monitor(box.settings)
    monitor.look()
    assert told(box) == begun
    status = box.status()["alerts"]
    assert [one["alert"] for one in status] == [alert for _, alert in begun] and "90 % full" in status[0]["text"]
    monitor.end()
    assert told(box) == begun, "a disk is full whether stages run or not"
    fill(monkeypatch, 70.0)
    monitor.look()
    assert ("end", name) in told(box) and box.status()["alerts"] == []


def test_what_goes_wrong_in_telling_makes_nobody_be_told_twice(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.describe([STAGE], monitoring={"notify": {"webhook": {"address_from": "HOOK"}}})
    box.root.mkdir()
    fill(monkeypatch, 95.0)
    (box.settings / "secrets.env").write_text("HOOK='never closed")
    monitor = Monitor(box.settings)
    for _ in range(9):
        with contextlib.suppress(ValueError):
            monitor.look()
    begun = told(box)
    assert begun and len(begun) == len(set(begun))
    # A line that a full disk has cut off costs only itself.
    file = box.root / alerts.FILE
    file.write_bytes(file.read_bytes() + b'{"time": "2026-01')
    alerts.append(box.root, "end", begun[0][1], "no more")
    assert begun[0][1] not in alerts.open_alerts(box.root)


def test_the_file_systems_of_a_run_are_looked_at_once_each(box: Box) -> None:
    box.describe([STAGE])
    box.root.mkdir()
    found = checks.disks_of(box.spec)
    devices = {folder.stat().st_dev for folder in (box.root, box.repository, box.settings, Path("/tmp"))}
    assert len(found) == len(devices) and found[0].path == str(box.root)


def bands(**named: dict[str, Any]) -> dict[str, Any]:
    return {"bands": named}


def test_a_gpu_outside_of_its_band_is_an_alert_when_it_lasts(
    box: Box, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """B23: more than 90 percent in training; search has another band."""
    fill(monkeypatch, 10.0)
    expected = bands(
        busy={"metric": "gpu_use_percent", "stages": ["finetune"], "least": 90, "for_s": 600},
        training={"metric": "gpu_memory_gb", "stages": ["finetune"], "least": 30, "most": 40},
        searching={"metric": "gpu_memory_gb", "stages": ["search"], "least": 15, "most": 20},
    )
    box.describe([{**STAGE, "name": "finetune"}, STAGE], monitoring=expected)
    running(box, "finetune")
    gpu(box.base, monkeypatch, "0, A100, 97, 33000, 81920", "1, A100, 40, 33000, 81920")
    monitor = Monitor(box.settings)
    monitor.look()
    clock.now += 599
    monitor.look()
    assert told(box) == []
    clock.now += 1
    monitor.look()
    assert told(box) == [("begin", "busy")]
    assert lines(box)[0]["text"] == "busy: gpu_use_percent is 40 % in finetune, and 90 % is the least"
    assert (lines(box)[0]["iteration"], lines(box)[0]["stage"]) == (0, "finetune")
    # A driver that says nothing for a moment changes nothing.
    gpu(box.base, monkeypatch, "Failed to initialize NVML")
    monitor.look()
    assert told(box) == [("begin", "busy")]
    gpu(box.base, monkeypatch, "0, A100, 97, 45000, 81920", "1, A100, 96, 33000, 81920")
    monitor.look()
    assert told(box)[1:] == [("end", "busy"), ("begin", "training")]
    assert "gpu_memory_gb is 47.2 GB in finetune, and 40 GB is the most" in lines(box)[2]["text"]
    # The next stage: what was expected of the first one is over.
    running(box, "search")
    monitor.look()
    assert told(box)[3:] == [("begin", "searching"), ("end", "training")]
    monitor.end()
    assert told(box)[5:] == [("end", "searching")]


def test_a_disk_that_fills_faster_than_expected_in_an_iteration(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """B23: 5 GB an iteration."""
    box.describe([STAGE], iterations=2, monitoring=bands(growth={"metric": "disk_growth_gb", "most": 5}))
    running(box)
    fill(monkeypatch, 50.0, used_gb=50.0)
    monitor = Monitor(box.settings)
    monitor.look()
    fill(monkeypatch, 50.0, used_gb=54.9)
    monitor.look()
    assert told(box) == []
    fill(monkeypatch, 50.0, used_gb=55.5)
    monitor.look()
    assert told(box) == [("begin", "growth")]
    running(box, iteration=1)
    monitor.look()
    assert told(box) == [("begin", "growth"), ("end", "growth")]


def test_lines_that_come_too_slowly(box: Box, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """B23: more than 60 s for a theorem means trouble with Lean."""
    fill(monkeypatch, 10.0)
    slow = {"metric": "line_interval_s", "pattern": "^theorem", "most": 60}
    took = {"metric": "log_value", "pattern": r"took ([0-9.]+) s", "most": 60}
    box.describe([STAGE], monitoring=bands(lean=slow, proof=took))
    log = running(box)
    log.write_text("theorem 0\n" * 100)  # before the monitor came
    monitor = Monitor(box.settings)
    monitor.look()
    clock.now += 600
    with log.open("a") as stream:
        stream.write("theorem 1\nnothing\n" * 10 + "theorem 11, took 61.5 s\ntheorem")
    monitor.look()
    assert told(box) == [("begin", "proof")]
    assert lines(box)[0]["text"] == "proof: log_value is 61.5 in search, and 60 is the most"
    clock.now += 59
    monitor.look()
    assert told(box) == [("begin", "proof")], "half a line is none yet, and nothing new says nothing of proofs"
    clock.now += 2
    monitor.look()
    assert told(box)[1:] == [("begin", "lean")]
    assert "lean: line_interval_s is 61 s in search" in lines(box)[1]["text"]
    with log.open("a") as stream:
        stream.write(" 12, took 2 s\r" + "theorem 13\n")
    monitor.look()
    assert told(box)[2:] == [("end", "lean"), ("end", "proof")]


# --- who is told -----------------------------------------------------------------------------------------------------


class Hook(http.server.BaseHTTPRequestHandler):
    """A real server on loopback that keeps what it gets, and answers as its path says."""

    got: ClassVar[list[tuple[str, dict[str, str], Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, dict(self.headers), json.loads(body)))
        code = int(self.path.rpartition("/")[2]) if self.path[-3:].isdigit() else 200
        self.send_response(code)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hook() -> Iterator[str]:
    Hook.got.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ALERT = {
    "time": "2026-01-01T00:00:00Z",
    "event": "begin",
    "alert": "disk /mnt/persistent",
    "text": "the disk is full",
    "run": RUN,
    "workload": "canyon",
    "node": "main-0",
    "title": f"{RUN}: the disk is full",
}


def test_an_alert_is_posted_and_pushed(hook: str) -> None:
    channels = {
        "webhook": {"address_from": "HOOK"},
        "ntfy": {"topic_from": "TOPIC", "server": hook, "token_from": "TOKEN"},
    }
    secrets = {"HOOK": f"{hook}/hooks/{CANARY}", "TOPIC": "my-yard", "TOKEN": "tk_1"}
    assert notify.send_all(channels, ALERT, secrets) == {}
    (path, _, posted), (_, headers, pushed) = Hook.got
    assert path == f"/hooks/{CANARY}" and posted["text"] == f"{RUN}: the disk is full" and posted["run"] == RUN
    assert (pushed["topic"], pushed["message"], headers["Authorization"]) == ("my-yard", posted["text"], "Bearer tk_1")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("{hook}/503", "the server answered 503"),
        ("{hook}/302", "the server answered 302"),
        ("http://127.0.0.1:1/" + CANARY, "Connection refused"),
        (CANARY, "its address does not begin with https:// or http://"),
        ("http://[" + CANARY, "ValueError"),
        ("", "HOOK is not set"),
    ],
)
def test_what_cannot_be_sent_is_said_without_the_secret(hook: str, address: str, why: str) -> None:
    secrets = {"HOOK": address.format(hook=hook)}
    assert notify.send_all({"webhook": {"address_from": "HOOK"}}, ALERT, secrets) == {"webhook": why}
    assert [path for path, _, _ in Hook.got if path == "/elsewhere"] == []


class Inbox:
    """What a real mail server has got."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], str]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append((envelope.rcpt_tos, envelope.content.decode()))
        return "250 OK"


class MailServer(Controller):
    """A server at a port that the kernel has chosen, which aiosmtpd's own does not ask for."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that this process trusts, and its key."""
    key, file = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
    ]
    more = ["-subj", "/CN=mail", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(file)]
    subprocess.run([*command, *more], check=True, capture_output=True)
    return file, key


def test_an_alert_is_mailed(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    file, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    passwords = []

    def login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        passwords.append((data.login, data.password))
        return AuthResult(success=data.password == CANARY.encode(), handled=False)

    inbox = Inbox()
    controller = MailServer(
        inbox, hostname="127.0.0.1", port=0, tls_context=context, require_starttls=True, authenticator=login
    )
    controller.start()
    try:
        mail = {
            "to": ["me@example.org", "you@example.org"],
            "server": f"127.0.0.1:{controller.port}",
            "security": "starttls",
            "user": "yard",
            "password_from": "SMTP_PASSWORD",
        }

        def send(password: str) -> str:
            return notify.send_all({"mail": mail}, ALERT, {"SMTP_PASSWORD": password}).get("mail", "sent")

        assert "certificate verify failed" in send(CANARY) and passwords == [], "nobody vouches for that server"
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert send("wrong") == "the mail server answered 535"
        assert send(CANARY) == "sent"
    finally:
        controller.stop()
    [(recipients, text)] = inbox.mails
    assert recipients == ["me@example.org", "you@example.org"] and passwords[-1] == (b"yard", CANARY.encode())
    assert f"Subject: [gpuyard] {RUN}: disk /mnt/persistent begins" in text and "text: the disk is full" in text
    assert CANARY not in text


def test_an_alert_is_handed_to_the_machines_own_sendmail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "SENDMAIL", (str(tmp_path / "sendmail"),))
    mail = {"mail": {"to": ["me@example.org"]}}
    assert notify.send_all(mail, ALERT, {}) == {"mail": "this machine has no sendmail"}
    # STAND-IN for a sendmail, which keeps what it gets.
    (tmp_path / "sendmail").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\ncat > {tmp_path}/mail\n')
    (tmp_path / "sendmail").chmod(0o755)
    assert notify.send_all(mail, ALERT, {}) == {}
    assert (tmp_path / "words").read_text() == "-t -i\n" and "To: me@example.org" in (tmp_path / "mail").read_text()
    (tmp_path / "sendmail").write_text("#!/bin/sh\nexit 75\n")
    assert notify.send_all(mail, ALERT, {}) == {"mail": "sendmail ended with exit code 75"}


# --- Prometheus ------------------------------------------------------------------------------------------------------


def test_what_was_seen_is_a_file_for_prometheus(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(box.base, monkeypatch, '0, A "100", 97, 1000, [N/A]')
    fill(monkeypatch, 95.0)
    file = box.base / "gpuyard.prom"
    box.describe([STAGE], monitoring={"prometheus": str(file)})
    running(box, iteration=0)
    monitor = Monitor(box.settings)
    monitor.look()
    text = file.read_text()
    labels = f'run="{RUN}",node="main-0"'
    assert f'gpuyard_gpu_use_percent{{{labels},gpu="0",name="A \\"100\\""}} 97\n' in text
    assert f'gpuyard_gpu_memory_used_bytes{{{labels},gpu="0",name="A \\"100\\""}} 1050000000\n' in text
    assert "gpuyard_gpu_memory_bytes" not in text, "what is not known is not said"
    assert f'gpuyard_disk_used_percent{{{labels},path="{box.root}"}} 95\n' in text
    assert f'gpuyard_stage_iteration{{{labels},stage="search"}} 0\n' in text
    assert f'gpuyard_alert{{{labels},alert="disk {box.root}"}} 1\n' in text
    assert file.stat().st_mode & 0o777 == 0o644 and list(box.base.glob(".gpuyard.prom*")) == []
    monitor.end()
    assert not file.exists(), "what nobody looks at any more must not read as if it were so"


# --- beside a run ----------------------------------------------------------------------------------------------------


def monitors(box: Box) -> list[int]:
    """Return the monitors of this box that are alive."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"gpuyard.box.monitor" in words and str(box.settings).encode() in words and alive(folder.name):
            found.append(int(folder.name))
    return found


# A volume that is fuller than next to nothing, so that there is an alert.
ALWAYS = {"every_s": 1, "disk_alert_percent": 0.001}


def test_a_run_has_a_monitor_that_begins_and_ends_with_it(box: Box, hook: str) -> None:
    """B24, X8: alerts are in the last checkpoint, nothing is left, and a channel that is dead harms nobody."""
    channels = {"webhook": {"address_from": "WANDB_API_KEY"}, "ntfy": {"topic_from": "NONE", "server": hook}}
    bucket = box.base / "bucket"
    box.describe([STAGE], bucket=bucket.as_uri(), monitoring={**ALWAYS, "notify": channels})
    (box.settings / "secrets.env").write_text(f"WANDB_API_KEY='{hook}/{CANARY}/500'\n")
    runner = box.start("run")
    wait_for(lambda: [line for line in lines(box) if line["event"] == "unsent"], what="an alert")
    assert Hook.got and Hook.got[0][0] == f"/{CANARY}/500"
    [pid] = monitors(box)
    assert box.status()["alerts"]
    (box.repository / "go").touch()
    assert runner.wait(timeout=120) == 0
    assert not alive(pid) and monitors(box) == []
    unsent = {line["text"] for line in lines(box) if line["event"] == "unsent"}
    assert unsent == {
        "webhook has not got it: the server answered 500",
        "ntfy has not got it: NONE is not set",
    }
    assert "Warning: webhook has not got the alert disk" in box.screen and CANARY not in box.screen
    saved = json.loads(box.call("publish", "--json", module="gpuyard.box.checkpoints").stdout)
    assert saved["state"] is True
    assert [line for file in bucket.rglob("alerts.jsonl") for line in file.read_text().splitlines()]
    assert not any(CANARY in file.read_text(errors="replace") for file in bucket.rglob("*") if file.is_file())


def test_a_monitor_ends_with_a_runner_that_is_killed_and_comes_again_when_it_is_lost(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.describe([STAGE], monitoring=ALWAYS)
    runner = box.start("run")
    wait_for(lambda: lines(box), what="an alert")
    [pid] = monitors(box)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    wait_for(lambda: not alive(pid), what="the monitor's end")
    begun = told(box)
    assert {event for event, _ in begun} == {"begin"}
    (box.repository / "go").touch()
    assert box.run() == 0
    assert told(box) == begun


def test_a_run_that_is_over_at_once_has_no_monitor(box: Box) -> None:
    box.describe([{"name": "a", "command": "true"}])
    assert box.run() == 0
    assert monitors(box) == [] and lines(box) == []


def test_the_monitor_is_small(box: Box) -> None:
    """X8: 30 MB at most, and one percent of a processor at its usual pace."""
    box.describe([STAGE], monitoring=ALWAYS)
    box.root.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpuyard.box.monitor", "--settings", str(box.settings)],
        env=box.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    box.processes.append(process)
    wait_for(lambda: lines(box), what="a look")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["VmHWM"].split()[0]) <= 30_000

    def used_s() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, began = used_s(), time.monotonic()
    time.sleep(3)
    # At a look every second; the usual pace is a look every ten minutes.
    assert used_s() - before <= 0.1 * (time.monotonic() - began)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 0
