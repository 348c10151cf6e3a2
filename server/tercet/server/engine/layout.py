"""Where the tokens of a batch lie: one row after another, or each row padded to the longest."""

from __future__ import annotations

from array import array
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from tercet.kernels import pad
from tercet.server.models import Rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from tercet.server.engine.transfer import PackedBuffer


_ascending = array("i")  # from 0 to the longest row so far


class Flat:
    """The tokens of a batch on the device: where each is in its row, and their place in padded or packed storage."""

    def __init__(self, views: Mapping[str, Tensor], prefix: str, lengths: Sequence[int], *, padded: bool) -> None:
        """`views`: of a buffer into which `put_rows` has put these lengths."""
        self._start, self._length, self._padded = views[f"{prefix}start"], views[f"{prefix}length"], padded
        self.index = views[f"{prefix}index"]
        """int32 [packed tokens]: the index of each token in its row."""
        longest = max(lengths)
        size = len(lengths) * longest
        self.rows = (
            Rows(start=self._count(size, longest), length=self._length, longest=longest, tokens=size)
            if padded
            else Rows(start=self._start, length=self._length, longest=longest, tokens=self.index.shape[0])
        )

    @cached_property
    def row(self) -> Tensor:
        """int32 [packed tokens]: the row of each token."""
        return torch.repeat_interleave(self._count(len(self._length)), self._length, output_size=len(self.index))

    def _count(self, end: int, step: int = 1) -> Tensor:
        return torch.arange(0, end, step, dtype=torch.int32, device=self._start.device)

    def slots(self, page_table: Tensor, positions: Tensor, page_size: int) -> Tensor:
        """Where each packed token's key and value go."""
        page = page_table[self.row, positions // page_size]
        return page * page_size + positions % page_size

    def place(self, packed: Tensor, padding: int = 0) -> Tensor:
        """Packed values as the batch stores them; the padding is written here, on the device."""
        if not self._padded:
            return packed
        return pad(packed, self._start, self._length, longest=self.rows.longest, value=padding)


def starts(lengths: Sequence[int]) -> list[int]:
    """Where packed rows begin."""
    return list(accumulate(lengths[:-1], initial=0))


def put_rows(buffer: PackedBuffer, prefix: str, lengths: Sequence[int]) -> None:
    """Puts where packed rows lie into a batch's buffer."""
    buffer.put(f"{prefix}length", lengths)
    buffer.put(f"{prefix}start", starts(lengths))
    longest = max(lengths)
    _ascending.extend(range(len(_ascending), longest))
    index = array("i")
    for length in lengths:
        index.extend(_ascending[:length])
    buffer.put(f"{prefix}index", index)
