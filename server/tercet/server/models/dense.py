"""sentence-transformers' Dense modules: linear maps of pooled vectors, listed in modules.json."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tercet.server.models.checkpoint.config import Config, Key, flag, integer, read_json, read_json_list, shorten
from tercet.server.models.checkpoint.folder import Weights
from tercet.server.models.checkpoint.weights import Names, load_weights, plan
from tercet.server.models.errors import CheckpointError
from tercet.server.models.layers import Linear

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULES = "modules.json"
WIDTH = (1, 131_072)
ACTIVATIONS: dict[str, type[nn.Module]] = {
    module.__name__: module for module in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid)
}


def _activation(value: Any) -> type[nn.Module]:
    return ACTIVATIONS[value.rpartition(".")[2]] if isinstance(value, str) else ACTIVATIONS[""]


CONFIG = {
    "in_features": integer("in_features", *WIDTH),
    "out_features": integer("out_features", *WIDTH),
    "bias": flag("bias", default=True),
    "activation_function": Key(
        "activation", f"torch.nn's {' or '.join(ACTIVATIONS)}", _activation, default=ACTIVATIONS["Tanh"]
    ),
}
NAMES = Names({"linear.weight": "weight", "linear.bias": "bias"})


class Projection(nn.Module):
    """All Dense modules of a folder, in float32 like the vectors they map."""

    def __init__(self, width: int) -> None:
        """Without a module: the identity of vectors of `width`."""
        super().__init__()
        self.width = width
        self.maps = nn.Sequential()

    def append(self, linear: Linear, activation: nn.Module, width: int) -> None:
        """A module, what comes out of which has `width`."""
        self.maps.extend([linear, activation])
        self.width = width

    def forward(self, vectors: Tensor) -> Tensor:
        """float32 [N, hidden] -> float32 [N, width]"""
        return self.maps(vectors)


def load_projection(folder: Path, width: int, *, device: torch.device, allow_pickle: bool = False) -> Projection:
    """The Dense modules of a folder; of a folder or a file without any, the identity.

    `width` is that of pooled vectors. Raises CheckpointError: as loading a model, or where widths don't fit.
    """
    projection = Projection(width)
    for path in _paths(folder / MODULES):
        config = Config(path / "config.json", CONFIG, read_json(path / "config.json"))
        if config["in_features"] != projection.width:
            raise config.refuse("in_features", f"what it reads has {projection.width} features")
        linear = Linear(config["in_features"], {"linear": config["out_features"]}, bias=config["bias"])
        weights = Weights(path, allow_pickle=allow_pickle)
        load_weights(linear, plan(linear, weights, NAMES), weights, device=device, dtype=torch.float32)
        projection.append(linear, config["activation"](), config["out_features"])
    return projection


def _paths(file: Path) -> Iterator[Path]:
    """The folders of the Dense modules that modules.json lists after the pooling."""
    pooled = False
    for index, module in enumerate(read_json_list(file) if file.exists() else []):
        entry = module if isinstance(module, dict) else {}
        kind = str(entry.get("type")).rpartition(".")[2]
        pooled = pooled or kind == "Pooling"
        if kind != "Dense":
            continue
        if not pooled:
            raise CheckpointError(f"{file}: [{index}]: Dense before Pooling is not supported")
        path = PurePosixPath(str(entry.get("path")))
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{file}: [{index}].path is {shorten(str(path))}, it must lie in the folder")
        yield file.parent / path
