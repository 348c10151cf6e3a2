"""A real `tercet serve` process, and the CPU time that it takes."""

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

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.environment import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from benchmarks.null_model import Pace

START_SECONDS = 300
IDLE_SECONDS = 30  # at most, until what nobody waits for any more has left the models
IDLE_SHARE = 0.02  # of one core: a server that takes more while others are measured makes the run worthless


@dataclass
class Server:
    """A server that is SERVING."""

    process: subprocess.Popen[bytes]
    address: str
    metrics_address: str
    exec_time: float
    """time.perf_counter() when it was started."""
    idle_cpu: float = 0.0
    idle_wall: float = 0.0

    def cpu_seconds(self) -> float:
        """CPU time so far of the server and all its engines."""
        return sum(map(_cpu_seconds, _family(self.process.pid)))

    def service_cpu_seconds(self) -> float:
        """CPU time so far of everything but the engines."""
        return sum(_cpu_seconds(pid) for pid in _family(self.process.pid) if not _is_engine(pid))

    def wait_idle(self) -> None:
        """Waits until no model has anything to do. Raises TimeoutError."""
        end = time.monotonic() + IDLE_SECONDS
        while requests := self._requests():
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{requests:g} requests are still in the server {IDLE_SECONDS} s after their callers left"
                )
            time.sleep(0.05)

    def _requests(self) -> float:
        """How many run or wait in all models."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        at_work = ("tercet_requests_running", "tercet_requests_waiting")
        return sum(sample.value for family in families if family.name in at_work for sample in family.samples)

    def idle_while(self, run: Callable[[], object]) -> Callable[[], object]:
        """`run`, counting what CPU time this server takes meanwhile."""

        def watched() -> object:
            cpu, wall = self.cpu_seconds(), time.monotonic()
            answer = run()
            self.idle_cpu += self.cpu_seconds() - cpu
            self.idle_wall += time.monotonic() - wall
            return answer

        return watched

    def idle_facts(self) -> dict[str, float | int | str]:
        """What share of one core it took while others were measured."""
        return {"server's CPU while idle": f"{self._idle_share:.1%} of a core"}

    def idle_missed(self) -> list[str]:
        """The complaint if that was too much to compare anything."""
        return [f"an idle server takes at most {IDLE_SHARE:.0%} of a core"] if self._idle_share > IDLE_SHARE else []

    @property
    def _idle_share(self) -> float:
        return self.idle_cpu / self.idle_wall if self.idle_wall else 0.0


@contextmanager
def serve(models: Mapping[str, Path], *flags: str, pace: Pace | None = None) -> Generator[Server]:
    """Starts a server on free ports, waits until it is SERVING and stops it in the end.

    With a pace its models compute nothing and take that long. Prompts that come again are read again, unless flags turn
    the prefix cache on. Raises RuntimeError with the end of its log where it does not come up.
    """
    sources = [f"{name}={source}" for name, source in models.items()]
    module = ["tercet.server"] if pace is None else ["benchmarks.serving.null_server", f"{pace.step},{pace.token}"]
    ports = ("--port", "0", "--metrics-port", "0")
    command = [sys.executable, "-m", *module, "serve", *sources, *ports, "--no-prefix-cache"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as stderr:
            start = time.perf_counter()
            process = subprocess.Popen(
                [*command, "--log-format", "json", *flags], cwd=ROOT, stdout=stderr, stderr=stderr
            )
        try:
            yield Server(process, *_addresses(process, log), start)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _addresses(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """Of the service and of its metrics."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if '"serving"' in line and line.endswith("}"):
                event = json.loads(line)
                return event["address"], event["metrics_address"]
        time.sleep(0.01)
    raise RuntimeError(f"the server did not come up:\n{log.read_text(errors='replace')[-2000:]}")


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))


def _is_engine(pid: int) -> bool:
    """Engines alone get their settings as an argument."""
    return b'"incarnation"' in Path(f"/proc/{pid}/cmdline").read_bytes()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime
