"""ELECTRA (Clark et al., 2020), generator and discriminator: BERT whose embeddings may be narrower than its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import bert_kin
from tercet.server.models.architectures.architecture import (
    BASE,
    WIDTH,
    Architecture,
    answerer,
    dense_classifier,
    tagger,
)
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import integer

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.config import Config
    from tercet.server.models.spec import TransformerSpec

MASKED_LM = bert_kin.masked_lm(
    "generator_predictions.dense",
    "generator_predictions.LayerNorm",
    "generator_lm_head",
    activation="gelu",
    width="embedding_size",
)
WEIGHTS = {
    **bert_kin.WEIGHTS,
    **affine(
        {
            "embeddings_project": "encoder.embedding.map",
            # The head that tells replaced tokens from others serves no task.
            "discriminator_predictions.dense": None,
            "discriminator_predictions.dense_prediction": None,
        }
    ),
    **dict.fromkeys(MASKED_LM.weights),
}


def spec(config: Config) -> TransformerSpec:
    """ELECTRA's transformer."""
    narrow = config["embedding_size"] != config["hidden_size"]
    return bert_kin.spec(
        config, token_types=config["token_types"], embedding_size=config["embedding_size"] if narrow else None
    )


ELECTRA = Architecture(
    name="electra",
    heads={
        "ElectraModel": BASE,
        "ElectraForPreTraining": BASE,
        "ElectraForMaskedLM": MASKED_LM,
        "ElectraForSequenceClassification": dense_classifier(
            "classifier.dense", "classifier.out_proj", reads="first", activation="gelu"
        ),
        "ElectraForTokenClassification": tagger(),
        "ElectraForQuestionAnswering": answerer(),
    },
    config={
        **bert_kin.CONFIG,
        "type_vocab_size": bert_kin.TOKEN_TYPES,
        "embedding_size": integer("embedding_size", *WIDTH, default=128),
    },
    weights=WEIGHTS,
    spec=spec,
    prefix="electra.",
)
