"""Tercet's server and a peer's on the same workload from the same client process, a call for a call."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import checkpoints, workloads
from benchmarks.measure import compare, interleave
from benchmarks.peers.servers import start
from benchmarks.rows import Result
from benchmarks.serving.server import serve
from tercet.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from benchmarks.peers.servers import Peer
    from benchmarks.rows import Settings

OURS = "tercet"
TEXTS, TEXTS_A_CALL, CALLERS = 512, 32, 8  # TEI takes 32 texts a call unless told otherwise
LEAST_COSINE = 0.999
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 64, 128, 64


def embedding(peer: Peer, settings: Settings) -> Result:
    """Vectors of MiniLM."""
    if not peer.installed:
        return Result(peer.name, not_measured=f"{peer.program} is not installed")
    texts = workloads.texts(TEXTS)
    calls = [texts[first : first + TEXTS_A_CALL] for first in range(0, TEXTS, TEXTS_A_CALL)]
    with (
        serve({"minilm": checkpoints.minilm()}, "--threads", str(settings.threads)) as server,
        Client(server.address, timeout=600) as client,
        start(peer, checkpoints.minilm()) as other,
        ThreadPoolExecutor(CALLERS) as callers,
    ):

        def ours() -> list[Any]:
            return list(callers.map(lambda call: client.embed(call, model="minilm", truncate=True), calls))

        def theirs() -> list[Any]:
            return list(callers.map(other.ask, calls))

        ours_first, theirs_first = np.concatenate(ours()), np.concatenate(theirs())
        cosine = float((ours_first * theirs_first).sum(1).min())
        if not cosine >= LEAST_COSINE:
            reason = f"vectors differ from {peer.name}'s: cosine {cosine:.6f} < {LEAST_COSINE}"
            return Result(peer.name, not_measured=reason, missed=["correctness"])
        timings = interleave({OURS: ours, peer.name: server.idle_while(theirs)}, settings)
    return compare(
        f"MiniLM, {TEXTS} texts in calls of {TEXTS_A_CALL}, {CALLERS} at a time", timings, ours=OURS, amount=TEXTS,
        unit="texts/s", bars={peer.name: 1.0}, facts={"lowest cosine": cosine, **server.idle_facts()},
    )  # fmt: skip


@contextmanager
def _smollm2() -> Generator[Path]:
    """As a Hugging Face folder, which every peer reads; ours is served from it too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = checkpoints.smollm2()
    given: dict[str, Any] = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_pretrained(**given).save_pretrained(folder)
        AutoTokenizer.from_pretrained(**given).save_pretrained(folder)
        yield Path(folder)


def generation(peer: Peer, settings: Settings) -> Result:
    """Greedy tokens of SmolLM2, as many as asked for."""
    if not peer.installed:
        return Result(peer.name, not_measured=f"{peer.program} is not installed")
    prompts = [[10 + (7 * row + 3 * place) % 1000 for place in range(PROMPT_TOKENS)] for row in range(PROMPTS)]
    with (
        _smollm2() as checkpoint,
        serve({"smollm2": checkpoint}, "--threads", str(settings.threads)) as server,
        Client(server.address, timeout=600) as client,
        start(peer, checkpoint) as other,
        ThreadPoolExecutor(PROMPTS) as callers,
    ):

        def one(prompt: list[int]) -> int:
            answer = client.generate(
                prompt, model="smollm2", max_new_tokens=NEW_TOKENS, temperature=0, repetition_penalty=1, ignore_eos=True
            )
            return len(answer.token_ids)

        def all_of(ask: Callable[[list[int]], int]) -> None:
            tokens = sum(callers.map(ask, prompts))
            if tokens != PROMPTS * NEW_TOKENS:
                raise RuntimeError(f"{tokens} tokens came, not {PROMPTS * NEW_TOKENS}")

        contestants: dict[str, Callable[[], object]] = {
            OURS: lambda: all_of(one),
            peer.name: server.idle_while(lambda: all_of(lambda prompt: other.ask(prompt, NEW_TOKENS))),
        }
        for warm in contestants.values():
            warm()
        timings = interleave(contestants, settings)
    return compare(
        f"SmolLM2, {PROMPTS} prompts of {PROMPT_TOKENS} tokens at once, {NEW_TOKENS} greedy tokens each", timings,
        ours=OURS, amount=PROMPTS * NEW_TOKENS, unit="new tokens/s", bars={peer.name: 1.0}, facts=server.idle_facts(),
    )  # fmt: skip
