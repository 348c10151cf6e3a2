"""The sequences of many inputs in columns, as an engine is sent them to embed."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import TYPE_CHECKING

from tercet.server import wire
from tercet.server.service.errors import InvalidArgumentError, ServiceError
from tercet.server.service.sequences import ID_BYTES, TokenSequence, all_below
from tercet.v1.types_pb2 import TextInput, TokenIds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tercet.server.service.sequences import Limit
    from tercet.v1.types_pb2 import TokenBatch

_token_ids, _packed, _values = map(attrgetter, ("token_ids", "packed", "values"))


@dataclass(frozen=True, slots=True)
class Columns:
    """What a model reads for the inputs that are not refused."""

    lengths: wire.TokenIds
    token_ids: wire.TokenIds
    """One sequence behind the other."""
    type_ids: wire.TokenIds | None = None
    truncated: frozenset[int] = frozenset()
    """The inputs that were cut, by number."""
    refused: Mapping[int, ServiceError] = field(default_factory=dict[int, ServiceError])
    """The inputs that are refused, and why."""


def packed_columns(inputs: Sequence[TextInput], limit: Limit, vocab_size: int) -> Columns | None:
    """Of inputs that all have packed token ids with nothing wrong about them; None of others: they need a closer look.

    Looks at all of them together, which costs a fraction of what each would.
    """
    given = list(map(_token_ids, inputs))
    packed = list(map(_packed, given))
    sizes = list(map(len, packed))
    if not all(sizes) or any(size % ID_BYTES for size in sizes) or any(map(_values, given)):
        return None
    return _together([size // ID_BYTES for size in sizes], b"".join(packed), limit, vocab_size)


def batch_columns(batch: TokenBatch, limit: Limit, vocab_size: int) -> Columns | None:
    """Of a batch, likewise. Raises InvalidArgumentError where its fields do not fit each other."""
    lengths, packed = list(batch.lengths), batch.packed
    if ID_BYTES * sum(lengths) != len(packed):
        problem = f"has {len(packed)} bytes, the lengths are {sum(lengths)} ids of {ID_BYTES} in all"
        raise InvalidArgumentError("token_batch.packed", problem)
    return _together(lengths, packed, limit, vocab_size)


def inputs_of(batch: TokenBatch) -> list[TextInput]:
    """The inputs that a batch stands for."""
    packed = batch.packed
    ends = accumulate((ID_BYTES * length for length in batch.lengths), initial=0)
    return [TextInput(token_ids=TokenIds(packed=packed[first:last])) for first, last in pairwise(ends)]


def _together(lengths: Sequence[int], packed: bytes, limit: Limit, vocab_size: int) -> Columns | None:
    if not all(lengths) or max(lengths) > limit.tokens:
        return None
    token_ids = wire.token_ids(packed)
    return Columns(wire.token_ids(lengths), token_ids) if all_below(vocab_size, [token_ids]) else None


def columns_of(sequences: Sequence[TokenSequence | ServiceError]) -> Columns:
    """Of sequences one by one."""
    read = [one for one in sequences if isinstance(one, TokenSequence)]
    type_ids = None
    if any(one.type_ids for one in read):
        type_ids = wire.token_ids(b"".join(one.type_ids or bytes(ID_BYTES * len(one.token_ids)) for one in read))
    return Columns(
        lengths=wire.token_ids([len(one.token_ids) for one in read]),
        token_ids=wire.token_ids(b"".join(one.token_ids for one in read)),
        type_ids=type_ids,
        truncated=frozenset(i for i, one in enumerate(sequences) if isinstance(one, TokenSequence) and one.truncated),
        refused={i: one for i, one in enumerate(sequences) if isinstance(one, ServiceError)},
    )
