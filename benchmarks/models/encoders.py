"""Encoders on a GPU, token ids to vectors: against transformers padded as texts arrive, by length, and compiled."""

from __future__ import annotations

import functools
import math
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.limits import H100, encode
from benchmarks.models.inprocess import GIB, InProcess
from benchmarks.models.race import OURS, Contestants
from benchmarks.models.recipes import BERT_BASE, MINILM, saved
from benchmarks.rows import Goal, Result, Row
from benchmarks.workloads import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from benchmarks.models.recipes import Recipe
    from benchmarks.rows import Device, Fact, Settings

ARRIVAL, SORTED = "transformers, as they arrive", "transformers, by length"
COMPILED = "transformers, by length, compiled"
FP8 = "tercet, --dtype fp8"
BATCHES = (16, 64, 256)  # the peers' sizes that are tried
MOST_DISTANCE = 1e-4  # 1 - cosine to float32, or twice a peer's of the same dtype


@dataclass(frozen=True)
class Case:
    """`texts` sequences of token ids, all of `length`, or log-normal around it (σ 0.8, from 4 to four times it)."""

    name: str
    recipe: Recipe
    texts: int
    length: int
    ragged: bool = False
    device: Device = "cuda"
    bars: tuple[tuple[str, float], ...] = ()
    tokens_a_second: float | None = None
    """To be reached on an H100."""
    milliseconds: float | None = None
    """Of the whole call, at most, on an H100."""
    fp8: bool = False
    """Whether ours with the products of layers in fp8 competes too, as a dtype of its own."""
    priority: int = 1

    def small(self) -> Case:
        """The same in small, on a CPU."""
        return replace(self, recipe=self.recipe.rehearsed(), texts=min(self.texts, 5), length=8, device="cpu")

    def sequences(self) -> list[list[int]]:
        """Seeded token ids."""
        chance = random.Random(0)
        lengths = [self.length] * self.texts
        if self.ragged:
            drawn = [self.length * math.exp(chance.gauss(-0.32, 0.8)) for _ in lengths]  # the mean is `length`
            lengths = [round(min(max(tokens, 4), 4 * self.length)) for tokens in drawn]
        return [[chance.randrange(1, 100) for _ in range(length)] for length in lengths]


class Transformers:
    """A padded encoder: mean over tokens, length 1."""

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device

    @torch.inference_mode()
    def embed(self, sequences: Sequence[Sequence[int]], batch: int) -> NDArray[np.float32]:
        """Batches as the sequences arrive; nothing waits for the device until the end: [n, hidden]."""
        vectors: list[Tensor] = []
        for first in range(0, len(sequences), batch):
            rows = sequences[first : first + batch]
            longest = max(map(len, rows))
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            mask = torch.zeros(len(rows), longest, dtype=torch.long)
            for row, tokens in enumerate(rows):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                mask[row, : len(tokens)] = 1
            ids, mask = ids.to(self._device, non_blocking=True), mask.to(self._device, non_blocking=True)
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask[..., None].to(hidden.dtype)
            vectors.append(functional.normalize(((hidden * weight).sum(1) / weight.sum(1)).float(), dim=-1))
        return torch.cat(vectors).cpu().numpy()

    def by_length(self, sequences: Sequence[Sequence[int]], batch: int) -> NDArray[np.float32]:
        """Batches of sequences of like lengths, longest first: [n, hidden]."""
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        vectors = self.embed([sequences[index] for index in order], batch)
        restored = np.empty_like(vectors)
        restored[order] = vectors
        return restored


def _best_batch(embed: Callable[[int], object]) -> int:
    """The size of `BATCHES` that is fastest, each run twice."""
    times: dict[int, float] = {}
    for batch in BATCHES:
        embed(batch)
        start = time.perf_counter()
        embed(batch)
        times[batch] = time.perf_counter() - start
    return min(times, key=times.__getitem__)


