"""MiniLM embeddings: any way to ask Tercet against transformers and CTranslate2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks import checkpoints, workloads
from benchmarks.measure import compare, interleave
from benchmarks.models.inprocess import InProcess
from benchmarks.models.peers import BATCH, CTranslate2Embedder, TransformersEmbedder
from benchmarks.rows import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from benchmarks.rows import Settings

    Embedder = Callable[[list[str]], NDArray[np.float32]]
    Watch = Callable[[Callable[[], object]], Callable[[], object]]

OURS = "tercet"
ARRIVAL, SORTED, CTRANSLATE2 = "transformers, as they arrive", "transformers, by length", "CTranslate2, by length"
BARS: Mapping[str, float | None] = {ARRIVAL: 3.0, SORTED: 1.2, CTRANSLATE2: 1.0}
TEXTS = 512
LEAST_COSINE = 0.99999


def _least_cosine(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    products = (vectors.astype(np.float64) * reference).sum(1)
    return float((products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)).min())


def against_peers(
    title: str, ours: Embedder, settings: Settings, *, bars: Mapping[str, float | None], watch: Watch = lambda run: run
) -> Result:
    """Embeds the same texts with every contestant; `watch` is wrapped around the runs of the peers.

    Every run takes texts and gives vectors: tokenizing, batching, pooling and normalising are included.
    """
    torch.set_num_threads(settings.threads)
    texts = workloads.texts(TEXTS)
    transformers = TransformersEmbedder(checkpoints.minilm())
    peers: dict[str, Embedder] = {
        ARRIVAL: transformers.in_order,
        SORTED: transformers.by_length,
        CTRANSLATE2: CTranslate2Embedder(checkpoints.minilm(), settings.threads).by_length,
    }
    reference = transformers.by_length(texts)
    cosine = _least_cosine(ours(texts), reference)
    if not cosine >= LEAST_COSINE:
        reason = f"vectors differ from transformers': cosine {cosine:.6f} < {LEAST_COSINE}"
        return Result(title, not_measured=reason, missed=["correctness"])
    lengths = [len(ids) for ids in transformers.tokenizer(texts)["input_ids"]]
    facts: dict[str, float | int | str] = {
        "texts": TEXTS,
        "tokens": sum(lengths),
        "fill as they arrive": workloads.fill(lengths, BATCH),
        "fill by length": workloads.fill(sorted(lengths), BATCH),
        "lowest cosine": f"{cosine:.7f}",
        "CTranslate2's lowest cosine": f"{_least_cosine(peers[CTRANSLATE2](texts), reference):.7f}",
    }
    contestants: dict[str, Callable[[], object]] = {OURS: lambda: ours(texts)}
    for name, embed in peers.items():
        contestants[name] = watch(lambda embed=embed: embed(texts))
    for warm in contestants.values():
        warm()
    seconds = interleave(contestants, settings)
    return compare(title, seconds, ours=OURS, amount=TEXTS, unit="texts/s", bars=bars, facts=facts)


def in_process(settings: Settings) -> Result:
    """The engine without the service."""
    model = InProcess(checkpoints.minilm(), settings.threads)
    return against_peers("MiniLM in float32, engine in process", model.embed, settings, bars=dict.fromkeys(BARS))
