"""What can go wrong between a checkpoint's files, text and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class CheckpointTextError(ValueError):
    """A checkpoint's tokenizer, chat template or defaults can't be read: one line that names the file and the key."""

    def __init__(self, file: Path, key: str | None, problem: str) -> None:
        place = f"{file}: {key}" if key else f"{file}"
        super().__init__(f"{place}: {' '.join(problem.split())}")
        self.file = file
        self.key = key


class ChatTemplateError(ValueError):
    """A conversation that the checkpoint's chat template refuses or can't render, in one line for the caller."""
