"""mBART (Liu et al., 2020): BART with its norms before each branch and behind each stack."""

from __future__ import annotations

from functools import partial

from tercet.server.models.architectures import bart_kin
from tercet.server.models.architectures.architecture import Architecture

MBART = Architecture(
    name="mbart",
    heads=bart_kin.heads("MBart"),
    config=bart_kin.CONFIG,
    weights=bart_kin.weights("norm_before"),
    spec=partial(bart_kin.spec, norm_place="pre", embedding_norm=True, final_norm=True),
    prefix="model.",
)
