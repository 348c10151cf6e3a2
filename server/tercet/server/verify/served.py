"""Tercet's side: the engine as a server runs it, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tercet.server.engine.loading import load_engine
from tercet.server.wire import (
    Candidates,
    Embed,
    Embedding,
    FillMask,
    Generate,
    Predict,
    Prediction,
    Rejected,
    Sampling,
    Score,
    Scored,
    Tokens,
    token_ids,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from tercet.server.engine.reading import Reading
    from tercet.server.wire import EngineSettings

Ids = list[int]
A = TypeVar("A", Embedding, Prediction, Candidates, Scored)


class VerifyError(Exception):
    """What keeps a checkpoint from being verified; one line for the user."""


class Served:
    """One model in an engine; every method is one batch of requests."""

    def __init__(self, settings: EngineSettings) -> None:
        """Raises what `load_engine` does."""
        self._engine, self.info = load_engine(settings, lambda _: None)

    def features(self, texts: Sequence[Ids]) -> list[NDArray[np.float32]]:
        """The final hidden states [tokens, hidden] of each text."""
        messages = [
            Embed(id=i, token_ids=token_ids(ids), pooling="none", normalize=False) for i, ids in enumerate(texts)
        ]
        answers = self._ask(messages, Embedding)
        return [_floats(answer.data).reshape(len(ids), -1) for answer, ids in zip(answers, texts, strict=True)]

    def predictions(self, texts: Sequence[Ids], decoder_ids: Sequence[Ids]) -> list[NDArray[np.float32]]:
        """The outputs of a head that classifies, tags or answers, flat."""
        messages = [
            Predict(id=i, token_ids=token_ids(ids), decoder_ids=token_ids(read))
            for i, (ids, read) in enumerate(zip(texts, decoder_ids, strict=True))
        ]
        return [_floats(answer.data) for answer in self._ask(messages, Prediction)]

    def candidates(self, texts: Sequence[Ids], top_k: int) -> list[Candidates]:
        """The likeliest tokens of every place of each text."""
        messages = [
            FillMask(id=i, token_ids=token_ids(ids), positions=list(range(len(ids))), top_k=top_k)
            for i, ids in enumerate(texts)
        ]
        return self._ask(messages, Candidates)

    def scores(self, texts: Sequence[Ids], decoder_ids: Sequence[Ids], first: int) -> list[NDArray[np.float32]]:
        """The log probability of every token from `first` on."""
        messages = [
            Score(id=i, token_ids=token_ids(ids), decoder_ids=token_ids(read), first=first)
            for i, (ids, read) in enumerate(zip(texts, decoder_ids, strict=True))
        ]
        answers = self._ask(messages, Scored)
        return [np.array([token.logprob for token in answer.logprobs], np.float32) for answer in answers]

    def generate(self, texts: Sequence[Ids], start: Ids, new_tokens: int) -> list[Ids]:
        """Greedy tokens after each prompt or source, whatever ends a sequence."""
        sampling = Sampling(max_new_tokens=new_tokens)
        messages = [
            Generate(id=i, token_ids=token_ids(ids), decoder_ids=token_ids(start), sampling=sampling)
            for i, ids in enumerate(texts)
        ]
        generated: list[Ids] = [[] for _ in texts]
        for answer in self._run(messages):
            if isinstance(answer, Tokens):
                generated[answer.id] += answer.token_ids
        return generated

    def _ask(self, messages: Sequence[Reading], kind: type[A]) -> list[A]:
        """The one answer to each message, in order."""
        answers = {answer.id: answer for answer in self._run(messages) if isinstance(answer, kind)}
        return [answers[message] for message in range(len(messages))]

    def _run(self, messages: Iterable[Reading | Generate]) -> Iterable[object]:
        for message in messages:
            self._engine.submit(message)
        while self._engine.busy:
            for output in self._engine.step().answers:
                if isinstance(output, Rejected):
                    raise VerifyError(f"text {output.id + 1}: {output.message}")
                yield output


def _floats(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, dtype="<f4")
