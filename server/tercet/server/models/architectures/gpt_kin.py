"""What GPT and its kin (GPT-2, GPT-Neo, GPT-NeoX, OPT) share: layer norms, a plain feed-forward, biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tercet.server.models.architectures.architecture import (
    BASE,
    EPSILON,
    HEADS,
    LABELS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Head,
    answerer,
    classifier,
    tagger,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import Config, flag, integer, number
from tercet.server.models.checkpoint.weights import Into
from tercet.server.models.spec import StackSpec, TransformerSpec

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.weights import WeightTable

LAYER = "decoder.layers.{}"
# OpenAI's, GPT's and GPT-2's.
CONFIG = {
    "vocab_size": integer("vocab_size", *VOCABULARY),
    "n_embd": integer("hidden_size", *WIDTH),
    "n_layer": integer("layers", *LAYERS),
    "n_head": integer("heads", *HEADS),
    "n_positions": integer("max_length", *LENGTH),
    "layer_norm_epsilon": number("norm_eps", *EPSILON, default=1e-5),
    "tie_word_embeddings": flag("tied", default=True),
    **LABELS,
}


def weights(norms: Literal["norm_before", "norm_after"]) -> WeightTable:
    """The tensors of OpenAI's layers; `norms` is where their norms stand in each branch."""
    return {
        **affine(
            {
                "h.{}.attn.c_attn": Into(f"{LAYER}.attention.body.qkv", transpose=True),
                "h.{}.attn.c_proj": Into(f"{LAYER}.attention.body.output", transpose=True),
                "h.{}.ln_1": f"{LAYER}.attention.{norms}",
                "h.{}.mlp.c_fc": Into(f"{LAYER}.feedforward.body.up", transpose=True),
                "h.{}.mlp.c_proj": Into(f"{LAYER}.feedforward.body.down", transpose=True),
                "h.{}.ln_2": f"{LAYER}.feedforward.{norms}",
            }
        ),
        # Causal masks, and what they once put in place of a score.
        "h.{}.attn.bias": None,
        "h.{}.attn.masked_bias": None,
    }


def spec(config: Config, **others: Any) -> TransformerSpec:
    """A pre-norm decoder with learned positions; `others` are what is different or special in its stack."""
    stack: dict[str, Any] = {
        "layers": config["layers"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config.get("intermediate_size", 4 * config["hidden_size"]),
        "heads": config["heads"],
        "kv_heads": config["heads"],
        "head_dim": config.quotient("hidden_size", "heads"),
        "causal": True,
        "norm": "layer_norm",
        "norm_place": "pre",
        "norm_eps": config.get("norm_eps", 1e-5),
        "norm_bias": True,
        "final_norm": True,
        "learned_positions": config["max_length"],
        "activation": config["activation"],
        "gated": False,
        "qkv_bias": True,
        "attention_output_bias": True,
        "feedforward_bias": True,
    }
    return TransformerSpec(
        family="decoder",
        vocab_size=config["vocab_size"],
        max_length=config["max_length"],
        default_length=config["max_length"],
        decoder=StackSpec(**stack | others),
    )


def heads(name: str) -> dict[str, Head]:
    """The classes of the model called `name` that do not generate."""
    return {
        f"{name}Model": BASE,
        f"{name}ForSequenceClassification": classifier("score", reads="last", bias=False),
        f"{name}ForTokenClassification": tagger(),
        f"{name}ForQuestionAnswering": answerer(),
    }
