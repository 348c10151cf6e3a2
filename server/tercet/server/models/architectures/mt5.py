"""mT5 (Xue et al., 2020): T5 1.1 in many languages, its head's input never scaled."""

from __future__ import annotations

from tercet.server.models.architectures import t5_kin
from tercet.server.models.architectures.architecture import Architecture

WEIGHTS = t5_kin.weights()

MT5 = Architecture(
    name="mt5",
    heads=t5_kin.heads("MT5", WEIGHTS, scaled=lambda _: False),
    config=t5_kin.CONFIG,
    weights=WEIGHTS,
    spec=t5_kin.spec,
    float16=False,
)
