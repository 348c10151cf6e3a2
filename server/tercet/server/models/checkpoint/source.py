"""What every kind of checkpoint file gives: a configuration, and tensors by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, not yet read."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As the file's format calls it."""
    nbytes: int
    """Of the file."""
    numeric: bool
    """Whether it can be a weight: floating point, or quantized from it."""


class TensorFile(Protocol):
    """One file of tensors. Opening one raises CheckpointError."""

    @property
    def tensors(self) -> list[StoredTensor]:
        """All there are, in the order of the file."""
        ...

    def read(self, tensor: StoredTensor) -> Tensor:
        """One tensor on the CPU; it may be a view of the file."""
        ...


class TensorSource(Protocol):
    """Tensors on disk, in one file or several. Opening one raises CheckpointError."""

    @property
    def weights_file(self) -> Path:
        """The file that lists the tensors."""
        ...

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All there are, by name, in the order of the files."""
        ...

    def read(self, tensor: StoredTensor) -> Tensor:
        """One tensor on the CPU, in a floating-point dtype; it may be a view of the file."""
        ...


class Checkpoint(TensorSource, Protocol):
    """The weights and the config of a model on disk."""

    @property
    def format(self) -> Literal["huggingface", "gguf"]:
        """Which of an architecture's tables apply."""
        ...

    @property
    def config_file(self) -> Path:
        """The file the configuration is from."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The raw configuration."""
        ...
