"""Positions that enter at the attention: rotary tables and relative biases, made once when the weights are there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tercet.server.models.layers import Prepared, parameter

if TYPE_CHECKING:
    from tercet.server.models.spec import RelativeBiasSpec, RotarySpec


class Rotary(Prepared):
    """Cosines and sines of every position's angles (Su et al., RoFormer, 2021, eq. 15)."""

    cos: Tensor  # float32 [positions, dim / 2]
    sin: Tensor

    def __init__(self, spec: RotarySpec, positions: int) -> None:
        super().__init__()
        self.spec = spec
        self.positions = positions
        self.factors = parameter(spec.dim // 2) if spec.scaling == "factors" else None

    def prepare(self, device: torch.device) -> None:
        """Fills the tables."""
        frequency = frequencies(self.spec)
        if self.factors is not None:
            frequency = frequency / self.factors.to("cpu", torch.float32)
        angles = torch.outer(torch.arange(self.positions, dtype=torch.float32), frequency)
        self.register_buffer("cos", (angles.cos() * self.spec.attention_factor).to(device))
        self.register_buffer("sin", (angles.sin() * self.spec.attention_factor).to(device))


def frequencies(spec: RotarySpec) -> Tensor:
    """Radians a position for each pair of dimensions: float32 [dim / 2].

    "linear" divides all by `factor` (Chen et al., Position Interpolation, 2023). "llama3" does so where fewer than
    `low_freq_factor` wavelengths fit the original length, leaves those of which more than `high_freq_factor` fit, and
    interpolates between (Llama 3.1's model card). "yarn" does the same by dimension, linearly between those of which
    `beta_slow` and `beta_fast` wavelengths fit (Peng et al., YaRN, 2023, section 3.2).
    """
    frequency = 1.0 / spec.theta ** (torch.arange(0, spec.dim, 2, dtype=torch.float32) / spec.dim)
    if spec.scaling == "linear":
        return frequency / spec.factor
    if spec.scaling == "llama3":
        fitting = spec.original_max_length * frequency / (2 * math.pi)
        kept = (fitting - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    elif spec.scaling == "yarn":
        first, last = _yarn_range(spec)
        kept = 1 - (torch.arange(len(frequency)) - first) / (last - first)
    else:
        return frequency
    kept = kept.clamp(0, 1)
    return frequency * (kept + (1 - kept) / spec.factor)


def _yarn_range(spec: RotarySpec) -> tuple[float, float]:
    """The pairs of dimensions between which YaRN interpolates, as transformers rounds and bounds them."""
    first, last = (
        spec.dim * math.log(spec.original_max_length / (beta * 2 * math.pi)) / (2 * math.log(spec.theta))
        for beta in (spec.beta_fast, spec.beta_slow)
    )
    if spec.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, spec.dim - 1)
    return first, last if first != last else last + 0.001  # a step, but no division by zero


class RelativeBias(Prepared):
    """T5's bias of each head by the distance of key and query, laid out by distance instead of bucket."""

    vector: Tensor  # float32 [heads, 2 * max_distance + 1]: the bias at distance d is in column d + max_distance

    def __init__(self, spec: RelativeBiasSpec, heads: int) -> None:
        super().__init__()
        self.spec = spec
        self.weight = parameter(spec.buckets, heads)

    def prepare(self, device: torch.device) -> None:
        """Makes the vector."""
        reach = self.spec.max_distance
        table = self.weight.detach().to("cpu", torch.float32)
        vector = table[buckets(torch.arange(-reach, reach + 1), self.spec)].t().contiguous()
        self.register_buffer("vector", vector.to(device))


def buckets(distance: Tensor, spec: RelativeBiasSpec) -> Tensor:
    """The bucket of each distance key - query (Raffel et al., T5, 2019, section 2.1): int64, the shape of `distance`.

    Half of a direction's buckets are one distance each, the rest widen logarithmically up to `max_distance`.
    """
    count = spec.buckets
    first = torch.zeros_like(distance)
    if spec.bidirectional:
        count //= 2
        first = (distance > 0) * count
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = count // 2
    widening = torch.log(distance.float() / exact) / math.log(spec.max_distance / exact) * (count - exact)
    widened = (exact + widening.nan_to_num(neginf=0).long()).clamp(max=count - 1)
    return first + torch.where(distance < exact, distance, widened)
