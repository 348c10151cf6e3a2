"""The beams of a batch that is launched: where the keys of each are, which searches go on with it, and how they did."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tercet.server.engine.beam import Continuation
from tercet.server.engine.beam_step import Searches
from tercet.server.engine.processors import Processors, pack_processors, unpack_processors
from tercet.server.engine.tuning import BEAM_CANDIDATES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tercet.server.engine.beam import BeamSearch
    from tercet.server.engine.beam_tables import BeamTables
    from tercet.server.engine.lanes import Lanes
    from tercet.server.engine.transfer import PackedBuffer


class Placed(NamedTuple):
    """A search that goes on with a batch."""

    rows: Sequence[int]
    """Its rows of the batch: one for each beam, or one of which all are made."""
    search: BeamSearch


@dataclass(frozen=True)
class BeamRows:
    """The beams that go on with a batch that is launched."""

    rows: Tensor
    """int32 [N]: which rows of the batch they go on from."""
    searches: Searches
    processors: Processors


def pack_beams(buffer: PackedBuffer, placed: Sequence[Placed]) -> None:
    """Puts which searches go on with a batch into its buffer, and what is done to the scores of their beams."""
    lanes = 1 + max(search.lanes[-1] for _, search in placed)
    active, row = array("i", [0]) * lanes, array("i", [0]) * lanes
    first = 0
    for rows, search in placed:
        for beam, lane in enumerate(search.lanes):
            active[lane], row[lane] = 1, first + min(beam, len(rows) - 1)
        first += len(rows)
    buffer.put("beam_rows", chain.from_iterable(rows for rows, _ in placed))
    buffer.put("beam_active", active)
    buffer.put("beam_row", row)
    buffer.put("beam_heads", [search.lanes[0] for _, search in placed])
    pack_processors(buffer.put, [beam for rows, search in placed for beam in search.beams[: len(rows)]], "beam_")


def unpack_beams(views: dict[str, Tensor], placed: Sequence[Placed]) -> BeamRows:
    """What `pack_beams` put there, on the device."""
    found = [search for _, search in placed]
    searches = Searches(
        heads=views["beam_heads"],
        active=views["beam_active"],
        row=views["beam_row"],
        beams=max(search.widest for search in found),
        # As where steps are replayed, so that equal logits come in the same order.
        candidates=max(BEAM_CANDIDATES, *(search.candidates for search in found)),
        ends=max(1, *(len(search.ends) for search in found)),
        longest=max(search.length for search in found) + 1,
    )
    return BeamRows(views["beam_rows"], searches, unpack_processors(views, "beam_"))


def key_rows(tables: BeamTables, lanes: Lanes, chosen: Tensor, longest: int) -> Tensor:
    """int32 [B, longest]: the row of a batch whose pages hold each key of a row; `chosen`, int32 [B], are its lanes."""
    every = torch.arange(len(chosen), dtype=torch.int32, device=chosen.device)
    row_of = torch.zeros_like(lanes.head)
    row_of[chosen] = every
    beams = lanes.head[chosen] >= 0
    return torch.where(beams[:, None], row_of[tables.holders[:, :longest].index_select(0, chosen)], every[:, None])


def continuations(
    arrays: Sequence[NDArray[Any]], searches: Sequence[BeamSearch], places: Sequence[int]
) -> list[Continuation]:
    """How each search went on, by its place in the host's copies of what `continue_beams` gave."""
    floats, ints = arrays
    most = (floats.shape[1] - 1) // 2
    candidates = (ints.shape[1] - 1 - 4 * most) // 2
    found: list[Continuation] = []
    for search, numbers, facts in zip(searches, floats[places].tolist(), ints[places].tolist(), strict=True):
        beams, count, tail = search.widest, min(search.candidates, candidates), facts[4 * most : -1]
        parents, tokens, finished, ended = (facts[first : first + beams] for first in range(0, 4 * most, most))
        found.append(
            Continuation(
                best=numbers[0],
                scores=numbers[1 : 1 + beams],
                finished_scores=numbers[1 + most : 1 + most + beams],
                parents=parents,
                tokens=tokens,
                finished=finished,
                ended=ended,
                candidates=list(zip(tail[:count], tail[candidates : candidates + count], strict=True)),
                over=bool(facts[-1]),
            )
        )
    return found
