"""What becomes of sequences that are read whole: vectors, the outputs of a head, or how likely tokens are.

Neighbouring rows of a batch that are answered alike are a *part*. It is reduced on the device in one go; what is
vocabulary-wide is computed for as many places at once as memory was counted for.
"""

from __future__ import annotations

from itertools import accumulate, chain, groupby
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional

from tercet.kernels import pooling
from tercet.server.engine.likelihood import likelihood, token_logprobs
from tercet.server.wire import Candidates, Embed, Embedding, FillMask, Predict, Prediction, Score, Scored

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tercet.server.models import Model, Rows
    from tercet.server.models.spec import HeadSpec

    Arrays = Sequence[NDArray[Any]]

Reading = Embed | Predict | FillMask | Score
Answer = Embedding | Prediction | Candidates | Scored


def likeness(reading: Reading | None) -> tuple[bool, str, str, bool, int]:
    """A sort key: rows of equal likeness are one part, and those whose target is read too come last."""
    match reading:
        case None:
            return False, "", "", False, 0
        case Embed():
            return False, "vectors", reading.pooling, reading.normalize, reading.dimensions or 0
        case Predict():
            return bool(reading.decoder_ids), "outputs", "", False, 0
        case FillMask():
            return False, "likelihoods", "", False, 0
        case Score():
            return bool(reading.decoder_ids), "likelihoods", "", False, 0


