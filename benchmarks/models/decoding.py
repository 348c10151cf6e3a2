"""SmolLM2 greedy decoding: any way to ask Tercet against transformers on the same prompts as one padded batch."""

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

    from benchmarks.rows import Settings

    Generator = Callable[[list[list[int]], int], Sequence[Sequence[int]]]
    Watch = Callable[[Callable[[], object]], Callable[[], object]]

OURS = "tercet"
PEER = "transformers, one padded batch"
BARS: Mapping[str, float | None] = {PEER: 1.2}
REQUESTS = 16
NEW_TOKENS = 64
TOLERANCE = 1e-3  # of a logit: two tokens closer than this are a tie, and either is right


def against_peers(
    title: str, ours: Generator, settings: Settings, *, bars: Mapping[str, float | None], watch: Watch = lambda run: run
) -> Result:
    """Generates the same number of greedy tokens for the same prompts; `watch` is wrapped around the peer's runs."""
    torch.set_num_threads(settings.threads)
    transformers = TransformersDecoder(checkpoints.smollm2())
    prompts: list[list[int]] = [transformers.tokenizer(text)["input_ids"] for text in workloads.texts(REQUESTS)]
    answers = [list(tokens) for tokens in ours(prompts, NEW_TOKENS)]
    if any(len(tokens) != NEW_TOKENS for tokens in answers):
        return Result(title, not_measured=f"not every answer has {NEW_TOKENS} tokens", missed=["correctness"])
    behind = [transformers.behind(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    worst = max(map(max, behind))
    if worst > TOLERANCE:
        reason = f"a token is {worst:.1e} behind transformers' greedy choice"
        return Result(title, not_measured=reason, missed=["correctness"])
    lengths = [len(prompt) for prompt in prompts]
    facts: dict[str, float | int | str] = {
        "requests": REQUESTS,
        "prompt tokens": sum(lengths),
        "fill of the padded prompts": workloads.fill(lengths, REQUESTS),
        "new tokens each": NEW_TOKENS,
        "steps that are ties": sum(step > 0 for steps in behind for step in steps),
    }
    contestants: dict[str, Callable[[], object]] = {
        OURS: lambda: ours(prompts, NEW_TOKENS),
        PEER: watch(lambda: transformers.generate(prompts, NEW_TOKENS)),
    }
    for warm in contestants.values():
        warm()
    seconds = interleave(contestants, settings)
    return compare(title, seconds, ours=OURS, amount=REQUESTS * NEW_TOKENS, unit="new tokens/s", bars=bars, facts=facts)


def in_process(settings: Settings) -> Result:
    """The engine without the service."""
    model = InProcess(checkpoints.smollm2(), settings.threads)
    title = "SmolLM2 in float32, 16 requests at once, engine in process"
    return against_peers(title, model.generate, settings, bars=dict.fromkeys(BARS))
