"""Loading: a checkpoint on disk and the architecture it names become a model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tercet.server.models import float8
from tercet.server.models.architectures import ARCHITECTURES
from tercet.server.models.checkpoint import open_checkpoint
from tercet.server.models.checkpoint.config import Config, shorten
from tercet.server.models.checkpoint.lora import Adapter, Merged
from tercet.server.models.checkpoint.weights import Names, is_head, load_weights, plan
from tercet.server.models.dense import load_projection
from tercet.server.models.errors import CheckpointError
from tercet.server.models.layers import Prepared
from tercet.server.models.model import Model
from tercet.server.models.transformer import Transformer

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tercet.server.models.architectures import Architecture, Head
    from tercet.server.models.checkpoint.source import Checkpoint, StoredTensor
    from tercet.server.models.checkpoint.weights import Progress
    from tercet.server.models.spec import HeadSpec, TransformerSpec

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,  # how it is multiplied is the kernels' and cuBLAS's setting
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.bfloat16,  # but for the products of layers
}


def load_model(
    source: Path,
    *,
    device: torch.device,
    dtype: str = "auto",
    max_length: int | None = None,
    adapter: Path | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Loads a Hugging Face folder or a .gguf file.

    Args:
        source: the folder or the file.
        device: where the model runs.
        dtype: "auto", "float32", "tf32", "bfloat16", "float16" or "fp8"; auto is bfloat16 on GPUs that have
            it, else float32.
        max_length: tokens of a sequence; None is the checkpoint's own limit. T5 has none: there it is `n_positions` of
            the config, else 512, and any other length may be asked for.
        adapter: the folder of a PEFT LoRA adapter to merge into the weights.
        allow_pickle: whether weights are read from pytorch_model.bin where there are no safetensors.
        progress: called with the bytes read so far and in all.

    Raises:
        CheckpointError: one line that names the file and the tensor or key.
    """
    checkpoint = open_checkpoint(source, allow_pickle=allow_pickle)
    lora = Adapter(adapter, allow_pickle=allow_pickle) if adapter else None
    architecture = _architecture(checkpoint)
    compute = _dtype(dtype, device, architecture, checkpoint)
    config = _config(checkpoint, architecture)
    head = _head(checkpoint, architecture, config, lora)
    names = _names(checkpoint, architecture, config, head)
    if lora:
        checkpoint, names = _merge(checkpoint, lora, architecture, names)
    spec = _spec(checkpoint, architecture, head, config, names)
    length = _length(max_length, spec, checkpoint)
    transformer = Transformer(spec, length)
    transfers = plan(transformer, checkpoint, names)
    head_dim = next(iter(spec.stacks.values())).head_dim
    load_weights(transformer, transfers, checkpoint, head_dim=head_dim, device=device, dtype=compute, progress=progress)
    quantization_error = _quantized(transformer, checkpoint) if dtype == "fp8" else None
    for module in transformer.modules():
        if isinstance(module, Prepared):
            module.prepare(device)
    projection = load_projection(source, spec.embedding_size, device=device, allow_pickle=allow_pickle)
    return Model(
        architecture.name, spec, transformer, projection, device=device, dtype=compute, max_length=length,
        quantization_error=quantization_error,
    )  # fmt: skip


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


def _config(checkpoint: Checkpoint, architecture: Architecture) -> Config:
    """The checked config."""
    if checkpoint.format == "gguf" and architecture.gguf:
        tables = architecture.gguf
        told = {name: tensor in checkpoint.tensors for tensor, name in tables.told.items()}
        return Config(checkpoint.config_file, tables.config, checkpoint.config, {**tables.implied, **told})
    return Config(checkpoint.config_file, architecture.config, checkpoint.config)


def _head(checkpoint: Checkpoint, architecture: Architecture, config: Config, lora: Adapter | None) -> Head:
    """The head of the class that a checkpoint names; where an adapter was trained with one of another task, that."""
    classes = checkpoint.config.get("architectures") or list(architecture.heads)[:1]
    if not isinstance(classes, list) or not set(map(str, classes)) <= set(architecture.heads):
        raise CheckpointError(
            f"{checkpoint.config_file}: architectures is {shorten(classes)}, "
            f"it must be {' or '.join(architecture.heads)}"
        )
    named = architecture.heads[classes[0]]
    if lora is None or lora.task is None:
        return named
    heads = [
        head for head in (named, *architecture.heads.values()) if head.spec and head.spec(config).task == lora.task
    ]
    if not heads:
        raise lora.config.refuse("task", f"{architecture.name} has no head for that")
    return heads[0]


