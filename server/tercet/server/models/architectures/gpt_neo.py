"""GPT-Neo (Black et al., 2021), of GPT-3's shape (Brown et al., 2020): global attention alternates with local one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tercet.server.models.architectures import gpt_kin
from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    EPSILON,
    LABELS,
    LAYERS,
    LENGTH,
    WIDTH,
    Architecture,
    language_model,
    sizes,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, Key, choice, each, flag, integer, number
from tercet.server.models.checkpoint.weights import Into

if TYPE_CHECKING:
    from tercet.server.models.spec import TransformerSpec

LOCAL = {"global": False, "local": True}


def expand(attention_types: Any) -> tuple[bool, ...]:
    """Which layers are local, of a list of [[kinds of layers in turn], times]."""
    kinds, times = each("kinds", LOCAL), integer("times", *LAYERS)
    return tuple(local for pattern, count in attention_types for local in kinds.accept(pattern) * times.accept(count))


CONFIG = {
    **sizes(layers="num_layers", heads="num_heads"),
    "intermediate_size": integer("intermediate_size", *WIDTH, default=None),
    "max_position_embeddings": integer("max_length", *LENGTH, default=2048),
    "attention_types": Key(
        "local", 'a list of lists such as [["global", "local"], 12]', expand, expand([[["global", "local"], 12]])
    ),
    # What transformers made of that when it wrote the file; it counts more.
    "attention_layers": each("local", LOCAL),
    "window_size": integer("window", *LENGTH, default=256),
    "activation_function": choice("activation", ACTIVATIONS, default="gelu_tanh"),
    "layer_norm_epsilon": number("norm_eps", *EPSILON, default=1e-5),
    "tie_word_embeddings": flag("tied", default=True),
    **LABELS,
}
LAYER = gpt_kin.LAYER
WEIGHTS = {
    "wte.weight": "vocabulary.weight",
    "wpe.weight": "decoder.embedding.position",
    **affine(
        {
            "h.{}.attn.attention.q_proj": Into(f"{LAYER}.attention.body.qkv", fuse="q"),
            "h.{}.attn.attention.k_proj": Into(f"{LAYER}.attention.body.qkv", fuse="k"),
            "h.{}.attn.attention.v_proj": Into(f"{LAYER}.attention.body.qkv", fuse="v"),
            "h.{}.attn.attention.out_proj": f"{LAYER}.attention.body.output",
            "h.{}.ln_1": f"{LAYER}.attention.norm_before",
            "h.{}.mlp.c_fc": f"{LAYER}.feedforward.body.up",
            "h.{}.mlp.c_proj": f"{LAYER}.feedforward.body.down",
            "h.{}.ln_2": f"{LAYER}.feedforward.norm_before",
            "ln_f": "decoder.final_norm",
        }
    ),
    # Causal masks, and what they once put in place of a score.
    "h.{}.attn.attention.bias": None,
    "h.{}.attn.attention.masked_bias": None,
}


def spec(config: Config) -> TransformerSpec:
    """GPT-Neo's transformer: scores are not scaled, and a local query sees itself and the `window` - 1 keys before."""
    if len(config["local"]) != config["layers"]:
        raise config.refuse("local", f"it must make {config['layers']} layers, not {len(config['local'])}")
    window = (config["window"] - 1, 0)
    return gpt_kin.spec(
        config,
        windows=tuple(window if local else None for local in config["local"]),
        attention_scale=1.0,
        qkv_bias=False,
    )


GPT_NEO = Architecture(
    name="gpt_neo",
    heads={"GPTNeoForCausalLM": language_model(), **gpt_kin.heads("GPTNeo")},
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    prefix="transformer.",
)
