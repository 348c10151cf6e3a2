"""Rows of weight tables, several at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tercet.server.models.checkpoint.weights import Into

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tercet.server.models.checkpoint.weights import WeightTable


def affine(modules: Mapping[str, Into | str | None]) -> WeightTable:
    """Rows for the weights and the biases of modules, from the modules' names and places."""
    return {
        f"{name}.{kind}": replace(place, parameter=f"{place.parameter}.{kind}") if place else None
        for name, row in modules.items()
        for place in [Into(row) if isinstance(row, str) else row]
        for kind in ("weight", "bias")
    }
