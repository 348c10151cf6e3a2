"""T5 (Raffel et al., 2019) and its version 1.1: a pre-norm seq2seq model with biases by relative position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures.architecture import (
    EPSILON,
    HEAD_DIM,
    HEADS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Architecture,
    Head,
)
from tercet.server.models.checkpoint.config import Config, choice, flag, integer, number
from tercet.server.models.checkpoint.weights import Into
from tercet.server.models.spec import HeadSpec, RelativeBiasSpec, StackSpec, TransformerSpec

if TYPE_CHECKING:
    from collections.abc import Collection

DEFAULT_LENGTH = 512  # what T5 was trained with; its relative positions set no limit

# (activation, gated); "gelu" in the gated form has always meant the tanh approximation.
FEED_FORWARD = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "silu": ("silu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
    "gated-relu": ("relu", True),
}
CONFIG = {
    "vocab_size": integer("vocab_size", *VOCABULARY),
    "d_model": integer("hidden_size", *WIDTH),
    "d_kv": integer("head_dim", *HEAD_DIM),
    "d_ff": integer("intermediate_size", *WIDTH),
    "num_layers": integer("layers", *LAYERS),
    "num_decoder_layers": integer("decoder_layers", *LAYERS, default=None),
    "num_heads": integer("heads", *HEADS),
    "relative_attention_num_buckets": integer("buckets", 4, 65_536, default=32),
    "relative_attention_max_distance": integer("max_distance", 3, 65_536, default=128),
    "layer_norm_epsilon": number("norm_eps", *EPSILON, default=1e-6),
    "feed_forward_proj": choice("feed_forward", FEED_FORWARD, default=("relu", False)),
    "tie_word_embeddings": flag("tied", default=True),
    # Version 1.1 does not scale what goes into its head. Configs told it by `tie_word_embeddings` until transformers 5.
    "scale_decoder_outputs": flag("scaled", default=None),
    "n_positions": integer("default_length", *LENGTH, default=DEFAULT_LENGTH),
}

ENCODER = "encoder.layers.{}"
DECODER = "decoder.layers.{}"
WEIGHTS = {
    "shared.weight": "vocabulary.weight",
    "encoder.embed_tokens.weight": Into("vocabulary.weight", spare=True),
    "decoder.embed_tokens.weight": Into("vocabulary.weight", spare=True),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "encoder.relative_bias.weight",
    "encoder.block.{}.layer.0.layer_norm.weight": f"{ENCODER}.attention.norm_before.weight",
    "encoder.block.{}.layer.0.SelfAttention.q.weight": Into(f"{ENCODER}.attention.body.qkv.weight", fuse="q"),
    "encoder.block.{}.layer.0.SelfAttention.k.weight": Into(f"{ENCODER}.attention.body.qkv.weight", fuse="k"),
    "encoder.block.{}.layer.0.SelfAttention.v.weight": Into(f"{ENCODER}.attention.body.qkv.weight", fuse="v"),
    "encoder.block.{}.layer.0.SelfAttention.o.weight": f"{ENCODER}.attention.body.output.weight",
    "encoder.block.{}.layer.1.layer_norm.weight": f"{ENCODER}.feedforward.norm_before.weight",
    "encoder.block.{}.layer.1.DenseReluDense.wi.weight": Into(f"{ENCODER}.feedforward.body.up.weight", fuse="inner"),
    "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight": Into(f"{ENCODER}.feedforward.body.up.weight", fuse="gate"),
    "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight": Into(f"{ENCODER}.feedforward.body.up.weight", fuse="up"),
    "encoder.block.{}.layer.1.DenseReluDense.wo.weight": f"{ENCODER}.feedforward.body.down.weight",
    "encoder.final_layer_norm.weight": "encoder.final_norm.weight",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "decoder.relative_bias.weight",
    "decoder.block.{}.layer.0.layer_norm.weight": f"{DECODER}.attention.norm_before.weight",
    "decoder.block.{}.layer.0.SelfAttention.q.weight": Into(f"{DECODER}.attention.body.qkv.weight", fuse="q"),
    "decoder.block.{}.layer.0.SelfAttention.k.weight": Into(f"{DECODER}.attention.body.qkv.weight", fuse="k"),
    "decoder.block.{}.layer.0.SelfAttention.v.weight": Into(f"{DECODER}.attention.body.qkv.weight", fuse="v"),
    "decoder.block.{}.layer.0.SelfAttention.o.weight": f"{DECODER}.attention.body.output.weight",
    "decoder.block.{}.layer.1.layer_norm.weight": f"{DECODER}.cross_attention.norm_before.weight",
    "decoder.block.{}.layer.1.EncDecAttention.q.weight": f"{DECODER}.cross_attention.body.q.weight",
    "decoder.block.{}.layer.1.EncDecAttention.k.weight": Into(f"{DECODER}.cross_attention.body.kv.weight", fuse="k"),
    "decoder.block.{}.layer.1.EncDecAttention.v.weight": Into(f"{DECODER}.cross_attention.body.kv.weight", fuse="v"),
    "decoder.block.{}.layer.1.EncDecAttention.o.weight": f"{DECODER}.cross_attention.body.output.weight",
    "decoder.block.{}.layer.2.layer_norm.weight": f"{DECODER}.feedforward.norm_before.weight",
    "decoder.block.{}.layer.2.DenseReluDense.wi.weight": Into(f"{DECODER}.feedforward.body.up.weight", fuse="inner"),
    "decoder.block.{}.layer.2.DenseReluDense.wi_0.weight": Into(f"{DECODER}.feedforward.body.up.weight", fuse="gate"),
    "decoder.block.{}.layer.2.DenseReluDense.wi_1.weight": Into(f"{DECODER}.feedforward.body.up.weight", fuse="up"),
    "decoder.block.{}.layer.2.DenseReluDense.wo.weight": f"{DECODER}.feedforward.body.down.weight",
    "decoder.final_layer_norm.weight": "decoder.final_norm.weight",
    # The first checkpoints carry a bias that cross-attention never had.
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": None,
}


def spec(config: Config, stored: Collection[str]) -> TransformerSpec:
    """T5's transformer: RMS norms before each branch, unscaled scores, no biases but those of the positions."""
    del stored
    if config["max_distance"] <= config["buckets"] // 2:
        raise config.refuse("max_distance", f"it must be above half of the {config['buckets']} buckets")
    activation, gated = config["feed_forward"]

    def stack(layers: int, *, decoder: bool) -> StackSpec:
        return StackSpec(
            layers=layers,
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            heads=config["heads"],
            kv_heads=config["heads"],
            head_dim=config["head_dim"],
            causal=decoder,
            cross_attention=decoder,
            norm="rms_norm",
            norm_place="pre",
            norm_eps=config["norm_eps"],
            final_norm=True,
            relative_bias=RelativeBiasSpec(
                buckets=config["buckets"], max_distance=config["max_distance"], bidirectional=not decoder
            ),
            activation=activation,
            gated=gated,
            attention_scale=1.0,
        )

    return TransformerSpec(
        family="seq2seq",
        vocab_size=config["vocab_size"],
        max_length=None,
        default_length=config["default_length"],
        encoder=stack(config["layers"], decoder=False),
        decoder=stack(config["decoder_layers"] or config["layers"], decoder=True),
    )


def language_model(config: Config) -> HeadSpec:
    """A map to the vocabulary, what goes into it scaled by the width where it is tied to the word embedding."""
    scaled = config["tied"] if config["scaled"] is None else config["scaled"]
    scale = config["hidden_size"] ** -0.5 if scaled else 1.0
    return HeadSpec(task="generate", outputs=config["vocab_size"], tied=config["tied"], scale=scale)


LANGUAGE_MODEL = Head(language_model, {"lm_head.weight": "head.output.weight"})
T5 = Architecture(
    name="t5",
    heads={"T5ForConditionalGeneration": LANGUAGE_MODEL, "T5WithLMHeadModel": LANGUAGE_MODEL},
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    float16=False,
)
