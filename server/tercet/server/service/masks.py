"""FillMask: candidates for the masked tokens of texts."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from tercet.server import wire
from tercet.server.service.answers import Work, ask, to_items
from tercet.server.service.errors import InvalidArgumentError, ServiceError, attempt
from tercet.server.service.fields import MOST_RESULTS, number, usage
from tercet.server.service.sequences import Limit
from tercet.v1.understanding_pb2 import Fill, FilledMasks, FillMaskItem, FillMaskRequest, FillMaskResponse, Fills

if TYPE_CHECKING:
    from tercet.server.metrics import Metrics
    from tercet.server.service.registry import Registry, Target
    from tercet.server.service.rpc import Call
    from tercet.server.service.sequences import Sequencer, TokenSequence
    from tercet.server.text import TextModel, Tokenizer
    from tercet.v1.types_pb2 import Strings

_CANDIDATES = 5
_LONGEST_TARGET = 64  # characters, in an error


class MaskFiller:
    """FillMask of tercet.v1.UnderstandingService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, metrics: Metrics) -> None:
        self._registry = registry
        self._sequencer = sequencer
        self._metrics = metrics

    async def fill_mask(self, request: FillMaskRequest, call: Call) -> FillMaskResponse:
        """Candidates for every mask of every input."""
        target = self._registry.target(request.model, "fill_mask", call)
        tokenizer, longest = target.text.tokenizer, target.model.longest_read
        top_k = number(request, "top_k", _CANDIDATES, MOST_RESULTS)
        targets = self._targets(request.targets, target.text) if request.HasField("targets") else []
        self._sequencer.check_count("inputs", len(request.inputs))
        self._sequencer.check_chars("inputs", sum(len(item.text) for item in request.inputs))
        fields = [f"inputs[{i}]" for i in range(len(request.inputs))]
        limit = Limit(longest, truncate=False, cut_to=longest)
        sequences = await self._sequencer.sequences(target, request.inputs, fields, limit)

        def work(field: str, sequence: TokenSequence) -> Work:
            question = wire.FillMask(
                id=target.channel.new_id(),
                token_ids=sequence.token_ids,
                type_ids=sequence.type_ids,
                positions=_masks(field, sequence, target),
                targets=targets,
                top_k=min(top_k, len(targets) or target.info.vocab_size),
                deadline=call.deadline,
            )
            return Work(field, [question])

        works = [
            sequence if isinstance(sequence, ServiceError) else attempt(partial(work, field, sequence))
            for field, sequence in zip(fields, sequences, strict=True)
        ]
        answers = await ask(target, works, wire.Candidates, self._metrics)
        items = to_items(FillMaskItem, works, answers, filled=lambda _, answer: _filled(answer[0], tokenizer))
        return FillMaskResponse(model=target.model.name, items=items, usage=usage(items))

    def _targets(self, targets: Strings, text: TextModel) -> list[int]:
        """The tokens to choose from, each once. Raises InvalidArgumentError for what is not one token."""
        self._sequencer.check_count("targets", len(targets.values))
        self._sequencer.check_chars("targets", sum(map(len, targets.values)))
        ids: list[int] = []
        for i, target in enumerate(targets.values):
            token_id = text.tokenizer.backend.token_to_id(target)
            pieces = [token_id] if token_id is not None else text.tokenizer.encode(target, add_special_tokens=False).ids
            if len(pieces) != 1 or (token_id is None and pieces[0] == text.unknown_id):
                problem = f"{target[:_LONGEST_TARGET]!r} is not one token of the vocabulary"
                raise InvalidArgumentError(f"targets.values[{i}]", problem)
            ids += pieces
        return list(dict.fromkeys(ids))


def _masks(field: str, sequence: TokenSequence, target: Target) -> list[int]:
    """Where the masks are. Raises InvalidArgumentError where there are none."""
    token, token_id = target.text.mask or ("", None)
    places = [place for place, id in enumerate(sequence.token_ids) if id == token_id]
    if not places:
        raise InvalidArgumentError(field, f"has no mask token, {token!r}")
    return places


def _filled(candidates: wire.Candidates, tokenizer: Tokenizer) -> FilledMasks:
    """The candidates of every mask, with their text."""

    def fill(token_id: int, logprob: float) -> Fill:
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        return Fill(token=text, token_id=token_id, score=math.exp(logprob))

    masks = zip(candidates.token_ids, candidates.logprobs, strict=True)
    return FilledMasks(masks=[Fills(fills=[fill(*pair) for pair in zip(*mask, strict=True)]) for mask in masks])
