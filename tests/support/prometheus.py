"""The Prometheus programs, from the system: Debian's package `prometheus` has both."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTENING = re.compile(r'msg="Listening on" address=(127\.0\.0\.1:\d+)')


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`. Without it CI fails, and other machines skip and say why."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed (apt-get install prometheus): dashboards and alerts are NOT tested"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@contextmanager
def running_prometheus(config: Path) -> Iterator[str]:
    """A Prometheus on a free port with its data beside `config`; its address."""
    command = [program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={config.parent / 'data'}"]
    log = config.parent / "prometheus.log"
    with log.open("w") as stderr:
        process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stderr=stderr)
    try:
        yield _wait_until_ready(process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        listening = LISTENING.search(log.read_text())
        if listening and _is_ready(listening[1]):
            return listening[1]
        time.sleep(0.05)
    raise RuntimeError(f"Prometheus did not start:\n{log.read_text()[-2000:]}")


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def query_range(address: str, expression: str, start: float, end: float, step: float = 1) -> list[list[float]]:
    """The values of every series of an expression between two Unix times."""
    parameters = urllib.parse.urlencode({"query": expression, "start": start, "end": end, "step": step})
    with urllib.request.urlopen(f"http://{address}/api/v1/query_range?{parameters}", timeout=30) as answer:
        body: dict[str, Any] = json.load(answer)
    return [[float(value) for _, value in series["values"]] for series in body["data"]["result"]]
