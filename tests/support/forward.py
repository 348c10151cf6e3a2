"""Batches for a model, made from lists of token ids, and a cache whose pages are handed out at random."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from support.architectures import VOCAB_SIZE
from tercet.server.models import DecoderBatch, EncoderBatch, Rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

    from tercet.server.models import Model
    from tercet.server.models.transformer import Stack

Ids = list[int]
PAGE_SIZE = 4
ORDINARY = 6  # from this id on there are no special tokens


def ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make_rows(lengths: Sequence[int], *, padded: bool) -> Rows:
    """Packed rows, or rows padded to the longest."""
    longest = max(lengths)
    starts = [i * longest if padded else sum(lengths[:i]) for i in range(len(lengths))]
    return Rows(ints(starts), ints(lengths), longest, longest * len(lengths) if padded else sum(lengths))


def lay_out(values: Sequence[Sequence[int]], rows: Rows, *, filler: int) -> Tensor:
    """int32 [tokens]: each row's values at its start, `filler` in the padding."""
    storage = torch.full((rows.tokens,), filler, dtype=torch.int32)
    for start, row in zip(rows.start.tolist(), values, strict=True):
        storage[start : start + len(row)] = ints(row)
    return storage


def take(hidden: Tensor, rows: Rows) -> list[Tensor]:
    """Each row's part [length, ...] of flat storage."""
    return [hidden[s : s + n] for s, n in zip(rows.start.tolist(), rows.length.tolist(), strict=True)]


def encoder_batch(texts: Sequence[Ids], type_ids: Sequence[Ids] | None = None, *, padded: bool = False) -> EncoderBatch:
    rows = make_rows([len(text) for text in texts], padded=padded)
    return EncoderBatch(
        token_ids=lay_out(texts, rows, filler=0),
        positions=lay_out([range(len(text)) for text in texts], rows, filler=0),
        rows=rows,
        type_ids=None if type_ids is None else lay_out(type_ids, rows, filler=0),
    )


def encode(
    model: Model, texts: Sequence[Ids], type_ids: Sequence[Ids] | None = None, *, padded: bool = False
) -> list[Tensor]:
    """The final hidden states of each text."""
    batch = encoder_batch(texts, type_ids, padded=padded)
    return take(model.encode(batch), batch.rows)


