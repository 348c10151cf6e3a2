"""Hugging Face folders: config.json and safetensors, single or sharded, mapped into memory."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from tercet.server.models.checkpoint.config import read_json, shorten
from tercet.server.models.checkpoint.source import StoredTensor
from tercet.server.models.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPE_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}  # what a weight may be stored as


class SafetensorsFolder:
    """A folder as transformers' `save_pretrained` writes it."""

    format: Literal["huggingface"] = "huggingface"

    def __init__(self, folder: Path) -> None:
        self.config_file = folder / "config.json"
        self.config = read_json(self.config_file)
        self._files: dict[Path, Any] = {}
        single = folder / SINGLE
        self.weights_file = single if single.exists() else folder / INDEX
        self.tensors = self._single(single) if single.exists() else self._sharded(folder)

    def _single(self, file: Path) -> dict[str, StoredTensor]:
        return {tensor.name: tensor for tensor in self._open(file)}

    def _sharded(self, folder: Path) -> dict[str, StoredTensor]:
        index = folder / INDEX
        if not index.exists():
            raise CheckpointError(f"{folder}: neither {SINGLE} nor {INDEX} is there")
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(f"{index}: weight_map must be an object of tensor names to file names")
        tensors: dict[str, StoredTensor] = {}
        for shard in sorted(set(shards.values())):
            if PurePath(shard).name != shard or "\\" in shard or shard in ("", "..") or "\0" in shard:
                raise CheckpointError(f"{index}: weight_map names {shorten(shard)}, which is not a file of the folder")
            for tensor in self._open(folder / shard):
                if shards.get(tensor.name) != shard:
                    raise CheckpointError(
                        f"{tensor.file}: unexpected tensor {tensor.name}: {INDEX} doesn't list it here"
                    )
                tensors[tensor.name] = tensor
        for name, shard in shards.items():
            if name not in tensors:
                raise CheckpointError(f"{folder / shard}: missing tensor {name}, which {INDEX} lists")
        return tensors

    def _open(self, file: Path) -> list[StoredTensor]:
        try:
            opened = safe_open(file, framework="pt")
            self._files[file] = opened
            return [_describe(name, file, opened.get_slice(name)) for name in opened.offset_keys()]
        except FileNotFoundError as error:
            raise CheckpointError(f"{file}: no such file") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error

    def read(self, tensor: StoredTensor) -> Tensor:
        """One tensor, a view of the file; it is read when it is copied."""
        try:
            return self._files[tensor.file].get_tensor(tensor.name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{tensor.file}: tensor {tensor.name} can't be read: {error}") from error


def _describe(name: str, file: Path, header: Any) -> StoredTensor:
    shape, dtype = tuple(header.get_shape()), str(header.get_dtype())
    nbytes = math.prod(shape) * DTYPE_BITS.get(dtype, 8) // 8
    return StoredTensor(name, file, shape, dtype, nbytes, numeric=dtype in DTYPE_BITS)
