"""Qwen2 and Qwen2.5 (Qwen Team, 2024): Llama with biases of queries, keys and values, and windows in some layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import llama_kin
from tercet.server.models.architectures.architecture import LENGTH, Architecture
from tercet.server.models.checkpoint.config import Config, each, flag, integer, nullable

if TYPE_CHECKING:
    from tercet.server.models.spec import TransformerSpec, Window

CONFIG = {
    **llama_kin.CONFIG,
    "max_position_embeddings": integer("max_length", *LENGTH, default=32_768),
    "use_sliding_window": flag("windowed", default=False),
    "sliding_window": nullable(integer("window", *LENGTH, default=4096)),
    "max_window_layers": integer("full_layers", 0, 1_000_000, default=28),
    "layer_types": each("windowed_layers", {"full_attention": False, "sliding_attention": True}, default=None),
}


def windows(config: Config) -> tuple[Window | None, ...]:
    """Of each layer: as `layer_types` says, else all are windowed from layer `max_window_layers` on."""
    layers = range(config["layers"])
    window = (config["window"] - 1, 0) if config.get("windowed", False) and config["window"] else None
    windowed = config.get("windowed_layers", None)
    if windowed is None:
        return tuple(window if layer >= config["full_layers"] else None for layer in layers) if window else (None,)
    if len(windowed) != len(layers):
        raise config.refuse("windowed_layers", f"it must have an entry for each of {len(layers)} layers")
    if any(windowed) and window is None:
        raise config.refuse("windowed_layers", "it must not have windows that use_sliding_window switches off")
    return tuple(window if narrow else None for narrow in windowed)


def spec(config: Config) -> TransformerSpec:
    """Qwen2's transformer."""
    return llama_kin.spec(config, windows=windows(config), qkv_bias=True)


QWEN2 = Architecture(
    name="qwen2",
    heads=llama_kin.heads("Qwen2", answer_prefix="transformer."),
    config=CONFIG,
    weights=llama_kin.WEIGHTS,
    spec=spec,
    prefix="model.",
    gguf=llama_kin.gguf("qwen2"),
)