class Decoding:
    """Sequences that a decoder or a seq2seq model reads piece by piece; pages that nobody wrote hold NaN."""

    def __init__(self, model: Model, count: int, *, sources: Sequence[Ids] | None = None, padded: bool = False) -> None:
        self.model = model
        self.padded = padded
        self.lengths = [0] * count
        pages = -(-model.max_length // PAGE_SIZE)
        free = torch.randperm(2 * count * pages, generator=torch.Generator().manual_seed(0)).view(2, count, pages)
        self.cache = model.new_cache(2 * count * pages, PAGE_SIZE)
        self.cache.k.fill_(torch.nan)
        self.cache.v.fill_(torch.nan)
        self.page_table, self.cross_page_table = free.to(torch.int32)
        self.sources = [len(source) for source in sources] if sources else None
        if sources:
            batch = encoder_batch(sources, padded=padded)
            slots = [self._slots(self.cross_page_table[i], range(len(source))) for i, source in enumerate(sources)]
            model.write_cross(model.encode(batch), lay_out(slots, batch.rows, filler=-1), self.cache)

    @staticmethod
    def _slots(pages: Tensor, positions: range) -> Ids:
        return [int(pages[p // PAGE_SIZE]) * PAGE_SIZE + p % PAGE_SIZE for p in positions]

    def read(self, pieces: Sequence[Ids]) -> list[Tensor]:
        """The final hidden states of each sequence's next tokens."""
        rows = make_rows([len(piece) for piece in pieces], padded=self.padded)
        positions = [range(n, n + len(piece)) for n, piece in zip(self.lengths, pieces, strict=True)]
        slots = [self._slots(self.page_table[i], places) for i, places in enumerate(positions)]
        self.lengths = [places.stop for places in positions]
        batch = DecoderBatch(
            token_ids=lay_out(pieces, rows, filler=0),
            positions=lay_out(positions, rows, filler=0),
            rows=rows,
            slots=lay_out(slots, rows, filler=-1),
            kv_length=ints(self.lengths),
            page_table=self.page_table,
            longest_kv=max(self.lengths),
            cross_page_table=self.cross_page_table if self.sources else None,
            cross_length=ints(self.sources) if self.sources else None,
            longest_cross=max(self.sources, default=0) if self.sources else 0,
        )
        return take(self.model.decode(batch, self.cache), rows)


def texts(*lengths: int, seed: int = 0) -> list[Ids]:
    """Random token ids of the tiny checkpoints, none of which is anyone's padding token."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(ORDINARY, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


def token_types(model: Model, texts: Sequence[Ids]) -> list[Ids] | None:
    """All types there are in each text, one after the other; None where there are none."""
    count = model.spec.encoder.token_types if model.spec.encoder else 0
    return [[i * count // len(text) for i in range(len(text))] for text in texts] if count else None


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """‖ours - expected‖ / ‖expected‖; infinite where anything is not finite."""
    if ours.shape != expected.shape:
        raise AssertionError(f"shape {list(ours.shape)}, not {list(expected.shape)}")
    error = (ours - expected).norm() / expected.norm()
    return error.item() if error.isfinite() else float("inf")


@contextmanager
def states(stack: Stack) -> Iterator[list[Tensor]]:
    """What comes out of a stack's embedding and of each layer but the last in what runs meanwhile, sums taken."""
    found: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, Tensor | None]) -> None:
        hidden, residual = (output, None) if isinstance(output, torch.Tensor) else output
        found.append(hidden.clone() if residual is None else hidden + residual)

    handles = [module.register_forward_hook(keep) for module in (stack.embedding, *stack.layers[:-1])]
    yield found
    for handle in handles:
        handle.remove()


def head_logits(model: Model, hidden: Tensor) -> Tensor:
    """The logits [N, outputs] of one text's final hidden states [length, hidden]."""
    read = {"all": hidden, "first": hidden[:1], "last": hidden[-1:], "mean": hidden.mean(dim=0, keepdim=True)}
    return model.logits(read[model.spec.head.reads])


@dataclass(frozen=True)
class Expected:
    """What the reference computes for one text."""

    states: list[Tensor]
    """[length, hidden]: of the embedding and of each layer, the last with the final norm."""
    logits: Tensor | None
    """[N, outputs], if it has a head."""


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded by us and by transformers."""

    folder: Path
    ours: Model
    reference: PreTrainedModel

    def expected(self, ids: Ids, *, type_ids: Ids | None = None, source: Ids | None = None) -> Expected:
        """The reference's of one text, or target."""
        inputs = {"input_ids": ids} if source is None else {"input_ids": source, "decoder_input_ids": ids}
        if type_ids:
            inputs["token_type_ids"] = type_ids
        tensors = {name: torch.tensor([values]) for name, values in inputs.items()}
        outputs = self.reference(**tensors, output_hidden_states=True)
        found = outputs["hidden_states" if source is None else "decoder_hidden_states"]
        return Expected([state[0] for state in found], _logits(outputs))

    def encoded(self, ids: Ids) -> list[Tensor]:
        """The states of a seq2seq reference's encoder for one source."""
        outputs = self.reference.get_encoder()(torch.tensor([ids]), output_hidden_states=True)
        return [state[0] for state in outputs.hidden_states]


def _logits(outputs: ModelOutput) -> Tensor | None:
    """Of whichever head: [N, outputs]."""
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits[0], outputs.end_logits[0]], dim=-1)
    logits = outputs.get("logits", outputs.get("prediction_logits"))
    return None if logits is None else logits[0].reshape(-1, logits.shape[-1])
