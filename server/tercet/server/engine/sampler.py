"""Chooses the next token of each row from its logits."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch

from tercet.kernels import sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from tercet.server.engine.sequence import Sequence as Row

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class SamplingRows:
    """How the `N` rows of a batch that choose a token do it."""

    rows: Tensor
    """int32 [N]: which rows of the batch they are."""
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    sample: Tensor
    position: Tensor
    """As the `sample` kernel takes them, [N]."""
    seen: tuple[Tensor, Tensor, Tensor] | None
    """Row among `N`, token id and penalty of each token that a row has seen, for rows with a repetition penalty."""
    suppressed: tuple[Tensor, Tensor] | None
    """Row among `N` and token id of each end that a row may not choose yet."""


def pack_sampling(put: Callable[..., None], sequences: Sequence[Row], rows: list[int]) -> None:
    """Puts the sampling parameters of `sequences`, which are `rows` of the batch, into the batch's buffer."""
    settings = [sequence.request.sampling for sequence in sequences]
    put("sampling_rows", rows)
    put("seed", [s.seed for s in settings], "Q")
    put("temperature", [s.temperature for s in settings], "f")
    put("top_k", [min(s.top_k, INT32_MAX) for s in settings])
    put("top_p", [s.top_p for s in settings], "f")
    put("min_p", [s.min_p for s in settings], "f")
    put("sample", [sequence.sample for sequence in sequences])
    put("position", [len(sequence.tokens) for sequence in sequences])
    penalized = [row for row, s in enumerate(settings) if s.repetition_penalty != 1.0]
    if penalized:
        rows_of, ids = array("i"), array("i")
        for row in penalized:
            seen = sequences[row].seen()
            rows_of.extend(array("i", [row]) * len(seen))
            ids.extend(seen)
        put("seen_rows", rows_of)
        put("seen_ids", ids)
        put("penalty", [s.repetition_penalty for s in settings], "f")
    # An end may not come before `min_new_tokens`, whoever named it.
    ends = [
        (row, sorted(sequence.request.eos_ids | sequence.request.stop_ids))
        for row, sequence in enumerate(sequences)
        if sequence.generated < sequence.request.sampling.min_new_tokens
    ]
    if any(ids for _, ids in ends):
        put("suppressed_rows", chain.from_iterable([row] * len(ids) for row, ids in ends))
        put("suppressed_ids", chain.from_iterable(ids for _, ids in ends))


def unpack_sampling(views: dict[str, Tensor]) -> SamplingRows:
    """What `pack_sampling` put there, on the device."""
    seen = suppressed = None
    if "penalty" in views:
        seen = views["seen_rows"], views["seen_ids"], views["penalty"][views["seen_rows"]]
    if "suppressed_ids" in views:
        suppressed = views["suppressed_rows"], views["suppressed_ids"]
    names = ("temperature", "top_k", "top_p", "min_p", "seed", "sample", "position")
    return SamplingRows(
        rows=views["sampling_rows"], seen=seen, suppressed=suppressed, **{name: views[name] for name in names}
    )


def choose(logits: Tensor, sampling: SamplingRows) -> Tensor:
    """The next token of each row of logits, float32 [N, vocabulary], which are changed in place: int64 [N].

    The repetition penalty (Keskar et al., CTRL, 2019) divides positive and multiplies negative logits of tokens seen,
    once however often they were; then come the ends suppressed, then temperature and filters, as in transformers.
    A row of which no token can be chosen, for its greatest logit isn't finite, gets an id beyond the vocabulary.
    """
    if sampling.seen is not None:
        row, token, penalty = sampling.seen
        scores = logits[row, token]
        logits[row, token] = torch.where(scores < 0, scores * penalty, scores / penalty)
    if sampling.suppressed is not None:
        row, token = sampling.suppressed
        logits[row, token] = -torch.inf
    return sample(
        logits,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
        sample=sampling.sample,
        position=sampling.position,
    )
