"""List prices of clouds that are only compared, out of gpuhunt's catalogue."""

from __future__ import annotations

import io
import json
import re
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from gpuyard import comparison, list_prices, market
from gpuyard.providers.base import Query

pytest.importorskip("gpuhunt", reason="the extra catalogue is not installed")

STAND_IN = Path(__file__).parent / "list_prices"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(list_prices.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv(list_prices.URL_VARIABLE, "http://127.0.0.1:9")  # nobody is there
    return tmp_path / "gpuyard" / "list-prices"


def ask(query: Query | None = None, *, sandbox: bool = False) -> list_prices.ListPrices:
    with list_prices.Question(query or Query(), sandbox=sandbox) as question:
        return question.answer()


def test_b1_spot_stands_beside_on_demand_each_in_its_cheapest_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(list_prices.FOLDER_VARIABLE, str(STAND_IN))
    query = Query(gpu_names=["A100"])
    found = ask(query, sandbox=True)
    assert found.problem == "" and {offer.region for offer in found.offers if offer.market == "interruptible"} == {
        "us-west-2",
        "us-central1-a",
    }
    report = comparison.compare([], [], {}, query, listed=market.judge(found.offers, query))
    rows = {row.offer.id: row for row in report.listed}
    # No GPU, an ARM processor or another GPU: none of these.
    assert set(rows) == {"p4d.24xlarge", "a2-highgpu-1g", "a2-highgpu-8g"}
    assert (rows["p4d.24xlarge"].interruptible, rows["p4d.24xlarge"].on_demand) == (9.83, 32.7726)
    assert (rows["a2-highgpu-1g"].interruptible, rows["a2-highgpu-1g"].on_demand) == (1.8025, 3.6731)
    assert rows["a2-highgpu-1g"].offer.disk_gb == query.disk_gb
    # They are no offers: nothing that can be rented, nor counted as such.
    assert report.rows == [] and report.seen == 0
    assert {one.title: one.interruptible for one in report.providers} == {"AWS": 9.83, "GCP": 1.8025}
    text = report.render("table")
    assert "List prices, without disk (3 machines fit, each in its cheapest region):" in text
    row = next(line for line in text.splitlines() if "a2-highgpu-1g" in line)
    assert re.search(r"85 GB +- +us-central1-a", row)  # a list price is without disk
    assert "two minutes' notice" in text and "## List prices" in report.render("markdown")
    assert len(json.loads(report.render("json"))["list_prices"]) == 3


def test_a_wanted_region_is_looked_at_before_the_cheapest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(list_prices.FOLDER_VARIABLE, str(STAND_IN))
    found = ask(Query(regions=["us-east-1"]))
    assert {(offer.id, offer.price_per_hour_usd) for offer in found.offers} == {
        ("p4d.24xlarge", 32.7726),
        ("p4d.24xlarge", 11.57),
    }


def test_a_catalogue_that_cannot_be_had_is_a_sentence_in_time() -> None:
    start = time.monotonic()
    found = ask()
    assert time.monotonic() - start < list_prices.LIMIT_S
    assert not found.offers
    assert found.problem.startswith("List prices are left out: gpuhunt's catalogue cannot be had from http://127.0")
    assert list_prices.FOLDER_VARIABLE in found.problem


def test_what_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(list_prices.FOLDER_VARIABLE, str(STAND_IN))
    monkeypatch.setattr(list_prices, "LIMIT_S", 0.0)
    with list_prices.Question(Query()) as question:
        found = question.answer()
        assert found.problem == "List prices are left out: they took longer than 0 s."
        process = question._process
    assert process is not None and process.poll() is not None


def test_a_folder_that_holds_none_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(list_prices.FOLDER_VARIABLE, str(tmp_path))
    assert "holds no machine with GPUs" in ask().problem
    (tmp_path / "aws.csv").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as gpuhunt's files" in ask().problem


def test_a_sandbox_never_asks_the_internet() -> None:
    found = ask(sandbox=True)
    assert "never asked with a sandbox" in found.problem and not found.offers


def test_without_the_extra_there_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert ask().problem.endswith("pip install 'gpuyard[catalogue]'.")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that publishes the stand-in as gpuhunt's place does."""
    root = tmp_path / "published"
    for file in STAND_IN.glob("*.csv"):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(file, file.name)
        (root / file.stem / "20261126-1").mkdir(parents=True)
        (root / file.stem / "version").write_text("20261126-1\n")
        (root / file.stem / "20261126-1" / "catalog.zip").write_bytes(packed.getvalue())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(root)))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(list_prices.URL_VARIABLE, f"http://127.0.0.1:{server.server_port}/")
    yield root
    server.shutdown()
    server.server_close()


def test_it_is_fetched_once_a_day_and_kept(published: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask()
    assert found.problem == "" and len(found.offers) == 6
    assert (cache / "aws.csv").read_text() == (STAND_IN / "aws.csv").read_text()
    # A cloud that is published no longer, or not at all, hides no other; what is kept stays good.
    monkeypatch.setenv(list_prices.URL_VARIABLE, "http://127.0.0.1:9")
    assert len(ask().offers) == 6


def test_gpuhunt_itself_still_publishes_there() -> None:
    from gpuhunt._internal import catalog

    assert catalog.CATALOG_URL == list_prices.URL
    assert {cloud.name for cloud in list_prices.CLOUDS} | {"lambdalabs", "runpod"} == set(catalog.OFFLINE_PROVIDERS)
