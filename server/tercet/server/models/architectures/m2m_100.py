"""M2M100 (Fan et al., 2020) and dense NLLB (2022): pre-norm seq2seq with fairseq's sinusoidal positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import bart_kin
from tercet.server.models.architectures.architecture import ACTIVATIONS, BASE, VOCABULARY, Architecture, language_model
from tercet.server.models.checkpoint.config import choice, flag, integer

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.config import Config
    from tercet.server.models.spec import TransformerSpec

CONFIG = bart_kin.CONFIG | {
    "activation_function": choice("activation", ACTIVATIONS, default="relu"),
    "scale_embedding": flag("scale_embedding", default=True),
    "pad_token_id": integer("padding", 0, VOCABULARY[1], default=1),
}


def spec(config: Config) -> TransformerSpec:
    """M2M100's transformer; its first position is that behind the padding's id."""
    offset = config["padding"] + 1
    return bart_kin.spec(config, norm_place="pre", final_norm=True, sinusoids="fairseq", position_offset=offset)


M2M_100 = Architecture(
    name="m2m_100",
    heads={"M2M100ForConditionalGeneration": language_model(), "M2M100Model": BASE},
    config=CONFIG,
    weights=bart_kin.weights("norm_before") | bart_kin.SINUSOIDS,
    spec=spec,
    prefix="model.",
)
