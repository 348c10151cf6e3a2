"""From a SOURCE of the settings to a local checkpoint: a folder, a .gguf file, or a hub id that is downloaded once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tercet.server.config import ModelSettings

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights that can't hold code, and what tokenizers and templates need. Never pickles, never Python.
_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_UNWANTED = ("*/*.safetensors",)  # other formats of the same weights: "*" matches "/" too


class SourceError(ValueError):
    """A checkpoint that is not there or can't be had; one line."""


def resolve(model: ModelSettings) -> Path:
    """The local folder or .gguf file of a model's checkpoint. Raises SourceError."""
    path = Path(os.path.expanduser(model.source))  # Path.expanduser fails where there is no such user
    key = f"models.{model.name}.source"
    if os.path.isdir(path) or (os.path.isfile(path) and path.suffix == ".gguf"):  # Path's own may raise
        return path.resolve()
    if os.path.exists(path):
        raise SourceError(f"{key}: {model.source} is neither a folder nor a .gguf file")
    if not _HUB_ID.fullmatch(model.source) or path.suffix == ".gguf":
        raise SourceError(f"{key}: {model.source} is not there")
    return _download(key, model.source, model.revision)


def weight_bytes(checkpoint: Path) -> int:
    """Bytes of the weights on disk: what a model needs at the very least, before any are loaded."""
    files = [checkpoint] if checkpoint.is_file() else list(checkpoint.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files if file.is_file())


def _download(key: str, repository: str, revision: str | None) -> Path:
    # Imported here: most servers read local checkpoints.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"{repository}@{revision}" if revision else repository
    try:
        path = snapshot_download(
            repository, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
        return Path(path)
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            reason = "is neither a local path nor a checkpoint of the hub that you may read"
        else:
            reason = "is no local path, and the hub can't be reached"
        raise SourceError(f"{key}: {name} {reason}") from None
