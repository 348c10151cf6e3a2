"""What BART and its kin, mBART, Pegasus, Marian and M2M100, share: config keys, tensor names, stacks and heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    BASE,
    HEADS,
    LABELS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Head,
    answerer,
    dense_classifier,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, choice, flag, integer
from tercet.server.models.checkpoint.weights import Into
from tercet.server.models.spec import HeadSpec, StackSpec, TransformerSpec

if TYPE_CHECKING:
    from collections.abc import Callable


PADDING_ROWS = 2  # fairseq's learned positions begin behind the id of padding, which is 1

CONFIG = {
    "vocab_size": integer("vocab_size", *VOCABULARY),
    "d_model": integer("hidden_size", *WIDTH),
    "encoder_layers": integer("encoder_layers", *LAYERS),
    "encoder_attention_heads": integer("encoder_heads", *HEADS),
    "encoder_ffn_dim": integer("encoder_intermediate_size", *WIDTH),
    "decoder_layers": integer("decoder_layers", *LAYERS),
    "decoder_attention_heads": integer("decoder_heads", *HEADS),
    "decoder_ffn_dim": integer("decoder_intermediate_size", *WIDTH),
    "max_position_embeddings": integer("max_length", *LENGTH, default=1024),
    "activation_function": choice("activation", ACTIVATIONS, default="gelu"),
    "scale_embedding": flag("scale_embedding", default=False),
    "tie_word_embeddings": flag("tied", default=True),
    **LABELS,
}


def weights(norms: Literal["norm_before", "norm_after"]) -> dict[str, Into | str | None]:
    """The tensors of both stacks; `norms` is the slot of each branch that its norm fills."""
    table: dict[str, Into | str | None] = {
        "shared.weight": "vocabulary.weight",
        "encoder.embed_tokens.weight": Into("vocabulary.weight", spare=True),
        "decoder.embed_tokens.weight": "target_vocabulary.weight",
    }
    for stack in ("encoder", "decoder"):
        layer = f"{stack}.layers.{{}}"
        qkv, kv = f"{layer}.attention.body.qkv", f"{layer}.cross_attention.body.kv"
        table |= {
            f"{stack}.embed_positions.weight": f"{stack}.embedding.position",
            **affine(
                {
                    f"{stack}.layernorm_embedding": f"{stack}.embedding.norm",
                    f"{layer}.self_attn.q_proj": Into(qkv, fuse="q"),
                    f"{layer}.self_attn.k_proj": Into(qkv, fuse="k"),
                    f"{layer}.self_attn.v_proj": Into(qkv, fuse="v"),
                    f"{layer}.self_attn.out_proj": f"{layer}.attention.body.output",
                    f"{layer}.self_attn_layer_norm": f"{layer}.attention.{norms}",
                    f"{layer}.encoder_attn.q_proj": f"{layer}.cross_attention.body.q",
                    f"{layer}.encoder_attn.k_proj": Into(kv, fuse="k"),
                    f"{layer}.encoder_attn.v_proj": Into(kv, fuse="v"),
                    f"{layer}.encoder_attn.out_proj": f"{layer}.cross_attention.body.output",
                    f"{layer}.encoder_attn_layer_norm": f"{layer}.cross_attention.{norms}",
                    f"{layer}.fc1": f"{layer}.feedforward.body.up",
                    f"{layer}.fc2": f"{layer}.feedforward.body.down",
                    f"{layer}.final_layer_norm": f"{layer}.feedforward.{norms}",
                    f"{stack}.layer_norm": f"{stack}.final_norm",
                }
            ),
            f"{stack}.version": None,  # fairseq's
        }
    # Of the head they were pretrained with.
    return table | {"lm_head.weight": None, "final_logits_bias": None}


# Sinusoids that files may hold though they follow from the config.
SINUSOIDS: dict[str, Into | str | None] = {
    f"{stack}.embed_positions.{name}": None for stack in ("encoder", "decoder") for name in ("weight", "weights")
}


def spec(config: Config, **both: Any) -> TransformerSpec:
    """Two stacks with `both` of a `StackSpec`; positions that are no sinusoids are learned."""
    learned = "sinusoids" not in both
    if learned:
        both |= {"learned_positions": config["max_length"] + PADDING_ROWS, "position_offset": PADDING_ROWS}

    def stack(name: Literal["encoder", "decoder"]) -> StackSpec:
        return StackSpec(
            layers=config[f"{name}_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config[f"{name}_intermediate_size"],
            heads=config[f"{name}_heads"],
            kv_heads=config[f"{name}_heads"],
            head_dim=config.quotient("hidden_size", f"{name}_heads"),
            causal=name == "decoder",
            cross_attention=name == "decoder",
            norm="layer_norm",
            norm_eps=1e-5,
            norm_bias=True,
            embedding_scale=math.sqrt(config["hidden_size"]) if config["scale_embedding"] else 1.0,
            activation=config["activation"],
            gated=False,
            qkv_bias=True,
            attention_output_bias=True,
            feedforward_bias=True,
            **both,
        )

    return TransformerSpec(
        family="seq2seq",
        vocab_size=config["vocab_size"],
        max_length=config["max_length"] if learned else None,
        default_length=config["max_length"],
        encoder=stack("encoder"),
        decoder=stack("decoder"),
    )


def language_model(vocab_size: Callable[[Config], int] = lambda config: config["vocab_size"]) -> Head:
    """A map to the vocabulary, mostly tied to the word embedding, with a bias."""
    return Head(
        lambda config: HeadSpec(task="generate", outputs=vocab_size(config), tied=config["tied"], bias=True),
        {"lm_head.weight": "head.output.weight", "final_logits_bias": Into("head.output.bias", leading=True)},
    )


def heads(name: str) -> dict[str, Head]:
    """BART's and mBART's; those that classify and answer read what the decoder makes of the source itself."""
    return {
        f"{name}ForConditionalGeneration": language_model(),
        f"{name}ForSequenceClassification": dense_classifier(
            "classification_head.dense", "classification_head.out_proj", reads="last"
        ),
        f"{name}ForQuestionAnswering": answerer(),
        f"{name}Model": BASE,
    }
