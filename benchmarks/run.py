"""Measures what gpuyard adds, as ratios to a floor that is taken in the same run.

The floor is what nobody can do without: a rented machine that answers `ssh box true`. Every time is counted from the
moment at which the cloud accepted the request to rent. The machines are the sandbox's, so the figures say nothing about
a real cloud's boot times; what gpuyard adds on top is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gpuyard import config, fingerprint, market, ssh
from gpuyard.config import SshKey
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import CreateSpec, Instance, Provider, Query
from gpuyard.renting import destroy, ready, rent, survey, watch
from gpuyard.sandbox import images, lifecycle
from gpuyard.sandbox import info as sandbox_info
from gpuyard.sandbox.client import Control, load
from gpuyard.workload import resolve

ROOT = Path(__file__).resolve().parents[1]
READY_IMAGE = "localhost/gpuyard-bench-ready"
CLOUD = "vast"  # its machines boot from an image of one's own choice
NODES = 3
RUNS_SHOWN = 10
LOOP = 5_000_000
ENOUGH = "/tmp/enough"  # the file on a machine that ends the first stage
# Ansible's own settings in place of those in vars/shape.yml.
NOT_OURS = {"ansible_pipelining": False, "gpuyard_other_variables": ["ansible_pipelining"]}


@dataclass(frozen=True)
class Row:
    """One line of the table: what is measured, and the most that it may take."""

    name: str
    title: str
    rented: bool = False
    """Whether it is counted from the request to rent, and so comparable with the floors."""
    most_seconds: float | None = None
    most_times: tuple[str, float] | None = None
    """The row of which it may be so many times as much."""


ROWS = (
    Row("floor", "`ssh box true`", rented=True),
    Row("shell", "first line, empty machine, by a plain shell script", rented=True),
    Row("empty", "first line, empty machine", rented=True, most_times=("floor", 5.0)),
    Row("defaults", "first line, empty machine, Ansible's own settings", rented=True),
    Row("bundle", "first line, empty machine and a bundle", rented=True, most_seconds=20.0),
    Row("ready", "first line, machine that matches", rented=True, most_times=("floor", 1.3)),
    Row("again", "launch.yml again on a running machine", most_seconds=3.0),
    Row("full", "launch.yml, all roles look at everything", most_seconds=10.0),
    Row("whole", "the same, with weights, data set, monitoring and health", most_seconds=10.0),
    Row("one", "launch.yml, a run of one node"),
    # Machines that are brought into shape side by side share this computer's cores, which real ones do not.
    Row(
        "several",
        f"launch.yml, a run of {NODES} nodes",
        most_times=("one", 1.5 * max(1.0, NODES / (os.cpu_count() or 1))),
    ),
    Row("status", f"status.yml of {RUNS_SHOWN} runs", most_seconds=3.0),
)


class Bench:
    """One sandbox, and what is timed on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state = home / "sandbox"
        os.environ["GPUYARD_HOME"] = str(home)
        lifecycle.up(self.state, self.say)
        self.provider: Provider = config.connect(CLOUD, sandbox=True, sandbox_state=self.state)[0]
        self.key: SshKey = config.ssh_key()
        self.control = Control(load(self.state))

    def say(self, line: str) -> None:
        """Show what goes on."""
        print(f"  {line}", flush=True)

    def workload(self, name: str, image: str = "", more: Mapping[str, Any] | None = None) -> Path:
        """Write miniprover's workload with one stage that prints the time; ``more`` are further keys."""
        document = yaml.safe_load((ROOT / "workloads" / "miniprover.yml").read_text())
        command = f"date +first-line=%s.%N; until [ -e {ENOUGH} ]; do sleep 0.2; done"
        stages = [{"name": "first", "command": command, "grace_s": 1}]
        container = {"base": f"{images.ML_IMAGE}:latest", "name": READY_IMAGE}
        document |= {"name": name, "image": image, "container": container, "stages": stages, "iterations": 1}
        document |= more or {}
        del document["profiles"]
        # A workload names its repository relative to the folder that holds workloads/.
        tree = self.home / document["repository"]["path"]
        if not tree.exists():
            shutil.copytree(ROOT / document["repository"]["path"], tree, ignore=shutil.ignore_patterns("target"))
        file = self.home / "workloads" / f"{name}-{'ready' if image else 'empty'}.yml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(document))
        return file

    def whole(self) -> Path:
        """Write the same workload with everything else that a machine of the sandbox can have."""
        mirrors = config.mirrors(sandbox=True, sandbox_state=self.state)
        weights = {"repository": "org/whole", "revision": "0123456789" * 4, "directory": "models/base"}
        data = {"from": f"{mirrors['rust']}/dist/channel-rust-1.96.0.toml", "to": "trajectories/channel"}
        more = {
            "weights": {"base": weights},
            "datasets": {"channel": data},
            "monitoring": {"prometheus": "/var/lib/gpuyard/gpuyard.prom"},
            "health": {"data": ["models/base", "trajectories/channel"]},
        }
        return self.workload("whole", more=more)

    def fleet(self, nodes: int) -> Path:
        """Write a small workload of so many nodes that have nothing but gpuyard's own part to get into shape."""
        tree = self.home / "fleet"
        tree.mkdir(exist_ok=True)
        (tree / "README").write_text("Nothing to build.\n")
        document = {
            "name": "fleet",
            "repository": {"path": "fleet"},
            "needs": {"gpu_count": 1, "gpu_ram_gb": 8},
            "pools": {"main": {"nodes": nodes}},
            "stages": [{"name": "wait", "command": "sleep 600", "grace_s": 1}],
        }
        file = self.home / "workloads" / f"fleet-{nodes}.yml"
        file.write_text(yaml.safe_dump(document))
        return file

    def fleet_seconds(self, run: str, nodes: int) -> float:
        """Seconds of a launch until the stages have begun on all of so many nodes; the machines go back."""
        seconds, _ = self.launch(run, self.fleet(nodes))
        rented = survey.find([self.provider], run)
        if len(rented) != nodes:
            raise SystemExit(f"{len(rented)} machines were rented for {nodes} nodes")
        destroy.destroy_all([self.provider], rented)
        return seconds

    def status_seconds(self) -> float:
        """Seconds of status.yml with ten runs, each with a machine that answers."""
        query = Query(gpu_count=1, gpu_ram_gb=8, market="on-demand")  # each offer another machine
        offers = market.choose(self.provider.offers(query), query)
        rented: list[Instance] = []
        try:
            for number, offer in zip(range(RUNS_SHOWN), offers, strict=False):
                spec = CreateSpec(RunRef(f"shown-{number}", "bench"), self.key.public_text)
                rented.append(rent.rent([self.provider], [offer], spec))
            for instance in rented:
                ready.wait_ssh(ready.wait_ready(self.provider, instance), self.key)
            seconds, said = self.play("status.yml")
            if said.count("not started") != len(rented):
                raise SystemExit(said)
        finally:
            destroy.destroy_all([self.provider], rented)
        return seconds

    def launch(self, run: str, workload: Path, *, settings: Path | None = None, **options: object) -> tuple[float, str]:
        """Launch, and return the seconds that it took and what it said."""
        words = {"provider": CLOUD, "workload": str(workload), "run": run, "from_bundle": "never"} | options
        return self.play("launch.yml", "-e", json.dumps(words), settings=settings)

    def play(self, *words: str, settings: Path | None = None) -> tuple[float, str]:
        """Run a play, by ``settings`` in place of ours; return the seconds that it took and what it said."""
        environment = os.environ | {"ANSIBLE_NOCOLOR": "1"} | ({"ANSIBLE_CONFIG": str(settings)} if settings else {})
        began = time.monotonic()
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), *words, "-e", "sandbox=true"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return time.monotonic() - began, done.stdout

    def machine(self, run: str) -> Instance:
        """Return the run's machine."""
        (one,) = survey.find([self.provider], run)
        return one

    def row(self, instance: Instance) -> Mapping[str, Any]:
        """Return the sandbox's own record of a machine."""
        return next(one for one in self.control.status()["instances"] if one["id"] == instance.id)

    def end(self, instance: Instance) -> None:
        """Give a machine back."""
        destroy.destroy_all([self.provider], [instance])

    # --- what is timed ---

    def floors(self) -> tuple[float, float]:
        """Seconds from the accepted request to `ssh box true`, and to the plain script's first line after it."""
        query = Query(gpu_count=1, gpu_ram_gb=8)
        offers = market.choose(self.provider.offers(query), query)
        spec = CreateSpec(RunRef("bench-floor", "bench"), self.key.public_text)
        instance = rent.rent([self.provider], offers, spec)
        instance = ready.wait_ready(self.provider, instance)
        ready.wait_ssh(instance, self.key)
        began = float(self.row(instance)["created_at"])
        answered = time.time() - began
        shell = float(self.by_shell(instance)) - began
        self.end(instance)
        return answered, shell

    def by_shell(self, instance: Instance) -> str:
        """Bring a machine to the first line by the plain script, and return the time on it."""
        rust, python = (
            yaml.safe_load((ROOT / "roles" / role / "vars" / "main.yml").read_text()) for role in ("rust", "python_env")
        )
        variables = {
            "RUST_SERVER": config.mirrors(sandbox=True, sandbox_state=self.state)["rust"],
            "RUSTUP_VERSION": rust["rust__rustup_version"],
            "RUSTUP_SHA256": "\n".join(rust["rust__rustup_sha256"][f"{platform.machine()}-unknown-linux-gnu"]),
            "UV_VERSION": python["python_env__uv_version"],
        }
        script = (ROOT / "benchmarks" / "plain.sh").read_text()
        words = ["env", *(f"{name}={value}" for name, value in variables.items()), "bash", "-c", script]
        source = ROOT / yaml.safe_load((ROOT / "workloads" / "miniprover.yml").read_text())["repository"]["path"]
        packed = subprocess.run(
            ["tar", "-C", source, "--exclude=./target", "-cz", "."], stdout=subprocess.PIPE, check=True
        )
        command = ["ssh", *ssh.ssh_args(instance, self.key), shlex.join(words)]
        done = subprocess.run(command, input=packed.stdout, capture_output=True, check=False)
        if not (match := re.search(rb"first-line=([\d.]+)", done.stdout)):
            raise SystemExit((done.stdout + done.stderr).decode())
        return match[1].decode()

    def own_settings(self) -> Path:
        """Write a configuration that says where collections are, and leaves all else as Ansible has it."""
        file = self.home / "ansible.cfg"
        file.write_text(f"[defaults]\ncollections_path = {ROOT}/collections:{ROOT}/.ansible/collections\n")
        return file

    def end_stage(self, instance: Instance) -> None:
        """End the first stage, and so the run, and wait until nothing runs on its machine."""
        wait = f"touch {ENOUGH}; until flock --nonblock --shared /opt/gpuyard/run/runner.lock true; do sleep 0.2; done"
        subprocess.run(["ssh", *ssh.ssh_args(instance, self.key), wait], check=True, timeout=120)

    def full(self, run: str, workload: Path) -> float:
        """Seconds of a launch for which all roles look at everything on a machine in shape, where no stage runs."""
        seconds, said = self.launch(run, workload, converge="full", from_stage="first")
        used = fingerprint.parts(resolve(str(workload)).workload.to_box())
        changed = roles_in(said)
        if missing := {part.role for part in fingerprint.PARTS if part.name in used} - set(changed):
            raise SystemExit(f"these roles have not looked: {missing}\n{said}")
        if acting := [role for role in changed if changed[role] and role != "stages"]:
            raise SystemExit(f"these roles have changed a machine in shape: {acting}\n{said}")
        return seconds

    def first_line(self, run: str, workload: Path, **options: Any) -> tuple[float, Instance]:
        """Seconds from the accepted request to the first line of the first stage, and the machine."""
        self.launch(run, workload, **options)
        instance = self.machine(run)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            text = "\n".join(watch.lines(instance, self.key, ["log", "--stage", "first"]))
            if match := re.search(r"first-line=([\d.]+)", text):
                return float(match[1]) - float(self.row(instance)["created_at"]), instance
            time.sleep(0.2)
        raise SystemExit("the first stage printed nothing")

    def make_ready_image(self, workload: Path) -> str:
        """Make an image of a workload, and return its name with its tag."""
        network = sandbox_info.read(self.state)
        assert network is not None  # it was started above
        options = [f"--network=gpuyard-{network.name}", "--pull=never"]
        if Path("/etc/ssl/certs").is_dir():
            options.append("--volume=/etc/ssl/certs:/etc/ssl/certs:ro")
        # Where packages come from, and with which certificates, as the sandbox tells its machines.
        options += [f"--env={name}" for name in ("PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE", "https_proxy")]
        words = ["-e", f"workload={workload}", "-e", json.dumps({"run_options": " ".join(options)})]
        _, said = self.play("image.yml", *words)
        found = re.search(rf"Made ({READY_IMAGE}:[0-9a-f]+);|image ({READY_IMAGE}:[0-9a-f]+) is there", said)
        if not found:
            raise SystemExit(said)
        return found[1] or found[2]


