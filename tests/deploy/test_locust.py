"""The load generator, for some seconds against a real server."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkpoints import tiny_bert, tiny_llama
from support.server import RunningServer, running_server

LOCUSTFILE = Path(__file__).parents[2] / "benchmarks" / "locustfile.py"
ROWS = {("embed", "bert"), ("generate", "llama"), ("stream", "llama"), ("ttft", "llama")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("locust")
    models = {"bert": tiny_bert(folder / "bert"), "llama": tiny_llama(folder / "llama")}
    with running_server(models, "--threads", "1") as server:
        yield server


def locust(folder: Path, *arguments: str, target: str | None = None, code: int = 0) -> list[dict[str, str]]:
    """Runs locust and gives its rows."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--csv", str(folder / "rows")]
    command += ["--only-summary", "--mix", "1,1,1", "--max-new-tokens", "8", *arguments]
    environment = os.environ | ({"TERCET_TARGET": target} if target else {})
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == code, result.stderr[-4000:]
    with (folder / "rows_stats.csv").open() as file:
        return list(csv.DictReader(file))


def by_row(rows: list[dict[str, str]]) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["Type"], row["Name"]): row for row in rows if row["Type"]}


def test_a_closed_loop_reports_every_kind(server: RunningServer, tmp_path: Path) -> None:
    rows = by_row(locust(tmp_path, "-u", "3", "-r", "3", "-t", "4s", "--host", server.address))
    assert rows.keys() == ROWS
    assert all(int(row["Request Count"]) > 0 and int(row["Failure Count"]) == 0 for row in rows.values())
    stream, first = rows["stream", "llama"], rows["ttft", "llama"]
    assert int(first["Request Count"]) == int(stream["Request Count"])
    assert 0 < float(first["Average Response Time"]) <= float(stream["Average Response Time"])
    assert float(stream["Average Content Size"]) <= 8


def test_an_open_loop_keeps_its_rate(server: RunningServer, tmp_path: Path) -> None:
    rows = by_row(locust(tmp_path, "-u", "2", "-r", "2", "-t", "5s", "--rate", "20", target=server.address))
    asked = sum(int(row["Request Count"]) for (kind, _), row in rows.items() if kind != "ttft")
    assert 50 <= asked <= 170  # 100 on average; a Poisson count leaves this range once in a million runs


def test_a_refused_call_is_a_failure(server: RunningServer, tmp_path: Path) -> None:
    load = ("-u", "1", "-r", "1", "-t", "3s", "--max-new-tokens", "0", "--host", server.address)
    rows = by_row(locust(tmp_path, *load, code=1))
    for kind, model in (("generate", "llama"), ("stream", "llama")):
        assert rows[kind, model]["Failure Count"] == rows[kind, model]["Request Count"]
    assert int(rows["embed", "bert"]["Failure Count"]) == 0
    assert ("ttft", "llama") not in rows
