"""BERT (Devlin et al., 2018): a post-norm encoder with learned positions and token types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    BASE,
    EPSILON,
    HEADS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Architecture,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, choice, integer, number
from tercet.server.models.checkpoint.weights import Into
from tercet.server.models.spec import StackSpec, TransformerSpec

if TYPE_CHECKING:
    from collections.abc import Collection

CONFIG = {
    "vocab_size": integer("vocab_size", *VOCABULARY),
    "hidden_size": integer("hidden_size", *WIDTH),
    "num_hidden_layers": integer("layers", *LAYERS),
    "num_attention_heads": integer("heads", *HEADS),
    "intermediate_size": integer("intermediate_size", *WIDTH),
    "max_position_embeddings": integer("max_length", *LENGTH),
    "type_vocab_size": integer("token_types", 1, 1_000, default=2),
    "layer_norm_eps": number("norm_eps", *EPSILON, default=1e-12),
    "hidden_act": choice("activation", ACTIVATIONS, default="gelu"),
    "position_embedding_type": choice("positions", {"absolute": "absolute"}, default="absolute"),
    "is_decoder": choice("is_decoder", {False: False}, default=False),
    "add_cross_attention": choice("cross_attention", {False: False}, default=False),
}

LAYER = "encoder.layers.{}"
WEIGHTS = {
    "embeddings.word_embeddings.weight": "vocabulary.weight",
    "embeddings.position_embeddings.weight": "encoder.embedding.position",
    "embeddings.token_type_embeddings.weight": "encoder.embedding.token_type",
    **affine(
        {
            "embeddings.LayerNorm": "encoder.embedding.norm",
            "encoder.layer.{}.attention.self.query": Into(f"{LAYER}.attention.body.qkv", fuse="q"),
            "encoder.layer.{}.attention.self.key": Into(f"{LAYER}.attention.body.qkv", fuse="k"),
            "encoder.layer.{}.attention.self.value": Into(f"{LAYER}.attention.body.qkv", fuse="v"),
            "encoder.layer.{}.attention.output.dense": f"{LAYER}.attention.body.output",
            "encoder.layer.{}.attention.output.LayerNorm": f"{LAYER}.attention.norm_after",
            "encoder.layer.{}.intermediate.dense": f"{LAYER}.feedforward.body.up",
            "encoder.layer.{}.output.dense": f"{LAYER}.feedforward.body.down",
            "encoder.layer.{}.output.LayerNorm": f"{LAYER}.feedforward.norm_after",
            # The heads it was pretrained with.
            "pooler.dense": None,
            "cls.predictions.decoder": None,
            "cls.predictions.transform.dense": None,
            "cls.predictions.transform.LayerNorm": None,
            "cls.seq_relationship": None,
        }
    ),
    "cls.predictions.bias": None,
    "embeddings.position_ids": None,
}
# What checkpoints converted from TensorFlow call the weights and biases of norms.
WEIGHTS |= {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): place
    for name, place in WEIGHTS.items()
    if "LayerNorm" in name
}


def spec(config: Config, stored: Collection[str]) -> TransformerSpec:
    """BERT's transformer: norms after each sum and after the embeddings, biases everywhere."""
    del stored
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
        norm_eps=config["norm_eps"],
        norm_bias=True,
        embedding_norm=True,
        token_types=config["token_types"],
        learned_positions=config["max_length"],
        activation=config["activation"],
        gated=False,
        qkv_bias=True,
        attention_output_bias=True,
        feedforward_bias=True,
    )
    return TransformerSpec(
        family="encoder",
        vocab_size=config["vocab_size"],
        max_length=config["max_length"],
        default_length=config["max_length"],
        encoder=encoder,
    )


BERT = Architecture(
    name="bert",
    heads={"BertModel": BASE, "BertForMaskedLM": BASE, "BertForPreTraining": BASE},
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    prefix="bert.",
)
