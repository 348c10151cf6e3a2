"""Every metric of the server, kept in the front process alone: engines send figures with their steps, so that counters
go on where an engine is started again.

Names follow Prometheus' rules (base units, `_total`); labels are only ever names of served models, methods, codes and
words of fixed lists.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from importlib import metadata
from typing import TYPE_CHECKING, get_args

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client import Histogram as PrometheusHistogram

from tercet.server import wire

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds. The first suits encoders (answers within milliseconds) and long generations alike; those of tokens are
# OpenTelemetry's gen_ai ones with finer steps below.
_DURATION = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_POWERS = tuple(2.0**i for i in range(15))


class Histogram(PrometheusHistogram):
    """One that takes many equal values at once."""

    def observe_all(self, amount: float, count: int) -> None:
        """As `observe`, `count` times."""
        self._sum.inc(amount * count)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(count)


class TokenGaps:
    """Times between the tokens of one model. Those of a step's rows are mostly the same, and are observed together."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._arrived = 0.0
        self._gaps: dict[float, int] = {}

    def add(self, arrived: float, since: float, tokens: int) -> None:
        """Tokens that arrived together, where the one before them had arrived at `since`; in order of arrival."""
        if arrived != self._arrived:
            self.flush()
            self._arrived = arrived
        gap = (arrived - since) / tokens
        self._gaps[gap] = self._gaps.get(gap, 0) + tokens

    def flush(self) -> None:
        """Observes what was added."""
        for gap, tokens in self._gaps.items():
            self._histogram.observe_all(gap, tokens)
        self._gaps.clear()


class Metrics:
    """The metrics of one server.

    Methods may be called from the event loop alone; what gauges are set to read is read in the thread of /metrics.
    """

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.registry.register(collector)

        self.requests = self._counter("requests", "Calls that ended.", "model", "method", "code")
        self.rejected = self._counter(
            "requests_rejected", "Calls, or requests of a stream, refused before any work.", "model", "reason"
        )
        self.cancelled = self._counter("requests_cancelled", "Calls that their client left.", "model", "stage")
        self.duration = self._histogram("request_duration_seconds", "Duration of calls.", _DURATION, "model", "method")
        self.tokenize = self._histogram("tokenize_duration_seconds", "Tokenizing of one call.", _DURATION, "model")
        self.first_token = self._histogram("time_to_first_token_seconds", "Call to first token.", _FIRST_TOKEN, "model")
        self.output_token = self._histogram(
            "time_per_output_token_seconds", "Mean time of each token after an output's first.", _TOKEN, "model"
        )
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between tokens.", _TOKEN, "model")
        self._token_gaps: dict[str, TokenGaps] = {}
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "Of one sequence.", _POWERS, "model")
        self.request_generated_tokens = self._histogram("request_generated_tokens", "Of one output.", _POWERS, "model")

        self.running = self._gauge("requests_running", "Sequences in batches; each beam is one.", "model")
        self.waiting = self._gauge("requests_waiting", "Sequences that are in no batch yet.", "model")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts read.", "model")
        self.generated_tokens = self._counter(
            "generated_tokens", "Tokens generated, those of every beam included.", "model"
        )
        self.recomputed_tokens = self._counter("recomputed_tokens", "Tokens read again after preemption.", "model")
        self.batch_tokens = self._counter("batch_tokens", "Tokens of batches: real or padding.", "model", "kind")
        self.batch_size = self._histogram("batch_size", "Sequences of one batch.", _POWERS, "model")
        self.step = self._histogram("engine_step_duration_seconds", "Forward passes.", _DURATION, "model", "phase")
        self.last_step = self._gauge("engine_last_step_timestamp_seconds", "Unix time of the last step.", "model")
        self.restarts = self._counter("engine_restarts", "Engines started again.", "model", "reason")
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
        self.memory = self._gauge("model_memory_bytes", "Weights and pages of a model.", "model")
        self.model_info = self._gauge(
            "model_info", "What a model is; always 1.", "model", "family", "architecture", "dtype", "device"
        )
        build = Info("tercet_build", "Version of the server.", registry=self.registry)
        build.info({"version": metadata.version("tercet")})

    def token_gaps(self, model: str) -> TokenGaps:
        """What gathers the inter-token latencies of a model."""
        if model not in self._token_gaps:
            self._token_gaps[model] = TokenGaps(self.inter_token.labels(model))
        return self._token_gaps[model]

    def serve(self, host: str, port: int) -> int:
        """Serves /metrics from a thread of its own; gives the bound port. Raises OSError where it can't be bound."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"tercet_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"tercet_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"tercet_{name}", help, labels, buckets=buckets, registry=self.registry)


class EngineMetrics:
    """The metrics of one model's engine, over all its incarnations."""

    def __init__(self, metrics: Metrics, model: str, pending: Callable[[], int]) -> None:
        """`pending` tells the sequences that the engine has not answered; the thread of /metrics calls it."""
        self._metrics = metrics
        self._model = model
        self._in_batches = 0  # after the last step
        self._pages = 0
        self._totals: dict[str, int] = {}  # what the engine counted since it started
        metrics.running.labels(model).set_function(lambda: self._in_batches)
        metrics.waiting.labels(model).set_function(lambda: max(0, pending() - self._in_batches))
        for reason in ("signal", "exit"):  # from 0 on: Prometheus sees no increase in a counter that begins at 1
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

    def step(self, result: wire.StepResult) -> None:
        """What one step was."""
        self._in_batches = result.running
        self._last_step.set(time.time())
        self._hold(result.pages_used, result.pages_cached)
        for name, counter in self._cache.items():
            self._advance(name, counter, getattr(result.cache, name))
        self._advance("preemptions", self._preemptions, result.preemptions)
        for kernel, calls in result.kernel_launches.items():
            if kernel not in self._launches:
                self._launches[kernel] = self._metrics.launches.labels(self._model, *kernel.split("/", 1))
            self._advance(kernel, self._launches[kernel], calls)
        for stats in result.stats:
            self._steps[stats.phase].observe(stats.seconds)
            self._batch_size.observe(stats.rows)
            for name, counter in self._summed.items():
                counter.inc(getattr(stats, name))

    def _advance(self, name: str, counter: Counter, total: int) -> None:
        """Moves a counter on by what the engine's own count since its start has grown."""
        counter.inc(total - self._totals.get(name, 0))
        self._totals[name] = total

    def _hold(self, pages: int, cached: int = 0) -> None:
        self._used.set(pages)
        self._free.set(self._pages - pages)
        self._cached.set(cached)
