"""What the device knows of beams and their searches, in tables by lane.

The host tells of a search once, when it starts or starts again. What changes with every step is changed by the device
(`beam_step`), so that the next one can be launched before the host knows what this one brought.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch

from tercet.server.engine.transfer import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tercet.server.engine.beam import BeamSearch
    from tercet.server.engine.transfer import PackedBuffer

MAX_ENDS = 1 << 10  # tokens that end the texts of a search

EARLY_STOPPING = {False: 0, True: 1, "never": 2}


class Settings(NamedTuple):
    """What some searches were asked for with, [S, 1] each."""

    beams: Tensor
    """int32"""
    candidates: Tensor
    """int32: how many continuations it chooses from."""
    ends: Tensor
    """int32: how many tokens end a text."""
    prompt: Tensor
    """int32: its tokens."""
    limit: Tensor
    """int32: tokens of a text, prompt included, at which it is cut off."""
    early: Tensor
    """int32, of `EARLY_STOPPING`."""
    length_penalty: Tensor
    """float32"""


class BeamTables:
    """What the device knows of beams, by the lane of each; of a search as a whole by that of its first."""

    def __init__(self, lanes: int, longest: int, device: torch.device) -> None:
        """`longest`: tokens that the pages of a lane have room for."""
        self.scores = torch.zeros(lanes, device=device)
        """float32 [lanes]: of the running beams."""
        self.finished = torch.zeros(lanes, device=device)
        """float32 [lanes]: of the finished ones, which have as many places."""
        self.ended = torch.zeros(lanes, dtype=torch.bool, device=device)
        """[lanes]: whether there is a finished beam in a place."""
        self.holders = torch.zeros(lanes, longest, dtype=torch.int32, device=device)
        """int32 [lanes, longest]: the lane of the beam whose pages hold each key; of a row that is no beam, but is
        replayed beside some, its own."""
        self.ends = torch.zeros(lanes, MAX_ENDS, dtype=torch.int32, device=device)
        """int32 [lanes, MAX_ENDS]: tokens that end a text."""
        self._settings = torch.zeros(lanes, len(Settings._fields), dtype=torch.int32, device=device)

    def settings(self, heads: Tensor) -> Settings:
        """Those of the searches whose first lanes are `heads`, int32 [S]."""
        told = self._settings.index_select(0, heads)
        *whole, _ = told.split(1, dim=1)
        return Settings._make((*whole, told.view(torch.float32)[:, -1:]))

    def start(self, views: dict[str, Tensor]) -> None:
        """Fills in the lanes of the searches that `pack_started` put there."""
        if "started_lanes" not in views:
            return
        lanes = views["started_lanes"]
        self.scores[lanes] = views["started_scores"]
        self.finished[lanes] = views["started_finished"]
        self.ended[lanes] = views["started_ended"].bool()
        self.holders[lanes] = views["started_holders"][:, None]
        self._settings[views["started_heads"]] = views["started_settings"].view(-1, len(Settings._fields))
        if "started_ends" in views:
            self.ends[views["started_end_lanes"], views["started_end_places"]] = views["started_ends"]


def beam_bytes(longest: int) -> int:
    """Bytes of a lane in all of `BeamTables`."""
    return 4 * (2 + longest + MAX_ENDS + len(Settings._fields)) + 1


def pack_started(buffer: PackedBuffer, searches: Sequence[BeamSearch]) -> None:
    """Puts what the device has yet to hear of searches into a batch's buffer."""
    started = [search for search in searches if search.untold]
    if not started:
        return
    buffer.put("started_lanes", chain.from_iterable(search.lanes for search in started))
    buffer.put("started_scores", chain.from_iterable(search.scores for search in started), "f")
    buffer.put("started_finished", chain.from_iterable(search.finished_scores for search in started), "f")
    buffer.put("started_ended", chain.from_iterable(search.ended for search in started))
    buffer.put("started_holders", chain.from_iterable(search.first_holders for search in started))
    buffer.put("started_heads", [search.lanes[0] for search in started])
    buffer.put("started_settings", chain.from_iterable(map(_settings, started)))
    if any(search.ends for search in started):
        buffer.put("started_end_lanes", chain.from_iterable([s.lanes[0]] * len(s.ends) for s in started))
        buffer.put("started_end_places", chain.from_iterable(range(len(search.ends)) for search in started))
        buffer.put("started_ends", chain.from_iterable(search.ends for search in started))


def _settings(search: BeamSearch) -> tuple[int, ...]:
    request, sampling = search.request, search.request.sampling
    early, (penalty,) = EARLY_STOPPING[sampling.early_stopping], words("f", sampling.length_penalty)
    return search.widest, search.candidates, len(search.ends), len(request.prompt), request.limit, early, penalty
