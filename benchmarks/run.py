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
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gpuyard import config, market
from gpuyard.config import SshKey
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import CreateSpec, Instance, Provider, Query
from gpuyard.renting import destroy, ready, rent, survey, watch
from gpuyard.sandbox import images, lifecycle
from gpuyard.sandbox import info as sandbox_info
from gpuyard.sandbox.client import Control, load

ROOT = Path(__file__).resolve().parents[1]
READY_IMAGE = "localhost/gpuyard-bench-ready"
CLOUD = "vast"  # its machines boot from an image of one's own choice
MOST_TIMES_THE_FLOOR = 4.0
MOST_SECONDS_AGAIN = 10.0
MOST_SECONDS_BUNDLE = 20.0
NODES = 3
# Machines that are brought into shape side by side share this computer's cores, which real ones do not.
MOST_TIMES_ONE_NODE = 1.5 * max(1.0, NODES / (os.cpu_count() or 1))
RUNS_SHOWN = 10
MOST_SECONDS_STATUS = 3.0


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

    def workload(self, name: str, image: str) -> Path:
        """Write miniprover's workload with a first stage that prints the time, booting from ``image``."""
        document = yaml.safe_load((ROOT / "workloads" / "miniprover.yml").read_text())
        first = {"name": "first", "command": "date +first-line=%s.%N; sleep 600", "grace_s": 1}
        container = {"base": f"{images.ML_IMAGE}:latest", "name": READY_IMAGE}
        document |= {"name": name, "image": image, "container": container, "stages": [first, *document["stages"]]}
        # A workload names its repository relative to the folder that holds workloads/.
        tree = self.home / document["repository"]["path"]
        if not tree.exists():
            shutil.copytree(ROOT / document["repository"]["path"], tree, ignore=shutil.ignore_patterns("target"))
        file = self.home / "workloads" / f"{name}-{'ready' if image else 'empty'}.yml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(document))
        return file

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

    def launch(self, run: str, workload: Path, bundle: str = "never") -> tuple[float, str]:
        """Launch, and return the seconds that it took and what it said."""
        words = {"provider": CLOUD, "workload": workload, "run": run, "from_bundle": bundle}
        return self.play("launch.yml", *(word for name in words for word in ("-e", f"{name}={words[name]}")))

    def play(self, *words: str) -> tuple[float, str]:
        """Run a play, and return the seconds that it took and what it said."""
        began = time.monotonic()
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), *words, "-e", "sandbox=true"],
            cwd=ROOT,
            env=os.environ | {"ANSIBLE_NOCOLOR": "1"},
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

    def floor(self) -> float:
        """Seconds from the accepted request to `ssh box true`."""
        query = Query(gpu_count=1, gpu_ram_gb=8)
        offers = market.choose(self.provider.offers(query), query)
        spec = CreateSpec(RunRef("bench-floor", "bench"), self.key.public_text)
        instance = rent.rent([self.provider], offers, spec)
        instance = ready.wait_ready(self.provider, instance)
        ready.wait_ssh(instance, self.key)
        seconds = time.time() - float(self.row(instance)["created_at"])
        self.end(instance)
        return seconds

    def first_line(self, run: str, workload: Path, bundle: str = "never") -> tuple[float, Instance]:
        """Seconds from the accepted request to the first line of the first stage, and the machine."""
        self.launch(run, workload, bundle)
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


def main() -> int:
    """Measure, print a table, and write the figures to ``benchmarks/latest.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default 3)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="gpuyard-bench-") as folder:
        bench = Bench(Path(folder))
        figures: dict[str, list[float]] = {
            name: [] for name in ("floor", "empty", "again", "ready", "bundle", "one", "several", "status")
        }
        try:
            empty = bench.workload("bench", "")
            ready = bench.workload("bench", bench.make_ready_image(empty))
            for number in range(rounds):
                figures["floor"].append(bench.floor())
                seconds, instance = bench.first_line(f"empty-{number}", empty)
                figures["empty"].append(seconds)
                seconds, said = bench.launch(f"empty-{number}", empty)
                figures["again"].append(seconds)
                if changed := [int(count) for count in re.findall(r"changed=(\d+)", said) if count != "0"]:
                    raise SystemExit(f"the second launch changed something: {changed}\n{said}")
                if not number:
                    bench.play("snapshot.yml", "-e", f"run=empty-{number}")
                bench.end(instance)
                seconds, instance = bench.first_line(f"ready-{number}", ready)
                figures["ready"].append(seconds)
                bench.end(instance)
                seconds, instance = bench.first_line(f"bundle-{number}", empty, "always")
                figures["bundle"].append(seconds)
                bench.end(instance)
                figures["one"].append(bench.fleet_seconds(f"one-{number}", 1))
                figures["several"].append(bench.fleet_seconds(f"several-{number}", NODES))
                figures["status"].append(bench.status_seconds())
                bench.say(
                    f"round {number + 1} of {rounds}: " + ", ".join(f"{k} {v[-1]:.1f} s" for k, v in figures.items())
                )
        finally:
            lifecycle.down(bench.state, bench.say)
    middle = {name: statistics.median(values) for name, values in figures.items()}
    ratio = {name: middle[name] / middle["floor"] for name in ("empty", "ready")}
    print(f"\n{'':58}{'median':>8}{'least':>8}{'most':>8}{'× floor':>9}")
    for name, title in (
        ("floor", "rent call → `ssh box true` (the floor)"),
        ("empty", "rent call → first stage's first line, empty machine"),
        ("ready", "rent call → first stage's first line, machine that matches"),
        ("bundle", "rent call → first stage's first line, empty machine and a bundle"),
        ("again", "launch.yml again on a running machine, wall time"),
        ("one", "launch.yml, a run of one node, wall time"),
        ("several", f"launch.yml, a run of {NODES} nodes, wall time"),
        ("status", f"status.yml of {RUNS_SHOWN} runs, wall time"),
    ):
        values = figures[name]
        times = f"{ratio[name]:9.1f}" if name in ratio else ""
        print(f"{title:<58}{middle[name]:7.1f}s{min(values):7.1f}s{max(values):7.1f}s{times}")
    times_one = middle["several"] / middle["one"]
    held = (
        ratio["ready"] <= MOST_TIMES_THE_FLOOR
        and middle["again"] <= MOST_SECONDS_AGAIN
        and middle["bundle"] <= MOST_SECONDS_BUNDLE
        and times_one <= MOST_TIMES_ONE_NODE
        and middle["status"] <= MOST_SECONDS_STATUS
    )
    print(
        f"\nlimits: matching machine at most {MOST_TIMES_THE_FLOOR:g} × the floor, "
        f"again at most {MOST_SECONDS_AGAIN:g} s, from a bundle at most {MOST_SECONDS_BUNDLE:g} s, "
        f"{NODES} nodes at most {MOST_TIMES_ONE_NODE:g} × one on "
        f"{os.cpu_count()} cores (now {times_one:.1f} ×), status at most {MOST_SECONDS_STATUS:g} s: "
        f"{'held' if held else 'NOT held'}"
    )
    record = {
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "seconds": figures,
        "ratio": ratio | {"several": times_one},
    }
    (ROOT / "benchmarks" / "latest.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
