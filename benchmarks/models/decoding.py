"""SmolLM2 greedy decoding: any way to ask Tercet against transformers on the same prompts as one padded batch.

Tercet computes in bfloat16 where the processor multiplies it, else in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks import checkpoints, workloads
from benchmarks.measure import compare, interleave
from benchmarks.models.inprocess import InProcess
from benchmarks.models.peers import TransformersDecoder
from benchmarks.rows import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.rows import Fact, Settings

    Generator = Callable[[list[list[int]], int], Sequence[Sequence[int]]]
    Watch = Callable[[Callable[[], object]], Callable[[], object]]

OURS = "tercet"
FLOAT32, BFLOAT16 = "transformers, one padded batch, float32", "transformers, one padded batch, bfloat16"
REQUESTS = 16
NEW_TOKENS = 64
TOLERANCE = 1e-3  # of a logit: two tokens closer than this are a tie, and either is right


def has_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 (AVX512-BF16, AMX or Arm's BF16)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def dtype() -> str:
    """What Tercet computes in here."""
    return "bfloat16" if has_bfloat16() else "float32"


def bars() -> Mapping[str, float | None]:
    """Of each peer: 2 by bfloat16, else 1.2 against the same float32."""
    return {FLOAT32: 2.0, BFLOAT16: 2.0} if has_bfloat16() else {FLOAT32: 1.2}


def against_peers(
    title: str, ours: Generator, settings: Settings, *, bars: Mapping[str, float | None], watch: Watch = lambda run: run
) -> Result:
    """Generates the same number of greedy tokens for the same prompts; `watch` is wrapped around the peers' runs.

    By float32's logits none of our tokens is further behind the likeliest than twice the furthest of the peer that
    computes in the same dtype, or than a tie.
    """
    torch.set_num_threads(settings.threads)
    judge = TransformersDecoder(checkpoints.smollm2())
    peers = {FLOAT32: judge}
    if BFLOAT16 in bars:
        peers[BFLOAT16] = judge.rounded()
    prompts: list[list[int]] = [judge.tokenizer(text)["input_ids"] for text in workloads.texts(REQUESTS)]
    answers = [list(tokens) for tokens in ours(prompts, NEW_TOKENS)]
    if any(len(tokens) != NEW_TOKENS for tokens in answers):
        return Result(title, not_measured=f"not every answer has {NEW_TOKENS} tokens", missed=["correctness"])

    def behind(given: Sequence[Sequence[int]]) -> list[list[float]]:
        return [judge.behind(prompt, answer) for prompt, answer in zip(prompts, given, strict=True)]

    own = behind(answers)
    worst, most = max(map(max, own)), TOLERANCE
    if BFLOAT16 in peers:
        most = max(2 * max(map(max, behind(peers[BFLOAT16].generate(prompts, NEW_TOKENS)))), TOLERANCE)
    if not worst <= most:
        reason = f"a token's logit is {worst:.1e} behind float32's greedy choice, more than {most:.1e}"
        return Result(title, not_measured=reason, missed=["correctness"])
    lengths = [len(prompt) for prompt in prompts]
    facts: dict[str, Fact] = {
        "requests": REQUESTS,
        "prompt tokens": sum(lengths),
        "fill of the padded prompts": workloads.fill(lengths, REQUESTS),
        "new tokens each": NEW_TOKENS,
        "steps that are not float32's choice": sum(step > 0 for steps in own for step in steps),
        "furthest logit behind it": f"{worst:.1e} of {most:.1e}",
    }
    contestants: dict[str, Callable[[], object]] = {OURS: lambda: ours(prompts, NEW_TOKENS)}
    for name, peer in peers.items():
        contestants[name] = watch(lambda peer=peer: peer.generate(prompts, NEW_TOKENS))
    for warm in contestants.values():
        warm()
    timings = interleave(contestants, settings)
    return compare(title, timings, ours=OURS, amount=REQUESTS * NEW_TOKENS, unit="new tokens/s", bars=bars, facts=facts)


def in_process(settings: Settings) -> Result:
    """The engine without the service."""
    model = InProcess(checkpoints.smollm2(), settings.threads, dtype=dtype())
    title = f"SmolLM2 in {dtype()}, {REQUESTS} requests at once, engine in process"
    return against_peers(title, model.generate, settings, bars=dict.fromkeys(bars()))
