"""What the device knows of beams and their searches, in tables by lane.

The host tells of a search once, when it starts or starts again. What changes with every step is changed by the device
(`beam_step`), so that the next one can be launched before the host knows what this one brought.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import torch

from tercet.kernels import BeamLanes
from tercet.server.engine.transfer import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tercet.server.engine.beam import BeamSearch
    from tercet.server.engine.lanes import Lanes
    from tercet.server.engine.transfer import PackedBuffer

MAX_ENDS = 1 << 10  # tokens that end the texts of a search

SETTINGS = 7  # of a search, and
EARLY_STOPPING = {False: 0, True: 1, "never": 2}  # among them: as `BeamLanes.settings` has them


class BeamTables:
    """What the device knows of beams, by the lane of each; of a search as a whole by that of its first."""

    def __init__(self, lanes: int, longest: int, device: torch.device) -> None:
        """`longest`: tokens that the pages of a lane have room for."""
        self.scores = torch.zeros(lanes, device=device)
        """float32 [lanes]: of the running beams."""
        self.finished = torch.zeros(lanes, device=device)
        """float32 [lanes]: of the finished ones, which have as many places."""
        self.ended = torch.zeros(lanes, dtype=torch.int32, device=device)
        """int32 [lanes]: whether there is a finished beam in a place."""
        self.holders = torch.zeros(lanes, longest, dtype=torch.int32, device=device)
        """int32 [lanes, longest]: the lane of the beam whose pages hold each key; of a row that is no beam, but is
        replayed beside some, its own."""
        self.ends = torch.zeros(lanes, MAX_ENDS, dtype=torch.int32, device=device)
        """int32 [lanes, MAX_ENDS]: tokens that end a text."""
        self.settings = torch.zeros(lanes, SETTINGS, dtype=torch.int32, device=device)
        """int32 [lanes, SETTINGS]: what a search was asked for with."""

    def beam_lanes(self, lanes: Lanes) -> BeamLanes:
        """As kernels take them, with what `lanes` know."""
        return BeamLanes(
            head=lanes.head,
            sample=lanes.sample,
            length=lanes.length,
            last_token=lanes.last_token,
            scores=self.scores,
            finished=self.finished,
            ended=self.ended,
            holders=self.holders,
            ends=self.ends,
            settings=self.settings,
        )

    def start(self, views: dict[str, Tensor]) -> None:
        """Fills in the lanes of the searches that `pack_started` put there."""
        if "started_lanes" not in views:
            return
        lanes = views["started_lanes"]
        self.scores[lanes] = views["started_scores"]
        self.finished[lanes] = views["started_finished"]
        self.ended[lanes] = views["started_ended"]
        self.holders[lanes] = views["started_holders"][:, None]
        self.settings[views["started_heads"]] = views["started_settings"].view(-1, SETTINGS)
        if "started_ends" in views:
            self.ends[views["started_end_lanes"], views["started_end_places"]] = views["started_ends"]


def beam_bytes(longest: int) -> int:
    """Bytes of a lane in all of `BeamTables`."""
    return 4 * (3 + longest + MAX_ENDS + SETTINGS)


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
