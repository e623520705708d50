"""List prices of clouds that gpuyard does not reach itself, out of gpuhunt's catalogue (extra ``catalogue``).

gpuhunt's collectors publish one CSV file a cloud, several times a day. It is kept in the cache for a day. gpuhunt's
own reader needs seconds for all of them and has no time limit, so it runs in a process of its own, side by side with
the questions to the clouds, and is ended when its time is over. ``GPUHUNT_CATALOG_DIR`` (a folder with the CSV files)
and ``GPUHUNT_CATALOG_URL`` (another place where they are published) are gpuhunt's own variables.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from gpuyard import gpus, paths, ranking
from gpuyard.files import write_whole
from gpuyard.providers.base import Offer, Query

FOLDER_VARIABLE = "GPUHUNT_CATALOG_DIR"
URL_VARIABLE = "GPUHUNT_CATALOG_URL"
URL = "https://dstack-gpu-pricing.s3.eu-west-1.amazonaws.com/v3"
LIMIT_S = 8.0
"""How long the list prices may take in all, from when they are asked for."""
_FETCH_S = 4.0
_ANSWER_S = 3.0  # for one answer of the server
_FRESH_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class ListedCloud:
    """A cloud that is only compared, with the same words as a :class:`gpuyard.providers.base.Provider` has."""

    name: str
    title: str
    remark: str
    preinstalled: str = "what the chosen image has"


CLOUDS = (
    ListedCloud("aws", "AWS", "list price, no stock; a spot machine goes with two minutes' notice"),
    ListedCloud("gcp", "GCP", "list price, no stock; a spot machine goes with 30 seconds' notice"),
    ListedCloud("azure", "Azure", "list price, no stock"),
    ListedCloud("nebius", "Nebius", "list price, no stock; a spot machine is stopped with 60 seconds' notice"),
    ListedCloud("oci", "Oracle", "list price, no stock"),
    ListedCloud("verda", "Verda", "list price, no stock"),
    ListedCloud("cloudrift", "CloudRift", "list price, no stock"),
)
"""The clouds of gpuhunt's catalogue that gpuyard does not reach itself."""


@dataclass(frozen=True, slots=True)
class ListPrices:
    """What the catalogue says: each machine in its cheapest region, and a sentence when it could not be had."""

    offers: Sequence[Offer] = ()
    problem: str = ""


class Question:
    """A question to the catalogue that is under way, for the time of a ``with``."""

    def __init__(self, query: Query, *, sandbox: bool = False) -> None:
        """Start to read. With ``sandbox`` nothing is fetched: only a folder that the environment names is read."""
        self._query = query
        self._end = time.monotonic() + LIMIT_S
        self._process: subprocess.Popen[str] | None = None
        self._problem = ""
        variables = dict(os.environ)
        fetch = FOLDER_VARIABLE not in variables
        if sandbox and fetch:
            self._problem = (
                "List prices are left out: they are fetched from the internet, which is never asked with a sandbox; "
                f"name a folder that has them with {FOLDER_VARIABLE}."
            )
        elif importlib.util.find_spec("gpuhunt") is None:
            self._problem = "List prices need the library gpuhunt: pip install 'gpuyard[catalogue]'."
        else:
            wanted = json.dumps({"fetch": fetch, "regions": list(query.regions)})
            folder = variables.setdefault(FOLDER_VARIABLE, str(paths.cache() / "list-prices"))
            self._folder = folder
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpuyard.list_prices", wanted],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=variables,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def answer(self) -> ListPrices:
        """Return what came until the time was over. Whatever goes wrong is a sentence, never an error."""
        if self._process is None:
            return ListPrices(problem=self._problem)
        try:
            text, _ = self._process.communicate(timeout=max(0.1, self._end - time.monotonic()))
            found = json.loads(text)
        except subprocess.TimeoutExpired:
            return ListPrices(problem=f"List prices are left out: they took longer than {LIMIT_S:.0f} s.")
        except ValueError:
            return ListPrices(problem=f"List prices are left out: {self._folder} cannot be read as gpuhunt's files.")
        offers = [Offer(**{"disk_gb": self._query.disk_gb, **values}) for values in found["offers"]]
        problem = "" if offers or not found["problem"] else f"List prices are left out: {found['problem']}"
        return ListPrices(offers, problem)


