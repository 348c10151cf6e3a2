"""Loading: a checkpoint on disk and the architecture it names become a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tercet.server.models.architectures import ARCHITECTURES
from tercet.server.models.checkpoint import open_checkpoint
from tercet.server.models.checkpoint.config import Config, shorten
from tercet.server.models.checkpoint.weights import find, load_weights, plan
from tercet.server.models.errors import CheckpointError
from tercet.server.models.layers import Prepared
from tercet.server.models.model import Model
from tercet.server.models.transformer import Transformer

if TYPE_CHECKING:
    from pathlib import Path

    from tercet.server.models.architectures import Architecture, Head
    from tercet.server.models.checkpoint.source import Checkpoint, StoredTensor
    from tercet.server.models.checkpoint.weights import Progress, WeightTable
    from tercet.server.models.spec import TransformerSpec

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,  # how it is multiplied is the kernels' and cuBLAS's setting
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_model(
    source: Path,
    *,
    device: torch.device,
    dtype: str = "auto",
    max_length: int | None = None,
    progress: Progress | None = None,
) -> Model:
    """Loads a Hugging Face folder or a .gguf file.

    Args:
        source: the folder or the file.
        device: where the model runs.
        dtype: "auto", "float32", "tf32", "bfloat16" or "float16"; auto is bfloat16 on GPUs that have it, else float32.
        max_length: tokens of a sequence; None is the checkpoint's own limit. T5 has none: there it is `n_positions` of
            the config, else 512, and any other length may be asked for.
        progress: called with the bytes read so far and in all.

    Raises:
        CheckpointError: one line that names the file and the tensor or key.
    """
    checkpoint = open_checkpoint(source)
    architecture = _architecture(checkpoint)
    head = _head(checkpoint, architecture)
    compute = _dtype(dtype, device, architecture, checkpoint)
    config, weights = _tables(checkpoint, architecture, head)
    prefix = architecture.prefix if head.prefix is None else head.prefix
    spec = _spec(checkpoint, architecture, head, config, weights, prefix)
    length = _length(max_length, spec, checkpoint)
    transformer = Transformer(spec, length)
    transfers = plan(transformer, checkpoint, weights, prefix)
    head_dim = next(iter(spec.stacks.values())).head_dim
    load_weights(transformer, transfers, checkpoint, head_dim=head_dim, device=device, dtype=compute, progress=progress)
    for module in transformer.modules():
        if isinstance(module, Prepared):
            module.prepare(device)
    return Model(architecture.name, spec, transformer, device=device, dtype=compute, max_length=length)


def _architecture(checkpoint: Checkpoint) -> Architecture:
    """The architecture a checkpoint names, if it is one of ours."""
    key = "general.architecture" if checkpoint.format == "gguf" else "model_type"
    name = checkpoint.config.get(key)
    known = {
        name: architecture
        for name, architecture in ARCHITECTURES.items()
        if checkpoint.format != "gguf" or architecture.gguf
    }
    architecture = known.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise CheckpointError(f"{checkpoint.config_file}: {key} is {shorten(name)}, it must be {' or '.join(known)}")
    if checkpoint.config.get("quantization_config") is not None:
        raise CheckpointError(
            f"{checkpoint.config_file}: quantization_config: quantized weights are read from GGUF alone"
        )
    return architecture


def _head(checkpoint: Checkpoint, architecture: Architecture) -> Head:
    """The head of the class a checkpoint names."""
    classes = checkpoint.config.get("architectures") or list(architecture.heads)[:1]
    if not isinstance(classes, list) or not set(map(str, classes)) <= set(architecture.heads):
        raise CheckpointError(
            f"{checkpoint.config_file}: architectures is {shorten(classes)}, "
            f"it must be {' or '.join(architecture.heads)}"
        )
    return architecture.heads[classes[0]]


def _tables(checkpoint: Checkpoint, architecture: Architecture, head: Head) -> tuple[Config, WeightTable]:
    """The checked config, and the names of the tensors."""
    if checkpoint.format == "gguf" and architecture.gguf:
        tables = architecture.gguf
        return Config(checkpoint.config_file, tables.config, checkpoint.config, tables.implied), tables.weights
    config = Config(checkpoint.config_file, architecture.config, checkpoint.config)
    weights = architecture.weights(config) if callable(architecture.weights) else architecture.weights
    return config, {**weights, **head.weights}


def _spec(
    checkpoint: Checkpoint,
    architecture: Architecture,
    head: Head,
    config: Config,
    weights: WeightTable,
    prefix: str,
) -> TransformerSpec:
    """The spec of a checkpoint's transformer with its head."""
    found = ((tensor, find(name, weights, prefix)) for name, tensor in checkpoint.tensors.items())
    stored = {place[0].parameter: tensor for tensor, place in found if place and place[0]}
    spec = architecture.spec(config, stored)
    if head.encoder_only:
        spec = replace(spec, family="encoder", decoder=None, target_vocab_size=None)
    if head.spec is None:
        return spec
    described = head.spec(config)
    # Weights of its own that a file has count more than a config that says they are tied.
    words = stored.get("target_vocabulary.weight" if spec.target_vocab_size else "vocabulary.weight")
    own = stored.get("head.output.weight")
    return replace(spec, head=replace(described, tied=described.tied and (not own or _equal(own, words, checkpoint))))


def _equal(tensor: StoredTensor, other: StoredTensor | None, checkpoint: Checkpoint) -> bool:
    if other is None or (tensor.shape, tensor.dtype) != (other.shape, other.dtype) or not tensor.numeric:
        return False
    return torch.equal(checkpoint.read(tensor), checkpoint.read(other))


def _dtype(dtype: str, device: torch.device, architecture: Architecture, checkpoint: Checkpoint) -> torch.dtype:
    if dtype == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if on_gpu else torch.float32
    if dtype not in DTYPES:
        raise CheckpointError(f"{checkpoint.config_file}: dtype is {dtype!r}, it must be auto or {' or '.join(DTYPES)}")
    if dtype == "float16" and not architecture.float16:
        raise CheckpointError(
            f"{checkpoint.config_file}: dtype float16 overflows in {architecture.name}; it must be bfloat16 or float32"
        )
    return DTYPES[dtype]


def _length(max_length: int | None, spec: TransformerSpec, checkpoint: Checkpoint) -> int:
    if max_length is None:
        return spec.default_length
    if max_length < 1 or (spec.max_length is not None and max_length > spec.max_length):
        limit = "" if spec.max_length is None else f" and at most the checkpoint's {spec.max_length}"
        if any(rotary and rotary.scaling == "dynamic" for s in spec.stacks.values() for rotary in s.rotaries):
            limit += ", since dynamic scaling of rotary positions beyond it is not supported"
        raise CheckpointError(f"{checkpoint.config_file}: max_length is {max_length}, it must be at least 1{limit}")
    return max_length
