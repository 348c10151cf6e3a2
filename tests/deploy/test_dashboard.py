"""Every panel of the dashboard shows figures: a real server under load, scraped by a real Prometheus."""

import json
import math
import os
import random
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml

from support.checkpoints import tiny_bert, tiny_llama, tiny_t5
from support.prometheus import program, query_range, running_prometheus
from support.server import RunningServer, running_server
from tercet.client import Client, InvalidArgument, NotFound

DEPLOY = Path(__file__).parents[2] / "deploy"
WINDOW = 4  # seconds: Grafana's $__rate_interval is four scrapes
LOAD = 10  # seconds


@dataclass(frozen=True)
class Observed:
    """A Prometheus that watched a server under load."""

    server: RunningServer
    prometheus: str
    start: float
    end: float
    """Unix times between which every rate's window lay within the load."""


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    program("prometheus")
    folder = tmp_path_factory.mktemp("observed")
    models = {
        "bert": tiny_bert(folder / "bert"),
        "llama": tiny_llama(folder / "llama"),
        "t5": tiny_t5(folder / "t5"),
    }
    # Two rows a batch, so that sequences wait; padded, so that there is padding.
    flags = ("--max-rows", "2", "--layout", "padded", "--threads", "1")
    with (
        running_server(models, *flags) as server,
        running_prometheus(configuration(folder, server)) as prometheus,
    ):
        while not query_range(prometheus, "tercet_engine_restarts_total", time.time() - 2, time.time()):
            time.sleep(0.1)
        kill_and_wait(server, lambda: server.front_end_pids()[0])
        kill_and_wait(server, lambda: server.engine_pid("t5"))
        start = time.time()
        load(server)
        yield Observed(server, prometheus, start + WINDOW + 2, time.time() - 1)


def configuration(folder: Path, server: RunningServer) -> Path:
    """The shipped configuration, but for the target and the intervals."""
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    shipped["scrape_configs"][0]["static_configs"][0]["targets"] = [server.metrics_address]
    shipped["rule_files"] = [str(DEPLOY / "prometheus" / "alerts.yml")]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(shipped))
    return path


def kill_and_wait(server: RunningServer, pid: Callable[[], int]) -> None:
    """Kills a process and waits until its successor, and the model of the killed engine, answer."""
    before = pid()
    os.kill(before, signal.SIGKILL)
    with Client(server.address, timeout=60) as client:
        while pid() == before:
            time.sleep(0.05)
        client.wait_ready("t5")


def load(server: RunningServer) -> None:
    """Everything that panels show, from some clients at once."""
    done = Event()

    def repeat(ask: Any) -> None:
        with Client(server.address, timeout=30) as client:
            while not done.is_set():
                ask(client)

    def embed(client: Client) -> None:
        client.embed(["a fox", "once upon a time there was a river that sang to the stones"], model="bert")

    def generate(client: Client) -> None:
        # A beginning that is found again, and an end that is new and takes others' pages.
        ids = [*[5] * 20, *(random.randrange(3, 100) for _ in range(20))]
        client.generate(ids, model="llama", max_new_tokens=20, temperature=0)

    def stream(client: Client) -> None:
        for _ in client.stream("the lazy dog", model="t5", max_new_tokens=8, temperature=0):
            pass

    def err(client: Client) -> None:
        with suppress(NotFound):
            client.embed("a", model="nobody")
        with suppress(InvalidArgument):
            client.generate("a", model="llama", temperature=-1)
        time.sleep(0.1)

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(repeat, ask) for ask in (embed, generate, generate, generate, stream, stream, err)]
        time.sleep(LOAD)
        done.set()
        for future in running:
            future.result()


def queries() -> list[Any]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "tercet.json").read_text())
    return [
        pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.mark.parametrize("expression", queries())
def test_a_panel_is_finite_and_not_all_zero(observed: Observed, expression: str) -> None:
    filled = expression.replace("$__rate_interval", f"{WINDOW}s").replace("$model", ".*")
    series = query_range(observed.prometheus, filled, observed.start, observed.end)
    values = [value for points in series for value in points]
    assert values
    assert all(map(math.isfinite, values))
    assert any(values)


def test_a_renamed_metric_is_an_empty_panel(observed: Observed) -> None:
    assert query_range(observed.prometheus, "rate(tercet_request_total[4s])", observed.start, observed.end) == []


def test_prometheus_sees_the_server_and_its_rules(observed: Observed) -> None:
    assert query_range(observed.prometheus, 'up{job="tercet"}', observed.start, observed.end)[0][-1] == 1
    with urllib.request.urlopen(f"http://{observed.prometheus}/api/v1/rules", timeout=10) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}


def test_the_alerts_of_killed_processes_fire_and_no_other(observed: Observed) -> None:
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    for process in ("Engine", "FrontEnd"):
        restarting = firing.replace("{", f'{{alertname="Tercet{process}Restarting",')
        assert len(query_range(observed.prometheus, restarting, observed.start, observed.end)) == 1
    assert len(query_range(observed.prometheus, firing, observed.start, observed.end)) == 2


def test_the_names_are_as_prometheus_wants_them(observed: Observed) -> None:
    with urllib.request.urlopen(f"http://{observed.server.metrics_address}/metrics", timeout=10) as answer:
        text = answer.read()
    result = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