# What follows runs in the process of its own.


def read(folder: Path, regions: Sequence[str]) -> list[dict[str, Any]]:
    """Return each machine with GPUs of the files in ``folder``, on each market in its cheapest one of ``regions``.

    Each has the fields of an :class:`Offer`, without ``disk_gb`` where any disk can be had. An empty ``regions`` stands
    for all. gpuhunt takes the folder from its variable, which has to name the same one.
    """
    import gpuhunt

    names = [cloud.name for cloud in CLOUDS if (folder / f"{cloud.name}.csv").is_file()]
    if not names:
        return []
    catalogue = gpuhunt.Catalog(auto_reload=False)
    # What the roles pin is built for x86-64, and for NVIDIA's GPUs.
    items = catalogue.query(provider=names, min_gpu_count=1, cpu_arch="x86", gpu_vendor="nvidia")
    cheapest: dict[tuple[str, str, bool], Any] = {}
    for item in items:
        if regions and not any(ranking.is_region(region, item.location) for region in regions):
            continue
        key = (item.provider, item.instance_name, item.spot)
        if key not in cheapest or item.price < cheapest[key].price:
            cheapest[key] = item
    return [_offer(item) for item in cheapest.values()]


def _offer(item: Any) -> dict[str, Any]:
    disk = {"disk_gb": item.disk_size} if item.disk_size else {}
    return disk | {
        "provider": item.provider,
        # By its type only: spot and on demand are one row, though their cheapest regions may differ.
        "id": item.instance_name,
        "gpu_name": gpus.normalise(item.gpu_name or ""),
        "gpu_count": float(item.gpu_count),
        "gpu_ram_gb": float(item.gpu_memory or 0),
        "cpu_cores": float(item.cpu),
        "ram_gb": float(item.memory),
        "region": item.location,
        "market": "interruptible" if item.spot else "on-demand",
        "price_per_hour_usd": item.price,
    }


def fetch(folder: Path, url: str) -> str:
    """Bring the files in ``folder`` up to date, each where it is older than a day; return why not all of them are.

    One try a file, all at the same time, for four seconds together. A file that cannot be had stays as it was.
    """
    problems: dict[str, str] = {}
    now = time.time()
    paths.ensure_private(folder)

    def bring(name: str, file: Path) -> None:
        try:
            version = requests.get(f"{url}/{name}/version", timeout=_ANSWER_S)
            version.raise_for_status()
            archive = requests.get(f"{url}/{name}/{version.text.strip()}/catalog.zip", timeout=_ANSWER_S)
            archive.raise_for_status()
            with zipfile.ZipFile(io.BytesIO(archive.content)) as packed:
                write_whole(file, packed.read(f"{name}.csv").decode())
        except (requests.RequestException, zipfile.BadZipFile, KeyError, OSError, UnicodeDecodeError) as error:
            problems[name] = type(error).__name__

    threads = []
    for cloud in CLOUDS:
        file = folder / f"{cloud.name}.csv"
        if file.is_file() and now - file.stat().st_mtime < _FRESH_S:
            continue
        # Daemons, so that an answer which never ends does not keep this process.
        threads.append(threading.Thread(target=bring, args=(cloud.name, file), daemon=True))
    for thread in threads:
        thread.start()
    end = time.monotonic() + _FETCH_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if not any(thread.is_alive() for thread in threads) and not problems:
        return ""
    why = next(iter(problems.values()), f"no answer within {_FETCH_S:.0f} s")
    return f"gpuhunt's catalogue cannot be had from {url} ({why}); {FOLDER_VARIABLE} names a folder that has it."


def _main() -> None:
    wanted = json.loads(sys.argv[1])
    folder = Path(os.environ[FOLDER_VARIABLE])
    problem = ""
    if wanted["fetch"]:
        problem = fetch(folder, os.environ.get(URL_VARIABLE, URL).rstrip("/"))
    offers = read(folder, wanted["regions"])
    if not offers and not problem:
        problem = f"{folder} holds no machine with GPUs, or none in the wanted region."
    print(json.dumps({"offers": offers, "problem": problem}))


if __name__ == "__main__":
    _main()
