"""The beams of a batch on the device: where the keys of each are, and how each search goes on.

Everything that decides about beams happens here, in tables by lane, so that the next step can be launched before the
host knows what this one brought; the host hears of each step what it needs to tell the texts.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tercet.server.engine.beam import NEVER, Continuation
from tercet.server.engine.processors import Processors, pack_processors, process, unpack_processors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tercet.server.engine.beam import BeamSearch
    from tercet.server.engine.transfer import PackedBuffer

NO_TOKEN = -1


class Placed(NamedTuple):
    """A beam search in a batch."""

    first: int
    """Its first row of the batch."""
    search: BeamSearch
    length: int
    """Tokens that each of its rows reads."""

    @property
    def continues(self) -> bool:
        """Whether all of its tokens are computed then."""
        return self.length == self.search.remaining

    @property
    def kind(self) -> tuple[int, int, int]:
        """Rows of the batch (1 while the beams are all the prompt), beams and candidates."""
        return self.search.width, self.search.widest, self.search.candidates


class BeamTables:
    """What the device knows of beams, by the lane of each."""

    def __init__(self, lanes: int, longest: int, device: torch.device) -> None:
        """`longest`: tokens of a text."""
        self.scores = torch.zeros(lanes, device=device)
        """float32 [lanes]: of the running beams."""
        self.finished = torch.zeros(lanes, device=device)
        """float32 [lanes]: of the finished ones, which have as many places."""
        self.ended = torch.zeros(lanes, dtype=torch.bool, device=device)
        """[lanes]: whether there is a finished beam in a place."""
        self.holders = torch.empty(lanes, longest, dtype=torch.int32, device=device)
        """int32 [lanes, longest]: which beam of the search holds the key of each token behind the shared pages."""


def beam_bytes(longest: int) -> int:
    """Bytes of a lane in all of `BeamTables`."""
    return 4 * (2 + longest) + 1


@dataclass(frozen=True)
class Group:
    """Searches of one kind, `S` with `K` beams each; their fields of the buffer, on the device."""

    kind: tuple[int, int, int]
    lanes: Tensor
    """int32 [S, K]"""
    ends: Tensor
    """int32 [S, E]: tokens that end a text; NO_TOKEN fills up."""
    at_limit: Tensor
    """bool [S, 1]: whether every text ends with its next token."""
    early: Tensor
    """bool [S]: whether the search is over once as many beams are finished as there are places."""
    length: Tensor
    """float32 [S, 1]: what the score of a text that ends now is divided by."""
    longest: Tensor
    """float32 [S, 1]: what the best score that may still come is."""
    place: Tensor
    """int32 [S]: of the next token among those behind the shared pages."""
    places: int
    """More than any of them."""


@dataclass(frozen=True)
class BeamRows:
    """The beams that continue with this batch, by kind."""

    rows: Tensor
    """int32 [N]: which rows of the batch they are."""
    groups: list[Group]
    processors: Processors


def pack_beams(buffer: PackedBuffer, searches: Sequence[Placed]) -> list[list[Placed]]:
    """Puts the beams of a batch into its buffer; gives those that continue with it, by kind."""
    started = [search for _, search, _ in searches if search.untold]
    if started:
        buffer.put("beams_started", chain.from_iterable(search.lanes for search in started))
        buffer.put("beams_scores", chain.from_iterable(search.scores for search in started), "f")
        buffer.put("beams_finished", chain.from_iterable(search.finished_scores for search in started), "f")
        buffer.put("beams_ended", chain.from_iterable(search.ended for search in started))
        buffer.put("beams_holders", chain.from_iterable(search.first_holders for search in started))
    _pack_key_rows(buffer, [placed for placed in searches if placed.search.width == placed.search.widest])
    kinds: dict[tuple[int, int, int], list[Placed]] = {}
    for placed in searches:
        if placed.continues:
            kinds.setdefault(placed.kind, []).append(placed)
    groups = list(kinds.values())
    if groups:
        every = list(chain.from_iterable(groups))
        rows = (range(placed.first, placed.first + placed.search.width) for placed in every)
        buffer.put("beam_rows", chain.from_iterable(rows))
        pack_processors(buffer.put, [row for placed in every for row in placed.search.rows()], "beam_")
    for index, group in enumerate(groups):
        found = [placed.search for placed in group]
        width = max(1, *(len(search.ends) for search in found))
        ends = ([*search.ends, *[NO_TOKEN] * (width - len(search.ends))] for search in found)
        buffer.put(f"beams_{index}_lanes", chain.from_iterable(search.lanes for search in found))
        buffer.put(f"beams_{index}_ends", chain.from_iterable(ends))
        buffer.put(f"beams_{index}_at_limit", [search.at_limit for search in found])
        buffer.put(f"beams_{index}_early", [search.request.sampling.early_stopping is True for search in found])
        buffer.put(f"beams_{index}_place", [search.behind for search in found])
        buffer.put(f"beams_{index}_length", [search.divisor for search in found], "f")
        buffer.put(f"beams_{index}_longest", [search.best_divisor for search in found], "f")
    return groups


def start_beams(views: dict[str, Tensor], tables: BeamTables, longest: int) -> None:
    """Fills in the lanes of searches that start, or start again; `longest`: tokens of any text."""
    if "beams_started" in views:
        lanes = views["beams_started"]
        tables.scores[lanes] = views["beams_scores"]
        tables.finished[lanes] = views["beams_finished"]
        tables.ended[lanes] = views["beams_ended"].bool()
        tables.holders[lanes, :longest] = views["beams_holders"][:, None]


def _pack_key_rows(buffer: PackedBuffer, searches: Sequence[Placed]) -> None:
    rows, firsts, positions, lanes = (array("i") for _ in range(4))
    for first, search, _ in searches:
        rows.extend(range(first, first + search.widest))
        firsts.extend([first] * search.widest)
        positions.extend([search.first_own] * search.widest)
        lanes.extend(search.lanes)
    if rows:
        buffer.put("sharing_rows", rows)
        buffer.put("sharing_first", firsts)
        buffer.put("sharing_from", positions)
        buffer.put("sharing_lanes", lanes)


def key_rows(views: dict[str, Tensor], tables: BeamTables, rows: int, longest: int) -> Tensor | None:
    """int32 [rows, longest]: the row of the batch whose pages hold each key of a row; None if all hold their own.

    `views` has what `pack_beams` put there.
    """
    if "sharing_rows" not in views:
        return None
    sharing, first = views["sharing_rows"], views["sharing_first"]
    every = torch.arange(max(rows, longest), dtype=torch.int32, device=first.device)
    place = every[:longest] - views["sharing_from"][:, None]  # [sharing rows, longest]
    held = first[:, None] + tables.holders[views["sharing_lanes"], :longest].gather(1, place.clamp(min=0).long())
    table = every[:rows, None].repeat(1, longest)
    table[sharing] = torch.where(place < 0, sharing[:, None], held)
    return table


def unpack_beams(views: dict[str, Tensor], groups: Sequence[Sequence[Placed]]) -> BeamRows:
    """What `pack_beams` put there of groups of searches that continue, on the device."""
    unpacked: list[Group] = []
    for index, group in enumerate(groups):
        fields = ("lanes", "ends", "at_limit", "early", "length", "longest", "place")
        lanes, ends, at_limit, early, length, longest, place = (views[f"beams_{index}_{name}"] for name in fields)
        unpacked.append(
            Group(
                kind=group[0].kind,
                lanes=lanes.view(len(group), -1),
                ends=ends.view(len(group), -1),
                at_limit=at_limit.bool()[:, None],
                early=early.bool(),
                length=length[:, None],
                longest=longest[:, None],
                place=place,
                places=max(placed.search.behind for placed in group) + 1,
            )
        )
    return BeamRows(views["beam_rows"], unpacked, unpack_processors(views, "beam_"))


def continue_beams(logits: Tensor, beams: BeamRows, tables: BeamTables, last_tokens: Tensor) -> list[Tensor]:
    """Continues the beams of each group by logits, float32 [N, vocabulary], in the tables; gives what the host gets.

    As in transformers, processors change the log softmax, before the scores of the beams are added. `last_tokens`,
    int32 [lanes], get those that were chosen.
    """
    likely = logits.log_softmax(-1)
    process(likely, beams.processors)
    told: list[Tensor] = []
    begin = 0
    for group in beams.groups:
        end = begin + len(group.lanes) * group.kind[0]
        told += _continue(likely[begin:end], group, tables, last_tokens)
        begin = end
    return told


def _continue(likely: Tensor, group: Group, tables: BeamTables, last_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One step of `_beam_search` of transformers' generation/utils.py, for all searches of a group at once.

    Gives float32 [S, 1 + 2K] and int32 [S, 4K + 2C + 1], which `continuations` reads.
    """
    width, beams, candidates = group.kind
    searches, vocabulary = len(group.lanes), likely.shape[1]
    lanes = group.lanes.long()
    continued = (tables.scores[lanes][:, :, None] + likely.view(searches, width, vocabulary)).flatten(1)
    scores, found = continued.topk(min(candidates, continued.shape[1]))  # [S, C]
    parents, tokens = found // vocabulary, found % vocabulary

    ends = group.at_limit | (tokens[:, :, None] == group.ends[:, None]).any(-1)
    # Only the best candidates can be finished beams; there are more so that others go on.
    finishes = ends & (torch.arange(scores.shape[1], device=ends.device) < beams)
    merged = torch.cat((tables.finished[lanes], scores / group.length + ~finishes * NEVER), 1)
    finished, kept = merged.topk(beams)
    ended = torch.cat((tables.ended[lanes], finishes), 1).gather(1, kept)

    running, chosen = (scores + ends * NEVER).topk(beams)
    parent, token = parents.gather(1, chosen), tokens.gather(1, chosen)
    worst = torch.where(ended, finished.amin(1, keepdim=True), NEVER)
    improvable = (running[:, :1] / group.longest > worst).any(1)
    over = ~improvable | (group.early & ended.all(1)) | ends.all(1)

    facts = (parent, token, kept, ended, parents, tokens, over[:, None])
    told = torch.cat((scores[:, :1], running, finished), 1), torch.cat([fact.int() for fact in facts], 1)
    held = tables.holders[lanes.gather(1, parent), : group.places]  # [S, K, places]
    each = torch.arange(beams, dtype=torch.int32, device=held.device).expand(searches, beams)[:, :, None]
    held.scatter_(2, group.place.long()[:, None, None].expand(searches, beams, 1), each)
    # Only now, when nothing can fail any more: a batch that failed is run again.
    tables.scores[lanes], tables.finished[lanes], tables.ended[lanes] = running, finished, ended
    last_tokens[lanes] = token.int()
    tables.holders[lanes, : group.places] = held
    return told


def continuations(arrays: Sequence[NDArray[Any]], groups: Sequence[Sequence[Placed]]) -> list[Continuation]:
    """How each search went on, from the host's copies of what `continue_beams` gave."""
    found: list[Continuation] = []
    for group, floats, ints in zip(groups, arrays[::2], arrays[1::2], strict=True):
        beams = group[0].search.widest
        for numbers, facts in zip(floats.tolist(), ints.tolist(), strict=True):
            parent, token, kept, ended = (facts[first : first + beams] for first in range(0, 4 * beams, beams))
            candidates = (len(facts) - 4 * beams) // 2
            found.append(
                Continuation(
                    best=numbers[0],
                    scores=numbers[1 : 1 + beams],
                    finished_scores=numbers[1 + beams :],
                    parents=parent,
                    tokens=token,
                    finished=kept,
                    ended=ended,
                    candidates=list(
                        zip(facts[4 * beams :][:candidates], facts[4 * beams + candidates :], strict=False)
                    ),
                    over=bool(facts[-1]),
                )
            )
    return found
