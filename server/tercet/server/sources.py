"""From a SOURCE of the settings to a local checkpoint: a folder, a .gguf file, or a hub id that is downloaded once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.config import ModelSettings

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights that can't hold code, and what tokenizers and templates need. Never Python.
_WANTED = ("*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*.jinja")
_UNWANTED = ("*/*.safetensors",)  # other formats of the same weights: "*" matches "/" too
# What a folder may also need: the weights of sentence-transformers' Dense modules, and, if allowed, pickled weights.
_DENSE = "*_Dense"
_PICKLED = ("pytorch_model*.bin", "adapter_model.bin")


class SourceError(ValueError):
    """A checkpoint that is not there or can't be had; one line."""


def resolve(model: ModelSettings) -> Path:
    """The local folder or .gguf file of a model's checkpoint. Raises SourceError."""
    key, path = f"models.{model.name}.source", _local(model.source)
    if os.path.isfile(path) and path.suffix == ".gguf":  # Path's own may raise
        return path.resolve()
    if path.suffix == ".gguf" and not os.path.exists(path):
        raise SourceError(f"{key}: {model.source} is not there")
    return _folder(key, model.source, model.revision, "neither a folder nor a .gguf file", model.allow_pickle)


def resolve_adapter(model: ModelSettings) -> Path | None:
    """The local folder of a model's adapter, if it has one. Raises SourceError."""
    if model.adapter is None:
        return None
    key = f"models.{model.name}.adapter"
    return _folder(key, model.adapter, model.adapter_revision, "no folder", model.allow_pickle)


def weight_bytes(checkpoint: Path) -> int:
    """Bytes of the weights on disk: what a model needs at the very least, before any are loaded."""
    files = [checkpoint] if checkpoint.is_file() else list(checkpoint.glob("*.safetensors"))
    files = files or list(checkpoint.glob(_PICKLED[0]))
    return sum(file.stat().st_size for file in files if file.is_file())


def _local(source: str) -> Path:
    return Path(os.path.expanduser(source))  # Path.expanduser fails where there is no such user


def _folder(key: str, source: str, revision: str | None, expected: str, allow_pickle: bool) -> Path:
    """A local folder, or a downloaded one."""
    path = _local(source)
    if os.path.isdir(path):
        return path.resolve()
    if os.path.exists(path):
        raise SourceError(f"{key}: {source} is {expected}")
    if not _HUB_ID.fullmatch(source):
        raise SourceError(f"{key}: {source} is not there")
    folder = _download(key, source, revision, _WANTED, _UNWANTED)
    kinds = ("*.safetensors", *_PICKLED) if allow_pickle else ("*.safetensors",)
    more = [f"{_DENSE}/{kind}" for kind in kinds] if any(folder.glob(_DENSE)) else []
    if allow_pickle and not any(folder.glob("*.safetensors")):
        more += _PICKLED
    return _download(key, source, revision, more) if more else folder


def _download(
    key: str, repository: str, revision: str | None, wanted: Sequence[str], unwanted: Sequence[str] = ()
) -> Path:
    """The files of a repository of the hub that match the patterns."""
    # Imported here: most servers read local checkpoints.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"{repository}@{revision}" if revision else repository
    try:
        path = snapshot_download(
            repository, revision=revision, allow_patterns=list(wanted), ignore_patterns=list(unwanted)
        )
        return Path(path)
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            reason = "is neither a local path nor a checkpoint of the hub that you may read"
        else:
            reason = "is no local path, and the hub can't be reached"
        raise SourceError(f"{key}: {name} {reason}") from None
