"""The beams of a batch on the device: where the keys of each are, and the best continuations of each request's."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from tercet.server.engine.beam import Continuations
from tercet.server.engine.processors import Processors, pack_processors, process, unpack_processors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tercet.server.engine.beam import BeamSearch
    from tercet.server.engine.transfer import PackedBuffer


class Placed(NamedTuple):
    """A beam search in a batch."""

    first: int
    """Its first row of the batch."""
    search: BeamSearch
    length: int
    """Tokens that each of its rows reads."""


class Group(NamedTuple):
    """The beams of one request."""

    rows: int
    """Of the batch; 1 while they are all the prompt."""
    beams: int
    candidates: int


@dataclass(frozen=True)
class BeamRows:
    """The beams that continue with this batch."""

    rows: Tensor
    """int32 [N]: which rows of the batch they are."""
    scores: Tensor
    """float32 [beams of all groups]: those of the running beams."""
    groups: list[Group]
    processors: Processors


def pack_key_rows(buffer: PackedBuffer, searches: Sequence[Placed]) -> None:
    """Puts where beams find the keys of their tokens into a batch's buffer."""
    rows, firsts, positions = array("i"), array("i"), array("i")
    holders: list[array[int]] = []
    for first, search, _ in searches:
        if search.width == search.widest:
            position, held = search.holders()
            rows.extend(range(first, first + search.width))
            firsts.extend([first] * search.width)
            positions.extend([position] * search.width)
            holders += held
    if holders:
        buffer.put("sharing_rows", rows)
        buffer.put("sharing_first", firsts)
        buffer.put("sharing_from", positions)
        buffer.put_table("sharing_holders", holders)


def key_rows(views: dict[str, Tensor], rows: int, longest: int) -> Tensor | None:
    """int32 [rows, longest]: the row of the batch whose pages hold each key of a row; None if all hold their own.

    `views` has what `pack_key_rows` put there.
    """
    if "sharing_rows" not in views:
        return None
    sharing, first = views["sharing_rows"], views["sharing_first"]
    holders = views["sharing_holders"].view(len(sharing), -1)
    every = torch.arange(max(rows, longest), dtype=torch.int32, device=first.device)
    place = every[:longest] - views["sharing_from"][:, None]  # [sharing rows, longest]
    held = first[:, None] + holders.gather(1, place.clamp(0, holders.shape[1] - 1).long())
    table = every[:rows, None].repeat(1, longest)
    table[sharing] = torch.where(place < 0, sharing[:, None], held)
    return table


def pack_beams(buffer: PackedBuffer, searches: Sequence[Placed]) -> None:
    """Puts the beams of searches that continue with a batch into its buffer."""
    buffer.put("beam_rows", chain.from_iterable(range(first, first + search.width) for first, search, _ in searches))
    buffer.put("beam_scores", chain.from_iterable(search.scores.tolist() for _, search, _ in searches), "f")
    pack_processors(buffer.put, [row for _, search, _ in searches for row in search.rows()], "beam_")


def unpack_beams(views: dict[str, Tensor], searches: Sequence[Placed]) -> BeamRows:
    """What `pack_beams` put there of these searches, on the device."""
    groups = [Group(search.width, search.widest, search.candidates) for _, search, _ in searches]
    return BeamRows(views["beam_rows"], views["beam_scores"], groups, unpack_processors(views, "beam_"))


def continue_beams(logits: Tensor, beams: BeamRows) -> list[Tensor]:
    """The best continuations of each group by logits, float32 [N, vocabulary], as the host gets them.

    As in transformers, processors change the log softmax, before the scores of the beams are added.
    """
    likely = logits.log_softmax(-1)
    process(likely, beams.processors)
    before = beams.scores.split([group.beams for group in beams.groups])
    after = likely.split([group.rows for group in beams.groups])
    best: list[Tensor] = []
    for group, scores, logprobs in zip(beams.groups, before, after, strict=True):
        continued = (scores[:, None] + logprobs).flatten()  # [beams * vocabulary]
        best += continued.topk(min(group.candidates, len(continued)))
    return best


def continuations(arrays: Sequence[NDArray[Any]], vocabulary: int) -> list[Continuations]:
    """What `continue_beams` found, from the host's copies."""
    found: list[Continuations] = []
    for scores, places in zip(arrays[::2], arrays[1::2], strict=True):
        beams, tokens = np.divmod(places, vocabulary)
        found.append(Continuations(torch.tensor(scores), beams.tolist(), tokens.tolist()))
    return found
