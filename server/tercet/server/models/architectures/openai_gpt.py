"""GPT (Radford et al., 2018): a post-norm decoder with learned positions and no final norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.server.models.architectures import gpt_kin
from tercet.server.models.architectures.architecture import BASE, Architecture, classifier, language_model
from tercet.server.models.checkpoint.config import Config, choice

if TYPE_CHECKING:
    from tercet.server.models.spec import TransformerSpec

CONFIG = {
    **gpt_kin.CONFIG,
    # Its GELU has always been the tanh approximation.
    "afn": choice(
        "activation", {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}, default="gelu_tanh"
    ),
}
WEIGHTS = {
    "tokens_embed.weight": "vocabulary.weight",
    "positions_embed.weight": "decoder.embedding.position",
    "position_ids": None,
    **gpt_kin.weights("norm_after"),
}


def spec(config: Config) -> TransformerSpec:
    """GPT's transformer."""
    return gpt_kin.spec(config, norm_place="post", final_norm=False)


OPENAI_GPT = Architecture(
    name="openai-gpt",
    heads={
        "OpenAIGPTLMHeadModel": language_model(),
        "OpenAIGPTModel": BASE,
        "OpenAIGPTForSequenceClassification": classifier("score", reads="last", bias=False),
    },
    config=CONFIG,
    weights=WEIGHTS,
    spec=spec,
    prefix="transformer.",
)
