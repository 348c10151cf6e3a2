"""Prompts that begin alike: the engine that finds their beginning in pages against the same one that reads it again."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import checkpoints
from benchmarks.measure import compare, interleave
from benchmarks.models.inprocess import InProcess
from benchmarks.rows import Result

if TYPE_CHECKING:
    from benchmarks.rows import Settings

OURS, WITHOUT = "tercet, prefix cache", "tercet, --no-prefix-cache"
REQUESTS = 4
ALIKE, OWN, NEW_TOKENS = 256, 16, 8
BAR = 2.0


def shared_beginning(settings: Settings) -> Result:
    """One beginning for all, as of a system prompt; the ends are new in every run, so that only it can be found."""
    engines = {
        name: InProcess(checkpoints.smollm2(), settings.threads, prefix_cache=name == OURS) for name in (OURS, WITHOUT)
    }
    vocabulary = range(100, engines[OURS].info.vocab_size)
    chance = random.Random(0)
    beginning = chance.choices(vocabulary, k=ALIKE)

    def prompts() -> list[list[int]]:
        return [beginning + chance.choices(vocabulary, k=OWN) for _ in range(REQUESTS)]

    def ask(engine: InProcess) -> list[list[int]]:
        return engine.generate(prompts(), NEW_TOKENS)

    title = f"{REQUESTS} prompts of {ALIKE} + {OWN} tokens that begin alike, {NEW_TOKENS} new tokens each, SmolLM2-135M"
    same = prompts()
    first, again, read = (engines[name].generate(same, NEW_TOKENS) for name in (OURS, OURS, WITHOUT))
    if not first == again == read:
        return Result(title, not_measured="tokens differ with what is found in pages", missed=["correctness"])
    return compare(
        title,
        interleave({name: partial(ask, engine) for name, engine in engines.items()}, settings),
        ours=OURS,
        amount=REQUESTS * (ALIKE + OWN + NEW_TOKENS),
        unit="tokens/s",
        bars={WITHOUT: BAR},
        facts={"tokens that are alike": f"{ALIKE / (ALIKE + OWN):.0%} of a prompt"},
    )