def distance(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The largest 1 - cosine."""
    products = (vectors.astype(np.float64) * reference).sum(1)
    return float((1 - products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)).max())


def _measure(case: Case, settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    model = case.recipe.built(case.device, torch.bfloat16)
    with saved(model) as folder:
        return _compared(case, settings, model, folder)


def _compared(case: Case, settings: Settings, model: Any, folder: Path) -> Result:
    sequences, on_gpu = case.sequences(), case.device == "cuda"
    lengths = [len(ids) for ids in sequences]

    def engine(dtype: str) -> InProcess:
        return InProcess(folder, settings.threads, device="cuda:0" if on_gpu else "cpu", dtype=dtype)

    ours, peer = engine("bfloat16"), Transformers(model, case.device)
    title = f"{case.texts} texts of {'mean ' if case.ragged else ''}{case.length} token ids, {case.name}, bfloat16"
    checked = slice(0, 16)
    reference = Transformers(case.recipe.built(case.device, torch.float32), case.device).embed(sequences[checked], 16)
    error = distance(ours.embed_ids(sequences[checked], "mean"), reference)
    theirs = distance(peer.embed(sequences[checked], 16), reference)
    if not error <= max(2 * theirs, MOST_DISTANCE):
        return Result(title, not_measured=f"vectors are {error:.1e} from float32's", missed=["correctness"])
    batch = _best_batch(lambda size: peer.embed(sequences, size))
    facts: dict[str, Fact] = {
        "peers' batch size": f"{batch}, the best of {', '.join(map(str, BATCHES))}",
        "fill as they arrive": fill(lengths, batch),
        "1 - cosine to float32": f"{error:.1e}, transformers {theirs:.1e}",
    }
    contestants = Contestants(case.device, settings)
    contestants.add(OURS, lambda: lambda: ours.embed_ids(sequences, "mean"), warm_ups=3)
    contestants.add(ARRIVAL, lambda: lambda: peer.embed(sequences, batch))
    if case.ragged:
        contestants.add(SORTED, lambda: lambda: peer.by_length(sequences, batch))
    if case.fp8:
        contestants.add(FP8, lambda: functools.partial(engine("fp8").embed_ids, sequences, "mean"), warm_ups=3)
        if FP8 in contestants.able:
            facts["1 - cosine to float32 of fp8"] = f"{distance(contestants.answers[FP8][checked], reference):.1e}"
    contestants.add(COMPILED, lambda: _compiled(model, case, sequences, batch, on_gpu=on_gpu), warm_ups=3)
    tokens = sum(lengths)
    work = encode(case.recipe.stack, lengths)
    result = contestants.race(
        title, settings, amount=tokens, unit="tokens/s", bars=dict(case.bars), facts=facts,
        limits={which: tokens / work.seconds(chip) for which, chip in settings.chips.items()},
    )  # fmt: skip
    if settings.device_name == H100 and result.rates:
        result.goals = _goals(case, result.rates[OURS], tokens)
    return result


def _goals(case: Case, rate: float, tokens: int) -> list[Goal]:
    goals: list[Goal] = []
    if case.tokens_a_second:
        goals.append(Goal("tokens/s", rate, case.tokens_a_second))
    if case.milliseconds:
        goals.append(Goal("ms a call", 1000 * tokens / rate, case.milliseconds, at_most=True))
    return goals


def _compiled(
    model: Any, case: Case, sequences: Sequence[Sequence[int]], batch: int, *, on_gpu: bool
) -> Callable[[], object]:
    """torch.compile: for one shape with CUDA graphs where there is only one, else for any length."""
    if on_gpu:
        torch.compiler.reset()
        options: Mapping[str, Any] = {"dynamic": True} if case.ragged else {"dynamic": False, "mode": "reduce-overhead"}
        model = torch.compile(model, **options)
    peer = Transformers(model, case.device)
    return lambda: peer.by_length(sequences, batch)


CASES = (
    Case("BERT-base S128", BERT_BASE, 2048, 128, tokens_a_second=3.0e6, fp8=True, priority=0),
    Case("BERT-base log-normal", BERT_BASE, 2048, 128, ragged=True, bars=((ARRIVAL, 5.0),), priority=0),
    Case("BERT-base batch 1", BERT_BASE, 1, 128, milliseconds=0.5, priority=0),
    Case("MiniLM log-normal", MINILM, 4096, 64, ragged=True),
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
