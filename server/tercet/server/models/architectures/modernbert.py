"""ModernBERT (Warner et al., 2024): a pre-norm encoder with rotary positions, most of whose layers see a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    BASE,
    EPSILON,
    LABELS,
    LAYERS,
    LENGTH,
    Architecture,
    Head,
    sizes,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, Section, choice, each, flag, integer, number
from tercet.server.models.spec import HeadSpec, RotarySpec, StackSpec, TransformerSpec

if TYPE_CHECKING:
    from tercet.server.models.spec import HeadTask

GLOBAL_THETA = number("global_theta", 0, 1e12, default=160_000.0)
LOCAL_THETA = number("local_theta", 0, 1e12, default=10_000.0)
UNSCALED = {kind: choice("scaling", {"default": "default"}, default="default") for kind in ("rope_type", "type")}
CONFIG = {
    **sizes(),
    "max_position_embeddings": integer("max_length", *LENGTH, default=8192),
    "hidden_activation": choice("activation", ACTIVATIONS, default="gelu"),
    "norm_eps": number("norm_eps", *EPSILON, default=1e-5),
    "norm_bias": flag("norm_bias", default=False),
    "attention_bias": flag("attention_bias", default=False),
    "mlp_bias": flag("feedforward_bias", default=False),
    "local_attention": integer("window", 2, LENGTH[1], default=128),
    # Which layers see a window, and how fast either kind rotates; with the names of both before transformers 5.
    "layer_types": each("local", {"full_attention": False, "sliding_attention": True}, default=None),
    "global_attn_every_n_layers": integer("period", 1, LAYERS[1], default=3),
    "global_rope_theta": GLOBAL_THETA,
    "local_rope_theta": LOCAL_THETA,
    "rope_scaling": Section(UNSCALED),
    "rope_parameters": Section(
        {
            "full_attention": Section({"rope_theta": GLOBAL_THETA, **UNSCALED}),
            "sliding_attention": Section({"rope_theta": LOCAL_THETA, **UNSCALED}),
        }
    ),
    "classifier_pooling": choice("reads", {"cls": "first", "mean": "mean"}, default="first"),
    "classifier_activation": choice("head_activation", ACTIVATIONS, default="gelu"),
    "classifier_bias": flag("dense_bias", default=False),
    "decoder_bias": flag("decoder_bias", default=True),
    "tie_word_embeddings": flag("tied", default=True),
    **LABELS,
}


def head(task: HeadTask, output: str, *, outputs: int | str, bias: bool | str = True, **others: str) -> Head:
    """A dense map, an activation, a norm and the map called `output`; what are strings here, the config says."""
    named: dict[str, Any] = {"outputs": outputs, "bias": bias, **others}
    return Head(
        lambda config: HeadSpec(
            task=task,
            dense=config["hidden_size"],
            dense_bias=config["dense_bias"],
            activation=config["head_activation"],
            norm="layer_norm",
            norm_eps=config["norm_eps"],
            norm_bias=config["norm_bias"],
            **{name: config[value] if isinstance(value, str) else value for name, value in named.items()},
        ),
        affine({"head.dense": "head.dense", "head.norm": "head.norm", output: "head.output"}),
    )


CLASSES = {
    "ModernBertModel": BASE,
    "ModernBertForMaskedLM": head("fill_mask", "decoder", outputs="vocab_size", bias="decoder_bias", tied="tied"),
    "ModernBertForSequenceClassification": head("classify", "classifier", outputs="labels", reads="reads"),
    "ModernBertForTokenClassification": head("tag", "classifier", outputs="labels"),
    "ModernBertForQuestionAnswering": head("answer", "classifier", outputs=2),
}
LAYER = "encoder.layers.{}"
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
    **dict.fromkeys(CLASSES["ModernBertForMaskedLM"].weights),
}


def spec(config: Config) -> TransformerSpec:
    """ModernBERT's transformer."""
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
    length = config["max_length"]
    return TransformerSpec(
        family="encoder", vocab_size=config["vocab_size"], max_length=length, default_length=length, encoder=encoder
    )


MODERNBERT = Architecture(name="modernbert", heads=CLASSES, config=CONFIG, weights=WEIGHTS, spec=spec, prefix="model.")
