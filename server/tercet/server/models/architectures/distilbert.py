"""DistilBERT (Sanh et al., 2019): BERT without token types, under names of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import bert_kin
from tercet.server.models.architectures.architecture import (
    ACTIVATIONS,
    BASE,
    LABELS,
    LENGTH,
    Architecture,
    answerer,
    dense_classifier,
    sizes,
    tagger,
)
from tercet.server.models.checkpoint.config import choice, flag, integer

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.config import Config
    from tercet.server.models.spec import TransformerSpec

CONFIG = {
    **sizes(hidden_size="dim", layers="n_layers", heads="n_heads", intermediate_size="hidden_dim"),
    "max_position_embeddings": integer("positions", *LENGTH),
    "activation": choice("activation", ACTIVATIONS, default="gelu"),
    "tie_word_embeddings": flag("tied", default=True),
    **LABELS,
}
MASKED_LM = bert_kin.masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector")
WEIGHTS = {
    **bert_kin.EMBEDDINGS,
    **bert_kin.layers(
        "transformer.layer",
        {
            "q": "attention.q_lin",
            "k": "attention.k_lin",
            "v": "attention.v_lin",
            "output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "up": "ffn.lin1",
            "down": "ffn.lin2",
            "norm": "output_layer_norm",
        },
    ),
    **dict.fromkeys(MASKED_LM.weights),
}


def spec(config: Config) -> TransformerSpec:
    """DistilBERT's transformer."""
    return bert_kin.spec(config)


DISTILBERT = Architecture(
    name="distilbert",
    heads={
        "DistilBertModel": BASE,
        "DistilBertForMaskedLM": MASKED_LM,
        "DistilBertForSequenceClassification": dense_classifier(
            "pre_classifier", "classifier", reads="first", activation="relu"
        ),
        "DistilBertForTokenClassification": tagger(),
        "DistilBertForQuestionAnswering": answerer(),
    },
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    prefix="distilbert.",
)
