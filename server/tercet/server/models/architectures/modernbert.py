"""ModernBERT (Warner et al., 2024): a pre-norm encoder with rotary positions, most of whose layers see a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    BASE,
    EPSILON,
    HEADS,
    LABELS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Architecture,
    Head,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, Section, choice, each, flag, integer, number
from tercet.server.models.spec import HeadSpec, RotarySpec, StackSpec, TransformerSpec

if TYPE_CHECKING:
    from collections.abc import Collection

LOCAL = {"full_attention": False, "sliding_attention": True}
GLOBAL_THETA = number("global_theta", 0, 1e12, default=160_000.0)
LOCAL_THETA = number("local_theta", 0, 1e12, default=10_000.0)
UNSCALED = choice("scaling", {"default": "default"}, default="default")
CONFIG = {
    "vocab_size": integer("vocab_size", *VOCABULARY),
    "hidden_size": integer("hidden_size", *WIDTH),
    "num_hidden_layers": integer("layers", *LAYERS),
    "num_attention_heads": integer("heads", *HEADS),
    "intermediate_size": integer("intermediate_size", *WIDTH),
    "max_position_embeddings": integer("max_length", *LENGTH, default=8192),
    "hidden_activation": choice("activation", ACTIVATIONS, default="gelu"),
    "norm_eps": number("norm_eps", *EPSILON, default=1e-5),
    "norm_bias": flag("norm_bias", default=False),
    "attention_bias": flag("attention_bias", default=False),
    "mlp_bias": flag("feedforward_bias", default=False),
    "local_attention": integer("window", 2, LENGTH[1], default=128),
    # Which layers are local, and the wavelengths; below what configs said until transformers 5.
    "layer_types": each("local", LOCAL, default=None),
    "global_attn_every_n_layers": integer("period", 1, LAYERS[1], default=3),
    "global_rope_theta": GLOBAL_THETA,
    "local_rope_theta": LOCAL_THETA,
    "rope_parameters": Section(
        {
            "full_attention": Section({"rope_theta": GLOBAL_THETA, "rope_type": UNSCALED}),
            "sliding_attention": Section({"rope_theta": LOCAL_THETA, "rope_type": UNSCALED}),
        }
    ),
    "classifier_pooling": choice("reads", {"cls": "first", "mean": "mean"}, default="first"),
    "classifier_activation": choice("head_activation", ACTIVATIONS, default="gelu"),
    "classifier_bias": flag("head_dense_bias", default=False),
    "decoder_bias": flag("decoder_bias", default=True),
    "tie_word_embeddings": flag("tied", default=True),
    **LABELS,
}

LAYER = "encoder.layers.{}"
DENSE = affine({"head.dense": "head.dense", "head.norm": "head.norm"})
MASKED_LM = {**DENSE, **affine({"decoder": "head.output"})}
CLASSIFIER = {**DENSE, **affine({"classifier": "head.output"})}
WEIGHTS = {
    "embeddings.tok_embeddings.weight": "vocabulary.weight",
    **affine(
        {
            "embeddings.norm": "encoder.embedding.norm",
            "layers.{}.attn_norm": f"{LAYER}.attention.norm_before",
            "layers.{}.attn.Wqkv": f"{LAYER}.attention.body.qkv",
            "layers.{}.attn.Wo": f"{LAYER}.attention.body.output",
            "layers.{}.mlp_norm": f"{LAYER}.feedforward.norm_before",
            "layers.{}.mlp.Wi": f"{LAYER}.feedforward.body.up",
            "layers.{}.mlp.Wo": f"{LAYER}.feedforward.body.down",
            "final_norm": "encoder.final_norm",
        }
    ),
    **dict.fromkeys(MASKED_LM),
}


def spec(config: Config, stored: Collection[str]) -> TransformerSpec:
    """ModernBERT's transformer."""
    del stored
    size = config.quotient("hidden_size", "heads")
    if size % 2:
        raise config.refuse("heads", f"it makes heads of {size}, which must be even for rotary positions")
    local = config["local"] or tuple(bool(layer % config["period"]) for layer in range(config["layers"]))
    if len(local) != config["layers"]:
        raise config.refuse("local", f"it must be of as many layers as there are, {config['layers']}")
    reach = config["window"] // 2
    rotaries = {kind: RotarySpec(theta=config[f"{kind}_theta"], dim=size) for kind in ("global", "local")}
    encoder = StackSpec(
        layers=config["layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        heads=config["heads"],
        kv_heads=config["heads"],
        head_dim=size,
        causal=False,
        norm="layer_norm",
        norm_place="pre",
        norm_eps=config["norm_eps"],
        norm_bias=config["norm_bias"],
        embedding_norm=True,
        first_norm=False,
        final_norm=True,
        rotaries=tuple(rotaries["local" if windowed else "global"] for windowed in local),
        windows=tuple((reach, reach) if windowed else None for windowed in local),
        activation=config["activation"],
        gated=True,
        qkv_bias=config["attention_bias"],
        attention_output_bias=config["attention_bias"],
        feedforward_bias=config["feedforward_bias"],
    )
    return TransformerSpec(
        family="encoder",
        vocab_size=config["vocab_size"],
        max_length=config["max_length"],
        default_length=config["max_length"],
        encoder=encoder,
    )


def head(
    config: Config, task: Literal["fill_mask", "classify", "tag", "answer"], outputs: int, **others: Any
) -> HeadSpec:
    """A dense map, an activation, a norm, and the map to the outputs."""
    return HeadSpec(
        task=task,
        outputs=outputs,
        dense=config["hidden_size"],
        dense_bias=config["head_dense_bias"],
        activation=config["head_activation"],
        norm="layer_norm",
        norm_eps=config["norm_eps"],
        norm_bias=config["norm_bias"],
        **others,
    )


MODERNBERT = Architecture(
    name="modernbert",
    heads={
        "ModernBertModel": BASE,
        "ModernBertForMaskedLM": Head(
            lambda config: head(
                config, "fill_mask", config["vocab_size"], tied=config["tied"], bias=config["decoder_bias"]
            ),
            MASKED_LM,
        ),
        "ModernBertForSequenceClassification": Head(
            lambda config: head(config, "classify", config["labels"], reads=config["reads"], bias=True), CLASSIFIER
        ),
        "ModernBertForTokenClassification": Head(
            lambda config: head(config, "tag", config["labels"], bias=True), CLASSIFIER
        ),
        "ModernBertForQuestionAnswering": Head(lambda config: head(config, "answer", 2, bias=True), CLASSIFIER),
    },
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    prefix="model.",
)
