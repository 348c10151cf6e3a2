"""BERT (Devlin et al., 2018): a post-norm encoder with learned positions and token types."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tercet.server.models.architectures import bert_kin
from tercet.server.models.architectures.architecture import BASE, Architecture, answerer, dense_classifier, tagger
from tercet.server.models.architectures.tables import affine

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.config import Config
    from tercet.server.models.checkpoint.weights import WeightTable
    from tercet.server.models.spec import TransformerSpec


def with_tensorflow_names(table: WeightTable) -> WeightTable:
    """The table with what checkpoints converted from TensorFlow call the weights and the biases of norms, too."""
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): place
        for name, place in table.items()
    }
    return {**table, **renamed}


PREDICTIONS = bert_kin.masked_lm(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder",
    bias="cls.predictions.bias",
)
MASKED_LM = replace(PREDICTIONS, weights=with_tensorflow_names(PREDICTIONS.weights))
# The pooler is the base model's: with the prefix, or without in a base model that an adapter makes a classifier of.
POOLED = dense_classifier("bert.pooler.dense", "classifier", reads="first")
CLASSIFIER = replace(POOLED, weights={**POOLED.weights, **affine({"pooler.dense": "head.dense"})})
WEIGHTS = {
    **with_tensorflow_names(bert_kin.WEIGHTS),
    # Heads it was pretrained with, and the map for classifying, are in files of other classes too.
    **dict.fromkeys(MASKED_LM.weights),
    **affine({"cls.seq_relationship": None, "pooler.dense": None}),
}


def spec(config: Config) -> TransformerSpec:
    """BERT's transformer."""
    return bert_kin.spec(config, token_types=config["token_types"])


BERT = Architecture(
    name="bert",
    heads={
        "BertModel": BASE,
        "BertForMaskedLM": MASKED_LM,
        "BertForPreTraining": MASKED_LM,
        "BertForSequenceClassification": CLASSIFIER,
        "BertForTokenClassification": tagger(),
        "BertForQuestionAnswering": answerer(),
    },
    config={**bert_kin.CONFIG, "type_vocab_size": bert_kin.TOKEN_TYPES},
    weights=WEIGHTS,
    spec=spec,
    prefix="bert.",
)
