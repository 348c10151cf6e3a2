"""Checkpoints on disk: their configuration and their tensors, checked before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.checkpoint.gguf import GGUFFile
from tercet.server.models.checkpoint.safetensors import SafetensorsFolder
from tercet.server.models.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from tercet.server.models.checkpoint.source import Checkpoint


def open_checkpoint(source: Path) -> Checkpoint:
    """Opens a Hugging Face folder or a .gguf file. Raises CheckpointError."""
    if not source.exists():
        raise CheckpointError(f"{source}: no such file or folder")
    if source.is_dir():
        return SafetensorsFolder(source)
    if source.suffix == ".gguf":
        return GGUFFile(source)
    raise CheckpointError(f"{source}: not a folder or a .gguf file")
