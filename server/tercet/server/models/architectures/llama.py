"""Llama (Touvron et al., 2023; Llama 3, 2024): a pre-norm decoder with rotary positions and grouped heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    EPSILON,
    HEAD_DIM,
    HEADS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Architecture,
    GGUFTables,
    head_dim,
    kv_heads,
    language_model,
)
from tercet.server.models.checkpoint.config import Config, Section, choice, flag, integer, number
from tercet.server.models.checkpoint.weights import Into
from tercet.server.models.spec import RotarySpec, StackSpec, TransformerSpec

if TYPE_CHECKING:
    from collections.abc import Collection

THETA = number("theta", 0, 1e12, default=10_000.0)
SCALING = choice("scaling", {"default": "default", "linear": "linear", "llama3": "llama3"}, default="default")
ROTARY = Section(
    {
        "rope_theta": THETA,
        "rope_type": SCALING,
        "type": SCALING,
        "factor": number("factor", 0, 1e6, default=1.0),
        "low_freq_factor": number("low_freq_factor", 0, 1e6, default=1.0),
        "high_freq_factor": number("high_freq_factor", 0, 1e6, default=4.0),
        "original_max_position_embeddings": integer("original_max_length", *LENGTH, default=8192),
    }
)
CONFIG = {
    "vocab_size": integer("vocab_size", *VOCABULARY),
    "hidden_size": integer("hidden_size", *WIDTH),
    "num_hidden_layers": integer("layers", *LAYERS),
    "num_attention_heads": integer("heads", *HEADS),
    "num_key_value_heads": integer("kv_heads", *HEADS, default=None),
    "head_dim": integer("head_dim", *HEAD_DIM, default=None),
    "intermediate_size": integer("intermediate_size", *WIDTH),
    "max_position_embeddings": integer("max_length", *LENGTH, default=2048),
    "rms_norm_eps": number("norm_eps", *EPSILON, default=1e-6),
    "hidden_act": choice("activation", ACTIVATIONS, default="silu"),
    "attention_bias": flag("attention_bias", default=False),
    "mlp_bias": flag("feedforward_bias", default=False),
    "tie_word_embeddings": flag("tied", default=False),
    "rope_theta": THETA,
    "rope_scaling": ROTARY,
    "rope_parameters": ROTARY,
}

LAYER = "decoder.layers.{}"
WEIGHTS = {
    "embed_tokens.weight": "vocabulary.weight",
    "layers.{}.input_layernorm.weight": f"{LAYER}.attention.norm_before.weight",
    "layers.{}.self_attn.q_proj.weight": Into(f"{LAYER}.attention.body.qkv.weight", fuse="q"),
    "layers.{}.self_attn.q_proj.bias": Into(f"{LAYER}.attention.body.qkv.bias", fuse="q"),
    "layers.{}.self_attn.k_proj.weight": Into(f"{LAYER}.attention.body.qkv.weight", fuse="k"),
    "layers.{}.self_attn.k_proj.bias": Into(f"{LAYER}.attention.body.qkv.bias", fuse="k"),
    "layers.{}.self_attn.v_proj.weight": Into(f"{LAYER}.attention.body.qkv.weight", fuse="v"),
    "layers.{}.self_attn.v_proj.bias": Into(f"{LAYER}.attention.body.qkv.bias", fuse="v"),
    "layers.{}.self_attn.o_proj.weight": f"{LAYER}.attention.body.output.weight",
    "layers.{}.self_attn.o_proj.bias": f"{LAYER}.attention.body.output.bias",
    "layers.{}.post_attention_layernorm.weight": f"{LAYER}.feedforward.norm_before.weight",
    "layers.{}.mlp.gate_proj.weight": Into(f"{LAYER}.feedforward.body.up.weight", fuse="gate"),
    "layers.{}.mlp.gate_proj.bias": Into(f"{LAYER}.feedforward.body.up.bias", fuse="gate"),
    "layers.{}.mlp.up_proj.weight": Into(f"{LAYER}.feedforward.body.up.weight", fuse="up"),
    "layers.{}.mlp.up_proj.bias": Into(f"{LAYER}.feedforward.body.up.bias", fuse="up"),
    "layers.{}.mlp.down_proj.weight": f"{LAYER}.feedforward.body.down.weight",
    "layers.{}.mlp.down_proj.bias": f"{LAYER}.feedforward.body.down.bias",
    "norm.weight": "decoder.final_norm.weight",
    # A buffer of old checkpoints; it follows from the config.
    "layers.{}.self_attn.rotary_emb.inv_freq": None,
}

GGUF_CONFIG = {
    "llama.vocab_size": integer("vocab_size", *VOCABULARY),
    "llama.embedding_length": integer("hidden_size", *WIDTH),
    "llama.block_count": integer("layers", *LAYERS),
    "llama.attention.head_count": integer("heads", *HEADS),
    "llama.attention.head_count_kv": integer("kv_heads", *HEADS, default=None),
    "llama.attention.key_length": integer("head_dim", *HEAD_DIM, default=None),
    "llama.attention.value_length": integer("value_dim", *HEAD_DIM, default=None),
    "llama.rope.dimension_count": integer("rotary_dim", *HEAD_DIM, default=None),
    "llama.feed_forward_length": integer("intermediate_size", *WIDTH),
    "llama.context_length": integer("max_length", *LENGTH),
    "llama.attention.layer_norm_rms_epsilon": number("norm_eps", *EPSILON),
    "llama.expert_count": integer("experts", 0, 0, default=0),
    "llama.rope.freq_base": THETA,
    "llama.rope.scaling.type": choice("scaling", {"none": "default", "linear": "linear"}, default="default"),
    "llama.rope.scaling.factor": number("factor", 0, 1e6, default=1.0),
}
# What GGUF files of this architecture leave unsaid.
GGUF_IMPLIED = {
    "activation": "silu",
    "attention_bias": False,
    "feedforward_bias": False,
    "tied": True,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_length": 8192,
}
GGUF_WEIGHTS = {
    "token_embd.weight": "vocabulary.weight",
    "blk.{}.attn_norm.weight": f"{LAYER}.attention.norm_before.weight",
    "blk.{}.attn_q.weight": Into(f"{LAYER}.attention.body.qkv.weight", fuse="q", interleaved=True),
    "blk.{}.attn_k.weight": Into(f"{LAYER}.attention.body.qkv.weight", fuse="k", interleaved=True),
    "blk.{}.attn_v.weight": Into(f"{LAYER}.attention.body.qkv.weight", fuse="v"),
    "blk.{}.attn_output.weight": f"{LAYER}.attention.body.output.weight",
    "blk.{}.ffn_norm.weight": f"{LAYER}.feedforward.norm_before.weight",
    "blk.{}.ffn_gate.weight": Into(f"{LAYER}.feedforward.body.up.weight", fuse="gate"),
    "blk.{}.ffn_up.weight": Into(f"{LAYER}.feedforward.body.up.weight", fuse="up"),
    "blk.{}.ffn_down.weight": f"{LAYER}.feedforward.body.down.weight",
    "output_norm.weight": "decoder.final_norm.weight",
    "output.weight": "head.output.weight",
    # Llama 3's scaling of the rotary frequencies, made from the config at conversion.
    "rope_freqs.weight": "decoder.rotaries.0.factors",
}


def spec(config: Config, stored: Collection[str]) -> TransformerSpec:
    """Llama's transformer: RMS norms before each branch, no positions but rotary ones."""
    size = head_dim(config)
    for name in ("value_dim", "rotary_dim"):
        if config.get(name, size) != size:
            raise config.refuse(name, f"it must be the size of a head, {size}")
    if size % 2:
        raise config.refuse("head_dim", "it must be even for rotary positions")
    if config["high_freq_factor"] <= config["low_freq_factor"]:
        raise config.refuse("high_freq_factor", f"it must be above low_freq_factor = {config['low_freq_factor']}")
    rotary = RotarySpec(
        theta=config["theta"],
        dim=size,
        scaling="factors" if "decoder.rotaries.0.factors" in stored else config["scaling"],
        factor=config["factor"],
        low_freq_factor=config["low_freq_factor"],
        high_freq_factor=config["high_freq_factor"],
        original_max_length=config["original_max_length"],
    )
    decoder = StackSpec(
        layers=config["layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        heads=config["heads"],
        kv_heads=kv_heads(config),
        head_dim=size,
        causal=True,
        norm="rms_norm",
        norm_place="pre",
        norm_eps=config["norm_eps"],
        final_norm=True,
        rotaries=(rotary,),
        activation=config["activation"],
        gated=True,
        qkv_bias=config["attention_bias"],
        attention_output_bias=config["attention_bias"],
        feedforward_bias=config["feedforward_bias"],
    )
    return TransformerSpec(
        family="decoder",
        vocab_size=config["vocab_size"],
        max_length=config["max_length"],
        default_length=config["max_length"],
        decoder=decoder,
    )


LLAMA = Architecture(
    name="llama",
    heads={"LlamaForCausalLM": language_model()},
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    prefix="model.",
    gguf=GGUFTables(config=GGUF_CONFIG, implied=GGUF_IMPLIED, weights=GGUF_WEIGHTS),
)
