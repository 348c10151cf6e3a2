"""The load generator, for some seconds against a real server."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkpoints import tiny_bert, tiny_llama
from support.metrics import metric
from support.server import RunningServer, running_server

LOCUSTFILE = Path(__file__).parents[2] / "benchmarks" / "locustfile.py"
ROWS = {("embed", "bert"), ("generate", "llama"), ("stream", "llama"), ("ttft", "llama")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("locust")
    models = {"bert": tiny_bert(folder / "bert"), "llama": tiny_llama(folder / "llama")}
    with running_server(models, "--threads", "1") as server:
        yield server


def start(folder: Path, *arguments: str, target: str | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--csv", str(folder / "rows")]
    command += ["--only-summary", "--mix", "1,1,1", "--max-new-tokens", "8", *arguments]
    environment = os.environ | ({"TERCET_TARGET": target} if target else {})
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(folder: Path, process: subprocess.Popen[bytes], code: int = 0) -> dict[tuple[str, str], dict[str, str]]:
    """Waits for locust; its rows by request type and name."""
    try:
        assert process.wait(60) == code, (folder / "log").read_text()[-4000:]
    finally:
        process.kill()
    with (folder / "rows_stats.csv").open() as file:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(file) if row["Type"]}


def test_a_closed_loop_reports_every_kind(server: RunningServer, tmp_path: Path) -> None:
    rows = finish(tmp_path, start(tmp_path, "-u", "3", "-r", "3", "-t", "4s", "--host", server.address))
    assert rows.keys() == ROWS
    assert all(int(row["Request Count"]) > 0 and int(row["Failure Count"]) == 0 for row in rows.values())
    stream, first = rows["stream", "llama"], rows["ttft", "llama"]
    assert 0 <= int(first["Request Count"]) - int(stream["Request Count"]) <= 3  # each user may be cut off in a stream
    assert 0 < float(first["Average Response Time"]) <= float(stream["Average Response Time"])
    assert float(stream["Average Content Size"]) <= 8


def test_an_open_loop_keeps_its_rate(server: RunningServer, tmp_path: Path) -> None:
    load = ("-u", "2", "-r", "2", "-t", "5s", "--rate", "20")
    rows = finish(tmp_path, start(tmp_path, *load, target=server.address))
    asked = sum(int(row["Request Count"]) for (kind, _), row in rows.items() if kind != "ttft")
    assert 50 <= asked <= 170  # 100 on average; a Poisson count leaves this range once in a million runs


def test_a_refused_call_is_a_failure(server: RunningServer, tmp_path: Path) -> None:
    load = ("-u", "1", "-r", "1", "-t", "3s", "--max-new-tokens", "0", "--host", server.address)
    rows = finish(tmp_path, start(tmp_path, *load), code=1)
    for kind, model in (("generate", "llama"), ("stream", "llama")):
        assert rows[kind, model]["Failure Count"] == rows[kind, model]["Request Count"]
    assert int(rows["embed", "bert"]["Failure Count"]) == 0
    assert ("ttft", "llama") not in rows


def test_an_open_loop_sees_a_stall(server: RunningServer, tmp_path: Path) -> None:
    load = ("-u", "2", "-r", "2", "-t", "8s", "--rate", "20", "--mix", "1,0,0", "--host", server.address)
    engine = server.engine_pid("bert")
    before = metric(server, "tercet_requests_total", model="bert")
    process = start(tmp_path, *load)
    while metric(server, "tercet_requests_total", model="bert") < before + 20:
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(engine, signal.SIGSTOP)
    time.sleep(2)
    os.kill(engine, signal.SIGCONT)
    rows = finish(tmp_path, process)
    assert float(rows["embed", "bert"]["95%"]) >= 1000  # milliseconds; 40 of 160 requests arrive while it stands still
