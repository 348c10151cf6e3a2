"""Filling a transformer from a checkpoint by a table of tensor names, strictly: nothing missing, nothing left over."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tercet.server.models.errors import CheckpointError
from tercet.server.models.layers import Linear

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.source import StoredTensor, TensorSource

NUMBER = re.compile(r"0|[1-9]\d{0,5}", re.ASCII)  # of a layer

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes there are."""


@dataclass(frozen=True)
class Into:
    """Where a checkpoint's tensor goes."""

    parameter: str
    """A parameter of the transformer, `{}` for the layer."""
    fuse: str | None = None
    """The part of a `Linear` by name, refused where it has none of that name; None is all of the parameter."""
    transpose: bool = False
    """Stored [in, out], as GPT-2's Conv1D."""
    interleaved: bool = False
    """The rows of a head are in llama.cpp's order, rotary pairs side by side and not half a head apart."""
    per_head: bool = False
    """Queries, keys and values in one, stored [heads, 3, head_dim], as GPT-NeoX has them."""
    leading: bool = False
    """Stored with a leading dimension of 1, as Marian's final_logits_bias."""
    spare: bool = False
    """A second name for a tensor: where the file has it by another name too, the two must be equal."""
    fallback: bool = False
    """Read where the file has no tensor by another name for the same place, else unused, whatever it holds."""


WeightTable = Mapping[str, "Into | str | None"]
"""Tensor names, `{}` for the layer, and where they go: a string is all of a parameter, `None` known and unused."""


@dataclass(frozen=True)
class Transfer:
    """One tensor to be copied to the rows `start` ... `start + size` of a parameter."""

    tensor: StoredTensor
    into: Into
    parameter: str
    start: int
    size: int
    equal_to: str | None = None
    """The tensor that was copied there already, which this one must equal."""


# Parameters that are tied in some transformers: files may hold copies of the first of these that there is.
TIED = {
    "head.output.weight": ("target_vocabulary.weight", "vocabulary.weight"),
    "target_vocabulary.weight": ("vocabulary.weight",),
}


def is_head(parameter: str) -> bool:
    """Whether a parameter of the transformer is its head's."""
    return parameter.startswith("head.")


@dataclass(frozen=True)
class Names:
    """What the tensors of a checkpoint are called."""

    table: WeightTable
    prefix: str = ""
    """May stand before the names of all tensors but a head's, as in a model with a head."""

    def find(self, name: str) -> tuple[Into | None, str] | None:
        """Where a tensor goes and its layer; (None, ...) for one known and unused, None for an unknown one."""
        layer = _layer(name)
        for stem in dict.fromkeys((name, name.removeprefix(self.prefix))):
            template = stem if stem in self.table else stem.replace(f".{layer}.", ".{}.", 1)
            if template in self.table:
                into = self.table[template]
                into = Into(into) if isinstance(into, str) else into
                if stem == name or into is None or not is_head(into.parameter):
                    return into, layer
        return None

    def place(self, name: str) -> tuple[str, str | None] | None:
        """The parameter of the transformer that a tensor goes to and the part of it, if any."""
        into, layer = self.find(name) or (None, "")
        return (into.parameter.format(layer), into.fuse) if into else None

    def written_prefix(self, checkpoint: TensorSource) -> str:
        """The prefix if the names of the base model's tensors have it, else ""; refused where some have it."""
        written: str | None = None
        for tensor in checkpoint.tensors.values():
            into, _ = self.find(tensor.name) or (None, "")
            if into is None or is_head(into.parameter):
                continue
            own = self.prefix if tensor.name.startswith(self.prefix) else ""
            if written not in (None, own):
                raise CheckpointError(
                    f"{tensor.file}: unexpected tensor {tensor.name}: "
                    f"some names have the prefix {self.prefix} and some don't"
                )
            written = own
        return written or ""


def load_weights(
    transformer: nn.Module,
    transfers: list[Transfer],
    checkpoint: TensorSource,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int = 1,
    progress: Progress | None = None,
) -> None:
    """Reads the planned tensors straight into their places; beside the model, one of them at a time is in memory.

    The parameters of `transformer`, so far on the meta device, get storage on `device` in `dtype`. `head_dim` is that
    of heads whose rows are stored in another order. Raises CheckpointError naming a tensor that is not the copy of
    another that it must be.
    """
    total = sum(transfer.tensor.nbytes for transfer in transfers)
    done = 0
    for transfer in transfers:
        source = checkpoint.read(transfer.tensor).to(device)
        source = _arrange(source, transfer.into, head_dim)
        destination = _storage(transformer, transfer.parameter, device, dtype)
        destination = destination.narrow(0, transfer.start, transfer.size)
        if transfer.equal_to is None:
            destination.copy_(source)
        elif not torch.equal(destination, source.to(dtype)):
            raise CheckpointError(
                f"{transfer.tensor.file}: tensor {transfer.tensor.name} differs from {transfer.equal_to}, "
                "of which the config makes it a copy"
            )
        done += transfer.tensor.nbytes
        if progress:
            progress(done, total)


