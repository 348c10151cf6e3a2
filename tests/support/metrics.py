"""What a server's /metrics says, by name and labels."""

import urllib.request
from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

from support.server import RunningServer


def samples(server: RunningServer, name: str) -> Iterator[tuple[dict[str, str], float]]:
    """Labels and value of every sample called `name`."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return ((sample.labels, sample.value) for family in families for sample in family.samples if sample.name == name)


def metric(server: RunningServer, name: str, **labels: str) -> float:
    """The sum of the samples called `name` that have these labels; 0 where there is none."""
    return sum(value for have, value in samples(server, name) if labels.items() <= have.items())