def _names(checkpoint: Checkpoint, architecture: Architecture, config: Config, head: Head) -> Names:
    """What the tensors are called."""
    if checkpoint.format == "gguf" and architecture.gguf:
        return Names(architecture.gguf.weights)
    weights = architecture.weights(config) if callable(architecture.weights) else architecture.weights
    table = {**head.weights, **weights, **head.weights}  # an error says the first of several names: the head's
    return Names(table, architecture.prefix if head.prefix is None else head.prefix)


def _merge(checkpoint: Checkpoint, lora: Adapter, architecture: Architecture, names: Names) -> tuple[Checkpoint, Names]:
    """The checkpoint with the adapter in it, which may have another head than the file: then that's is unused."""
    if checkpoint.format == "gguf":
        raise CheckpointError(f"{lora.file}: adapters are merged into Hugging Face folders, not into GGUF files")
    others = {name: None for head in architecture.heads.values() for name in head.weights}
    return Merged(checkpoint, lora, names), replace(names, table={**others, **names.table})


def _spec(
    checkpoint: Checkpoint, architecture: Architecture, head: Head, config: Config, names: Names
) -> TransformerSpec:
    """The spec of a checkpoint's transformer with its head."""
    stored: dict[str, StoredTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        into, _ = names.find(name) or (None, "")
        if into:
            stored.setdefault(into.parameter, tensor)
    spec = architecture.spec(config)
    if head.encoder_only:
        spec = replace(spec, family="encoder", decoder=None, target_vocab_size=None)
    if head.spec is None:
        return spec
    described, own = head.spec(config), stored.get("head.output.weight")
    if _is_base_model(checkpoint, names, described, stored):
        return spec
    if isinstance(checkpoint, Merged) and own and described.task in ("classify", "tag"):
        described = replace(described, outputs=own.shape[0])  # adapters don't say how many labels
    words = stored.get("target_vocabulary.weight" if spec.target_vocab_size else "vocabulary.weight")
    # Weights of its own that a file has count more than a config that says they are tied.
    tied = described.tied and (own is None or words is None or _equal(own, words, checkpoint))
    return replace(spec, head=replace(described, tied=tied))


def _is_base_model(checkpoint: Checkpoint, names: Names, head: HeadSpec, stored: Collection[str]) -> bool:
    """Whether a file has none of the tensors that the head of its class needs, and a base model's names for the rest.

    So are embedders saved whose configs still name the class that their base model was taken from.
    """
    needed = head.dense or head.bias or not head.tied
    if not needed or any(map(is_head, stored)) or (isinstance(checkpoint, Merged) and checkpoint.adapter.task):
        return False
    return names.prefix != "" and names.written_prefix(checkpoint) == ""


def _equal(tensor: StoredTensor, other: StoredTensor, checkpoint: Checkpoint) -> bool:
    alike = (tensor.shape, tensor.dtype) == (other.shape, other.dtype) and tensor.numeric
    return alike and torch.equal(checkpoint.read(tensor), checkpoint.read(other))


def _dtype(dtype: str, device: torch.device, architecture: Architecture, checkpoint: Checkpoint) -> torch.dtype:
    if dtype == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if on_gpu else torch.float32
    if dtype not in DTYPES:
        raise CheckpointError(f"{checkpoint.config_file}: dtype is {dtype!r}, it must be auto or {' or '.join(DTYPES)}")
    if dtype == "fp8" and (reason := float8.refusal(device)):
        raise CheckpointError(f"{checkpoint.config_file}: dtype is fp8, but {reason}")
    if dtype == "float16" and not architecture.float16:
        raise CheckpointError(
            f"{checkpoint.config_file}: dtype float16 overflows in {architecture.name}; it must be bfloat16 or float32"
        )
    return DTYPES[dtype]


def _quantized(transformer: Transformer, checkpoint: Checkpoint) -> float:
    error = float8.quantize_layers(transformer)
    if error is None:
        raise CheckpointError(
            f"{checkpoint.config_file}: dtype is fp8, but no layer has maps of multiples of {float8.MULTIPLE} to such"
        )
    return error


def _length(max_length: int | None, spec: TransformerSpec, checkpoint: Checkpoint) -> int:
    if max_length is None:
        return spec.default_length
    if max_length < 1 or (spec.max_length is not None and max_length > spec.max_length):
        limit = "" if spec.max_length is None else f" and at most the checkpoint's {spec.max_length}"
        if any(rotary and rotary.scaling == "dynamic" for s in spec.stacks.values() for rotary in s.rotaries):
            limit += ", since dynamic scaling of rotary positions beyond it is not supported"
        raise CheckpointError(f"{checkpoint.config_file}: max_length is {max_length}, it must be at least 1{limit}")
    return max_length
