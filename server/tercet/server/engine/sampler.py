"""Chooses the next token of each row from its logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tercet.kernels import next_tokens, sample
from tercet.kernels.ops import MAX_TOP_K
from tercet.server.engine.likelihood import Likelihood, likelihood, token_logprobs
from tercet.server.engine.processors import (
    Change,
    Processors,
    is_typical,
    pack_processors,
    process,
    unpack_processors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tercet.server.engine.lanes import Draws
    from tercet.server.engine.sequence import Sequence as Row
    from tercet.server.models import Model
    from tercet.server.wire import Sampling, TokenLogprob

INT32_MAX = 2**31 - 1
TOP_K = 64  # rows that keep no more tokens choose among the likeliest,
CANDIDATES = MAX_TOP_K  # of which there are more: those that equal the last one kept stay too
TYPICAL_ROWS = 16


class Filters(NamedTuple):
    """What keeps tokens from being drawn, in the order of transformers, [N] each."""

    temperature: Tensor
    """float32; 0 is greedy, and then nothing else matters."""
    top_k: Tensor
    """int32; 0 is off."""
    top_p: Tensor
    """float32; 1 is off."""
    min_p: Tensor
    """float32; 0 is off."""


@dataclass(frozen=True)
class Typical:
    """Rows that keep typical tokens alone."""

    rows: Tensor
    """int32 [R]: among those that choose."""
    filters: Filters
    """What comes before."""
    mass: Tensor
    """float32 [R]"""


@dataclass(frozen=True)
class Told:
    """Rows of which the log probability of what they choose is told."""

    rows: Tensor
    """int32 [R]: among those that choose."""
    likeliest: list[int | None]
    """For each row that chooses how many of the likeliest tokens are told with it; None where nothing is told."""


@dataclass(frozen=True)
class SamplingRows:
    """How the `N` rows of a batch that choose a token do it."""

    filters: Filters
    """As the `sample` kernel takes them; all off for rows of `typical`."""
    seed: Tensor
    sample: Tensor
    position: Tensor
    """As the `sample` kernel takes them, [N]."""
    processors: Processors = field(default_factory=dict[str, Change])
    typical: Typical | None = None
    told: Told | None = None
    likeliest: int | None = None
    """What `likeliest_of` says of rows without these three."""


class LastTokens(NamedTuple):
    """The table that gets what is drawn, for the next step to read; as the op `next_tokens` takes it."""

    last_token: Tensor
    lanes: Tensor | None = None
    active: Tensor | None = None


class Drawn(NamedTuple):
    """What the device chose for the `N` rows that choose."""

    tokens: Tensor
    """int64 [N]"""
    told: Likelihood | None
    """Of the rows that tell, each with its token as the one given."""

    @property
    def tensors(self) -> list[Tensor]:
        """What the host gets."""
        return [self.tokens, *(self.told or ())]


Choice = tuple[int, "TokenLogprob | None"]
"""The next token of a row, beyond the vocabulary if none can be chosen, and how likely it was by the model's own
logits; None where nobody asked."""


def filters_of(settings: Sampling) -> tuple[float, int, float, float]:
    """Temperature, top_k, top_p and min_p as the `sample` kernel takes them, which rows of `Typical` draw without."""
    if is_typical(settings):
        return 1.0, 0, 1.0, 0.0
    return settings.temperature, min(settings.top_k, INT32_MAX), settings.top_p, settings.min_p


CLASSES = (1, CANDIDATES, None)
"""What `likeliest_of` can say."""


def likeliest_of(settings: Iterable[Sampling]) -> int | None:
    """So many of the likeliest tokens suffice for plain rows to choose among; None is all.

    1 where all are greedy, CANDIDATES where the others keep at most TOP_K.
    """
    kept = [s.top_k for s in settings if s.temperature > 0]
    if all(0 < top_k <= TOP_K for top_k in kept):
        return CANDIDATES if kept else 1
    return None


def pack_sampling(put: Callable[..., None], sequences: Sequence[Row]) -> None:
    """Puts what rows need beside their filters into the batch's buffer."""
    settings = [sequence.request.sampling for sequence in sequences]
    put("position", [sequence.length for sequence in sequences])
    pack_processors(put, sequences)
    typical = [row for row, s in enumerate(settings) if is_typical(s)]
    if typical:
        put("typical_rows", typical)
        put("typical_mass", [settings[row].typical_p for row in typical], "f")
        put("typical_temperature", [settings[row].temperature for row in typical], "f")
        put("typical_top_k", [min(settings[row].top_k, INT32_MAX) for row in typical])
        put("typical_top_p", [settings[row].top_p for row in typical], "f")
        put("typical_min_p", [settings[row].min_p for row in typical], "f")
    told = [row for row, s in enumerate(settings) if s.logprobs]
    if told:
        put("told_rows", told)


def unpack_sampling(views: dict[str, Tensor], sequences: Sequence[Row], draws: Draws) -> SamplingRows:
    """How `sequences` draw by what `pack_sampling` put there of them, on the device."""
    settings = [sequence.request.sampling for sequence in sequences]
    processors = unpack_processors(views)
    typical = told = None
    if "typical_rows" in views:
        filters = Filters(*(views[f"typical_{name}"] for name in Filters._fields))
        typical = Typical(views["typical_rows"], filters, views["typical_mass"])
    if "told_rows" in views:
        told = Told(views["told_rows"], [s.top_logprobs if s.logprobs else None for s in settings])
    return SamplingRows(
        filters=draws.filters,
        seed=draws.seed,
        sample=draws.sample,
        position=views["position"],
        processors=processors,
        typical=typical,
        told=told,
        likeliest=None if processors or typical or told else likeliest_of(settings),
    )


