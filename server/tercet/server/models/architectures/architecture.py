"""What an architecture file declares, and the limits of what a config may say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from tercet.server.models.checkpoint.config import Config, Table
    from tercet.server.models.checkpoint.weights import WeightTable
    from tercet.server.models.spec import TransformerSpec

# Lowest and highest sizes of any architecture: a config beyond them is damaged.
LAYERS = (1, 1_000)
WIDTH = (1, 131_072)
HEADS = (1, 1_024)
HEAD_DIM = (1, 256)
VOCABULARY = (1, 4_000_000)
LENGTH = (1, 4_194_304)
EPSILON = (0, 1)


@dataclass(frozen=True, kw_only=True)
class GGUFTables:
    """How GGUF files name what config.json and safetensors name otherwise."""

    config: Table
    """The metadata keys."""
    implied: Mapping[str, Any]
    """Values that such files leave unsaid."""
    weights: WeightTable


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The tables that turn a checkpoint of one `model_type` into a transformer."""

    name: str
    """`model_type` in config.json, `general.architecture` in GGUF."""
    classes: tuple[str, ...]
    """What config.json may list under `architectures`."""
    config: Table
    """The keys of config.json."""
    weights: WeightTable
    """The tensors of a Hugging Face checkpoint."""
    spec: Callable[[Config, Collection[str]], TransformerSpec]
    """From the config, and the parameters that the file has tensors for (`{}` for the layer)."""
    prefix: str = ""
    """What a model with a head puts before the names of its base model's tensors."""
    gguf: GGUFTables | None = None
    """None where GGUF files are not supported."""
    float16: bool = True
    """Whether its activations stay within the range of float16."""


def head_dim(config: Config) -> int:
    """The size of a head: as configured, else an equal share of the hidden size."""
    return config["head_dim"] or config.quotient("hidden_size", "heads")


def kv_heads(config: Config) -> int:
    """How many heads have keys of their own: as configured, else all."""
    if config["kv_heads"] is None:
        return config["heads"]
    config.quotient("heads", "kv_heads")
    return config["kv_heads"]
