"""Seq2seq models on a GPU: against transformers' generate, eager and compiled with a static cache, and CTranslate2."""

from __future__ import annotations

import functools
import random
import tempfile
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.limits import H100, decode_step
from benchmarks.models import generators
from benchmarks.models.generators import CTRANSLATE2, EAGER, STATIC, Judge
from benchmarks.models.inprocess import GIB, InProcess
from benchmarks.models.race import OURS, Contestants
from benchmarks.models.recipes import MARIAN, T5_BASE, saved
from benchmarks.rows import Goal, Result, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.models.recipes import Recipe
    from benchmarks.rows import Device, Settings

CHECKED = 4  # answers that are compared with float32
NEAR = 0.05  # nats a token by which an answer may be less likely than transformers', in bfloat16


@dataclass(frozen=True)
class Case:
    """`rows` sources around `source` tokens at once, exactly `new` tokens for each, by `beams` beams."""

    name: str
    recipe: Recipe
    rows: int
    source: int
    new: int
    beams: int
    device: Device = "cuda"
    bars: tuple[tuple[str, float], ...] = ()
    tokens_a_second: float | None = None
    """To be reached on an H100."""
    priority: int = 1

    def small(self) -> Case:
        """The same in small, on a CPU."""
        return replace(self, recipe=self.recipe.rehearsed(), rows=3, source=8, new=4, device="cpu")

    def sources(self) -> list[list[int]]:
        """Seeded token ids; lengths between half and one and a half of `source`."""
        chance = random.Random(0)
        lengths = [chance.randint(self.source // 2, self.source * 3 // 2) for _ in range(self.rows)]
        return [[chance.randrange(3, 100) for _ in range(length)] for length in lengths]


class _Tokens:
    """Names for token ids: what CTranslate2 asks of a tokenizer, and checkpoints with random weights lack."""

    def __init__(self, config: Any) -> None:
        special = {config.pad_token_id: "<pad>", config.eos_token_id: "</s>"}
        self._names = [special.get(index, f"t{index}") for index in range(config.vocab_size)]
        self.unk_token, self.eos_token, self.pad_token, self.bos_token = "t2", "</s>", "<pad>", "</s>"

    def get_vocab(self) -> dict[str, int]:
        """Name -> id."""
        return {name: index for index, name in enumerate(self._names)}

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The name of an id, or of each of several."""
        return self._names[ids] if isinstance(ids, int) else [self._names[index] for index in ids]

    def ids(self, names: Sequence[str]) -> list[int]:
        """The way back."""
        vocabulary = self.get_vocab()
        return [vocabulary[name] for name in names]


def ctranslate2(
    folder: Path, model: Any, sources: Sequence[Sequence[int]], case: Case
) -> Callable[[], list[list[int]]]:
    """The same weights through CTranslate2's own converter, in bfloat16 on a GPU."""
    import ctranslate2 as library
    from ctranslate2.converters import TransformersConverter

    tokens = _Tokens(model.config)

    class Converter(TransformersConverter):
        """Reads the vocabulary from `tokens`."""

        def load_tokenizer(self, *arguments: Any, **options: Any) -> Any:
            del arguments, options
            return tokens

    on_gpu = case.device == "cuda"
    kind = "bfloat16" if on_gpu else "float32"
    with tempfile.TemporaryDirectory() as converted:
        Converter(str(folder)).convert(f"{converted}/model", quantization=kind, force=True)
        translator: Any = library.Translator(f"{converted}/model", device=case.device, compute_type=kind)
    named = [tokens.convert_ids_to_tokens(list(source)) for source in sources]

    def run() -> list[list[int]]:
        found = translator.translate_batch(
            named, beam_size=case.beams, max_batch_size=0, max_decoding_length=case.new, min_decoding_length=case.new
        )
        return [tokens.ids(each.hypotheses[0]) for each in found]

    return run


def _worse(
    model: Any, sources: Sequence[Sequence[int]], answers: Mapping[str, Sequence[Sequence[int]]], case: Case
) -> dict[str, float]:
    """By how much, in nats a token, an answer is less likely than transformers' eager one; inf if one is too short."""
    if EAGER not in answers:
        return {}
    judge = Judge(model)
    right = judge.likelihood(sources[:CHECKED], answers[EAGER][:CHECKED])
    found: dict[str, float] = {}
    for name, given in answers.items():
        if {len(answer) for answer in given} != {case.new}:
            found[name] = inf
        elif name != EAGER:
            own = judge.likelihood(sources[:CHECKED], given[:CHECKED])
            found[name] = max(eager - each for eager, each in zip(right, own, strict=True))
    return found


def _measure(case: Case, settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    sources, on_gpu = case.sources(), case.device == "cuda"
    model = case.recipe.built(case.device, torch.bfloat16)
    start = model.config.decoder_start_token_id
    title = (
        f"{case.rows} sources of {min(map(len, sources))}-{max(map(len, sources))} tokens, {case.new} new tokens each, "
        f"{f'{case.beams} beams' if case.beams > 1 else 'greedy'}, {case.name}, bfloat16"
    )
    with saved(model) as folder, Contestants(case.device, settings) as contestants:
        engine = InProcess(folder, settings.threads, device="cuda:0" if on_gpu else "cpu", dtype="bfloat16")

        def ours() -> list[list[int]]:
            return engine.generate(sources, case.new, decoder_ids=[start], beams=case.beams)

        contestants.add(OURS, lambda: ours, warm_ups=2)
        contestants.add(EAGER, lambda: generators.generate(model, sources, case.new, beams=case.beams))
        contestants.add(CTRANSLATE2, lambda: ctranslate2(folder, model, sources, case), warm_ups=2)
        contestants.add(STATIC, lambda: generators.static(model, sources, case.new, beams=case.beams), warm_ups=2)
        worse = _worse(model, sources, contestants.answers, case)
        if not worse.get(OURS, 0.0) <= NEAR:
            wrong = f"an answer is {worse[OURS]:.2g} nats a token less likely than transformers'"
            return Result(title, not_measured=wrong, missed=["correctness"])
        for peer in {EAGER, CTRANSLATE2, STATIC} & contestants.able.keys():
            if not worse.get(peer, 0.0) <= NEAR:
                contestants.leave_out(peer, f"an answer is {worse[peer]:.2g} nats a token less likely")
        tokens, lengths, rows = case.rows * case.new, [len(source) for source in sources], case.rows * case.beams
        steps = [
            decode_step(case.recipe.stack, [done] * rows, lengths, beams=case.beams) for done in range(1, case.new + 1)
        ]
        result = contestants.race(
            title, settings, amount=tokens, unit="new tokens/s", bars=dict(case.bars),
            facts={f"nats a token less likely, {name}": f"{value:.1e}" for name, value in worse.items()},
            limits={
                which: tokens / sum(step.seconds(chip) for step in steps) for which, chip in settings.chips.items()
            },
        )  # fmt: skip
    if settings.device_name == H100 and result.rates and case.tokens_a_second:
        result.goals = [Goal("new tokens/s", result.rates[OURS], case.tokens_a_second)]
    return result


BARS = ((EAGER, 40.0), (STATIC, 8.0), (CTRANSLATE2, 4.0))
CASES = (
    Case("Marian 32 rows", MARIAN, 32, 27, 32, beams=4, bars=BARS, tokens_a_second=60_000, priority=0),
    Case("T5-base 32 rows", T5_BASE, 32, 128, 64, beams=1, bars=BARS, tokens_a_second=60_000, priority=0),
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
