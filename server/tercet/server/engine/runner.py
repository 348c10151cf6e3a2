"""Runs batches on the model."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch

from tercet.server.engine.beam_rows import BeamTables, continuations, continue_beams
from tercet.server.engine.decode_steps import DecodeSteps
from tercet.server.engine.decoder_batch import decoder_work, put_sampling, sampled_rows
from tercet.server.engine.encoder_batch import encoder_work
from tercet.server.engine.encoder_steps import EncoderSteps
from tercet.server.engine.sampler import choices, draw, likeliest_of
from tercet.server.engine.transfer import Download, PackedBuffer
from tercet.server.models import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tercet.server.engine.beam import BeamSearch, Continuation
    from tercet.server.engine.decoder_batch import SampledRows
    from tercet.server.engine.encoder_batch import Whole
    from tercet.server.engine.graphs import Graphs
    from tercet.server.engine.lanes import Lanes
    from tercet.server.engine.reading import Answer, Part
    from tercet.server.engine.sampler import Choice, Drawn
    from tercet.server.engine.scheduler import Chunk
    from tercet.server.engine.sequence import Sequence as Row
    from tercet.server.engine.tuning import EncoderBucket
    from tercet.server.models import KVCache, Model


Output = TypeVar("Output")


class Pass(Generic[Output]):
    """A forward pass that is launched."""

    def __init__(
        self,
        tokens: int,
        copies: int,
        tensors: Sequence[Tensor],
        read: Callable[[list[NDArray[Any]]], Output],
        *,
        replayed: bool = False,
    ) -> None:
        """`tensors` are what the host gets, and `read` makes of them what the pass brings."""
        self.tokens = tokens
        """Of the batch as stored, padding included."""
        self.copies = copies
        """Of the packed buffer to the device."""
        self.replayed = replayed
        """Whether the model ran from a graph."""
        self._download = Download(tensors)
        self._read = read

    def output(self) -> Output:
        """Waits for what the pass brings."""
        return self._read(self._download.arrays())


class Chosen(NamedTuple):
    """How the sequences of a batch go on of which all tokens are computed."""

    choices: list[tuple[Row, Choice]]
    continuations: list[tuple[BeamSearch, Continuation]]


class Runner:
    """A model, its cache, what the device knows of the rows that run, and the layout of batches.

    Passes are launched in the order of their results; on a GPU nothing here waits for one.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache | None,
        lanes: Lanes,
        *,
        max_rows: int,
        padded: bool,
        graphs: Graphs | None = None,
        encoder_buckets: Sequence[EncoderBucket] = (),
    ) -> None:
        """`max_rows`: for so many the logits of a vocabulary fit into memory at once.

        `graphs`: where decode steps and the encoder's batches of these buckets are captured; None to launch all.
        """
        self._model, self._cache, self._lanes, self._max_rows, self._padded = model, cache, lanes, max_rows, padded
        self._page_size = cache.page_size if cache else 1
        self._beams = BeamTables(len(lanes.last_token), model.max_length if cache else 0, model.device)
        self._last: tuple[list[Row], bool, int | None] = ([], True, None)  # rows replayed last, and how they drew
        self._encoder_steps: EncoderSteps | None = None
        self._steps: DecodeSteps | None = None
        if graphs and encoder_buckets:
            self._encoder_steps = EncoderSteps(model, cache, graphs, encoder_buckets)
            self._encoder_steps.capture()
        if graphs and cache:
            self._steps = DecodeSteps(model, cache, lanes, graphs)
            self._steps.capture()

    @torch.inference_mode()
    def encode(self, rows: Sequence[Row]) -> Pass[list[Answer | None]]:
        """Reads whole sequences: writes the cross-attention pages of sources, and answers the others.

        The rows are sorted by `likeness`, which has sources first. An answer is None where it is not finite.
        """
        model = self._model
        work = encoder_work(
            rows,
            self._encoder_steps,
            head=model.spec.head,
            page_size=self._page_size,
            padded=self._padded,
            device=model.device,
        )
        if self._encoder_steps and work.bucket:
            hidden = self._encoder_steps.read(work.bucket)
        else:
            hidden = (model.read if model.family == "decoder" else model.encode)(work.source.batch)
        if work.cross_slots is not None and self._cache is not None:
            model.write_cross(hidden, work.cross_slots, self._cache)
        reduced = self._reduce(work.source, hidden)
        if work.target:
            hidden = model.read(work.target.batch, Source(hidden, work.target.source))
            reduced += self._reduce(work.target, hidden)
        parts = [(part, len(tensors)) for part, tensors in reduced]

        def answers(arrays: list[NDArray[Any]]) -> list[Answer | None]:
            left = iter(arrays)
            return [answer for part, count in parts for answer in part.answers(list(islice(left, count)))]

        tensors = [tensor for _, tensors in reduced for tensor in tensors]
        return Pass(work.tokens, work.copies, tensors, answers, replayed=work.bucket is not None)

    def _reduce(self, whole: Whole, hidden: Tensor) -> list[tuple[Part, list[Tensor]]]:
        rows = whole.batch.rows
        return [(part, part.reduce(self._model, hidden, rows, fields, self._max_rows)) for part, fields in whole.parts]

    @torch.inference_mode()
    def decode(self, chunks: Sequence[Chunk]) -> Pass[Chosen]:
        """Computes the next tokens of each row and chooses how sequences go on of which all tokens are computed."""
        if self._cache is None:
            raise ValueError("a model without a cache can't decode")
        if self._steps and (rows := self._steps.bucket(chunks)):
            return self._replay(self._steps, [sequence for sequence, _ in chunks], rows)
        model = self._model
        work = decoder_work(
            chunks, self._lanes, self._beams, page_size=self._page_size, padded=self._padded, device=model.device
        )
        hidden = model.decode(work.batch, self._cache)
        if self._steps:  # which read there how far rows are
            self._lanes.length[work.lanes] = work.batch.kv_length
        last = work.batch.rows.start + work.batch.rows.length - 1
        sampling, beams = work.sampling, work.beams
        tensors: list[Tensor] = []
        if sampling is not None:
            tensors += self._draw(hidden.index_select(0, last[sampling.rows]), sampling).tensors
        told = len(tensors)
        if beams is not None:
            logits = model.logits(hidden.index_select(0, last[beams.rows]))
            tensors += continue_beams(logits, beams, self._beams, self._lanes.last_token)

        def chosen(arrays: list[NDArray[Any]]) -> Chosen:
            made = choices(arrays[:told], sampling.how) if sampling is not None else []
            searches = [placed.search for group in work.groups for placed in group]
            found = continuations(arrays[told:], work.groups)
            return Chosen(list(zip(work.sampled, made, strict=True)), list(zip(searches, found, strict=True)))

        return Pass(work.batch.rows.tokens, work.copies, tensors, chosen)

    def _replay(self, steps: DecodeSteps, sequences: list[Row], rows: int) -> Pass[Chosen]:
        """A decode step from a graph; rows that need more than their filters draw as ever."""
        lanes = self._lanes
        if sequences != self._last[0]:  # most steps have the rows of the one before
            plain = all(sequence.request.plain for sequence in sequences)
            self._last = sequences, plain, likeliest_of(sequence.request.sampling for sequence in sequences)
        _, plain, likeliest = self._last
        places = [sequence.lanes[0] for sequence in sequences]
        lanes.update(sequences)
        lanes.activate(set(places))
        buffer = PackedBuffer()
        views: dict[str, Tensor] = {}
        lanes.put(buffer)
        if not plain:
            put_sampling(buffer, sequences, places)
        if buffer.fields:
            views = buffer.upload(self._model.device)
            lanes.take(views)
        hidden = steps.read(rows)
        if plain:
            how, tensors = None, [steps.draw(rows, likeliest)]
        else:
            sampling = sampled_rows(views, sequences, lanes)
            how, tensors = sampling.how, self._draw(hidden.index_select(0, sampling.rows), sampling).tensors

        def chosen(arrays: list[NDArray[Any]]) -> Chosen:
            made = choices(arrays, how) if how else [(token, None) for token in arrays[0][places].tolist()]
            return Chosen(list(zip(sequences, made, strict=True)), [])

        return Pass(rows, buffer.copies, tensors, chosen, replayed=True)

    def _draw(self, hidden: Tensor, sampling: SampledRows) -> Drawn:
        """Draws the next tokens of rows by their final hidden states, and lets the lanes know them."""
        drawn = draw(self._model, hidden, sampling.how)
        # One beyond the vocabulary is of a row that will be rejected, but may be read before that.
        self._lanes.last_token[sampling.lanes] = drawn.tokens.clamp(max=self._model.target_vocab_size - 1).int()
        return drawn

    def recover(self) -> None:
        """Prepares for the next batch after one has failed. Raises torch.AcceleratorError if the device is lost."""
        self._lanes.forget()
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)  # what a kernel did wrong shows here
            torch.cuda.empty_cache()
