"""ScoringService: how likely a model finds a given text."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from tercet.server import wire
from tercet.server.service.answers import Work, ask, to_items
from tercet.server.service.errors import InvalidArgumentError, ServiceError, attempt, unless_error
from tercet.server.service.fields import usage
from tercet.server.service.languages import target_translation, translation
from tercet.server.service.sequences import Limit
from tercet.server.service.windows import Tally
from tercet.v1.scoring_pb2 import Score, ScoreItem, ScoreRequest, ScoreResponse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.config import Settings
    from tercet.server.metrics import Metrics
    from tercet.server.service.answers import Question
    from tercet.server.service.registry import Registry, Target
    from tercet.server.service.rpc import Call
    from tercet.server.service.sequences import Sequencer, TokenSequence

    Works = list[Work | ServiceError]


class ScoringServicer:
    """The methods of tercet.v1.ScoringService."""

    def __init__(self, registry: Registry, sequencer: Sequencer, settings: Settings, metrics: Metrics) -> None:
        self._registry = registry
        self._sequencer = sequencer
        self._settings = settings
        self._metrics = metrics

    async def score(self, request: ScoreRequest, call: Call) -> ScoreResponse:
        """The log probability of every token."""
        target = self._registry.target(request.model, "score", call)
        self._sequencer.check_count("inputs", len(request.inputs))
        chars = sum(len(item.text.text) + len(item.source.text) for item in request.inputs)
        self._sequencer.check_chars("inputs", chars)
        if target.info.family == "seq2seq":
            works = await self._of_targets(request, target, call)
        else:
            works = await self._of_texts(request, target, call)
        kind = wire.Scored if "generate" in target.info.tasks else wire.Candidates
        answers = await ask(target, works, kind, self._metrics)
        items = to_items(ScoreItem, works, answers, score=lambda i, answer: _score(unless_error(works[i]), answer))
        return ScoreResponse(model=target.model.name, items=items, usage=usage(items))

    async def _of_targets(self, request: ScoreRequest, target: Target, call: Call) -> Works:
        """What a seq2seq model is asked of each target: after its source, and what the decoder starts from."""
        start = target.text.generation.decoder_start_ids
        longest = target.model.longest_read
        around = translation(request, target.text)
        sources = await self._sequences(request, target, "source", longest, around=around)
        targets = await self._sequences(
            request,
            target,
            "text",
            longest - len(start),
            tokenizer=target.text.target_tokenizer,
            vocab_size=target.info.target_vocab_size,
            around=target_translation(request, target.text),
        )

        def work(i: int) -> Work:
            source, text = unless_error(sources[i]), unless_error(targets[i])
            return _work(
                f"inputs[{i}].text",
                wire.Score(
                    id=target.channel.new_id(),
                    token_ids=source.token_ids,
                    decoder_ids=wire.token_ids([*start, *text.token_ids]),
                    first=len(start),
                    deadline=call.deadline,
                ),
            )

        return [attempt(partial(work, i)) for i in range(len(request.inputs))]

    async def _of_texts(self, request: ScoreRequest, target: Target, call: Call) -> Works:
        """What a decoder is asked of each text, once, or a masked model, once for each token."""
        translation(request, target.text)
        texts = await self._sequences(request, target, "text", target.model.longest_read)
        tally = Tally(self._settings)

        def work(i: int) -> Work:
            if request.inputs[i].HasField("source"):
                raise InvalidArgumentError(f"inputs[{i}].source", "must not be set: the model reads no source")
            ids = unless_error(texts[i]).token_ids
            if "generate" in target.info.tasks:
                question = wire.Score(id=target.channel.new_id(), token_ids=ids, deadline=call.deadline)
                return _work(f"inputs[{i}].text", question)
            return _masked(f"inputs[{i}].text", unless_error(texts[i]), target, tally, call)

        return [attempt(partial(work, i)) for i in range(len(request.inputs))]

    async def _sequences(
        self,
        request: ScoreRequest,
        target: Target,
        name: str,
        longest: int,
        **options: Any,
    ) -> list[TokenSequence | ServiceError]:
        """The sequence of that field of each input, or why it is refused, by the options of `Sequencer.sequences`."""
        inputs = [getattr(item, name) for item in request.inputs]
        fields = [f"inputs[{i}].{name}" for i in range(len(inputs))]
        limit = Limit(longest, truncate=False, cut_to=longest)
        return await self._sequencer.sequences(target, inputs, fields, limit, **options)


def _work(field: str, *questions: wire.Score | wire.FillMask) -> Work:
    """Raises InvalidArgumentError where they ask of no token."""
    if not any(map(_asked, questions)):
        raise InvalidArgumentError(field, "has no token that could have a probability")
    return Work(field, questions)


def _masked(field: str, text: TokenSequence, target: Target, tally: Tally, call: Call) -> Work:
    """What a masked model is asked: each token that is no special one, in a copy of the text where it is masked."""
    ids = text.token_ids
    special = target.text.tokenizer.special_ids - {target.text.unknown_id}
    mask = wire.token_ids([target.text.mask[1]] if target.text.mask is not None else [])
    places = [place for place, id in enumerate(ids) if id not in special]
    tally.add(field, len(places), len(places) * len(ids))
    return _work(
        field,
        *(
            wire.FillMask(
                id=target.channel.new_id(),
                token_ids=ids[:place] + mask + ids[place + 1 :],
                type_ids=text.type_ids,
                positions=[place],
                targets=[ids[place]],
                top_k=1,
                deadline=call.deadline,
            )
            for place in places
        ),
    )


def _asked(question: Question) -> Sequence[int]:
    """The tokens whose probability a question asks for."""
    match question:
        case wire.Score(token_ids=ids, decoder_ids=decoder_ids, first=first):
            return (decoder_ids or ids)[first:]
        case wire.FillMask(targets=targets):
            return targets
        case _:
            return []


def _score(work: Work, answers: Sequence[wire.Scored | wire.Candidates]) -> Score:
    """What the answers to a work say of its tokens."""
    logprobs: list[float] = []
    for answer in answers:
        if isinstance(answer, wire.Scored):
            logprobs += (token.logprob for token in answer.logprobs)
        else:
            logprobs += answer.logprobs[0]
    total = sum(logprobs)
    return Score(
        token_ids=[id for question in work.questions for id in _asked(question)],
        logprobs=logprobs,
        total=total,
        perplexity=_exp(-total / len(logprobs)),
    )


def _exp(value: float) -> float:
    """Inf where it is too much for a number: a token had no probability at all."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