def plan(transformer: nn.Module, checkpoint: TensorSource, names: Names) -> list[Transfer]:
    """Which tensor goes where, and last those that must equal others; nothing is read or allocated.

    Raises CheckpointError on a missing, unexpected or misshapen tensor, or one that is stored as no weight could be,
    naming it and its file.
    """
    parameters = dict(transformer.named_parameters())
    places = {name: _parts(transformer, name) for name in parameters}
    chosen: dict[tuple[str, str], Transfer] = {}
    spares: list[tuple[Transfer, list[tuple[str, str]]]] = []
    copies: list[Transfer] = []
    written = names.written_prefix(checkpoint)
    for tensor in checkpoint.tensors.values():
        found = names.find(tensor.name)
        if found is None:
            raise CheckpointError(f"{tensor.file}: unexpected tensor {tensor.name}")
        into, layer = found
        if into is None:
            continue
        own = into.parameter.format(layer)
        parameter = next((place for place in (own, *TIED.get(own, ())) if place in places), own)
        spare = into.spare or into.fallback or parameter != own
        parts = {part: place for part, place in places.get(parameter, {}).items() if into.fuse in (None, part)}
        if not parts:
            raise CheckpointError(f"{tensor.file}: unexpected tensor {tensor.name}: the config leaves no place for it")
        start, size = min(start for start, _ in parts.values()), sum(size for _, size in parts.values())
        _check(tensor, (size, *parameters[parameter].shape[1:]), into)
        transfer = Transfer(tensor, into, parameter, start, size)
        if spare:
            spares.append((transfer, [(parameter, part) for part in parts]))
            continue
        for other in (chosen[parameter, part] for part in parts if (parameter, part) in chosen):
            raise CheckpointError(f"{tensor.file}: {tensor.name} and {other.tensor.name} name the same parameter")
        chosen.update({(parameter, part): transfer for part in parts})
    for transfer, keys in spares:
        first = next((chosen[key] for key in keys if key in chosen), None)
        if first is None:
            chosen.update(dict.fromkeys(keys, transfer))
        elif not transfer.into.fallback:
            copies.append(replace(transfer, equal_to=first.tensor.name))
    for parameter, parts in places.items():
        for part in parts:
            if (parameter, part) not in chosen:
                name = _stored_name(parameter, part, names.table)
                before = "" if is_head(parameter) else written
                raise CheckpointError(f"{checkpoint.weights_file}: missing tensor {before}{name}")
    return [*dict.fromkeys(chosen.values()), *copies]


def _layer(name: str) -> str:
    """The first number among the components of a name, or ""."""
    return next((part for part in name.split(".") if NUMBER.fullmatch(part)), "")


def _parts(transformer: nn.Module, parameter: str) -> dict[str, tuple[int, int]]:
    """The parts of a parameter: their first rows and sizes. That of no `Linear` is a single part without a name."""
    owner = transformer.get_submodule(parameter.rpartition(".")[0])
    rows = transformer.get_parameter(parameter).shape[0]
    if not isinstance(owner, Linear):
        return {"": (0, rows)}
    ends = torch.tensor(list(owner.parts.values())).cumsum(0).tolist()
    return {part: (end - size, size) for (part, size), end in zip(owner.parts.items(), ends, strict=True)}


def _check(tensor: StoredTensor, shape: tuple[int, ...], into: Into) -> None:
    expected = (1,) * into.leading + (shape[::-1] if into.transpose else shape)
    if tensor.shape != expected:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, the config makes it {list(expected)}"
        )
    if not tensor.numeric:
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} is stored as {tensor.dtype}, which is no weight")


def _stored_name(parameter: str, part: str, table: WeightTable) -> str:
    """The name a checkpoint would have for a part of a parameter: the table's first."""
    layer = _layer(parameter)
    entries = {name: Into(value) if isinstance(value, str) else value for name, value in table.items()}
    fuses = {name: into.fuse for name, into in entries.items() if into and into.parameter.format(layer) == parameter}
    # The part by itself, if it has a name, else the whole that it is a part of.
    return min(fuses, key=lambda name: fuses[name] != (part or None)).format(layer)


def _storage(transformer: nn.Module, parameter: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The parameter's storage, made when its first tensor comes."""
    owner_name, _, name = parameter.rpartition(".")
    owner = transformer.get_submodule(owner_name)
    planned = transformer.get_parameter(parameter)
    if not planned.is_meta:
        return planned
    storage = torch.empty(planned.shape, dtype=dtype, device=device)
    setattr(owner, name, nn.Parameter(storage, requires_grad=False))
    return storage


def _arrange(x: Tensor, into: Into, head_dim: int) -> Tensor:
    """A stored tensor with the dimensions and the order of rows of its parameter."""
    if into.leading:
        return x[0]
    if into.transpose:
        return x.t()
    if into.interleaved:  # [heads, pair, 2, ...] to [heads, 2, pair, ...]: undoes llama.cpp's conversion
        return x.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(x.shape)
    if into.per_head:  # [heads, 3, head_dim, ...] to [3, heads, head_dim, ...]
        return x.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).reshape(x.shape)
    return x
