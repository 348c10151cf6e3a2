"""What T5, mT5 and UMT5 share: config keys, tensor names, stacks and heads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    BASE,
    EPSILON,
    HEAD_DIM,
    LABELS,
    LAYERS,
    LENGTH,
    Head,
    answerer,
    dense_classifier,
    sizes,
    tagger,
)
from tercet.server.models.checkpoint.config import Config, choice, flag, integer, number
from tercet.server.models.checkpoint.weights import Into
from tercet.server.models.spec import HeadSpec, RelativeBiasSpec, StackSpec, TransformerSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from tercet.server.models.checkpoint.weights import WeightTable

DEFAULT_LENGTH = 512  # what they were trained with; relative positions set no limit

# (activation, gated); "gelu" in the gated form has always meant the tanh approximation.
FEED_FORWARD = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "silu": ("silu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-gelu_new": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
    "gated-relu": ("relu", True),
}
CONFIG = {
    **sizes(hidden_size="d_model", layers="num_layers", heads="num_heads", intermediate_size="d_ff"),
    "d_kv": integer("head_dim", *HEAD_DIM),
    "num_decoder_layers": integer("decoder_layers", *LAYERS, default=None),
    "relative_attention_num_buckets": integer("buckets", 4, 65_536, default=32),
    "relative_attention_max_distance": integer("max_distance", 3, 65_536, default=128),
    "layer_norm_epsilon": number("norm_eps", *EPSILON, default=1e-6),
    "feed_forward_proj": choice("feed_forward", FEED_FORWARD, default=("gelu_tanh", True)),
    # What transformers made of that when it wrote the file; it counts more.
    "dense_act_fn": choice("activation", ACTIVATIONS, default=None),
    "is_gated_act": flag("gated", default=None),
    "tie_word_embeddings": flag("tied", default=True),
    "n_positions": integer("default_length", *LENGTH, default=DEFAULT_LENGTH),
    **LABELS,
}


def weights(*, bias_per_layer: bool = False) -> dict[str, Into | str | None]:
    """The tensors of both stacks; unless each layer has its own, the first one's relative bias is for all."""
    table: dict[str, Into | str | None] = {
        "shared.weight": "vocabulary.weight",
        "encoder.embed_tokens.weight": Into("vocabulary.weight", spare=True),
        "decoder.embed_tokens.weight": Into("vocabulary.weight", spare=True),
        "lm_head.weight": None,  # unused without that head
        # The first checkpoints carry a bias that cross-attention never had.
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": None,
    }
    cross, layer = "decoder.block.{}.layer.1", "decoder.layers.{}"
    kv = f"{layer}.cross_attention.body.kv.weight"
    table |= {
        f"{cross}.layer_norm.weight": f"{layer}.cross_attention.norm_before.weight",
        f"{cross}.EncDecAttention.q.weight": f"{layer}.cross_attention.body.q.weight",
        f"{cross}.EncDecAttention.k.weight": Into(kv, fuse="k"),
        f"{cross}.EncDecAttention.v.weight": Into(kv, fuse="v"),
        f"{cross}.EncDecAttention.o.weight": f"{layer}.cross_attention.body.output.weight",
    }
    for stack, last in (("encoder", 1), ("decoder", 2)):
        block, layer = f"{stack}.block.{{}}.layer", f"{stack}.layers.{{}}"
        attention, dense = f"{block}.0.SelfAttention", f"{block}.{last}.DenseReluDense"
        biased = attention if bias_per_layer else attention.format(0)
        holder = f"{layer}.attention.body" if bias_per_layer else stack
        qkv, up = f"{layer}.attention.body.qkv.weight", f"{layer}.feedforward.body.up.weight"
        table |= {
            f"{biased}.relative_attention_bias.weight": f"{holder}.relative_bias.weight",
            f"{block}.0.layer_norm.weight": f"{layer}.attention.norm_before.weight",
            f"{attention}.q.weight": Into(qkv, fuse="q"),
            f"{attention}.k.weight": Into(qkv, fuse="k"),
            f"{attention}.v.weight": Into(qkv, fuse="v"),
            f"{attention}.o.weight": f"{layer}.attention.body.output.weight",
            f"{block}.{last}.layer_norm.weight": f"{layer}.feedforward.norm_before.weight",
            f"{dense}.wi.weight": Into(up, fuse="inner"),
            f"{dense}.wi_0.weight": Into(up, fuse="gate"),
            f"{dense}.wi_1.weight": Into(up, fuse="up"),
            f"{dense}.wo.weight": f"{layer}.feedforward.body.down.weight",
            f"{stack}.final_layer_norm.weight": f"{stack}.final_norm.weight",
        }
    return table


def spec(config: Config, *, bias_per_layer: bool = False) -> TransformerSpec:
    """RMS norms before each branch, unscaled scores, no biases but those of the positions."""
    if config["max_distance"] <= config["buckets"] // 2:
        raise config.refuse("max_distance", f"it must be above half of the {config['buckets']} buckets")
    activation, gated = map(config.get, ("activation", "gated"), config["feed_forward"])

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
                buckets=config["buckets"],
                max_distance=config["max_distance"],
                bidirectional=not decoder,
                per_layer=bias_per_layer,
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


def heads(name: str, table: WeightTable, scaled: Callable[[Config], bool]) -> dict[str, Head]:
    """The heads of an architecture; `table` has its tensors, `scaled` whether its decoder's outputs are."""

    def language_model(config: Config) -> HeadSpec:
        scale = config["hidden_size"] ** -0.5 if scaled(config) else 1.0
        return HeadSpec(task="generate", outputs=config["vocab_size"], tied=config["tied"], scale=scale)

    classify = dense_classifier("classification_head.dense", "classification_head.out_proj", reads="last")
    classify, tag = (replace(head, prefix="transformer.") for head in (classify, tagger()))
    decoder: WeightTable = {tensor: None for tensor in table if tensor.startswith("decoder.")}
    return {
        f"{name}ForConditionalGeneration": Head(language_model, {"lm_head.weight": "head.output.weight"}),
        f"{name}ForSequenceClassification": classify,
        f"{name}ForQuestionAnswering": answerer(),
        f"{name}ForTokenClassification": replace(tag, weights={**tag.weights, **decoder}, encoder_only=True),
        f"{name}Model": BASE,
        f"{name}EncoderModel": Head(None, decoder, encoder_only=True),
    }
