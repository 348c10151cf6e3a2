"""MPNet (Song et al., 2020): BERT without token types, with T5's bias by distance, one for all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import bert_kin
from tercet.server.models.architectures.architecture import BASE, Architecture, answerer, dense_classifier, tagger
from tercet.server.models.architectures.tables import affine
from tercet.server.models.checkpoint.config import integer
from tercet.server.models.spec import RelativeBiasSpec

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.config import Config
    from tercet.server.models.spec import TransformerSpec

POSITION_OFFSET = 2  # whatever the config's padding token
# All that there is; its authors' code and transformers' look no other number of buckets up.
BUCKETS = 32
MAX_DISTANCE = 128

MASKED_LM = bert_kin.masked_lm(
    "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", bias="lm_head.bias", activation="gelu"
)
WEIGHTS = {
    **bert_kin.EMBEDDINGS,
    **bert_kin.layers(
        "encoder.layer",
        {
            "q": "attention.attn.q",
            "k": "attention.attn.k",
            "v": "attention.attn.v",
            "output": "attention.attn.o",
            "attention_norm": "attention.LayerNorm",
            "up": "intermediate.dense",
            "down": "output.dense",
            "norm": "output.LayerNorm",
        },
    ),
    "encoder.relative_attention_bias.weight": "encoder.relative_bias.weight",
    **affine({"pooler.dense": None}),
    **dict.fromkeys(MASKED_LM.weights),
}


def spec(config: Config) -> TransformerSpec:
    """MPNet's transformer."""
    bias = RelativeBiasSpec(buckets=BUCKETS, max_distance=MAX_DISTANCE, bidirectional=True)
    return bert_kin.spec(config, position_offset=POSITION_OFFSET, relative_bias=bias)


MPNET = Architecture(
    name="mpnet",
    heads={
        "MPNetModel": BASE,
        "MPNetForMaskedLM": MASKED_LM,
        "MPNetForSequenceClassification": dense_classifier("classifier.dense", "classifier.out_proj", reads="first"),
        "MPNetForTokenClassification": tagger(),
        "MPNetForQuestionAnswering": answerer(),
    },
    config={
        **bert_kin.CONFIG,
        "relative_attention_num_buckets": integer("buckets", BUCKETS, BUCKETS, default=BUCKETS),
    },
    weights=WEIGHTS,
    spec=spec,
    prefix="mpnet.",
)
