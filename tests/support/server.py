"""A real server process on free ports, for the tests of every part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LAUNCHER = (sys.executable, "-m", "tercet.server")
# Tests run side by side: threads that wait for each other would wait for a core.
SMALL = {"TERCET_THREADS": "1", "TERCET_FRONT_ENDS": "1"}


@dataclass(frozen=True)
class RunningServer:
    """A server that is SERVING."""

    process: subprocess.Popen[bytes]
    log: Path
    """Its stderr: JSON lines."""
    address: str
    """host:port of gRPC."""
    metrics_address: str
    """host:port of /metrics."""

    def events(self, name: str | None = None) -> list[dict[str, object]]:
        """The events it logged so far, all or those of one name."""
        return [event for event in _events(self.log) if name in (None, event.get("event"))]

    def metrics(self) -> dict[str, float]:
        """Every sample by its exposition name and labels, as in 'tercet_preemptions_total{model="a"}'."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def engine_pid(self, model: str) -> int:
        """The process id of a model's newest engine."""
        pid = [event["pid"] for event in self.events("engine started") if event["model"] == model][-1]
        if not isinstance(pid, int):
            raise TypeError(f"pid is {pid!r}")
        return pid

    def front_end_pids(self) -> list[int]:
        """The process ids of the newest front ends, by their numbers."""
        pids = {event["front_end"]: event["pid"] for event in self.events("front end started")}
        return [pid for _, pid in sorted(pids.items(), key=str) if isinstance(pid, int)]

    def stop(self, timeout: float = 40) -> int:
        """Asks it to drain (SIGTERM) and gives its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@contextmanager
def running_server(
    models: Mapping[str, Path | str],
    *flags: str,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    launcher: Sequence[str] = LAUNCHER,
) -> Iterator[RunningServer]:
    """Starts `tercet serve NAME=SOURCE … FLAGS` and waits until it is SERVING; ends it (SIGTERM, then SIGKILL) after.

    Raises RuntimeError with the end of its log where it exits or is not SERVING within `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        command = [*launcher, "serve", *(f"{name}={source}" for name, source in models.items())]
        command += ["--port", "0", "--metrics-port", "0", "--log-format", "json", *flags]
        with log.open("wb") as stderr:
            environment = {**os.environ, **SMALL, **(env or {})}
            process = subprocess.Popen(command, stdout=stderr, stderr=stderr, env=environment)
        try:
            serving = _wait_for_serving(process, log, timeout)
            yield RunningServer(process, log, str(serving["address"]), str(serving["metrics_address"]))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(met: Callable[[], bool], timeout: float = 20) -> None:
    """Waits for a condition. Raises TimeoutError."""
    end = time.monotonic() + timeout
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout} s")
        time.sleep(0.01)


def _wait_for_serving(process: subprocess.Popen[bytes], log: Path, timeout: float) -> dict[str, object]:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        exited = process.poll() is not None
        serving = [event for event in _events(log) if event.get("event") == "serving"]
        if serving:
            return serving[0]
        if exited:
            break
        time.sleep(0.02)
    code = process.poll()
    reason = f"not serving after {timeout} s" if code is None else f"exit code {code}"
    raise RuntimeError(f"the server did not start ({reason}):\n{log.read_text()[-4000:]}")


def _events(log: Path) -> list[dict[str, object]]:
    lines = log.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
