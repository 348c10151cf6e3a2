"""A step of beam search on the device, of all searches of a batch at once.

It reads what is in the tables by lane, and changes that; nothing is brought to the host, and what is launched depends
on how many lanes, searches and beams there can be, not on which there are: it can be recorded, and replayed for others.
Equal scores come in the order of the beams and of their likeliest tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tercet.kernels import beam_step, top_logprobs
from tercet.server.engine.processors import process

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.server.engine.beam_tables import BeamTables
    from tercet.server.engine.lanes import Lanes
    from tercet.server.engine.processors import Processors


@dataclass(frozen=True)
class Searches:
    """Searches that go on, `S` of them, whose beams are among the first `L` lanes."""

    heads: Tensor
    """int32 [S]: the first lane of each."""
    active: Tensor
    """int32 [L]: 1 for the lanes of their beams; of others that are no beams it does not matter."""
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


def continue_beams(
    logits: Tensor, searches: Searches, lanes: Lanes, tables: BeamTables, processors: Processors | None = None
) -> tuple[Tensor, Tensor]:
    """Continues searches by the logits of rows, float32 [N, vocabulary], in the tables.

    `processors` change log probabilities, as in transformers, before the scores of the beams are added.
    `lanes.length` says how many tokens each text has. Gives what `continuations` reads: float32 [S, 1 + 2K] and int32
    [S, 4K + 2C + 1].
    """
    count = min(searches.candidates, logits.shape[1])  # of each row as many as could be the best
    if processors:
        likely = logits.log_softmax(-1)
        process(likely, processors)
        values, ids = likely.topk(count)
        ids = ids.int()
    else:
        values, ids = top_logprobs(logits, k=count)
    # Tables change only now, when nothing can fail any more: a batch that failed is run again.
    return beam_step(
        values,
        ids,
        row=searches.row,
        heads=searches.heads,
        active=searches.active,
        lanes=tables.beam_lanes(lanes),
        beams=searches.beams,
        candidates=searches.candidates,
        ends=searches.ends,
        longest=searches.longest,
    )
