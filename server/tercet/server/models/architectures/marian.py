"""Marian (Junczys-Dowmunt et al., 2018), OPUS-MT's: the original Transformer, post-norm with sinusoidal positions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tercet.server.models.architectures import bart_kin
from tercet.server.models.architectures.architecture import BASE, VOCABULARY, Architecture
from tercet.server.models.checkpoint.config import flag, integer

if TYPE_CHECKING:
    from tercet.server.models.checkpoint.config import Config
    from tercet.server.models.spec import TransformerSpec

CONFIG = bart_kin.CONFIG | {
    "decoder_vocab_size": integer("target_vocab_size", *VOCABULARY, default=None),
    "share_encoder_decoder_embeddings": flag("shared", default=True),
}


def spec(config: Config) -> TransformerSpec:
    """Marian's transformer, with one vocabulary or two."""
    shared = bart_kin.spec(config, norm_place="post", sinusoids="halves")
    return shared if config["shared"] else replace(shared, target_vocab_size=target_vocab_size(config))


def target_vocab_size(config: Config) -> int:
    """Tokens of the target, by default as many as the source's."""
    return config["vocab_size"] if config["shared"] else config.get("target_vocab_size", config["vocab_size"])


MARIAN = Architecture(
    name="marian",
    heads={"MarianMTModel": bart_kin.language_model(target_vocab_size), "MarianModel": BASE},
    config=CONFIG,
    weights=bart_kin.weights("norm_after") | bart_kin.SINUSOIDS,
    spec=spec,
    prefix="model.",
)