def draw(model: Model, hidden: Tensor, sampling: SamplingRows, last: LastTokens | None = None) -> Drawn:
    """The next token of each row by its final hidden state, [N, hidden]; nothing waits for the device.

    Where the likeliest tokens suffice, the other logits are never written.
    """
    vocabulary, told = model.target_vocab_size, last._asdict() if last else {}
    count = sampling.likeliest and min(sampling.likeliest, vocabulary)
    if count is None or model.topk_refusals(len(hidden), count):
        drawn = choose(model.logits(hidden), sampling)
        if last:
            next_tokens(drawn.tokens, vocabulary=vocabulary, **told)
        return drawn
    choice, ids = model.head_topk(hidden, count)
    if count > 1:
        choice, ids = _place_of(choice, ids, sampling)
    return Drawn(next_tokens(choice, ids, vocabulary=vocabulary, **told), None)


def _place_of(values: Tensor, ids: Tensor, sampling: SamplingRows) -> tuple[Tensor, Tensor]:
    """The place of the next token, int64 [N], among the k likeliest, and these in their order, int32 [N, k].

    `values`, float32 [N, k], are their logits. It is the token that `choose` gives of all logits, but that of more than
    k tokens which equal the last one kept, those with the lowest ids are kept.
    """
    ids, order = ids.sort(-1)  # tokens are drawn in their order
    return _sample(values.gather(1, order), sampling), ids


def choose(logits: Tensor, sampling: SamplingRows) -> Drawn:
    """The next token of each row of logits, float32 [N, vocabulary], which are changed in place.

    First the processors change them, then come temperature and filters, as in transformers. A row of which no token can
    be chosen, for its greatest logit isn't finite, gets an id beyond the vocabulary.
    """
    told = sampling.told
    plain = None if told is None else logits.index_select(0, told.rows)
    process(logits, sampling.processors)
    if sampling.typical is not None:
        _keep_typical(logits, sampling.typical)
    tokens = _sample(logits, sampling)
    if plain is None or told is None:
        return Drawn(tokens, None)
    given = tokens[told.rows].clamp(max=plain.shape[1] - 1)
    each = torch.arange(len(given), device=plain.device)
    top = max(count or 0 for count in told.likeliest)
    return Drawn(tokens, likelihood(plain, each, given, top=top))


def _sample(logits: Tensor, sampling: SamplingRows) -> Tensor:
    return sample(
        logits, **sampling.filters._asdict(), seed=sampling.seed, sample=sampling.sample, position=sampling.position
    )


def choices(arrays: Sequence[NDArray[Any]], sampling: SamplingRows) -> list[Choice]:
    """What was drawn, from the host's copies of its `tensors`."""
    ids, *told = arrays
    if sampling.told is None:
        return list(zip(ids.tolist(), repeat(None)))
    likeliest = sampling.told.likeliest
    logprobs = iter(token_logprobs(*told, counts=[count for count in likeliest if count is not None]))
    chosen = zip(ids.tolist(), likeliest, strict=True)
    return [(token, None if count is None else next(logprobs)) for token, count in chosen]


def _keep_typical(logits: Tensor, typical: Typical) -> None:
    """Filters rows of logits [N, vocabulary] in place, a few at a time: sorting takes several times their memory."""
    for first in range(0, len(typical.rows), TYPICAL_ROWS):
        some = slice(first, first + TYPICAL_ROWS)
        rows, filters = typical.rows[some], Filters(*(value[some] for value in typical.filters))
        logits[rows] = keep_typical(logits[rows], filters, typical.mass[some])


def keep_typical(scores: Tensor, filters: Filters, typical_p: Tensor) -> Tensor:
    """Scores [R, vocabulary] after temperature and all filters, -inf where they let nothing through.

    The last filter keeps the tokens whose information is nearest to what is expected, as many as have the mass
    `typical_p` [R] (Meister et al., Locally Typical Sampling, 2022).
    """
    temperature, top_k, top_p, min_p = (value[:, None] for value in filters)
    size = scores.shape[1]
    scores = scores / temperature
    falling, order = scores.sort(descending=True, stable=True)
    least = falling.gather(1, torch.where(top_k > 0, top_k, size).clamp(max=size).long() - 1)
    falling = falling.masked_fill(falling < least, -torch.inf)
    mass = falling.softmax(-1)
    dropped = (mass.cumsum(-1) - mass >= top_p) & (top_p < 1)
    dropped[:, 0] = False
    scores = scores.scatter(1, order, falling.masked_fill(dropped, -torch.inf))
    mass = scores.softmax(-1)
    scores = scores.masked_fill(mass < min_p * mass.amax(-1, keepdim=True), -torch.inf)

    logprobs = scores.log_softmax(-1)
    mass = logprobs.exp()
    entropy = -(mass * logprobs).nansum(-1, keepdim=True)
    distance, order = (-logprobs - entropy).abs().sort(stable=True)
    last = (mass.gather(1, order).cumsum(-1) < typical_p[:, None]).sum(-1, keepdim=True).clamp(max=size - 1)
    dropped = distance > distance.gather(1, last)
    dropped[:, 0] = False
    return scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
