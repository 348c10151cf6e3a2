"""Files of torch.save: pickles, of which nothing is ever built but tensors."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from tercet.server.models.checkpoint.config import shorten
from tercet.server.models.checkpoint.source import StoredTensor
from tercet.server.models.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # what a weight may be stored as


class TorchFile:
    """One file: a zip archive, which is mapped into memory, or of the format before torch 1.6, which is read."""

    def __init__(self, file: Path) -> None:
        self._tensors = _load(file)
        self.tensors = [
            StoredTensor(
                name=name,
                file=file,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                nbytes=tensor.numel() * tensor.element_size(),
                numeric=tensor.dtype in DTYPES and tensor.layout == torch.strided,
            )
            for name, tensor in self._tensors.items()
        ]

    def read(self, tensor: StoredTensor) -> Tensor:
        """One tensor; several may be views of one storage."""
        return self._tensors[tensor.name].detach()


def _load(file: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file") from error
    # Whatever a damaged or a malicious file makes the unpickler stumble over, the user needs to hear one thing.
    except Exception as error:
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        raise CheckpointError(f"{file}: not a readable file of tensors: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds no tensors by name")
    for name, value in cast("dict[object, object]", content).items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: {shorten(name)} is no tensor")
    return cast("dict[str, Tensor]", content)
