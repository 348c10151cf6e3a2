"""GGUF files, llama.cpp's: config and quantized tensors in one; the `gguf` package reads and dequantizes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from tercet.server.models.checkpoint.source import StoredTensor
from tercet.server.models.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class GGUFFile:
    """One .gguf file."""

    format: Literal["gguf"] = "gguf"

    def __init__(self, file: Path) -> None:
        reader = _open(file)
        self.config_file = self.weights_file = file
        self.config = {
            name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")
        }
        # Old files leave the size of the vocabulary to the table of its embeddings.
        words = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
        if words is not None:
            self.config.setdefault(f"{self.config.get('general.architecture')}.vocab_size", int(words.shape[-1]))
        self._data = {tensor.name: tensor for tensor in reader.tensors}
        self.tensors = {
            tensor.name: StoredTensor(
                name=tensor.name,
                file=file,
                shape=tuple(int(size) for size in reversed(tensor.shape)),  # GGUF counts from the fastest dimension
                dtype=tensor.tensor_type.name,
                nbytes=int(tensor.n_bytes),
                numeric=not tensor.tensor_type.name.startswith("I") or tensor.tensor_type.name.startswith("IQ"),
            )
            for tensor in sorted(reader.tensors, key=lambda tensor: tensor.data_offset)
        }

    def read(self, tensor: StoredTensor) -> Tensor:
        """One tensor, dequantized to float32."""
        from gguf.quants import dequantize

        stored = self._data[tensor.name]
        try:
            values = dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.name} is quantized as {tensor.dtype}: {error}"
            ) from error
        # Types that need no dequantizing come as a read-only view of the file, which torch doesn't take.
        return torch.from_numpy(values if values.flags.writeable else values.copy()).view(tensor.shape)


def _open(file: Path) -> Any:
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError as error:
        raise CheckpointError(f"{file}: reading GGUF files needs the package gguf") from error

    class Reader(GGUFReader):
        """The package's reader, but to read past the end is an error, not an empty array, and a view takes one step."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            order = self.byte_order if override_order is None else override_order
            return np.frombuffer(self.data, np.dtype(dtype).newbyteorder(order), int(count), int(offset))

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == GGUFValueType.ARRAY:  # [item type: uint32, length: uint64, items]
                length = int(self._get(orig_offs + 4, np.uint64)[0])
                if length > len(self.data) - orig_offs:
                    raise ValueError(f"an array claims {length} items")
            return super()._get_field_parts(orig_offs, raw_type)

    try:
        return Reader(file)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from error
    # Whatever a damaged header makes the package stumble over, the user needs to hear one thing.
    except Exception as error:
        raise CheckpointError(f"{file}: not a readable GGUF file: {error}") from error
