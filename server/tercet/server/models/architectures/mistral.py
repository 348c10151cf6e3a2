"""Mistral (Jiang et al., 2023): Llama with a sliding window in every layer, in later versions without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import llama_kin
from tercet.server.models.architectures.architecture import LENGTH, Architecture
from tercet.server.models.checkpoint.config import Config, integer, nullable

if TYPE_CHECKING:
    from tercet.server.models.spec import TransformerSpec

CONFIG = {
    **llama_kin.CONFIG,
    "max_position_embeddings": integer("max_length", *LENGTH, default=131_072),
    "sliding_window": nullable(integer("window", *LENGTH, default=4096)),
}


def spec(config: Config) -> TransformerSpec:
    """Mistral's transformer: no biases, and a query sees itself and the `window` - 1 keys before."""
    return llama_kin.spec(config, windows=((config["window"] - 1, 0) if config["window"] else None,))


MISTRAL = Architecture(
    name="mistral",
    heads=llama_kin.heads("Mistral"),
    config=CONFIG,
    weights=llama_kin.WEIGHTS,
    spec=spec,
    prefix="model.",
)
