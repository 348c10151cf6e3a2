"""UMT5 (Chung et al., UniMax, 2023): mT5 whose layers have a relative bias each."""

from __future__ import annotations

from functools import partial

from tercet.server.models.architectures import t5_kin
from tercet.server.models.architectures.architecture import Architecture

WEIGHTS = t5_kin.weights(bias_per_layer=True)

UMT5 = Architecture(
    name="umt5",
    # transformers 5 scales whatever the config says; those that say they aren't tied were trained unscaled.
    heads=t5_kin.heads("UMT5", WEIGHTS, scaled=lambda config: config["tied"]),
    config=t5_kin.CONFIG,
    weights=WEIGHTS,
    spec=partial(t5_kin.spec, bias_per_layer=True),
    float16=False,
)
