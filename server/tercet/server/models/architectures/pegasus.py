"""Pegasus (Zhang et al., 2019): pre-norm seq2seq with sinusoidal positions."""

from __future__ import annotations

from functools import partial

from tercet.server.models.architectures import bart_kin
from tercet.server.models.architectures.architecture import BASE, Architecture

PEGASUS = Architecture(
    name="pegasus",
    heads={"PegasusForConditionalGeneration": bart_kin.language_model(), "PegasusModel": BASE},
    config=bart_kin.CONFIG,
    weights=bart_kin.weights("norm_before") | bart_kin.SINUSOIDS,
    spec=partial(bart_kin.spec, norm_place="pre", final_norm=True, sinusoids="halves"),
    prefix="model.",
    float16=False,
)