class Place(NamedTuple):
    """Where the rows of a part lie in their batch, as the host knows it."""

    rows: slice
    start: list[int]
    """Of each row in the batch's storage."""
    length: list[int]

    def among(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Their start and length on the device; mostly they are all rows of the batch."""
        if len(self.start) == rows.start.shape[0]:
            return rows.start, rows.length
        return rows.start[self.rows], rows.length[self.rows]

    @property
    def tokens(self) -> Iterable[int]:
        """The places of all tokens, row by row."""
        return chain.from_iterable(map(range, self.start, map(int.__add__, self.start, self.length)))


class Part(Protocol):
    """Neighbouring rows of one batch that are answered alike."""

    def fields(self) -> dict[str, Iterable[int]]:
        """What of it belongs into the batch's buffer, as int32."""
        ...

    def reduce(self, model: Model, hidden: Tensor, rows: Rows, fields: dict[str, Tensor], at_once: int) -> list[Tensor]:
        """Makes of final hidden states [T, hidden] what the host gets; of the vocabulary, `at_once` rows at a time."""
        ...

    def answers(self, arrays: Arrays) -> Iterable[Answer | None]:
        """One for each row, in order, of what `reduce` made; None where that has what is not a number."""
        ...


def parts_of(
    readings: Sequence[Reading | None], start: list[int], length: list[int], head: HeadSpec | None
) -> list[Part]:
    """The parts of a batch whose rows are sorted by `likeness`; rows that are None are in none."""
    parts: list[Part] = []
    first = 0
    for _, group in groupby(readings, likeness):
        alike = list(group)
        rows = slice(first, first + len(alike))
        place = Place(rows, start[rows], length[rows])
        first = rows.stop
        if embeds := [reading for reading in alike if isinstance(reading, Embed)]:
            parts.append(Vectors(embeds, place))
        elif head and (predictions := [reading for reading in alike if isinstance(reading, Predict)]):
            parts.append(Outputs(predictions, place, head))
        elif questions := [reading for reading in alike if isinstance(reading, FillMask | Score)]:
            parts.append(Likelihoods(questions, place))
    return parts


class Vectors:
    """Rows to embed with one pooling."""

    def __init__(self, embeds: list[Embed], place: Place) -> None:
        self._embeds, self._place = embeds, place
        self._each = embeds[0].pooling == "none"  # a vector for each token

    def fields(self) -> dict[str, Iterable[int]]:
        return {"tokens": self._place.tokens} if self._each else {}

    def reduce(self, model: Model, hidden: Tensor, rows: Rows, fields: dict[str, Tensor], at_once: int) -> list[Tensor]:
        """float32 [vectors, size]"""
        del at_once
        embed = self._embeds[0]
        if embed.pooling == "none":
            vectors = hidden.index_select(0, fields["tokens"]).float()
        else:
            where = self._place.among(rows)
            if not (embed.dimensions or model.projects):  # what is pooled is the vector
                return [pooling(hidden, *where, kind=embed.pooling, normalize=embed.normalize)]
            vectors = model.project(pooling(hidden, *where, kind=embed.pooling, normalize=False))
        if embed.dimensions:
            vectors = vectors[:, : embed.dimensions]
        return [functional.normalize(vectors, dim=-1) if embed.normalize else vectors.contiguous()]

    def answers(self, arrays: Arrays) -> Iterable[Embedding | None]:
        counts = self._place.length if self._each else [1] * len(self._embeds)
        for embed, data in zip(self._embeds, _pieces(arrays[0], counts), strict=True):
            yield None if data is None else Embedding(id=embed.id, data=data)


class Outputs:
    """Rows for a head that classifies, tags or answers."""

    def __init__(self, predictions: list[Predict], place: Place, head: HeadSpec) -> None:
        self._predictions, self._place = predictions, place
        self._reads = head.reads

    def fields(self) -> dict[str, Iterable[int]]:
        start, length = self._place.start, self._place.length
        if self._reads == "mean":
            return {}
        if self._reads == "all":
            return {"tokens": self._place.tokens}
        if self._reads == "first":
            return {"tokens": start}
        given = (predict.last for predict in self._predictions)
        lasts = (n - 1 if last is None else last for last, n in zip(given, length, strict=True))
        return {"tokens": map(int.__add__, start, lasts)}

    def reduce(self, model: Model, hidden: Tensor, rows: Rows, fields: dict[str, Tensor], at_once: int) -> list[Tensor]:
        """float32 [rows, labels] or [tokens, labels]"""
        del at_once
        if self._reads == "mean":
            read = pooling(hidden, *self._place.among(rows), kind="mean", normalize=False).to(hidden.dtype)
        else:
            read = hidden.index_select(0, fields["tokens"])
        return [model.logits(read)]

    def answers(self, arrays: Arrays) -> Iterable[Prediction | None]:
        counts = self._place.length if self._reads == "all" else [1] * len(self._predictions)
        for predict, data in zip(self._predictions, _pieces(arrays[0], counts), strict=True):
            yield None if data is None else Prediction(id=predict.id, data=data)


class Likelihoods:
    """Rows of which is asked how likely tokens are, those there (scores) or those that could be (masks)."""

    def __init__(self, questions: list[FillMask | Score], place: Place) -> None:
        self._questions = questions
        self._where: list[int] = []
        """The places whose hidden states say it."""
        self._given: list[list[int]] = []
        """Tokens asked for at each of them."""
        self._counts: list[int] = []
        """How many of the likeliest are reported."""
        for question, start in zip(questions, place.start, strict=True):
            if isinstance(question, FillMask):
                where = [start + position for position in question.positions]
                self._given += [question.targets] * len(where)
                count = 0 if question.targets else question.top_k
            else:
                tokens = question.decoder_ids or question.token_ids
                where = range(start + question.first - 1, start + len(tokens) - 1)
                self._given += [[token] for token in tokens[question.first :]]
                count = question.top_logprobs
            self._where += where
            self._counts += [count] * len(where)
        self._ends = list(accumulate(map(len, self._given), initial=0))

    def fields(self) -> dict[str, Iterable[int]]:
        rows = chain.from_iterable([row] * len(given) for row, given in enumerate(self._given))
        return {"tokens": self._where, "given_rows": rows, "given_ids": chain.from_iterable(self._given)}

    def reduce(self, model: Model, hidden: Tensor, rows: Rows, fields: dict[str, Tensor], at_once: int) -> list[Tensor]:
        """float32 [given], float32 and int32 [places, most of the likeliest]"""
        del rows
        pieces = []
        for first in range(0, len(self._where), at_once):
            last = min(first + at_once, len(self._where))
            given = slice(self._ends[first], self._ends[last])
            logits = model.logits(hidden.index_select(0, fields["tokens"][first:last]))
            given_rows = fields["given_rows"][given] - first
            pieces.append(likelihood(logits, given_rows, fields["given_ids"][given], top=max(self._counts)))
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def answers(self, arrays: Arrays) -> Iterable[Candidates | Scored | None]:
        # A log probability may be -inf.
        given, top, top_ids = arrays
        last = 0
        for question in self._questions:
            first, last = last, last + _places(question)
            asked = given[self._ends[first] : self._ends[last]]
            likeliest, ids = top[first:last], top_ids[first:last]
            if isinstance(question, Score):
                likely = token_logprobs(asked, likeliest, ids, [question.top_logprobs] * len(asked))
                yield None if any(isnan(token.logprob) for token in likely) else Scored(id=question.id, logprobs=likely)
                continue
            if question.targets:
                likeliest = asked.reshape(-1, len(question.targets))
                order = np.argsort(-likeliest, kind="stable")
                likeliest, ids = np.take_along_axis(likeliest, order, 1), np.array(question.targets)[order]
            likeliest, ids = likeliest[:, : question.top_k], ids[:, : question.top_k]
            found = Candidates(id=question.id, token_ids=ids.tolist(), logprobs=likeliest.tolist())
            yield None if np.isnan(likeliest).any() else found


def _places(question: FillMask | Score) -> int:
    """At how many places tokens are asked for."""
    if isinstance(question, FillMask):
        return len(question.positions)
    return len(question.decoder_ids or question.token_ids) - question.first


def _pieces(rows: NDArray[np.float32], counts: Sequence[int]) -> Iterable[bytes | None]:
    """Cuts rows [sum(counts), size] into pieces of so many; None for one with what is not finite."""
    data, size = rows.tobytes(), rows.itemsize * rows.shape[1]
    finite = np.logical_and.reduce(np.isfinite(rows), axis=1).tolist()
    first = 0
    for count in counts:
        last = first + count
        yield data[first * size : last * size] if all(finite[first:last]) else None
        first = last
