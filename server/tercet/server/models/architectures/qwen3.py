"""Qwen3 (Qwen Team, 2025): Qwen2 with norms of queries and keys in place of their biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import llama_kin, qwen2
from tercet.server.models.architectures.architecture import HEAD_DIM, Architecture
from tercet.server.models.checkpoint.config import Config, flag, integer

if TYPE_CHECKING:
    from tercet.server.models.spec import TransformerSpec

CONFIG = {
    **qwen2.CONFIG,
    "head_dim": integer("head_dim", *HEAD_DIM, default=128),
    "attention_bias": flag("attention_bias", default=False),
}


def spec(config: Config) -> TransformerSpec:
    """Qwen3's transformer."""
    return llama_kin.spec(
        config,
        windows=qwen2.windows(config),
        qk_norm=True,
        qkv_bias=config["attention_bias"],
        attention_output_bias=config["attention_bias"],
    )


QWEN3 = Architecture(
    name="qwen3",
    heads=llama_kin.heads("Qwen3", answer_prefix="transformer."),
    config=CONFIG,
    weights=llama_kin.WEIGHTS,
    spec=spec,
    prefix="model.",
    gguf=llama_kin.gguf("qwen3", attention_bias=False),
)
