"""A step of beam search on the device, of all searches of a batch at once: `_beam_search` of transformers'
generation/utils.py.

It reads what is in the tables by lane, and changes that; nothing is brought to the host, and what is launched depends
on how many lanes, searches and beams there can be, not on which there are: it can be recorded, and replayed for others.
Equal scores come in the order of the beams and of their likeliest tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from tercet.server.engine.beam import NEVER
from tercet.server.engine.beam_tables import EARLY_STOPPING

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.server.engine.beam_tables import BeamTables, Settings
    from tercet.server.engine.lanes import Lanes


@dataclass(frozen=True)
class Searches:
    """Searches that go on, `S` of them, whose beams are among the first `L` lanes."""

    heads: Tensor
    """int32 [S]: the first lane of each."""
    slot: Tensor
    """int32 [L]: which of them a lane is a beam of; S for none."""
    row: Tensor
    """int32 [L]: which row of the logits such a beam goes on from."""
    beams: int
    """The most of one search, K,"""
    candidates: int
    """the most that it chooses from, C,"""
    ends: int
    """the most tokens that end a text of it, E,"""
    longest: int
    """and more tokens than a text has before its next one."""


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


def continue_beams(likely: Tensor, searches: Searches, lanes: Lanes, tables: BeamTables) -> tuple[Tensor, Tensor]:
    """Continues searches by the log probabilities of tokens, float32 [N, vocabulary], in the tables.

    `lanes.length` says how many tokens each text has. Gives float32 [S, 1 + 2K] and int64 [S, 4K + 2C + 1], which
    `continuations` reads.
    """
    settings = tables.settings(searches.heads)
    beams = _beams(searches, settings, lanes)
    best = _candidates(likely, searches, settings, beams, tables)
    length = lanes.length[searches.heads][:, None]  # [S, 1]
    outcome = _choose(best, searches, settings, beams, length, tables)
    floats = torch.cat((best.scores[:, :1], outcome.running, outcome.finished), 1)
    facts = (outcome.parents, outcome.tokens, outcome.kept, outcome.ended, best.parents, best.tokens, outcome.over)
    told = floats, torch.cat([fact.long() for fact in facts], 1)
    # Only now, when nothing can fail any more: a batch that failed is run again.
    _write(outcome, searches, beams, lanes, tables)
    return told


def _beams(searches: Searches, settings: Settings, lanes: Lanes) -> _Beams:
    size, most, device = len(searches.heads), searches.beams, searches.slot.device
    live = searches.slot < size
    place = searches.slot.long() * most + lanes.sample[: len(live)] * live
    # What is no beam falls behind the others, where nobody looks.
    lane = torch.zeros((size + 1) * most, dtype=torch.int64, device=device)
    lane[place] = torch.arange(len(live), device=device)
    there = torch.arange(most, device=device) < settings.beams
    return _Beams(lane[: size * most].view(size, most), there, live, place * live)


def _candidates(
    likely: Tensor, searches: Searches, settings: Settings, beams: _Beams, tables: BeamTables
) -> _Candidates:
    values, ids = likely.topk(min(searches.candidates, likely.shape[1]))  # of each row as many as could be the best
    rows = searches.row[beams.lane]
    continued = torch.where(beams.there[:, :, None], tables.scores[beams.lane][:, :, None] + values[rows], -torch.inf)
    scores, found = _best(continued.flatten(1), searches.candidates)
    counted = torch.arange(scores.shape[1], device=scores.device) < settings.candidates
    return _Candidates(
        scores=torch.where(counted, scores, -torch.inf),
        parents=found // values.shape[1],
        tokens=ids[rows].flatten(1).gather(1, found),
        counted=counted,
    )


def _choose(
    best: _Candidates, searches: Searches, settings: Settings, beams: _Beams, length: Tensor, tables: BeamTables
) -> _Outcome:
    tokens, penalty, written = best.tokens, settings.length_penalty, length - settings.prompt + 1
    each = torch.arange(max(searches.ends, tokens.shape[1]), device=tokens.device)
    known = tables.ends[:, : searches.ends].index_select(0, searches.heads)
    named = (tokens[:, :, None] == known[:, None]) & (each[: searches.ends] < settings.ends)[:, None]
    ends = named.any(-1) | (length + 1 >= settings.limit)
    # Only the best candidates can be finished beams; there are more so that others go on.
    finishes = ends & (each[: tokens.shape[1]] < settings.beams)
    may_grow = (settings.early == EARLY_STOPPING["never"]) & (penalty > 0)
    longest = torch.where(may_grow, settings.limit - settings.prompt, written)
    # What the score of a text that ends now is divided by, and of the best that a running beam can still become.
    divisor, last = (torch.cat((written, longest), 1).double() ** penalty.double()).float().split(1, dim=1)
    texts = best.scores / divisor + ~finishes * NEVER
    places = torch.where(beams.there, tables.finished[beams.lane], -torch.inf)
    finished, kept = _best(torch.cat((places, texts), 1), searches.beams)
    ended = torch.cat((tables.ended[beams.lane] & beams.there, finishes), 1).gather(1, kept)

    running, chosen = _best(best.scores + ends * NEVER, searches.beams)
    worst = torch.where(ended, torch.where(beams.there, finished, torch.inf).amin(1, keepdim=True), NEVER)
    improvable = (running[:, :1] / last > worst) & beams.there
    enough = (settings.early == EARLY_STOPPING[True]) & (ended | ~beams.there)
    return _Outcome(
        running=running,
        parents=best.parents.gather(1, chosen),
        tokens=tokens.gather(1, chosen),
        finished=finished,
        kept=torch.where(kept < searches.beams, kept, searches.beams - 1 - kept),
        ended=ended,
        over=(~improvable.any(1) | enough.all(1) | (ends | ~best.counted).all(1))[:, None],
    )


def _write(outcome: _Outcome, searches: Searches, beams: _Beams, lanes: Lanes, tables: BeamTables) -> None:
    live, place = beams.live, beams.place
    count, most = len(live), searches.beams

    def update(table: Tensor, values: Tensor) -> None:
        """Each beam has the value of its place."""
        table[:count] = torch.where(live, values.flatten()[place].to(table.dtype), table[:count])

    every = torch.arange(count, device=live.device)
    parent = outcome.parents.flatten()[place] + place // most * most
    source = torch.where(live, beams.lane.flatten()[parent], every)
    held = tables.holders[:, : searches.longest].index_select(0, source)
    following = lanes.length[:count].clamp(max=held.shape[1] - 1).long()[:, None]  # where a beam writes its next key
    held.scatter_(1, following, torch.where(live[:, None], every[:, None].int(), held.gather(1, following)))
    tables.holders[:count, : searches.longest] = held
    update(tables.scores, outcome.running)
    update(tables.finished, outcome.finished)
    update(tables.ended, outcome.ended)
    update(lanes.last_token, outcome.tokens)


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The greatest of each row, falling, and where they are; the first of equal ones comes first."""
    falling, order = scores.sort(descending=True, stable=True)
    return falling[:, :count], order[:, :count]
