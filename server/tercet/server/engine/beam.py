"""Beam search for one request of a continuous batch, step for step as transformers' `generate` does it.

The beams of a request are rows that decode in step. What a beam has read may have been read by any of them, since the
best continuations of a step can all be of one beam: nothing is copied then, but each beam knows which row of the group
holds the keys of each of its tokens, and attention reads them there (`key_rows`). Full pages of the prompt are held
once; behind them every row has pages of its own, and only it writes there.

What decides about beams is on the device (`beam_step`), so that no launch waits for it. The host follows one step
behind: it keeps the texts, and knows when the search is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tercet.server.engine.sequence import Sequence, generation_request
from tercet.server.wire import Tokens

if TYPE_CHECKING:
    from tercet.server.engine.sequence import Request
    from tercet.server.wire import Family, FinishReason, Generate

NEVER = -1e9
"""transformers' score of a beam that is not to be chosen."""


class Continuation(NamedTuple):
    """What a step made of a search, as the device decided it."""

    best: float
    """The score of the best candidate, not a number if any is none."""
    scores: list[float]
    """Of the beams that run."""
    finished_scores: list[float]
    """Of the places for finished ones."""
    parents: list[int]
    """The beams that those which run continue."""
    tokens: list[int]
    """What they continue them with."""
    finished: list[int]
    """What is in each place now: what was in a place, or -1 less the number of a candidate."""
    ended: list[int]
    """Whether there is a finished beam in each place."""
    candidates: list[tuple[int, int]]
    """The beam and the token of the best continuations, best first."""
    over: bool
    """Whether the search is."""


@dataclass(frozen=True)
class Hypothesis:
    """A beam that has ended, or the place of one.

    Fewer have ended than there are places where nothing is left to choose, or where no score can be above that of a
    place: a `length_penalty` far below 0. Such a place is answered as a text without tokens.
    """

    tokens: list[int]
    """Those generated."""
    reason: FinishReason


class BeamSearch(Sequence):
    """The beams of one request: admitted, continued and preempted together, all equally long."""

    def __init__(self, request: Request, answers: int, page_size: int) -> None:
        """`answers`: how many of the best beams are told."""
        super().__init__(request, 0, [])
        beams = request.sampling.num_beams
        ends = request.eos_ids | request.stop_ids
        self.candidates: int = max(2, 1 + len(ends)) * beams
        """So many that enough beams go on however many end; of a small vocabulary there may be fewer."""
        self.ends = sorted(ends)
        """Tokens that end a text."""
        self.scores = [0.0] + [NEVER] * (beams - 1)
        """Of the running ones. They start alike, so all but the first are kept out."""
        self.finished_scores = [NEVER] * beams
        """Of the places for finished ones."""
        self.ended = [0] * beams
        """Whether there is one in each place."""
        self.untold = True
        """Whether the device has yet to hear of its beams."""
        self._dealt = 0  # pages that are
        self._answers = answers
        self._shared = len(request.prompt) // page_size
        self.first_own = self._shared * page_size
        """The position from which on beams have pages of their own, and read each other's."""
        self._finished = [Hypothesis([], "length")] * beams
        self._beams = [Sequence(request, beam, list(request.prompt)) for beam in range(beams)]
        self.tokens = self._beams[0].tokens

    @property
    def common(self) -> int:
        return self.first_own

    @property
    def widest(self) -> int:
        return len(self._beams)

    @property
    def width(self) -> int:
        """One row reads the prompt: until the first tokens are chosen all of it, else its shared pages."""
        return self.widest if self._branched and self.computed >= self.first_own else 1

    @property
    def stretch(self) -> int:
        if self._branched and self.computed < self.first_own:
            return self.first_own - self.computed
        return self.remaining

    @property
    def first_holders(self) -> list[int]:
        """For each beam the lane of the one that holds what it has read, where the search starts or starts again."""
        return self.lanes if self._branched else self.lanes[:1] * self.widest

    @property
    def beams(self) -> list[Sequence]:
        """Its beams, with the pages and lanes that `rows` gave them."""
        return self._beams

    @property
    def _branched(self) -> bool:
        """Whether the beams differ."""
        return self.length > len(self.request.prompt)

    def page_count(self, page_size: int) -> int:
        return self._shared + self.widest * (super().page_count(page_size) - self._shared)

    def rows(self) -> list[Sequence]:
        """Those of the next batch; the pages behind the prompt's are dealt out to all of them in turn."""
        if self._dealt < len(self.pages):
            self._deal()
        for row in self._beams:
            row.computed, row.drawn = self.computed, self.drawn
        return self._beams[: self.width]

    def restart(self, computed: int) -> None:
        """Starts from so many tokens in pages; what a beam then reads lies in its own pages."""
        super().restart(computed)
        self.untold = True
        self._dealt = 0
        for row in self._beams:
            row.pages = []  # the same list as long as it runs, which only grows

    def draw(self) -> bool:
        """Counts the tokens that are being chosen; the device has heard of the beams now."""
        self.untold = False
        return super().draw()

    def advance(self, step: Continuation) -> bool:
        """Continues the beams as the device did; whether the search is over."""
        finished = [
            self._finished[place] if place >= 0 else self._hypothesis(*step.candidates[-1 - place])
            for place in step.finished
        ]
        self._finished, self.finished_scores, self.ended = finished, step.finished_scores, step.ended
        self.scores = step.scores
        texts = [[*self._beams[parent].tokens, token] for parent, token in zip(step.parents, step.tokens, strict=True)]
        for row, tokens in zip(self._beams, texts, strict=True):
            row.rewrite(tokens)
        self.tokens = texts[0]
        self.drawn = max(0, self.drawn - 1)
        return step.over

    def answers(self) -> list[Tokens]:
        """The best finished beams, best first."""
        found = zip(self._finished, self.finished_scores, strict=True)
        return [
            Tokens(id=self.request.id, sample=rank, token_ids=text.tokens, finish_reason=text.reason, score=score)
            for rank, (text, score) in enumerate(found)
            if rank < self._answers
        ]

    def _deal(self) -> None:
        for beam, row in enumerate(self._beams):
            own = self.pages[self._shared + beam :: self.widest]
            row.pages += (self.pages[: self._shared] + own)[len(row.pages) :]
            row.lanes, row.head = self.lanes[beam : beam + 1], self.lanes[0]
        self._dealt = len(self.pages)

    def _hypothesis(self, parent: int, token: int) -> Hypothesis:
        tokens = [*self._beams[parent].tokens[len(self.request.prompt) :], token]
        return Hypothesis(tokens, self.request.end(token) or "length")


def beam_request(message: Generate, arrival: int, family: Family, max_length: int, page_size: int) -> Request:
    """A request of one beam search, whose texts are no longer than `max_length`."""
    request = generation_request(message, arrival, family, max_length)
    request.sequences[:] = [BeamSearch(request, message.n, page_size)]
    return request
