"""GPT-2 (Radford et al., 2019): GPT with its norms before each branch, and a final one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import gpt_kin
from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    EPSILON,
    LENGTH,
    WIDTH,
    Architecture,
    GGUFTables,
    gguf_sizes,
    language_model,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, choice, flag, integer, number

if TYPE_CHECKING:
    from tercet.server.models.spec import TransformerSpec

LAYER = gpt_kin.LAYER
CONFIG = {
    **gpt_kin.CONFIG,
    "n_inner": integer("intermediate_size", *WIDTH, default=None),
    "activation_function": choice("activation", ACTIVATIONS, default="gelu_tanh"),
    "scale_attn_weights": flag("scaled", default=True),
    "scale_attn_by_inverse_layer_idx": flag("scale_by_layer", default=False),
    "add_cross_attention": choice("cross_attention", {False: False}, default=False),
}
WEIGHTS = {
    "wte.weight": "vocabulary.weight",
    "wpe.weight": "decoder.embedding.position",
    **gpt_kin.weights("norm_before"),
    **affine({"ln_f": "decoder.final_norm"}),
}
GGUF = GGUFTables(
    config={
        **gguf_sizes("gpt2"),
        "gpt2.context_length": integer("max_length", *LENGTH),
        "gpt2.attention.layer_norm_epsilon": number("norm_eps", *EPSILON),
    },
    implied={"activation": "gelu_tanh", "scaled": True, "scale_by_layer": False, "tied": True},
    weights={
        "token_embd.weight": "vocabulary.weight",
        "position_embd.weight": "decoder.embedding.position",
        "output.weight": "head.output.weight",
        **affine(
            {
                "blk.{}.attn_qkv": f"{LAYER}.attention.body.qkv",
                "blk.{}.attn_output": f"{LAYER}.attention.body.output",
                "blk.{}.attn_norm": f"{LAYER}.attention.norm_before",
                "blk.{}.ffn_up": f"{LAYER}.feedforward.body.up",
                "blk.{}.ffn_down": f"{LAYER}.feedforward.body.down",
                "blk.{}.ffn_norm": f"{LAYER}.feedforward.norm_before",
                "output_norm": "decoder.final_norm",
            }
        ),
    },
)


def spec(config: Config) -> TransformerSpec:
    """GPT-2's transformer."""
    return gpt_kin.spec(
        config,
        attention_scale=None if config["scaled"] else 1.0,
        scale_by_layer=config["scale_by_layer"],
    )


GPT2 = Architecture(
    name="gpt2",
    heads={"GPT2LMHeadModel": language_model(), **gpt_kin.heads("GPT2")},
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    prefix="transformer.",
    gguf=GGUF,
)
