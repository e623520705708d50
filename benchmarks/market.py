"""Measures a large market and a large inventory, as times and as ratios to floors that are taken in the same run.

Markets come from the sandbox's catalogue with a seed. Instances come from a small server of this file, which answers as
Vultr lists them, since a sandbox has a container for each of its machines. It is a STAND-IN for Vultr's list.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from gpuyard import market
from gpuyard.api import audit
from gpuyard.api.hosts import Hosts
from gpuyard.hosts import named
from gpuyard.providers.base import Offer, Provider, Query
from gpuyard.providers.lambda_cloud import Lambda
from gpuyard.providers.runpod import RunPod
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.renting import everything
from gpuyard.sandbox import catalogue

ROOT = Path(__file__).resolve().parents[1]
OFFERS = 90_000
SEED = 1
KEY = "no-key"
PLANS = [plan["id"] for plan in catalogue.vultr_plans() if plan["id"].startswith("vcg-")]
HOSTS = (100, 1_000, 10_000)
HELD = {"/instances": 5_000, "/blocks": 3_000, "/snapshots": 2_000}
"""What an account holds whose audit is measured."""
A_SECOND = 30  # requests, the most that Vultr takes from one address
PAGE = 500  # rows, the most that Vultr gives at once
SILENT_S = 0.3  # how long each answer of a cloud takes
CONSTRUCTED = {
    "compose": {"cost_per_day": "gpuyard_price_per_hour_usd * 24"},
    "keyed_groups": [{"key": "gpuyard_market", "prefix": "market"}, {"key": "gpuyard_gpu_name", "prefix": "model"}],
}
# The real program, but that it finds Vultr at this file's server.
INVENTORY = """
import sys
from gpuyard.providers.vultr import Vultr
Vultr.api_url = sys.argv.pop(1)
from ansible.cli.inventory import main
main(["ansible-inventory", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, in seconds or as a ratio, and the most that it may be."""

    title: str
    value: float
    most: float | None = None
    unit: str = "s"

    @property
    def held(self) -> bool:
        """Whether the limit is held."""
        return self.most is None or self.value <= self.most

    def line(self) -> str:
        """Return it for people."""
        limit = "" if self.most is None else f"at most {self.most:g}{self.unit}: {'held' if self.held else 'NOT held'}"
        return f"{self.title:<68}{self.value:9.3f}{self.unit:<2} {limit}".rstrip()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long ``work`` takes, and what it returns."""
    gc.collect()
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def processor_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long this process computes for ``work``, which waits for nothing, and what it returns."""
    gc.collect()
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


# -- offers ------------------------------------------------------------------------------------------------------------


def a_market() -> Iterator[dict[str, Any]]:
    """Yield the rows of a search at Vast that had no cap."""
    for machine in catalogue.vast_market(OFFERS, SEED):
        yield catalogue.vast_offer(machine, listing=1, rentable=True, bid=False, storage_gb=50, now=0.0)


def ranked(offers: list[Offer], query: Query) -> list[str]:
    """Return the choice in words, as a plan has it."""
    verdicts = market.judge(offers, query)
    found = market.rank(verdicts, query)
    return [*market.explain(verdicts, query, found), *market.runners_up(found, query, verdicts)]


def market_rows(rounds: int) -> list[Row]:
    """Measure how long it takes to read and to rank a market; the least of the rounds counts."""
    client, any_machine = Vast(KEY), Query(disk_gb=50)
    reading, offers = processor_seconds(lambda: [client._offer(row, "on-demand", any_machine) for row in a_market()])
    making, _ = processor_seconds(lambda: sum(1 for _ in a_market()))
    names = ("RTX 4090", "RTX 3090", "A100", "L40S")
    picky = Query(gpu_count=1, gpu_ram_gb=16, gpu_names=names, reliability=0.9, cuda="12.0", regions=("US", "SE", "NO"))
    queries = {
        "no condition": any_machine,
        "seven conditions": picky,
        "by the price of what its GPUs do": Query(disk_gb=50, rank="value"),
        "two choices": Query(gpu_ram_gb=40, alternatives=(Query(gpu_ram_gb=24),)),
    }
    rows = [Row(f"{OFFERS:,} offers as a cloud's client reads them", reading - making)]
    for title, query in queries.items():
        least = min(processor_seconds(lambda query=query: ranked(offers, query))[0] for _ in range(rounds))  # type: ignore[misc]
        rows.append(Row(f"{OFFERS:,} offers ranked and explained, {title}", least, 0.5))
    return rows


# -- clouds ------------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers as the clouds do, to what is asked here."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    held: ClassVar[Mapping[str, int]] = {}
    delay_s: ClassVar[float] = 0.0
    a_second: ClassVar[int] = 0
    """How many requests are taken within a second; 0: any number."""
    taken: ClassVar[list[float]] = []
    refused: ClassVar[list[float]] = []

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer a search at Vast."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"offers": []})

    def do_GET(self) -> None:
        """Answer everything else."""
        url = urlsplit(self.path)
        if self.a_second and self.is_too_much():
            self.answer({"error": "Rate limit reached", "status": 429}, 429)
        elif url.path in self.held:
            first, count = int((parse_qs(url.query).get("cursor") or ["0"])[0]), self.held[url.path]
            last = min(first + PAGE, count)
            links = {"next": str(last) if last < count else "", "prev": ""}
            rows = [ROWS[url.path](number) for number in range(first, last)]
            self.answer({url.path[1:]: rows, "meta": {"total": count, "links": links}})
        elif url.path in ("/plans", "/plans-metal"):
            plans = catalogue.vultr_plans() if url.path == "/plans" else []
            self.answer({"plans": plans, "plans_metal": [], "meta": {"total": len(plans), "links": {"next": ""}}})
        else:
            self.answer({"data": {}, "gpus": [], "available_plans": [], "regions": []})

    def is_too_much(self) -> bool:
        """Tell whether a request has to be refused, since there were as many within the last second as are taken."""
        now = time.monotonic()
        with TAKING:
            self.taken[:] = [moment for moment in self.taken if moment > now - 1]
            too_much = len(self.taken) >= self.a_second
            (self.refused if too_much else self.taken).append(now)
        return too_much

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        """Send ``body`` after this server's delay."""
        time.sleep(self.delay_s)
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def a_machine(number: int) -> dict[str, Any]:
    """Return a machine of a run of its own, as Vultr lists it."""
    run = f"bench-{number}"
    return {
        "id": f"00000000-0000-4000-8000-{number:012d}",
        "label": run,
        "tags": ["gpuyard", f"run:{run}", "workload:bench"],
        "plan": PLANS[number % len(PLANS)],
        "region": ["ewr", "fra", "sjc"][number % 3],
        "main_ip": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        "status": "active",
        "power_status": "running",
        "server_status": "ok",
        "date_created": "2026-11-01T00:00:00+00:00",
    }


def a_volume(number: int) -> dict[str, Any]:
    """Return block storage of a run of its own, as Vultr lists it."""
    return {
        "id": f"00000000-0000-4000-8001-{number:012d}",
        "label": f"gpuyard/bench-{number}/bench",
        "region": "ewr",
        "size_gb": 100,
        "cost": 10,
        "status": "active",
        "attached_to_instance": "",
        "block_type": "high_perf",
        "date_created": "2026-11-01T00:00:00+00:00",
    }


def a_snapshot(number: int) -> dict[str, Any]:
    """Return a snapshot that nobody has labelled, as Vultr lists it."""
    return {
        "id": f"00000000-0000-4000-8002-{number:012d}",
        "description": f"by hand {number}",
        "size": 40 * 2**30,
        "status": "complete",
        "date_created": "2026-11-01T00:00:00+00:00",
    }


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "/instances": a_machine,
    "/blocks": a_volume,
    "/snapshots": a_snapshot,
}
TAKING = threading.Lock()


@contextmanager
def serving(**settings: Any) -> Iterator[str]:
    """Serve, and yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Set", (Handler,), settings))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def cloud_rows(rounds: int) -> list[Row]:
    """Measure what asking four clouds takes beside the slowest of them."""
    with serving(delay_s=SILENT_S) as url:

        def clouds() -> list[Provider]:
            return [kind(KEY, base_url=url) for kind in (Vast, Vultr, Lambda, RunPod)]

        def alone(number: int) -> float:
            return seconds(lambda: clouds()[number].offers(Query(market="on-demand")))[0]

        slowest = min(max(alone(number) for number in range(4)) for _ in range(rounds))
        together = min(seconds(lambda: market.collect(clouds(), Query(market="on-demand")))[0] for _ in range(rounds))
    return [Row("four clouds asked, beside the slowest of them", together / slowest, 1.2, "x")]


# -- audit -------------------------------------------------------------------------------------------------------------


def audit_rows(rounds: int) -> list[Row]:
    """Measure the audit of a large account whose cloud takes no more requests a second than Vultr does."""
    times, floors, refused = [], [], []
    for _ in range(rounds):
        with serving(held=HELD, a_second=A_SECOND, taken=[], refused=[]) as url:
            raw, _rows = seconds(lambda url=url: [listed(url, path) for path in HELD])  # type: ignore[misc]
        refusals: list[float] = []
        with serving(held=HELD, a_second=A_SECOND, taken=[], refused=refusals) as url:
            cloud = Vultr(KEY, base_url=url)
            took, found = seconds(lambda cloud=cloud: everything.gather([cloud], None, time.time()))  # type: ignore[misc]
        report = audit.of(found, audit.AuditRequest())
        if found.unanswered or len(report.holdings) != sum(HELD.values()):
            raise SystemExit(f"the audit is not whole: {len(report.holdings)} holdings; {found.unanswered}")
        times.append(took)
        floors.append(raw)
        refused.append(len(refusals))
    things = f"{sum(HELD.values()):,} resources"
    return [
        Row(f"{things}, listed with nothing but HTTP", min(floors)),
        Row(f"{things}, audited at {A_SECOND} requests a second ({max(refused)} refused)", min(times), 5.0),
    ]


# -- inventory ---------------------------------------------------------------------------------------------------------


def listed(url: str, path: str = "/instances") -> list[dict[str, Any]]:
    """Return all pages of a list with nothing but HTTP and JSON, over one connection a page."""
    rows: list[dict[str, Any]] = []
    cursor = ""
    while True:
        with urllib.request.urlopen(f"{url}{path}?per_page={PAGE}&cursor={cursor}") as answer:
            page = json.load(answer)
        rows += page[path[1:]]
        cursor = page["meta"]["links"]["next"]
        if not cursor:
            return rows


def inventory_seconds(folder: Path, url: str, *sources: Path) -> tuple[float, dict[str, Any]]:
    """Return how long ``ansible-inventory --list`` takes with these sources, and what it says."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment |= {"VULTR_API_KEY": KEY, "HOME": str(folder), "GPUYARD_HOME": str(folder / "gpuyard")}
    words = [word for source in sources for word in ("-i", str(source))]
    output = folder / "list.json"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", INVENTORY, url, *words, "--list", "--output", str(output)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or "could not be asked" in done.stderr:
        raise SystemExit(done.stdout + done.stderr)
    found: dict[str, Any] = json.loads(output.read_text())
    return time.perf_counter() - began, found


def static(folder: Path, url: str) -> tuple[Path, Path]:
    """Write an inventory without any cloud of the same hosts and variables; return it, and what constructs from it."""
    hosts = Hosts(named(Vultr(KEY, base_url=url).instances()), folder / "key").to_dict()["hosts"]
    groups: dict[str, Any] = {}
    for host in hosts:
        for group in host["groups"]:
            groups.setdefault(group.replace("-", "_").replace(" ", "_"), {"hosts": {}})["hosts"][host["name"]] = {}
    tree = {"all": {"hosts": {host["name"]: host["variables"] for host in hosts}, "children": groups}}
    # As JSON, which Ansible reads faster than YAML: a floor that is no higher than it has to be.
    (folder / "static.yml").write_text(json.dumps(tree))
    (folder / "constructed.yml").write_text(json.dumps({"plugin": "ansible.builtin.constructed", **CONSTRUCTED}))
    return folder / "static.yml", folder / "constructed.yml"


def inventory_rows(rounds: int, sizes: tuple[int, ...]) -> list[Row]:
    """Measure the inventory of so many instances, beside the bare list over HTTP and a static inventory."""
    rows = []
    for count in sizes:
        with tempfile.TemporaryDirectory(prefix="gpuyard-bench-") as name, serving(held={"/instances": count}) as url:
            folder = Path(name)
            ours = folder / "gpuyard.yml"
            ours.write_text(json.dumps({"plugin": "gpuyard.cloud.clouds", **CONSTRUCTED}))
            floor = static(folder, url)
            raw = min(seconds(lambda url=url: listed(url))[0] for _ in range(rounds))  # type: ignore[misc]
            plain = [inventory_seconds(folder, url, *floor) for _ in range(rounds)]
            measured = [inventory_seconds(folder, url, ours) for _ in range(rounds)]
        for _, found in (*plain, *measured):
            if len(found["_meta"]["hostvars"]) != count or not any(group.startswith("model_") for group in found):
                raise SystemExit(f"the inventory of {count} instances is not whole")
        took, least = min(time for time, _ in measured), min(time for time, _ in plain)
        rows += [
            Row(f"{count:,} instances, listed with nothing but HTTP", raw),
            Row(f"{count:,} hosts, a static inventory with the same constructed options", least),
            Row(f"{count:,} hosts, gpuyard.cloud.clouds", took, 8.0 if count == max(HOSTS) else None),
            Row(f"{count:,} hosts, beside the static inventory", took / least, 3.0, "x"),
        ]
    return rows


def main() -> int:
    """Measure, print a table, and write the figures to ``benchmarks/latest-market.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, of which the least counts")
    parser.add_argument("--only", choices=("market", "clouds", "audit", "inventory"), help="measure this part alone")
    parser.add_argument("--most", type=int, default=max(HOSTS), help="leave out larger inventories")
    options = parser.parse_args()
    sizes = tuple(size for size in HOSTS if size <= options.most)
    parts: dict[str, Callable[[], list[Row]]] = {
        "market": lambda: market_rows(options.rounds),
        "clouds": lambda: cloud_rows(options.rounds),
        "audit": lambda: audit_rows(options.rounds),
        "inventory": lambda: inventory_rows(options.rounds, sizes),
    }
    rows = []
    for name, part in parts.items():
        if options.only in (None, name):
            for row in part():
                rows.append(row)
                print(row.line(), flush=True)
    held = all(row.held for row in rows)
    print("\nall limits are held" if held else "\nNOT all limits are held")
    if options.only is None:
        figures = {row.title: round(row.value, 4) for row in rows}
        record = {"machine": f"{os.cpu_count()} cores", "figures": figures}
        (ROOT / "benchmarks" / "latest-market.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
