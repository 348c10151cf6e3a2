"""What BERT and its kin (RoBERTa, ELECTRA, MPNet, DistilBERT) share: config keys, tensor names, spec and heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tercet.server.models.architectures.architecture import ACTIVATIONS, EPSILON, LABELS, LENGTH, Head, sizes
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, choice, flag, integer, number
from tercet.server.models.checkpoint.weights import Into
from tercet.server.models.spec import HeadSpec, StackSpec, TransformerSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tercet.server.models.checkpoint.weights import WeightTable
    from tercet.server.models.spec import HeadActivation

CONFIG = {
    **sizes(),
    "max_position_embeddings": integer("positions", *LENGTH),
    "layer_norm_eps": number("norm_eps", *EPSILON, default=1e-12),
    "hidden_act": choice("activation", ACTIVATIONS, default="gelu"),
    "position_embedding_type": choice("position_kind", {"absolute": "absolute"}, default="absolute"),
    "is_decoder": choice("is_decoder", {False: False}, default=False),
    "add_cross_attention": choice("cross_attention", {False: False}, default=False),
    "tie_word_embeddings": flag("tied", default=True),
    **LABELS,
}
TOKEN_TYPES = integer("token_types", 1, 1_000, default=2)

EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "vocabulary.weight",
    "embeddings.position_embeddings.weight": "encoder.embedding.position",
    "embeddings.token_type_embeddings.weight": "encoder.embedding.token_type",
    **affine({"embeddings.LayerNorm": "encoder.embedding.norm"}),
    # A buffer of old checkpoints.
    "embeddings.position_ids": None,
}
LAYER = "encoder.layers.{}"
LAYER_PARTS = {
    "q": Into(f"{LAYER}.attention.body.qkv", fuse="q"),
    "k": Into(f"{LAYER}.attention.body.qkv", fuse="k"),
    "v": Into(f"{LAYER}.attention.body.qkv", fuse="v"),
    "output": f"{LAYER}.attention.body.output",
    "attention_norm": f"{LAYER}.attention.norm_after",
    "up": f"{LAYER}.feedforward.body.up",
    "down": f"{LAYER}.feedforward.body.down",
    "norm": f"{LAYER}.feedforward.norm_after",
}


def layers(prefix: str, names: Mapping[str, str]) -> WeightTable:
    """The tensors of the layers, by the names that the parts of a layer have after the prefix."""
    return affine({f"{prefix}.{{}}.{names[part]}": place for part, place in LAYER_PARTS.items()})


# As BERT itself has them.
WEIGHTS = {
    **EMBEDDINGS,
    **layers(
        "encoder.layer",
        {
            "q": "attention.self.query",
            "k": "attention.self.key",
            "v": "attention.self.value",
            "output": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm",
            "up": "intermediate.dense",
            "down": "output.dense",
            "norm": "output.LayerNorm",
        },
    ),
}


def spec(config: Config, *, position_offset: int = 0, **others: Any) -> TransformerSpec:
    """An encoder with learned positions, norms after each sum and after the embeddings, and biases everywhere.

    `position_offset` is the row of the first position; `others` are what is special in the stack.
    """
    length = config["positions"] - position_offset
    if length < 1:
        raise config.refuse("positions", f"it must be above {position_offset}, the row of the first position")
    encoder = StackSpec(
        layers=config["layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        heads=config["heads"],
        kv_heads=config["heads"],
        head_dim=config.quotient("hidden_size", "heads"),
        causal=False,
        norm="layer_norm",
        norm_place="post",
        norm_eps=config.get("norm_eps", 1e-12),
        norm_bias=True,
        embedding_norm=True,
        learned_positions=config["positions"],
        position_offset=position_offset,
        activation=config["activation"],
        gated=False,
        qkv_bias=True,
        attention_output_bias=True,
        feedforward_bias=True,
        **others,
    )
    return TransformerSpec(
        family="encoder",
        vocab_size=config["vocab_size"],
        max_length=length,
        default_length=length,
        encoder=encoder,
    )


def masked_lm(
    dense: str,
    norm: str,
    output: str,
    *,
    bias: str | None = None,
    activation: HeadActivation | None = None,
    width: str = "hidden_size",
) -> Head:
    """A dense map of `width`, an activation (None is the config's), a norm and a map tied to the word embedding.

    `bias` is a name that files with a tied map have for that map's bias, and others beside its own.
    """
    weights = affine({dense: "head.dense", norm: "head.norm", output: "head.output"})
    if bias:
        weights = {bias: Into("head.output.bias", fallback=True), **weights}
    return Head(
        lambda config: HeadSpec(
            task="fill_mask",
            outputs=config["vocab_size"],
            dense=config[width],
            activation=activation or config["activation"],
            norm="layer_norm",
            norm_eps=config.get("norm_eps", 1e-12),
            tied=config["tied"],
            bias=True,
        ),
        weights,
    )
