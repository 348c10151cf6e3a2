"""Checkpoints changed, and what loading says to them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tercet.server.models import CheckpointError, load_model

if TYPE_CHECKING:
    from pathlib import Path

    from support.forward import Pair

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"

Tensors = dict[str, torch.Tensor]


def rewrite(pair: Pair, folder: Path, tensors: Tensors | None = None, **config: Any) -> Path:
    """A copy of a checkpoint with other tensors, or with config keys changed (None drops one)."""
    content = json.loads((pair.folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    save_file(tensors if tensors is not None else load_file(pair.folder / WEIGHTS), folder / WEIGHTS)
    return folder


def refusal(source: Path, **options: Any) -> str:
    """The error of loading, which must be one line."""
    with pytest.raises(CheckpointError) as caught:
        load_model(source, device=CPU, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