def roles_in(said: str) -> dict[str, bool]:
    """Return the roles whose tasks a play has run, and whether one of these has changed anything."""
    found: dict[str, bool] = {}
    for task in re.split(r"^(?:TASK|PLAY) ", said, flags=re.MULTILINE):
        if role := re.match(r"\[gpuyard\.cloud\.(\w+) : ", task):
            outcomes = set(re.findall(r"^(ok|changed): \[", task, re.MULTILINE))
            if outcomes:
                found[role[1]] = found.get(role[1], False) or "changed" in outcomes
    return found


def loop_seconds() -> float:
    """Seconds of a loop that always does the same, so that a processor that is slowed by others shows."""
    began = time.perf_counter()
    for _ in range(LOOP):
        pass
    return time.perf_counter() - began


def measure(bench: Bench, rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Measure every row so often; return the figures, and the seconds of the loop beside them."""
    figures: dict[str, list[float]] = {row.name: [] for row in ROWS}
    loops = [loop_seconds()]

    def note(name: str, seconds: float) -> None:
        figures[name].append(seconds)
        loops.append(loop_seconds())
        bench.say(f"{name} {seconds:.1f} s ({loops[-1] / min(loops):.1f} × the loop at its quickest)")

    empty, whole = bench.workload("bench"), bench.whole()
    ready = bench.workload("bench", bench.make_ready_image(empty))
    for number in range(rounds):
        bench.say(f"round {number + 1} of {rounds}")
        floor, shell = bench.floors()
        note("floor", floor)
        note("shell", shell)
        seconds, instance = bench.first_line(f"empty-{number}", empty)
        note("empty", seconds)
        seconds, said = bench.launch(f"empty-{number}", empty)
        note("again", seconds)
        if changed := [int(count) for count in re.findall(r"changed=(\d+)", said) if count != "0"]:
            raise SystemExit(f"the second launch changed something: {changed}\n{said}")
        if not number:
            bench.play("snapshot.yml", "-e", f"run=empty-{number}")
        bench.end_stage(instance)
        note("full", bench.full(f"empty-{number}", empty))
        bench.end(instance)
        seconds, instance = bench.first_line(f"own-{number}", empty, settings=bench.own_settings(), **NOT_OURS)
        note("defaults", seconds)
        bench.end(instance)
        seconds, instance = bench.first_line(f"ready-{number}", ready)
        note("ready", seconds)
        bench.end(instance)
        seconds, instance = bench.first_line(f"bundle-{number}", empty, from_bundle="always")
        note("bundle", seconds)
        bench.end(instance)
        note("one", bench.fleet_seconds(f"one-{number}", 1))
        note("several", bench.fleet_seconds(f"several-{number}", NODES))
        note("status", bench.status_seconds())
    # Last, since a machine that lives is looked at by every launch.
    _, kept = bench.first_line("whole", whole)
    for _ in range(rounds):
        bench.end_stage(kept)
        note("whole", bench.full("whole", whole))
    bench.end(kept)
    return figures, loops


def table(figures: Mapping[str, list[float]]) -> tuple[list[str], dict[str, dict[str, float]], bool]:
    """Return the table's lines, the ratios of each row, and whether every limit is held.

    The least of the rounds counts: what else goes on, here or beside on the same host, only ever adds.
    """
    least = {name: min(values) for name, values in figures.items()}
    lines = [f"{'':56}{'least':>8}{'most':>8}{'× floor':>9}{'× shell':>9}  limit"]
    ratios: dict[str, dict[str, float]] = {}
    held = True
    for row in ROWS:
        values, seconds = figures[row.name], least[row.name]
        ratios[row.name] = {of: seconds / least[of] for of in (("floor", "shell") if row.rented else ())}
        most, words = row.most_seconds, ""
        if row.most_seconds is not None:
            words = f"{row.most_seconds:g} s"
        if row.most_times is not None:
            of, times = row.most_times
            ratios[row.name][of] = seconds / least[of]
            most, words = times * least[of], f"{times:g} × {of} (now {seconds / least[of]:.2f})"
        if most is not None:
            words += ", held" if seconds <= most else ", NOT held"
            held = held and seconds <= most
        times_floors = "".join(f"{ratios[row.name][of]:9.1f}" if row.rented else " " * 9 for of in ("floor", "shell"))
        line = f"{row.title:<56}{seconds:7.1f}s{max(values):7.1f}s{times_floors}  {words}"
        lines.append(line.rstrip())
    return lines, ratios, held


def main() -> int:
    """Measure, print a table, and write the figures to ``benchmarks/latest.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default 3)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="gpuyard-bench-") as folder:
        bench = Bench(Path(folder))
        try:
            figures, loops = measure(bench, rounds)
        finally:
            lifecycle.down(bench.state, bench.say)
    lines, ratios, held = table(figures)
    print("\n" + "\n".join(lines))
    slowest = max(loops) / min(loops)
    print(f"\nBeside them, the same loop took up to {slowest:.1f} times as long as at its quickest.")
    print("\nall limits are held" if held else "\nNOT all limits are held")
    record = {
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "seconds": figures,
        "loop_seconds": {"least": min(loops), "most": max(loops)},
        "ratio": {name: found for name, found in ratios.items() if found},
    }
    (ROOT / "benchmarks" / "latest.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
