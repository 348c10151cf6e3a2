"""What can be wrong with a checkpoint."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint that can't be loaded. The message is one line for the user: the file, then the tensor or the key."""
