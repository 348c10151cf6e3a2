"""Llama (Touvron et al., 2023; Llama 3, 2024): a pre-norm decoder with rotary positions and grouped heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import llama_kin
from tercet.server.models.architectures.architecture import LENGTH, Architecture
from tercet.server.models.checkpoint.config import Config, flag, integer

if TYPE_CHECKING:
    from tercet.server.models.spec import TransformerSpec

CONFIG = {
    **llama_kin.CONFIG,
    "max_position_embeddings": integer("max_length", *LENGTH, default=2048),
    "attention_bias": flag("attention_bias", default=False),
    "mlp_bias": flag("feedforward_bias", default=False),
}


def spec(config: Config) -> TransformerSpec:
    """Llama's transformer: biases where the config has them."""
    return llama_kin.spec(
        config,
        qkv_bias=config["attention_bias"],
        attention_output_bias=config["attention_bias"],
        feedforward_bias=config["feedforward_bias"],
    )


LLAMA = Architecture(
    name="llama",
    heads=llama_kin.heads("Llama", answer_prefix="transformer."),
    config=CONFIG,
    weights=llama_kin.WEIGHTS,
    spec=spec,
    prefix="model.",
    gguf=llama_kin.gguf("llama", interleaved=True, attention_bias=False, feedforward_bias=False),
)
