"""Files of safetensors, mapped into memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from tercet.server.models.checkpoint.source import StoredTensor
from tercet.server.models.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}  # what a weight may be stored as


class SafetensorsFile:
    """One file."""

    def __init__(self, file: Path) -> None:
        try:
            self._file = safe_open(file, framework="pt")
            self.tensors = [_describe(name, file, self._file.get_slice(name)) for name in self._file.offset_keys()]
        except FileNotFoundError as error:
            raise CheckpointError(f"{file}: no such file") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error

    def read(self, tensor: StoredTensor) -> Tensor:
        """One tensor, a view of the file."""
        try:
            return self._file.get_tensor(tensor.name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{tensor.file}: tensor {tensor.name} can't be read: {error}") from error


def _describe(name: str, file: Path, header: Any) -> StoredTensor:
    shape, dtype = tuple(header.get_shape()), str(header.get_dtype())
    nbytes = math.prod(shape) * DTYPE_BITS.get(dtype, 8) // 8
    return StoredTensor(name, file, shape, dtype, nbytes, numeric=dtype in DTYPE_BITS)
