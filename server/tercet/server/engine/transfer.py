"""Between host and device: one buffer a batch, moved once, and one copy back, which nobody waits for yet."""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

_DTYPES = {"i": torch.int32, "f": torch.float32, "q": torch.int64}  # by array's type codes
_NUMPY = {torch.int32: np.int32, torch.int64: np.int64, torch.float32: np.float32}
_WORD = 4
_ALIGNMENT = 16  # bytes, what Triton loads at once


class PackedBuffer:
    """Arrays of one batch behind one another in host memory."""

    def __init__(self) -> None:
        self.copies = 0
        """Moves to the device, for the statistics."""
        self._bytes = bytearray()
        self.fields: dict[str, tuple[int, int, torch.dtype]] = {}
        """Name -> first and last word of 4 bytes, and dtype."""

    def put(self, name: str, values: Iterable[int] | Iterable[float], code: Literal["i", "f", "q"] = "i") -> None:
        """Appends a field: int32, float32 or int64 values."""
        data = values if isinstance(values, array) and values.typecode == code else array(code, values)
        self._bytes += bytes(-len(self._bytes) % _ALIGNMENT)
        first = len(self._bytes) // _WORD
        self._bytes += data
        self.fields[name] = first, len(self._bytes) // _WORD, _DTYPES[code]

    def put_table(self, name: str, rows: Sequence[Sequence[int]]) -> None:
        """Appends int32 values of rows as long as the longest; zeros fill up the others."""
        width = max(map(len, rows))
        table = array("i")
        for row in rows:
            table.extend(row)
            table.extend([0] * (width - len(row)))
        self.put(name, table)

    def upload(self, device: torch.device) -> dict[str, Tensor]:
        """Moves everything at once; each field is a view of what arrived."""
        words = torch.frombuffer(self._bytes, dtype=torch.int32)
        if device.type == "cuda":
            words = words.pin_memory().to(device, non_blocking=True)
        self.copies += 1
        return {
            name: words[first:last] if kind is torch.int32 else words[first:last].view(kind)
            for name, (first, last, kind) in self.fields.items()
        }


class Download:
    """Tensors of one device on their way to the host, all in one copy; on a GPU nothing waits until `arrays`."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if not tensors or tensors[0].device.type == "cpu":
            # A copy here, too: what is replayed next writes its results to the same places.
            self._arrays = [tensor.numpy().copy() for tensor in tensors]
            return
        data = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])
        host = torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
        host.copy_(data, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()
        self._arrays = _split(host.numpy(), tensors)

    def arrays(self) -> list[NDArray[Any]]:
        """Waits for the copy; each tensor comes back in its own shape and type."""
        if self._event is not None:
            self._event.synchronize()
        return self._arrays


def words(kind: str, *values: float) -> tuple[int, ...]:
    """Values as the device's int32 words."""
    data = struct.pack(f"={kind}", *values)
    return struct.unpack(f"={len(data) // 4}i", data)


def _split(data: NDArray[np.uint8], tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """The places of tensors behind one another in `data`."""
    arrays: list[NDArray[Any]] = []
    start = 0
    for tensor in tensors:
        stop = start + tensor.nbytes
        arrays.append(data[start:stop].view(_NUMPY[tensor.dtype]).reshape(tensor.shape))
        start = stop
    return arrays
