"""Decoders on a GPU: against transformers' generate, eager and compiled with a static cache, and generate_batch."""

from __future__ import annotations

import functools
import random
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from benchmarks.limits import H100, Work, decode_step, encode
from benchmarks.models import generators
from benchmarks.models.generators import CONTINUOUS, EAGER, STATIC, Judge
from benchmarks.models.inprocess import GIB, InProcess
from benchmarks.models.race import OURS, Contestants
from benchmarks.models.recipes import GPT2, LLAMA_1B, LLAMA_160M, QWEN3_06B, saved
from benchmarks.rows import DATASHEET, Goal, Result, Row

if TYPE_CHECKING:
    from benchmarks.limits import Chip
    from benchmarks.models.recipes import Recipe
    from benchmarks.rows import Device, Settings

PROMPTS = "tercet, the prompts and one token"
CHECKED = 2  # answers that are compared with float32
NEAR = 0.05  # standard deviations of the logits: two tokens so close are a tie in bfloat16


@dataclass(frozen=True)
class Case:
    """`rows` prompts of `prompt` tokens at once, and `new` greedy tokens for each."""

    name: str
    recipe: Recipe
    rows: int
    prompt: int
    new: int
    device: Device = "cuda"
    bars: tuple[tuple[str, float], ...] = ()
    milliseconds: float | None = None
    """A token, at most, on an H100."""
    share: float | None = None
    """Of a step's limit, to be reached on an H100."""
    priority: int = 1

    def small(self) -> Case:
        """The same in small, on a CPU."""
        return replace(self, recipe=self.recipe.rehearsed(), rows=min(self.rows, 3), prompt=10, new=4, device="cpu")

    def prompts(self) -> list[list[int]]:
        """Seeded token ids, all of one length: padding is nobody's merit."""
        chance = random.Random(0)
        return [[chance.randrange(2, 100) for _ in range(self.prompt)] for _ in range(self.rows)]

    def steps(self) -> list[Work]:
        """What the prompts and each further step cannot do without."""
        contexts = range(self.prompt + 1, self.prompt + self.new)
        prompts = encode(self.recipe.stack, [self.prompt] * self.rows)
        return [prompts, *(decode_step(self.recipe.stack, [context] * self.rows) for context in contexts)]


def _measure(case: Case, settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    prompts, on_gpu = case.prompts(), case.device == "cuda"
    model = case.recipe.built(case.device, torch.bfloat16)
    with saved(model) as folder:
        engine = InProcess(folder, settings.threads, device="cuda:0" if on_gpu else "cpu", dtype="bfloat16")
    title = f"{case.rows} prompts of {case.prompt} tokens, {case.new} new tokens each, {case.name}, bfloat16"
    eager = generators.generate(model, prompts, case.new, beams=1)
    judge = Judge(model)
    answers, theirs = engine.generate(prompts, case.new), eager()
    behind, peers = (judge.behind(prompts[:CHECKED], each[:CHECKED]) for each in (answers, theirs))
    near = max(2 * peers, NEAR)
    if {len(answer) for answer in answers} != {case.new} or not behind <= near:
        return Result(title, not_measured=f"a token is {behind:.2g} σ behind the likeliest", missed=["correctness"])
    tokens, steps = case.rows * case.new, case.steps()
    with Contestants(case.device, settings) as contestants:
        contestants.add(OURS, lambda: lambda: engine.generate(prompts, case.new), warm_ups=2)
        contestants.add(PROMPTS, lambda: lambda: engine.generate(prompts, 1), warm_ups=2)
        contestants.add(EAGER, lambda: eager)
        contestants.add(
            CONTINUOUS,
            lambda: generators.continuous(model, prompts, case.new, contestants.ends, graphs=on_gpu),
            warm_ups=2,
        )
        contestants.add(STATIC, lambda: generators.static(model, prompts, case.new, beams=1), warm_ups=2)
        for peer in {CONTINUOUS, STATIC} & contestants.able.keys():
            error = judge.behind(prompts[:CHECKED], contestants.answers[peer][:CHECKED])
            if not error <= near:
                contestants.leave_out(peer, f"a token is {error:.2g} σ behind the likeliest")
        del judge
        result = contestants.race(
            title, settings, amount=tokens, unit="new tokens/s", bars=dict(case.bars), unlike=(PROMPTS,),
            facts={"most σ behind the likeliest token": f"{behind:.2g}, transformers {peers:.2g}"},
            limits={
                which: tokens / sum(step.seconds(chip) for step in steps) for which, chip in settings.chips.items()
            },
        )  # fmt: skip
    if result.rates and PROMPTS in result.seconds:
        _add_step(case, settings, result, steps[1:])
    return result


def _add_step(case: Case, settings: Settings, result: Result, steps: list[Work]) -> None:
    """A step's own time: what the tokens after the first take, without the prompts."""
    whole, first = (statistics.median(result.seconds[name]) for name in (OURS, PROMPTS))
    step = (whole - first) / len(steps)

    def share(chip: Chip) -> float:
        return sum(work.seconds(chip) for work in steps) / len(steps) / step

    shares = {f"a step's share of the {which} limit": share(chip) for which, chip in settings.chips.items()}
    result.facts = {**result.facts, "ms a step": 1000 * step, **shares}
    if settings.device_name != H100:
        return
    if case.milliseconds:
        result.goals = [Goal("ms a step", 1000 * step, case.milliseconds, at_most=True)]
    if case.share:
        result.goals = [Goal("of a step's datasheet limit", share(settings.chips[DATASHEET]), case.share)]


FASTER = ((EAGER, 15.0), (CONTINUOUS, 2.0))
TWICE = ((CONTINUOUS, 2.0),)
CASES = (
    Case("GPT-2 1 row", GPT2, 1, 128, 128, bars=FASTER, milliseconds=0.25, priority=0),
    Case("Qwen3-0.6B 64 rows 1k", QWEN3_06B, 64, 960, 64, bars=TWICE, share=0.65, priority=0),
    Case("GPT-2 8 rows", GPT2, 8, 128, 128, bars=FASTER),
    Case("GPT-2 64 rows 1k", GPT2, 64, 928, 64, bars=TWICE, share=0.65),
    Case("Qwen3-0.6B 1 row", QWEN3_06B, 1, 128, 64, bars=FASTER),
    Case("Llama-1B-like 64 rows 1k", LLAMA_1B, 64, 960, 64, bars=TWICE, share=0.65),
    Case("Llama-1B-like 1 row", LLAMA_1B, 1, 128, 64, bars=FASTER, priority=2),
    Case("Llama-160M 8 rows", LLAMA_160M, 8, 128, 128, bars=FASTER, priority=2),
)
ROWS = tuple(
    Row(
        f"models/gpu/{case.name}",
        functools.partial(_measure, case),
        device=case.device,
        priority=case.priority,
        gib=GIB,
        small=functools.partial(_measure, case.small()),
    )
    for case in CASES
)
