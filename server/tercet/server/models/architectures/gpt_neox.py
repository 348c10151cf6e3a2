"""GPT-NeoX (Black et al., 2022; Pythia, 2023): attention beside the feed-forward, heads rotated in part."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tercet.server.models.architectures import gpt_kin, rotary
from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    EPSILON,
    LABELS,
    LENGTH,
    Architecture,
    language_model,
    sizes,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, choice, flag, integer, number
from tercet.server.models.checkpoint.weights import Into

if TYPE_CHECKING:
    from tercet.server.models.spec import TransformerSpec

CONFIG = {
    **sizes(),
    "max_position_embeddings": integer("max_length", *LENGTH, default=2048),
    "hidden_act": choice("activation", ACTIVATIONS, default="gelu"),
    "layer_norm_eps": number("norm_eps", *EPSILON, default=1e-5),
    "use_parallel_residual": flag("parallel", default=True),
    "attention_bias": flag("attention_bias", default=True),
    "tie_word_embeddings": flag("tied", default=False),
    "rotary_emb_base": rotary.THETA,
    "rotary_pct": number("rotary_share", 0, 1, default=0.25),
    **rotary.CONFIG,
    **LABELS,
}
LAYER = gpt_kin.LAYER
WEIGHTS = {
    "embed_in.weight": "vocabulary.weight",
    **affine(
        {
            "layers.{}.input_layernorm": f"{LAYER}.attention.norm_before",
            "layers.{}.attention.query_key_value": Into(f"{LAYER}.attention.body.qkv", per_head=True),
            "layers.{}.attention.dense": f"{LAYER}.attention.body.output",
            "layers.{}.post_attention_layernorm": f"{LAYER}.feedforward.norm_before",
            "layers.{}.mlp.dense_h_to_4h": f"{LAYER}.feedforward.body.up",
            "layers.{}.mlp.dense_4h_to_h": f"{LAYER}.feedforward.body.down",
            "final_layer_norm": "decoder.final_norm",
        }
    ),
    # Buffers; they follow from the config.
    "layers.{}.attention.bias": None,
    "layers.{}.attention.masked_bias": None,
    "layers.{}.attention.rotary_emb.inv_freq": None,
}
# transformers 5 has renamed it; files keep its first name.
OUTPUT = {"embed_out.weight": "head.output.weight", "lm_head.weight": Into("head.output.weight", spare=True)}


def spec(config: Config) -> TransformerSpec:
    """GPT-NeoX's transformer."""
    return gpt_kin.spec(
        config,
        parallel=config["parallel"],
        learned_positions=0,
        rotaries=(rotary.rotary(config, config.quotient("hidden_size", "heads")),),
        qkv_bias=config["attention_bias"],
        attention_output_bias=config["attention_bias"],
    )


GPT_NEOX = Architecture(
    name="gpt_neox",
    heads={"GPTNeoXForCausalLM": replace(language_model(), weights=OUTPUT), **gpt_kin.heads("GPTNeoX")},
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    prefix="gpt_neox.",
)
