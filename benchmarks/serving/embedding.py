"""MiniLM over gRPC against transformers and CTranslate2 in process, all on the same cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import checkpoints
from benchmarks.models.embedding import BARS, TEXTS, against_peers
from benchmarks.serving.server import serve
from tercet.client import Client

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.rows import Result, Settings


def measure(settings: Settings) -> Result:
    """The whole server and the SDK count for us; the peers have no wire."""
    with (
        serve({"minilm": checkpoints.minilm()}, "--threads", str(settings.threads)) as server,
        Client(server.address, timeout=600) as client,
    ):
        cpu = 0.0

        def embed(texts: list[str]) -> NDArray[np.float32]:
            nonlocal cpu
            before = server.cpu_seconds()
            vectors = client.embed(texts, model="minilm")
            cpu = server.cpu_seconds() - before
            return vectors

        title = "MiniLM in float32 over gRPC, texts to vectors"
        result = against_peers(title, embed, settings, bars=BARS, watch=server.idle_while)
        result.facts = {**result.facts, "server CPU s per 1000 texts": 1000 * cpu / TEXTS, **server.idle_facts()}
        result.missed = [*result.missed, *server.idle_missed()]
        return result
