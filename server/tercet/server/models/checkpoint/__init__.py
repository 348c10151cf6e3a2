"""Checkpoints on disk: their configuration and their tensors, checked before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.checkpoint.folder import Folder
from tercet.server.models.checkpoint.gguf import GGUFFile
from tercet.server.models.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from tercet.server.models.checkpoint.source import Checkpoint


def open_checkpoint(source: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Opens a Hugging Face folder, of pickled weights only if allowed, or a .gguf file. Raises CheckpointError."""
    if not source.exists():
        raise CheckpointError(f"{source}: no such file or folder")
    if source.is_dir():
        return Folder(source, allow_pickle=allow_pickle)
    if source.suffix == ".gguf":
        return GGUFFile(source)
    raise CheckpointError(f"{source}: not a folder or a .gguf file")
