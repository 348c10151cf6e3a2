"""SmolLM2 over gRPC, 16 requests at once, against transformers on the same prompts as one batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from benchmarks import checkpoints
from benchmarks.models.decoding import REQUESTS, against_peers, bars, dtype
from benchmarks.serving.server import serve
from tercet.client import Client

if TYPE_CHECKING:
    from benchmarks.rows import Result, Settings


def measure(settings: Settings) -> Result:
    """Sixteen unary calls in flight; each is one request, as sixteen users would make."""
    with (
        serve({"smollm2": checkpoints.smollm2()}, "--threads", str(settings.threads), "--dtype", dtype()) as server,
        Client(server.address, timeout=600) as client,
        ThreadPoolExecutor(REQUESTS) as users,
    ):

        def one(prompt: list[int], new_tokens: int) -> list[int]:
            answer = client.generate(
                prompt, model="smollm2", max_new_tokens=new_tokens, temperature=0, repetition_penalty=1, ignore_eos=True
            )
            return list(answer.token_ids)

        def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
            return list(users.map(lambda prompt: one(prompt, new_tokens), prompts))

        title = f"SmolLM2 in {dtype()} over gRPC, {REQUESTS} requests at once, greedy"
        result = against_peers(title, generate, settings, bars=bars(), watch=server.idle_while)
        result.facts = {**result.facts, **server.idle_facts()}
        result.missed = [*result.missed, *server.idle_missed()]
        return result
