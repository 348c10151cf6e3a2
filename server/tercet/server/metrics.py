"""What front ends count: calls, and the times and tokens of their answers.

They count in files of memory that they share with the supervisor, which tells the sums: a count is there as soon as it
is made, and stays where its front end dies; times between tokens are counted a little later, or where an output ends.
Calls that die with it are not counted: nobody saw how they ended.

Names follow Prometheus' rules (base units, `_total`); labels are only ever names of served models, methods, codes and
words of fixed lists.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, values
from prometheus_client import Histogram as PrometheusHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Seconds. The first suits encoders (answers within milliseconds) and long generations alike; those of tokens are
# OpenTelemetry's gen_ai ones with finer steps below.
DURATION = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_GAP_SECONDS = 0.2  # between observations of gaps where no output ends
POWERS = tuple(2.0**i for i in range(15))


class Histogram(PrometheusHistogram):
    """One that takes many values at once."""

    def observe_all(self, counts: Mapping[float, int]) -> None:
        """As `observe` of each amount as often as it is counted."""
        buckets: defaultdict[int, int] = defaultdict(int)
        for amount, count in counts.items():
            buckets[bisect_left(self._upper_bounds, amount)] += count
        self._sum.inc(sum(amount * count for amount, count in counts.items()))
        for bucket, count in buckets.items():
            self._buckets[bucket].inc(count)


class TokenGaps(dict[float, int]):
    """Times between the tokens of one model, and how many were so long: those of a step's rows are mostly the same.
    They are observed together, some times a second and whenever an output ends.
    """

    __slots__ = ("_histogram", "_observed")

    def __init__(self, histogram: Histogram) -> None:
        super().__init__()
        self._histogram = histogram
        self._observed = 0.0  # when

    def __missing__(self, gap: float) -> int:
        """Of a time that is new, none; now and then those before it are observed first."""
        if time.monotonic() - self._observed >= _GAP_SECONDS:
            self.flush()
        return 0

    def flush(self) -> None:
        """Observes what was counted."""
        if self:
            self._histogram.observe_all(self)
            self.clear()
        self._observed = time.monotonic()


class Registered:
    """Makes metrics of one registry."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"tercet_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"tercet_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"tercet_{name}", help, labels, buckets=buckets, registry=self.registry)


class Metrics(Registered):
    """What a front end counts. Methods may be called from the event loop alone."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = self._counter("requests", "Calls that ended.", "model", "method", "code")
        self.rejected = self._counter(
            "requests_rejected", "Calls, or requests of a stream, refused before any work.", "model", "reason"
        )
        self.cancelled = self._counter("requests_cancelled", "Calls that their client left.", "model", "stage")
        self.duration = self._histogram("request_duration_seconds", "Duration of calls.", DURATION, "model", "method")
        self.tokenize = self._histogram("tokenize_duration_seconds", "Tokenizing of one call.", DURATION, "model")
        self.first_token = self._histogram("time_to_first_token_seconds", "Call to first token.", _FIRST_TOKEN, "model")
        self.output_token = self._histogram(
            "time_per_output_token_seconds", "Mean time of each token after an output's first.", _TOKEN, "model"
        )
        self.inter_token = self._histogram("inter_token_latency_seconds", "Between tokens.", _TOKEN, "model")
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "Of one sequence.", POWERS, "model")
        self.request_generated_tokens = self._histogram("request_generated_tokens", "Of one output.", POWERS, "model")

        self._generations: dict[str, GenerationMetrics] = {}

    def generations(self, model: str) -> GenerationMetrics:
        """What is counted of a model's generations."""
        if model not in self._generations:
            self._generations[model] = GenerationMetrics(self, model)
        return self._generations[model]


class GenerationMetrics:
    """What is counted of one model's generations; resolved once, since looking labels up costs more than counting."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.prompt_tokens = metrics.request_prompt_tokens.labels(model)
        self.generated_tokens = metrics.request_generated_tokens.labels(model)
        self.first_token = metrics.first_token.labels(model)
        self.output_token = metrics.output_token.labels(model)
        self.gaps = TokenGaps(metrics.inter_token.labels(model))


def share(folder: Path, number: int) -> None:
    """Lets this process, front end `number`, count in files of the folder; one that is started again counts on."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: number)
