"""What Llama and its kin (Mistral, Qwen) share: RMS norms before each branch, rotary positions, gated feed-forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tercet.server.models.architectures import rotary
from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    BASE,
    EPSILON,
    HEAD_DIM,
    HEADS,
    LABELS,
    LENGTH,
    GGUFTables,
    Head,
    answerer,
    classifier,
    gguf_sizes,
    head_dim,
    kv_heads,
    language_model,
    sizes,
    tagger,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, choice, flag, integer, number
from tercet.server.models.checkpoint.weights import Into
from tercet.server.models.spec import StackSpec, TransformerSpec

CONFIG = {
    **sizes(),
    "num_key_value_heads": integer("kv_heads", *HEADS, default=None),
    "head_dim": integer("head_dim", *HEAD_DIM, default=None),
    "max_position_embeddings": integer("max_length", *LENGTH),
    "rms_norm_eps": number("norm_eps", *EPSILON, default=1e-6),
    "hidden_act": choice("activation", ACTIVATIONS, default="silu"),
    "tie_word_embeddings": flag("tied", default=False),
    "rope_theta": rotary.THETA,
    "partial_rotary_factor": rotary.SHARE,
    **rotary.CONFIG,
    **LABELS,
}

# Llama 3's scaling of the rotary frequencies, made from the config at conversion.
ROTARY_FACTORS = "rope_freqs.weight"
LAYER = "decoder.layers.{}"
WEIGHTS = {
    "embed_tokens.weight": "vocabulary.weight",
    "layers.{}.input_layernorm.weight": f"{LAYER}.attention.norm_before.weight",
    "layers.{}.post_attention_layernorm.weight": f"{LAYER}.feedforward.norm_before.weight",
    "layers.{}.self_attn.q_norm.weight": f"{LAYER}.attention.body.q_norm.weight",
    "layers.{}.self_attn.k_norm.weight": f"{LAYER}.attention.body.k_norm.weight",
    "norm.weight": "decoder.final_norm.weight",
    **affine(
        {
            "layers.{}.self_attn.q_proj": Into(f"{LAYER}.attention.body.qkv", fuse="q"),
            "layers.{}.self_attn.k_proj": Into(f"{LAYER}.attention.body.qkv", fuse="k"),
            "layers.{}.self_attn.v_proj": Into(f"{LAYER}.attention.body.qkv", fuse="v"),
            "layers.{}.self_attn.o_proj": f"{LAYER}.attention.body.output",
            "layers.{}.mlp.gate_proj": Into(f"{LAYER}.feedforward.body.up", fuse="gate"),
            "layers.{}.mlp.up_proj": Into(f"{LAYER}.feedforward.body.up", fuse="up"),
            "layers.{}.mlp.down_proj": f"{LAYER}.feedforward.body.down",
        }
    ),
    # A buffer of old checkpoints; it follows from the config.
    "layers.{}.self_attn.rotary_emb.inv_freq": None,
}


def spec(config: Config, **others: Any) -> TransformerSpec:
    """A decoder; `others` are what is special in its stack."""
    size = head_dim(config)
    for name in ("value_dim", "rotary_dim"):
        if config.get(name, size) != size:
            raise config.refuse(name, f"it must be the size of a head, {size}")
    if size % 2:
        raise config.refuse("head_dim", "it must be even for rotary positions")
    if config["rotary_share"] != 1:
        raise config.refuse("rotary_share", "it must be 1: all of a head is rotated")
    positions = rotary.rotary(config, size)
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
        rotaries=(positions,),
        activation=config["activation"],
        gated=True,
        **others,
    )
    return TransformerSpec(
        family="decoder",
        vocab_size=config["vocab_size"],
        max_length=rotary.reach(config, positions),
        default_length=config["max_length"],
        decoder=decoder,
    )


def heads(name: str, *, answer_prefix: str | None = None) -> dict[str, Head]:
    """The classes of the model called `name`; `answer_prefix` is what answering ones put before the others' tensors."""
    return {
        f"{name}ForCausalLM": language_model(),
        f"{name}Model": BASE,
        f"{name}ForSequenceClassification": classifier("score", reads="last", bias=False),
        f"{name}ForTokenClassification": tagger("score"),
        f"{name}ForQuestionAnswering": replace(answerer(), prefix=answer_prefix),
    }


def gguf(name: str, *, interleaved: bool = False, **implied: Any) -> GGUFTables:
    """The tables of GGUF files; `implied` are values that files of this architecture leave unsaid."""
    return GGUFTables(
        config={
            **gguf_sizes(name),
            f"{name}.attention.head_count_kv": integer("kv_heads", *HEADS, default=None),
            f"{name}.attention.key_length": integer("head_dim", *HEAD_DIM, default=None),
            f"{name}.attention.value_length": integer("value_dim", *HEAD_DIM, default=None),
            f"{name}.rope.dimension_count": integer("rotary_dim", *HEAD_DIM, default=None),
            f"{name}.context_length": integer("max_length", *LENGTH),
            f"{name}.attention.layer_norm_rms_epsilon": number("norm_eps", *EPSILON),
            f"{name}.expert_count": integer("experts", 0, 0, default=0),
            f"{name}.rope.freq_base": rotary.THETA,
            f"{name}.rope.scaling.type": choice("scaling", {"none": "default", "linear": "linear"}, default="default"),
            f"{name}.rope.scaling.factor": number("factor", 0, 1e6, default=None),
        },
        implied={**rotary.UNSCALED, "activation": "silu", "tied": True, **implied},
        weights={
            "token_embd.weight": "vocabulary.weight",
            "blk.{}.attn_norm.weight": f"{LAYER}.attention.norm_before.weight",
            "blk.{}.ffn_norm.weight": f"{LAYER}.feedforward.norm_before.weight",
            "blk.{}.attn_q_norm.weight": f"{LAYER}.attention.body.q_norm.weight",
            "blk.{}.attn_k_norm.weight": f"{LAYER}.attention.body.k_norm.weight",
            "output_norm.weight": "decoder.final_norm.weight",
            "output.weight": "head.output.weight",
            ROTARY_FACTORS: "decoder.rotaries.0.factors",
            **affine(
                {
                    "blk.{}.attn_q": Into(f"{LAYER}.attention.body.qkv", fuse="q", interleaved=interleaved),
                    "blk.{}.attn_k": Into(f"{LAYER}.attention.body.qkv", fuse="k", interleaved=interleaved),
                    "blk.{}.attn_v": Into(f"{LAYER}.attention.body.qkv", fuse="v"),
                    "blk.{}.attn_output": f"{LAYER}.attention.body.output",
                    "blk.{}.ffn_gate": Into(f"{LAYER}.feedforward.body.up", fuse="gate"),
                    "blk.{}.ffn_up": Into(f"{LAYER}.feedforward.body.up", fuse="up"),
                    "blk.{}.ffn_down": f"{LAYER}.feedforward.body.down",
                }
            ),
        },
        told={ROTARY_FACTORS: "rotary_factors"},
    )
