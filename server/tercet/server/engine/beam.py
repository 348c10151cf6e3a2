"""Beam search for one request of a continuous batch, step for step as transformers' `generate` does it.

The beams of a request are rows that decode in step. What a beam has read may have been read by any of them, since the
best continuations of a step can all be of one beam: nothing is copied then, but each beam knows which row of the group
holds the keys of each of its tokens, and attention reads them there (`key_rows`). Full pages of the prompt are held
once; behind them every row has pages of its own, and only it writes there.

What decides about beams are tensors of a few elements, on the host as long as the scheduler asks for the outcome of
each step.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from tercet.server.engine.sequence import Sequence, generation_request
from tercet.server.wire import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.server.engine.sequence import Request
    from tercet.server.wire import Family, FinishReason, Generate

NEVER = -1e9
"""transformers' score of a beam that is not to be chosen, or what is added to that of one that may not be; in float32
the sum is the same for all of them."""


class Continuations(NamedTuple):
    """The best continuations of a request's beams, best first."""

    scores: Tensor
    """float32 [candidates]: sums of log probabilities."""
    beams: list[int]
    """The beams that they continue."""
    tokens: list[int]
    """What they continue them with."""


@dataclass(frozen=True)
class Hypothesis:
    """A beam that has ended, or the place of one.

    Fewer have ended than there are places where nothing is left to choose, or where no score can be above that of a
    place: a `length_penalty` far below 0. As in transformers such a place is answered as a text without tokens.
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
        self.scores = torch.tensor([0.0] + [NEVER] * (beams - 1))
        """float32 [beams]: of the running ones. They start alike, so all but the first are kept out."""
        self._answers = answers
        self._ends = ends
        self._shared = len(request.prompt) // page_size
        self._first_own = self._shared * page_size
        self._finished = [Hypothesis([], "length")] * beams
        self._finished_scores = torch.full((beams,), NEVER)
        self._is_finished = torch.zeros(beams, dtype=torch.bool)
        self._improvable = True
        beginning = array("i", [0] * (len(request.prompt) - self._first_own))
        self._become([(list(request.prompt), beginning) for _ in range(beams)])

    @property
    def awaited(self) -> bool:
        return True

    @property
    def common(self) -> int:
        return self._first_own

    @property
    def widest(self) -> int:
        return len(self._beams)

    @property
    def width(self) -> int:
        """One row reads the prompt: until the first tokens are chosen all of it, else its shared pages."""
        return self.widest if self.generated and self.computed >= self._first_own else 1

    @property
    def stretch(self) -> int:
        if self.generated and self.computed < self._first_own:
            return self._first_own - self.computed
        return self.remaining

    def page_count(self, page_size: int) -> int:
        return self._shared + self.widest * (super().page_count(page_size) - self._shared)

    def rows(self) -> list[Sequence]:
        """Those of the next batch; the pages behind the prompt's are dealt out to all of them in turn."""
        for beam, row in enumerate(self._beams):
            row.pages = self.pages[: self._shared] + self.pages[self._shared + beam :: self.widest]
            row.lanes = self.lanes[beam : beam + 1]
        return self._beams[: self.width]

    def holders(self) -> tuple[int, list[array[int]]]:
        """From which position on beams read each other's pages, and the beam that holds each token from there on."""
        return self._first_own, self._holders

    def restart(self, computed: int) -> None:
        """Starts from so many tokens in pages; what a beam then reads lies in its own pages."""
        super().restart(computed)
        if self.generated:
            behind = len(self.tokens) - self._first_own
            self._holders = [array("i", [beam]) * behind for beam in range(self.widest)]

    def advance(self, candidates: Continuations) -> bool:
        """Continues the beams; whether the search is over (`_beam_search` of transformers' generation/utils.py)."""
        request, beams = self.request, self.widest
        generated = self.generated + 1
        at_limit = len(self.tokens) + 1 >= request.limit
        ends = torch.tensor([at_limit or token in self._ends for token in candidates.tokens])
        self._finish(candidates, ends, generated)

        running = candidates.scores + ends * NEVER
        chosen = running.topk(beams).indices
        self.scores = running[chosen]
        heritage: list[tuple[list[int], array[int]]] = []
        for beam, place in enumerate(chosen.tolist()):
            parent = candidates.beams[place]
            tokens = [*self._beams[parent].tokens, candidates.tokens[place]]
            heritage.append((tokens, self._holders[parent] + array("i", [beam])))
        self._become(heritage)

        early, penalty = request.sampling.early_stopping, request.sampling.length_penalty
        longest = request.limit - len(request.prompt) if early == "never" and penalty > 0 else generated
        worst = torch.where(self._is_finished, self._finished_scores.min(), NEVER)
        self._improvable &= bool((self.scores[0] / longest**penalty > worst).any())
        full = early is True and bool(self._is_finished.all())
        return not self._improvable or full or bool(ends.all())

    def answers(self) -> list[Tokens]:
        """The best finished beams, best first."""
        found = zip(self._finished, self._finished_scores.tolist(), strict=True)
        return [
            Tokens(id=self.request.id, sample=rank, token_ids=text.tokens, finish_reason=text.reason, score=score)
            for rank, (text, score) in enumerate(found)
            if rank < self._answers
        ]

    def _become(self, heritage: list[tuple[list[int], array[int]]]) -> None:
        """Makes the beams of their tokens and of who holds those behind the shared pages."""
        self._beams = [Sequence(self.request, beam, tokens) for beam, (tokens, _) in enumerate(heritage)]
        self._holders = [holders for _, holders in heritage]
        self.tokens = self._beams[0].tokens

    def _finish(self, candidates: Continuations, ends: Tensor, generated: int) -> None:
        """Keeps the best of the beams that have finished, those of `candidates` that end among them.

        Only the best candidates can be finished beams; there are more so that others go on.
        """
        beams = self.widest
        finishes = ends & (torch.arange(len(ends)) < beams)
        scores = candidates.scores / generated**self.request.sampling.length_penalty + ~finishes * NEVER
        merged = torch.cat((self._finished_scores, scores))
        best = merged.topk(beams).indices
        finished = [
            self._finished[place] if place < beams else self._hypothesis(candidates, place - beams)
            for place in best.tolist()
        ]
        self._finished, self._finished_scores = finished, merged[best]
        self._is_finished = torch.cat((self._is_finished, finishes))[best]

    def _hypothesis(self, candidates: Continuations, place: int) -> Hypothesis:
        token, request = candidates.tokens[place], self.request
        tokens = [*self._beams[candidates.beams[place]].tokens[len(request.prompt) :], token]
        return Hypothesis(tokens, request.end(token) or "length")


def beam_request(message: Generate, arrival: int, family: Family, max_length: int, page_size: int) -> Request:
    """A request of one beam search, whose texts are no longer than `max_length`."""
    request = generation_request(message, arrival, family, max_length)
    request.sequences[:] = [BeamSearch(request, message.n, page_size)]
    return request
