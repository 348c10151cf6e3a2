"""RoBERTa (Liu et al., 2019), XLM-RoBERTa (Conneau et al., 2019) and CamemBERT (Martin et al., 2019).

BERT whose positions are counted from behind the padding token's id, with a classifier of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import bert_kin
from tercet.server.models.architectures.architecture import (
    BASE,
    VOCABULARY,
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
    "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", bias="lm_head.bias", activation="gelu"
)


def spec(config: Config) -> TransformerSpec:
    """RoBERTa's transformer."""
    return bert_kin.spec(config, token_types=config["token_types"], position_offset=config["padding"] + 1)


def architecture(model_type: str, name: str) -> Architecture:
    """RoBERTa under another name."""
    return Architecture(
        name=model_type,
        heads={
            f"{name}Model": BASE,
            f"{name}ForMaskedLM": MASKED_LM,
            f"{name}ForSequenceClassification": dense_classifier(
                "classifier.dense", "classifier.out_proj", reads="first"
            ),
            f"{name}ForTokenClassification": tagger(),
            f"{name}ForQuestionAnswering": answerer(),
        },
        config={
            **bert_kin.CONFIG,
            "type_vocab_size": bert_kin.TOKEN_TYPES,
            "pad_token_id": integer("padding", 0, VOCABULARY[1], default=1),
        },
        weights={**bert_kin.WEIGHTS, **dict.fromkeys(MASKED_LM.weights), **affine({"pooler.dense": None})},
        spec=spec,
        prefix="roberta.",
    )


ROBERTA = architecture("roberta", "Roberta")
XLM_ROBERTA = architecture("xlm-roberta", "XLMRoberta")
CAMEMBERT = architecture("camembert", "Camembert")
