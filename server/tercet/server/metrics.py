"""Every metric of the server, kept in the front process alone: engines send figures with their steps, so that counters
go on where an engine is started again.

Names follow Prometheus' rules (base units, `_total`); labels are only ever names of served models, methods, codes and
words of fixed lists.
"""

from __future__ import annotations

import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    start_http_server,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tercet.server import wire

# Seconds. The first suits encoders (answers within milliseconds) and long generations alike; those of tokens are
# OpenTelemetry's gen_ai ones with finer steps below.
_DURATION = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_POWERS = tuple(2.0**i for i in range(15))


class Metrics:
    """The metrics of one server. Every method may be called from the event loop alone."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.registry.register(collector)
        self._totals: dict[str, dict[Any, int]] = {}  # of each model's engine: what it counted since it started
        self._in_batches: dict[str, int] = {}  # of each model's engine: sequences, after its last step

        self.requests = self._counter("requests", "Calls that ended.", "model", "method", "code")
        self.rejected = self._counter("requests_rejected", "Calls refused before any work.", "model", "reason")
        self.cancelled = self._counter("requests_cancelled", "Calls that their client left.", "model", "stage")
        self.duration = self._histogram("request_duration_seconds", "Duration of calls.", _DURATION, "model", "method")
        self.tokenize = self._histogram("tokenize_duration_seconds", "Tokenizing of one call.", _DURATION, "model")
        self.first_token = self._histogram("time_to_first_token_seconds", "Call to first token.", _FIRST_TOKEN, "model")
        self.output_token = self._histogram(
            "time_per_output_token_seconds", "Mean time of each token after an output's first.", _TOKEN, "model"
        )
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between tokens.", _TOKEN, "model")
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "Of one sequence.", _POWERS, "model")
        self.request_generated_tokens = self._histogram("request_generated_tokens", "Of one output.", _POWERS, "model")

        self._running = self._gauge("requests_running", "Sequences in batches.", "model")
        self._waiting = self._gauge("requests_waiting", "Sequences that are in no batch yet.", "model")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts read.", "model")
        self._generated_tokens = self._counter("generated_tokens", "Tokens generated.", "model")
        self._recomputed_tokens = self._counter("recomputed_tokens", "Tokens read again after preemption.", "model")
        self._batch_tokens = self._counter("batch_tokens", "Tokens of batches: real or padding.", "model", "kind")
        self._batch_size = self._histogram("batch_size", "Sequences of one batch.", _POWERS, "model")
        self._step = self._histogram("engine_step_duration_seconds", "Forward passes.", _DURATION, "model", "phase")
        self._last_step = self._gauge("engine_last_step_timestamp_seconds", "Unix time of the last step.", "model")
        self._restarts = self._counter("engine_restarts", "Engines started again.", "model", "reason")
        self._preemptions = self._counter("preemptions", "Sequences that lost their pages.", "model")
        self._blocks = self._gauge("kv_cache_blocks", "Pages of KV cache: used or free.", "model", "state")
        self._launches = self._counter("kernel_launches", "Calls of kernels.", "model", "op", "impl")
        self._copies = self._counter("host_to_device_copies", "Copies of batches to the device.", "model")
        self._memory = self._gauge("model_memory_bytes", "Weights and pages of a model.", "model")
        self._model_info = self._gauge(
            "model_info", "1 for each model that is ready.", "model", "family", "architecture", "dtype", "device"
        )
        build = Info("tercet_build", "Version of the server.", registry=self.registry)
        build.info({"version": metadata.version("tercet")})

    def serve(self, host: str, port: int) -> int:
        """Serves /metrics from a thread of its own; gives the bound port. Raises OSError where it can't be bound."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)

    def model_added(self, model: str, pending: Callable[[], int]) -> None:
        """A model is to be served; `pending` tells the sequences that its engine has not answered."""
        self._in_batches[model] = 0
        self._running.labels(model).set_function(lambda: self._in_batches[model])
        self._waiting.labels(model).set_function(lambda: max(0, pending() - self._in_batches[model]))
        for reason in ("signal", "exit"):  # from 0 on: Prometheus sees no increase in a counter that begins at 1
            self._restarts.labels(model, reason)

    def engine_ready(self, model: str, info: wire.ModelInfo) -> None:
        """A model's engine answers, for the first time or again."""
        self._totals[model] = {}
        self._model_info.labels(model, info.family, info.architecture, info.dtype, info.device).set(1)
        self._memory.labels(model).set(info.memory)
        self._pages(model, 0, info.pages)
        for kind in ("real", "padding"):
            self._batch_tokens.labels(model, kind)
        for counter in (self._prompt_tokens, self._generated_tokens, self._preemptions, self._copies):
            counter.labels(model)

    def engine_lost(self, model: str) -> None:
        """A model's engine died."""
        self._in_batches[model] = 0

    def engine_restarted(self, model: str, reason: str) -> None:
        """A model's engine is started again, after a "signal" or an "exit"."""
        self._restarts.labels(model, reason).inc()

    def step(self, model: str, pages: int, result: wire.StepResult) -> None:
        """What one step of a model's engine with so many pages was."""
        self._in_batches[model] = result.running
        self._last_step.labels(model).set(time.time())
        self._pages(model, result.pages_used, pages)
        self._advance(self._preemptions, (model,), result.preemptions)
        for kernel, calls in result.kernel_launches.items():
            self._advance(self._launches, (model, *kernel.split("/", 1)), calls)
        for stats in result.stats:
            self._step.labels(model, stats.phase).observe(stats.seconds)
            self._batch_size.labels(model).observe(stats.rows)
            self._batch_tokens.labels(model, "real").inc(stats.real_tokens)
            self._batch_tokens.labels(model, "padding").inc(stats.padding_tokens)
            self._copies.labels(model).inc(stats.host_to_device_copies)
            self._prompt_tokens.labels(model).inc(stats.prompt_tokens)
            self._generated_tokens.labels(model).inc(stats.generated_tokens)
            self._recomputed_tokens.labels(model).inc(stats.recomputed_tokens)

    def _advance(self, counter: Counter, labels: tuple[str, ...], total: int) -> None:
        """Moves a counter on by what an engine's own count since its start has grown."""
        totals = self._totals[labels[0]]
        counter.labels(*labels).inc(total - totals.get((counter, labels), 0))
        totals[counter, labels] = total

    def _pages(self, model: str, used: int, pages: int) -> None:
        self._blocks.labels(model, "used").set(used)
        self._blocks.labels(model, "free").set(pages - used)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"tercet_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"tercet_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"tercet_{name}", help, labels, buckets=buckets, registry=self.registry)
