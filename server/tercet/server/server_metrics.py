"""Every metric of the server at one /metrics of the supervisor: what front ends count in sum, and what engines do.

Engines send figures with their steps, so that counters go on where one is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections import Counter as Tally
from importlib import metadata
from operator import attrgetter
from typing import TYPE_CHECKING, get_args

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, Counter, Info, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from tercet.server import wire
from tercet.server.link import readable
from tercet.server.metrics import DURATION, POWERS, Registered
from tercet.server.ports import BindError, address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from prometheus_client import Metric

RESTARTS = ("signal", "exit")  # counted from 0 on: Prometheus sees no increase in a counter that begins at 1
_TURN_SECONDS = 1.0


class ServerMetrics(Registered):
    """What the supervisor tells: the front ends' metrics in sum, the engines' and its own.

    Methods may be called from the event loop alone; what gauges are set to read is read in the thread of /metrics.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: is made, for what the front ends count."""
        super().__init__()
        folder.mkdir(mode=0o700)
        self.folder = folder
        self._settled = _Settled()
        self.before_scrape = self._settled.before
        """Called on the event loop before anything is told, so that what can be read then is in it."""
        for collector in (self._settled, _Shared(folder), PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.registry.register(collector)

        self.running = self._gauge("requests_running", "Sequences in batches; each beam is one.", "model")
        self.waiting = self._gauge("requests_waiting", "Sequences that are in no batch yet.", "model")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, read or found in pages.", "model")
        self.generated_tokens = self._counter(
            "generated_tokens", "Tokens generated, those of every beam included.", "model"
        )
        self.recomputed_tokens = self._counter("recomputed_tokens", "Tokens read again after preemption.", "model")
        self.batch_tokens = self._counter("batch_tokens", "Tokens of batches: real or padding.", "model", "kind")
        self.batch_size = self._histogram("batch_size", "Sequences of one batch.", POWERS, "model")
        self.step = self._histogram("engine_step_duration_seconds", "Forward passes.", DURATION, "model", "phase")
        self.last_step = self._gauge("engine_last_step_timestamp_seconds", "Unix time of the last step.", "model")
        self.restarts = self._counter("engine_restarts", "Engines started again.", "model", "reason")
        self.front_end_restarts = self._counter("front_end_restarts", "Front ends started again.", "reason")
        for reason in RESTARTS:
            self.front_end_restarts.labels(reason)
        self.preemptions = self._counter("preemptions", "Sequences that lost their pages.", "model")
        self.blocks = self._gauge("kv_cache_blocks", "Pages of KV cache: used or free.", "model", "state")
        self.cached_blocks = self._gauge(
            "kv_cache_cached_blocks", "Free pages in which prompts or sources may be found again.", "model"
        )
        self.evictions = self._counter("kv_cache_evictions", "Such pages that were taken for something else.", "model")
        self.prefix_queries = self._counter(
            "prefix_cache_queries", "Tokens of prompts of decoders that were looked for in pages.", "model"
        )
        self.prefix_hits = self._counter("prefix_cache_hits", "Those of them that were found and not read.", "model")
        self.source_queries = self._counter(
            "source_cache_queries", "Tokens of sources of seq2seq models that were looked for in pages.", "model"
        )
        self.source_hits = self._counter("source_cache_hits", "Those of them that were found and not encoded.", "model")
        self.launches = self._counter("kernel_launches", "Calls of kernels.", "model", "op", "impl")
        self.copies = self._counter("host_to_device_copies", "Copies of batches to the device.", "model")
        self.replayed = self._counter("replayed_steps", "Steps of engines that ran from graphs.", "model")
        self.memory = self._gauge("model_memory_bytes", "Weights and pages of a model.", "model")
        self.model_info = self._gauge(
            "model_info", "What a model is; always 1.", "model", "family", "architecture", "dtype", "device"
        )
        build = Info("tercet_build", "Version of the server.", registry=self.registry)
        build.info({"version": metadata.version("tercet")})

    def serve(self, host: str, port: int) -> int:
        """Serves /metrics from a thread of its own; gives the bound port. Raises BindError."""
        self._settled.loop = asyncio.get_running_loop()
        try:
            server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise BindError(f"metrics_port: can't listen on {address(host, port)}: {error.strerror}") from None
        return int(server.server_port)


class _Settled(Collector):
    """Collects nothing, but first lets the event loop take in what engines have sent.

    An engine reports a step before it answers, so that who has an answer finds it counted.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.before: list[Callable[[], None]] = []

    def collect(self) -> Iterator[Metric]:
        """Waits for a turn of the event loop, if it has time."""
        if self.loop is not None and not self.loop.is_closed():
            with contextlib.suppress(TimeoutError, RuntimeError):  # the loop may be closed meanwhile
                asyncio.run_coroutine_threadsafe(self._settle(), self.loop).result(_TURN_SECONDS)
        return iter(())

    async def _settle(self) -> None:
        for call in self.before:
            call()
        await readable()


