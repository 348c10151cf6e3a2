"""`beam_step` in plain torch: as the kernel is tested against, and for searches that it has no room for.

Nothing of a tensor is read on the host, so it can be recorded on a GPU too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.decode_ops import BeamLanes

NEVER = -1e9
"""transformers' score of a beam that is not to be chosen, or what is added to that of one that may not be; in float32
the sum is the same for all of them."""


class _Settings(NamedTuple):
    """What searches were asked for with, [S, 1] each."""

    beams: Tensor
    candidates: Tensor
    ends: Tensor
    prompt: Tensor
    limit: Tensor
    early: Tensor
    length_penalty: Tensor
    """float32"""


class _Beams(NamedTuple):
    """Which lanes the beams of searches have."""

    lane: Tensor
    """int64 [S, K]"""
    there: Tensor
    """bool [S, K]: whether a search has so many."""
    live: Tensor
    """bool [L]: whether a lane is one of them,"""
    place: Tensor
    """int64 [L]: and which, of S * K; 0 otherwise."""


class _Candidates(NamedTuple):
    """The best continuations of searches, best first, [S, C]."""

    scores: Tensor
    """float32; -inf beyond those that a search chooses from."""
    parents: Tensor
    tokens: Tensor
    counted: Tensor
    """bool: whether a search chooses from so many."""


class _Outcome(NamedTuple):
    """How searches go on, [S, K]."""

    running: Tensor
    """float32: the scores of the beams that run,"""
    parents: Tensor
    """which beams they continue,"""
    tokens: Tensor
    """and with what."""
    finished: Tensor
    """float32: the scores of the finished ones,"""
    kept: Tensor
    """of which each is the one of a place, or -1 less the number of a candidate,"""
    ended: Tensor
    """bool: if there is one."""
    over: Tensor
    """bool [S, 1]: whether the search is."""


def beam_step(
    likely: Tensor, ids: Tensor, *, row: Tensor, heads: Tensor, active: Tensor, lanes: BeamLanes, beams: int,
    candidates: int, ends: int, longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    told = lanes.settings.index_select(0, heads)
    *whole, _ = told.split(1, dim=1)
    settings = _Settings._make((*whole, told.view(torch.float32)[:, -1:]))
    found = _beams(heads, active, settings, lanes, beams)
    best = _candidates(likely, ids, row, settings, found, lanes, candidates)
    outcome = _choose(best, settings, found, lanes, heads, ends)
    floats = torch.cat((best.scores[:, :1], outcome.running, outcome.finished), 1)
    facts = (outcome.parents, outcome.tokens, outcome.kept, outcome.ended, best.parents, best.tokens, outcome.over)
    ints = torch.cat([fact.int() for fact in facts], 1)
    _write(outcome, found, lanes, beams, longest)
    return floats, ints


def _beams(heads: Tensor, active: Tensor, settings: _Settings, lanes: BeamLanes, most: int) -> _Beams:
    size, count, device = len(heads), len(active), heads.device
    head = lanes.head[:count]
    search = torch.full_like(lanes.head, size)
    search[heads] = torch.arange(size, dtype=search.dtype, device=device)
    slot = torch.where((active > 0) & (head >= 0), search[head.clamp(min=0)], size)
    live = slot < size
    place = slot.long() * most + lanes.sample[:count] * live
    # What is no beam falls behind the others, where nobody looks.
    lane = torch.zeros((size + 1) * most, dtype=torch.int64, device=device)
    lane[place] = torch.arange(count, device=device)
    there = torch.arange(most, device=device) < settings.beams
    return _Beams(lane[: size * most].view(size, most), there, live, place * live)


def _candidates(
    likely: Tensor, ids: Tensor, row: Tensor, settings: _Settings, beams: _Beams, lanes: BeamLanes, candidates: int
) -> _Candidates:
    rows = row[beams.lane]
    continued = torch.where(beams.there[:, :, None], lanes.scores[beams.lane][:, :, None] + likely[rows], -torch.inf)
    scores, found = _best(continued.flatten(1), candidates)
    counted = torch.arange(scores.shape[1], device=scores.device) < settings.candidates
    return _Candidates(
        scores=torch.where(counted, scores, -torch.inf),
        parents=found // likely.shape[1],
        tokens=ids[rows].flatten(1).gather(1, found),
        counted=counted,
    )


def _choose(
    best: _Candidates, settings: _Settings, beams: _Beams, lanes: BeamLanes, heads: Tensor, most_ends: int
) -> _Outcome:
    most, tokens, penalty = beams.lane.shape[1], best.tokens, settings.length_penalty
    length = lanes.length[heads][:, None]  # [S, 1]
    written = length - settings.prompt + 1
    each = torch.arange(max(most_ends, tokens.shape[1]), device=tokens.device)
    known = lanes.ends[:, :most_ends].index_select(0, heads)
    named = (tokens[:, :, None] == known[:, None]) & (each[:most_ends] < settings.ends)[:, None]
    ends = named.any(-1) | (length + 1 >= settings.limit)
    # Only the best candidates can be finished beams; there are more so that others go on.
    finishes = ends & (each[: tokens.shape[1]] < settings.beams)
    may_grow = (settings.early == 2) & (penalty > 0)  # "never"
    longest = torch.where(may_grow, settings.limit - settings.prompt, written)
    # What the score of a text that ends now is divided by, and of the best that a running beam can still become.
    divisor, last = (torch.cat((written, longest), 1).double() ** penalty.double()).float().split(1, dim=1)
    texts = best.scores / divisor + ~finishes * NEVER
    places = torch.where(beams.there, lanes.finished[beams.lane], -torch.inf)
    finished, kept = _best(torch.cat((places, texts), 1), most)
    ended = torch.cat(((lanes.ended[beams.lane] > 0) & beams.there, finishes), 1).gather(1, kept)

    running, chosen = _best(best.scores + ends * NEVER, most)
    worst = torch.where(ended, torch.where(beams.there, finished, torch.inf).amin(1, keepdim=True), NEVER)
    improvable = (running[:, :1] / last > worst) & beams.there
    enough = (settings.early == 1) & (ended | ~beams.there)
    return _Outcome(
        running=running,
        parents=best.parents.gather(1, chosen),
        tokens=tokens.gather(1, chosen),
        finished=finished,
        kept=torch.where(kept < most, kept, most - 1 - kept),
        ended=ended,
        over=(~improvable.any(1) | enough.all(1) | (ends | ~best.counted).all(1))[:, None],
    )


def _write(outcome: _Outcome, beams: _Beams, lanes: BeamLanes, most: int, longest: int) -> None:
    live, place = beams.live, beams.place
    count = len(live)

    def update(table: Tensor, values: Tensor) -> None:
        """Each beam has the value of its place."""
        table[:count] = torch.where(live, values.flatten()[place].to(table.dtype), table[:count])

    every = torch.arange(count, device=live.device)
    parent = outcome.parents.flatten()[place] + place // most * most
    source = torch.where(live, beams.lane.flatten()[parent], every)
    held = lanes.holders[:, :longest].index_select(0, source)
    following = lanes.length[:count].clamp(max=held.shape[1] - 1).long()[:, None]  # where a beam writes its next key
    held.scatter_(1, following, torch.where(live[:, None], every[:, None].int(), held.gather(1, following)))
    lanes.holders[:count, :longest] = held
    update(lanes.scores, outcome.running)
    update(lanes.finished, outcome.finished)
    update(lanes.ended, outcome.ended)
    update(lanes.last_token, outcome.tokens)


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The greatest of each row, falling, and where they are; the first of equal ones comes first."""
    falling, order = scores.sort(descending=True, stable=True)
    return falling[:, :count], order[:, :count]
