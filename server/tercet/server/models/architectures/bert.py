"""BERT (Devlin et al., 2018): a post-norm encoder with learned positions and token types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures.architecture import (
    EPSILON,
    HEADS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Architecture,
)
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
    "hidden_act": choice(
        "activation",
        {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"},
        default="gelu",
    ),
    "position_embedding_type": choice("positions", {"absolute": "absolute"}, default="absolute"),
    "is_decoder": choice("is_decoder", {False: False}, default=False),
    "add_cross_attention": choice("cross_attention", {False: False}, default=False),
}

LAYER = "encoder.layers.{}"
WEIGHTS = {
    "embeddings.word_embeddings.weight": "vocabulary.weight",
    "embeddings.position_embeddings.weight": "encoder.embedding.position",
    "embeddings.token_type_embeddings.weight": "encoder.embedding.token_type",
    "embeddings.LayerNorm.weight": "encoder.embedding.norm.weight",
    "embeddings.LayerNorm.bias": "encoder.embedding.norm.bias",
    "encoder.layer.{}.attention.self.query.weight": Into(f"{LAYER}.attention.body.qkv.weight", fuse="q"),
    "encoder.layer.{}.attention.self.query.bias": Into(f"{LAYER}.attention.body.qkv.bias", fuse="q"),
    "encoder.layer.{}.attention.self.key.weight": Into(f"{LAYER}.attention.body.qkv.weight", fuse="k"),
    "encoder.layer.{}.attention.self.key.bias": Into(f"{LAYER}.attention.body.qkv.bias", fuse="k"),
    "encoder.layer.{}.attention.self.value.weight": Into(f"{LAYER}.attention.body.qkv.weight", fuse="v"),
    "encoder.layer.{}.attention.self.value.bias": Into(f"{LAYER}.attention.body.qkv.bias", fuse="v"),
    "encoder.layer.{}.attention.output.dense.weight": f"{LAYER}.attention.body.output.weight",
    "encoder.layer.{}.attention.output.dense.bias": f"{LAYER}.attention.body.output.bias",
    "encoder.layer.{}.attention.output.LayerNorm.weight": f"{LAYER}.attention.norm_after.weight",
    "encoder.layer.{}.attention.output.LayerNorm.bias": f"{LAYER}.attention.norm_after.bias",
    "encoder.layer.{}.intermediate.dense.weight": f"{LAYER}.feedforward.body.up.weight",
    "encoder.layer.{}.intermediate.dense.bias": f"{LAYER}.feedforward.body.up.bias",
    "encoder.layer.{}.output.dense.weight": f"{LAYER}.feedforward.body.down.weight",
    "encoder.layer.{}.output.dense.bias": f"{LAYER}.feedforward.body.down.bias",
    "encoder.layer.{}.output.LayerNorm.weight": f"{LAYER}.feedforward.norm_after.weight",
    "encoder.layer.{}.output.LayerNorm.bias": f"{LAYER}.feedforward.norm_after.bias",
    # Checkpoints converted from TensorFlow.
    "embeddings.LayerNorm.gamma": "encoder.embedding.norm.weight",
    "embeddings.LayerNorm.beta": "encoder.embedding.norm.bias",
    "encoder.layer.{}.attention.output.LayerNorm.gamma": f"{LAYER}.attention.norm_after.weight",
    "encoder.layer.{}.attention.output.LayerNorm.beta": f"{LAYER}.attention.norm_after.bias",
    "encoder.layer.{}.output.LayerNorm.gamma": f"{LAYER}.feedforward.norm_after.weight",
    "encoder.layer.{}.output.LayerNorm.beta": f"{LAYER}.feedforward.norm_after.bias",
    # Buffers, and the heads it was pretrained with.
    "embeddings.position_ids": None,
    "pooler.dense.weight": None,
    "pooler.dense.bias": None,
    "cls.predictions.bias": None,
    "cls.predictions.decoder.weight": None,
    "cls.predictions.decoder.bias": None,
    "cls.predictions.transform.dense.weight": None,
    "cls.predictions.transform.dense.bias": None,
    "cls.predictions.transform.LayerNorm.weight": None,
    "cls.predictions.transform.LayerNorm.bias": None,
    "cls.predictions.transform.LayerNorm.gamma": None,
    "cls.predictions.transform.LayerNorm.beta": None,
    "cls.seq_relationship.weight": None,
    "cls.seq_relationship.bias": None,
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
    classes=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    prefix="bert.",
)
