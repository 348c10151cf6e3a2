"""Runs batches on the model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch

from tercet.server.engine.beam_rows import Placed, continuations, pack_beams, unpack_beams
from tercet.server.engine.beam_step import continue_beams
from tercet.server.engine.beam_tables import BeamTables, pack_started
from tercet.server.engine.decode_steps import DecodeSteps, Step
from tercet.server.engine.decoder_batch import decoder_work, put_sampling, sampled_rows
from tercet.server.engine.encoder_batch import encoder_work
from tercet.server.engine.encoder_steps import EncoderSteps
from tercet.server.engine.sampler import LastTokens, choices, draw
from tercet.server.engine.transfer import Download, PackedBuffer
from tercet.server.models import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tercet.server.engine.beam import BeamSearch, Continuation
    from tercet.server.engine.beam_rows import BeamRows
    from tercet.server.engine.decode_steps import Bucket
    from tercet.server.engine.decoder_batch import SampledRows
    from tercet.server.engine.encoder_batch import Whole
    from tercet.server.engine.graphs import Graphs
    from tercet.server.engine.lanes import Lanes
    from tercet.server.engine.reading import Answer, Part
    from tercet.server.engine.sampler import Choice, Drawn, SamplingRows
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


@dataclass
class Choosing:
    """Makes `Chosen` of the host's copies of what a pass gave: what sequences drew, and then how searches go on."""

    singles: list[Row]
    how: SamplingRows | None
    """How they drew; None if a graph did it."""
    searches: list[BeamSearch]
    places: Sequence[int] = ()
    """Where their tokens lie, of a graph's rows."""
    heads: Sequence[int] | None = None
    """Where it is told how the searches go on; None if one after another."""

    def read(self, arrays: list[NDArray[Any]]) -> Chosen:
        """`arrays` are the host's copies."""
        drawn, told = (arrays[:-2], arrays[-2:]) if self.searches else (arrays, [])
        if self.how:
            made = choices(drawn, self.how)
        else:
            made = [(token, None) for token in drawn[0][self.places].tolist()] if self.places else []
        heads = range(len(self.searches)) if self.heads is None else self.heads
        found = continuations(told, self.searches, heads) if self.searches else []
        return Chosen(list(zip(self.singles, made, strict=True)), list(zip(self.searches, found, strict=True)))


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
        self._beams = BeamTables(lanes.count if cache else 0, lanes.page_table.shape[1] * self._page_size, model.device)
        self._last = Step([])
        self._encoder_steps: EncoderSteps | None = None
        self._steps: DecodeSteps | None = None
        if graphs and encoder_buckets:
            self._encoder_steps = EncoderSteps(model, cache, graphs, encoder_buckets)
            self._encoder_steps.capture()
        if graphs and cache:
            self._steps = DecodeSteps(model, cache, lanes, self._beams, graphs)
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
        if self._steps and (bucket := self._steps.bucket(chunks)):
            return self._replay(self._steps, [sequence for sequence, _ in chunks], bucket)
        model = self._model
        work = decoder_work(
            chunks, self._lanes, self._beams, page_size=self._page_size, padded=self._padded, device=model.device
        )
        hidden = model.decode(work.batch, self._cache)
        last = work.batch.rows.start + work.batch.rows.length - 1
        sampling, beams = work.sampling, work.beams
        tensors: list[Tensor] = []
        if sampling is not None:
            tensors += self._draw(hidden.index_select(0, last[sampling.rows]), sampling).tensors
        if beams is not None:
            tensors += self._continue(hidden.index_select(0, last[beams.rows]), beams)
        chosen = Choosing(work.sampled, sampling.how if sampling else None, work.searches)
        return Pass(work.batch.rows.tokens, work.copies, tensors, chosen.read)

    def _replay(self, steps: DecodeSteps, sequences: list[Row], bucket: Bucket) -> Pass[Chosen]:
        """A decode step from a graph; rows that need more than the graphs of samplers do are launched as ever."""
        if sequences != self._last.sequences:  # most steps have the rows of the one before
            self._last = Step(sequences)
        step, lanes = self._last, self._lanes
        places = [sequence.lanes[0] for sequence in step.singles]
        placed = [Placed(search.lanes, search) for search in step.searches]
        lanes.update(step.rows())
        lanes.activate({*places, *chain.from_iterable(rows for rows, _ in placed)})
        buffer = PackedBuffer()
        views: dict[str, Tensor] = {}
        lanes.put(buffer)
        pack_started(buffer, step.searches)
        if not step.draws:
            put_sampling(buffer, step.singles, places)
        if not step.continues:
            pack_beams(buffer, placed)
        if buffer.fields:
            views = buffer.upload(self._model.device)
            lanes.take(views)
            self._beams.start(views)
        hidden = steps.read(bucket)
        tensors: list[Tensor] = []
        chosen = Choosing(step.singles, None, step.searches)
        if not step.draws:
            sampling = sampled_rows(views, step.singles, lanes)
            tensors += self._draw(hidden.index_select(0, sampling.rows), sampling).tensors
            chosen.how = sampling.how
        elif places:
            tensors.append(steps.draw(bucket.rows, step.likeliest))
            chosen.places = places
        if not step.continues:
            beams = unpack_beams(views, placed)
            tensors += self._continue(hidden.index_select(0, beams.rows), beams)
        elif placed:
            tensors += steps.continue_beams(bucket.rows)
            chosen.heads = [search.lanes[0] for search in step.searches]
        return Pass(bucket.rows, buffer.copies, tensors, chosen.read, replayed=True)

    def _draw(self, hidden: Tensor, sampling: SampledRows) -> Drawn:
        """Draws the next tokens of rows by their final hidden states, and lets the lanes know them."""
        return draw(self._model, hidden, sampling.how, LastTokens(self._lanes.last_token, sampling.lanes))

    def _continue(self, hidden: Tensor, beams: BeamRows) -> tuple[Tensor, Tensor]:
        """Continues searches by the final hidden states of their beams, [N, hidden]."""
        return continue_beams(self._model.logits(hidden), beams.searches, self._lanes, self._beams, beams.processors)

    def recover(self) -> None:
        """Prepares for the next batch after one has failed. Raises torch.AcceleratorError if the device is lost."""
        self._lanes.forget()
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)  # what a kernel did wrong shows here
            torch.cuda.empty_cache()
