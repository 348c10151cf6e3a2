"""Runs batches on the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch

from tercet.server.engine.batch import decoder_work, encoder_work
from tercet.server.engine.beam_rows import continue_beams
from tercet.server.engine.sampler import choose
from tercet.server.engine.transfer import download
from tercet.server.models import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tercet.server.engine.batch import Whole
    from tercet.server.engine.beam import BeamSearch, Continuations
    from tercet.server.engine.reading import Answer, Part
    from tercet.server.engine.sampler import Choice
    from tercet.server.engine.scheduler import Chunk
    from tercet.server.engine.sequence import Sequence as Row
    from tercet.server.models import KVCache, Model


Output = TypeVar("Output")


class Pass(NamedTuple, Generic[Output]):
    """What one forward pass brought."""

    output: Output
    tokens: int
    """Tokens of the batch as stored, padding included."""
    copies: int
    """Of the packed buffer to the device."""


class Chosen(NamedTuple):
    """How the sequences of a batch go on of which all tokens are computed."""

    choices: list[tuple[Row, Choice]]
    continuations: list[tuple[BeamSearch, Continuations]]


class Runner:
    """A model, its cache and the layout of its batches. Returns when results are on the host."""

    def __init__(self, model: Model, cache: KVCache | None, *, max_rows: int, padded: bool) -> None:
        """`max_rows`: for so many the logits of a vocabulary fit into memory at once."""
        self._model, self._cache, self._max_rows, self._padded = model, cache, max_rows, padded
        self._page_size = cache.page_size if cache else 1

    @torch.inference_mode()
    def encode(self, rows: Sequence[Row]) -> Pass[list[Answer | None]]:
        """Reads whole sequences: writes the cross-attention pages of sources, None in the output, answers the others.

        The rows are sorted by `likeness`, which has those without an answer first.
        """
        model = self._model
        work = encoder_work(
            rows, head=model.spec.head, page_size=self._page_size, padded=self._padded, device=model.device
        )
        read = model.read if model.family == "decoder" else model.encode
        hidden = read(work.source.batch)
        if work.cross_slots is not None and self._cache is not None:
            model.write_cross(hidden, work.cross_slots, self._cache)
        reduced = self._reduce(work.source, hidden)
        if work.target:
            hidden = model.read(work.target.batch, Source(hidden, work.target_source))
            reduced += self._reduce(work.target, hidden)
        arrays = iter(download([tensor for _, tensors in reduced for tensor in tensors]))
        answers = [answer for part, tensors in reduced for answer in part.answers([next(arrays) for _ in tensors])]
        return Pass([None] * (len(rows) - len(answers)) + answers, work.tokens, work.copies)

    def _reduce(self, whole: Whole, hidden: Tensor) -> list[tuple[Part, list[Tensor]]]:
        rows = whole.batch.rows
        return [(part, part.reduce(self._model, hidden, rows, fields, self._max_rows)) for part, fields in whole.parts]

    @torch.inference_mode()
    def decode(self, chunks: Sequence[Chunk]) -> Pass[Chosen]:
        """Computes the next tokens of each row and chooses how sequences that are complete go on."""
        if self._cache is None:
            raise ValueError("a model without a cache can't decode")
        work = decoder_work(chunks, page_size=self._page_size, padded=self._padded, device=self._model.device)
        hidden = self._model.decode(work.batch, self._cache)
        last = work.batch.rows.start + work.batch.rows.length - 1
        choices: list[Choice] = []
        if work.sampling is not None:
            logits = self._model.logits(hidden.index_select(0, last[work.sampling.rows]))
            choices = choose(logits, work.sampling)
        continuations: list[Continuations] = []
        if work.beams is not None:
            logits = self._model.logits(hidden.index_select(0, last[work.beams.rows]))
            continuations = continue_beams(logits, work.beams)
        chosen = Chosen(
            list(zip(work.sampled, choices, strict=True)), list(zip(work.searches, continuations, strict=True))
        )
        return Pass(chosen, work.batch.rows.tokens, work.copies)

    def recover(self) -> None:
        """Prepares for the next batch after one has failed. Raises torch.AcceleratorError if the device is lost."""
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)  # what a kernel did wrong shows here
            torch.cuda.empty_cache()