class _Shared(MultiProcessCollector):
    """The metrics of all front ends in sum."""

    def __init__(self, folder: Path) -> None:
        super().__init__(None, path=str(folder))

    def collect(self) -> Iterable[Metric]:
        """Reads every front end's files."""
        while True:
            try:
                return super().collect()
            except struct.error:  # a file that is being made has no head for some microseconds
                time.sleep(0.001)


class EngineMetrics:
    """The metrics of one model's engine, over all its incarnations."""

    def __init__(self, metrics: ServerMetrics, model: str, pending: Callable[[], int]) -> None:
        """`pending` tells the sequences that the engine has not answered; the thread of /metrics calls it."""
        self._metrics = metrics
        self._model = model
        self._in_batches = 0  # after the last step
        self._pages = 0
        self._totals: dict[str, int] = {}  # what the engine counted since it started
        metrics.running.labels(model).set_function(lambda: self._in_batches)
        metrics.waiting.labels(model).set_function(lambda: max(0, pending() - self._in_batches))
        for reason in RESTARTS:
            metrics.restarts.labels(model, reason)
        # resolved once: looking labels up costs more than counting
        self._steps = {phase: metrics.step.labels(model, phase) for phase in get_args(wire.Phase)}
        self._batch_size = metrics.batch_size.labels(model)
        self._used, self._free = (metrics.blocks.labels(model, state) for state in ("used", "free"))
        self._preemptions = metrics.preemptions.labels(model)
        self._cached = metrics.cached_blocks.labels(model)
        self._cache = {name: getattr(metrics, name).labels(model) for name in wire.CacheCounts.__struct_fields__}
        self._last_step = metrics.last_step.labels(model)
        self._launches: dict[str, Counter] = {}
        self._summed = {
            "real_tokens": metrics.batch_tokens.labels(model, "real"),
            "padding_tokens": metrics.batch_tokens.labels(model, "padding"),
            "host_to_device_copies": metrics.copies.labels(model),
            "replayed_steps": metrics.replayed.labels(model),
            "prompt_tokens": metrics.prompt_tokens.labels(model),
            "generated_tokens": metrics.generated_tokens.labels(model),
            "recomputed_tokens": metrics.recomputed_tokens.labels(model),
        }

    def ready(self, info: wire.ModelInfo) -> None:
        """The engine answers, for the first time or again."""
        self._totals.clear()
        self._pages = info.pages
        self._hold(0)
        labels = (self._model, info.family, info.architecture, info.dtype, info.device)
        self._metrics.model_info.labels(*labels).set(1)
        self._metrics.memory.labels(self._model).set(info.memory)

    def lost(self) -> None:
        """The engine died."""
        self._in_batches = 0
        self._hold(0)

    def restarted(self, reason: str) -> None:
        """The engine is started again, after a "signal" or an "exit"."""
        self._metrics.restarts.labels(self._model, reason).inc()

    def steps(self, results: Sequence[wire.StepResult]) -> None:
        """What steps were, at least one, in order."""
        newest = results[-1]
        self._in_batches = newest.running
        self._last_step.set(time.time())
        self._hold(newest.pages_used, newest.pages_cached)
        for name, counter in self._cache.items():
            self._advance(name, counter, getattr(newest.cache, name))
        self._advance("preemptions", self._preemptions, newest.preemptions)
        for kernel, calls in newest.kernel_launches.items():
            if kernel not in self._launches:
                self._launches[kernel] = self._metrics.launches.labels(self._model, *kernel.split("/", 1))
            self._advance(kernel, self._launches[kernel], calls)
        passes = [stats for result in results for stats in result.stats]
        for phase, histogram in self._steps.items():
            histogram.observe_all(Tally(stats.seconds for stats in passes if stats.phase == phase))
        self._batch_size.observe_all(Tally(stats.rows for stats in passes))
        for name, counter in self._summed.items():
            counter.inc(sum(map(attrgetter(name), passes)))

    def _advance(self, name: str, counter: Counter, total: int) -> None:
        """Moves a counter on by what the engine's own count since its start has grown."""
        if growth := total - self._totals.get(name, 0):
            counter.inc(growth)
            self._totals[name] = total

    def _hold(self, pages: int, cached: int = 0) -> None:
        self._used.set(pages)
        self._free.set(self._pages - pages)
        self._cached.set(cached)
