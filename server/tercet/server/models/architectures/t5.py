"""T5 (Raffel et al., 2019), its version 1.1 and Flan-T5: pre-norm seq2seq with biases by relative position."""

from __future__ import annotations

from tercet.server.models.architectures import t5_kin
from tercet.server.models.architectures.architecture import Architecture
from tercet.server.models.checkpoint.config import choice, flag

CONFIG = t5_kin.CONFIG | {
    "feed_forward_proj": choice("feed_forward", t5_kin.FEED_FORWARD, default=("relu", False)),
    # Version 1.1 does not scale what goes into its head. Configs told it by `tie_word_embeddings` until transformers 5.
    "scale_decoder_outputs": flag("scaled", default=None),
}
WEIGHTS = t5_kin.weights()
HEADS = t5_kin.heads("T5", WEIGHTS, scaled=lambda config: config.get("scaled", config["tied"]))

T5 = Architecture(
    name="t5",
    heads=HEADS | {"T5WithLMHeadModel": HEADS["T5ForConditionalGeneration"]},
    config=CONFIG,
    weights=WEIGHTS,
    spec=t5_kin.spec,
    float16=False,
)
