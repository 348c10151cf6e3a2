"""OPT (Zhang et al., 2022): GPT-3's shape with ReLU; that of 350 million parameters is post-norm with narrow words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import gpt_kin
from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    BASE,
    LABELS,
    LENGTH,
    WIDTH,
    Architecture,
    answerer,
    classifier,
    language_model,
    sizes,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, choice, flag, integer
from tercet.server.models.checkpoint.weights import Into

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.weights import WeightTable
    from tercet.server.models.spec import TransformerSpec

OFFSET = 2  # of positions: the table begins with those of padding, as fairseq's
CONFIG = {
    **sizes(intermediate_size="ffn_dim"),
    "max_position_embeddings": integer("max_length", *LENGTH, default=2048),
    "word_embed_proj_dim": integer("embedding_size", *WIDTH, default=None),
    "do_layer_norm_before": flag("pre_norm", default=True),
    "_remove_final_layer_norm": flag("without_final_norm", default=False),
    "enable_bias": flag("bias", default=True),
    "layer_norm_elementwise_affine": choice("affine", {True: True}, default=True),
    "activation_function": choice("activation", ACTIVATIONS, default="relu"),
    "tie_word_embeddings": flag("tied", default=True),
    **LABELS,
}
LAYER = gpt_kin.LAYER


def weights(config: Config) -> WeightTable:
    """The tensors; where a layer's norms stand is up to the config."""
    norms = "norm_before" if config["pre_norm"] else "norm_after"
    return {
        "decoder.embed_tokens.weight": "vocabulary.weight",
        "decoder.embed_positions.weight": "decoder.embedding.position",
        "decoder.project_in.weight": "decoder.embedding.map.weight",
        "decoder.project_out.weight": "decoder.output_map.weight",
        **affine(
            {
                f"{LAYER}.self_attn.q_proj": Into(f"{LAYER}.attention.body.qkv", fuse="q"),
                f"{LAYER}.self_attn.k_proj": Into(f"{LAYER}.attention.body.qkv", fuse="k"),
                f"{LAYER}.self_attn.v_proj": Into(f"{LAYER}.attention.body.qkv", fuse="v"),
                f"{LAYER}.self_attn.out_proj": f"{LAYER}.attention.body.output",
                f"{LAYER}.self_attn_layer_norm": f"{LAYER}.attention.{norms}",
                f"{LAYER}.fc1": f"{LAYER}.feedforward.body.up",
                f"{LAYER}.fc2": f"{LAYER}.feedforward.body.down",
                f"{LAYER}.final_layer_norm": f"{LAYER}.feedforward.{norms}",
                "decoder.final_layer_norm": "decoder.final_norm",
            }
        ),
    }


def spec(config: Config) -> TransformerSpec:
    """OPT's transformer; words may be narrower than what the layers pass on, and so is then what comes out of them."""
    width = config["embedding_size"] if config["embedding_size"] != config["hidden_size"] else None
    return gpt_kin.spec(
        config,
        norm_place="pre" if config["pre_norm"] else "post",
        final_norm=config["pre_norm"] and not config["without_final_norm"],
        embedding_size=width,
        embedding_map="words",
        embedding_map_bias=False,
        output_map=width,
        learned_positions=config["max_length"] + OFFSET,
        position_offset=OFFSET,
        qkv_bias=config["bias"],
        attention_output_bias=config["bias"],
        feedforward_bias=config["bias"],
    )


OPT = Architecture(
    name="opt",
    heads={
        "OPTForCausalLM": language_model(),
        "OPTModel": BASE,
        "OPTForSequenceClassification": classifier("score", reads="last", bias=False),
        "OPTForQuestionAnswering": answerer(),
    },
    config=CONFIG,
    weights=weights,
    spec=spec,
    prefix="model.",
)
