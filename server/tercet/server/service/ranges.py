"""The values that numbers of sampling may have."""

from __future__ import annotations

import math
from ctypes import c_float
from typing import TYPE_CHECKING, NamedTuple

from tercet.server.service.errors import InvalidArgumentError

if TYPE_CHECKING:
    from tercet.v1.generation_pb2 import SamplingParameters

MOST_BEAMS = 32


class Range(NamedTuple):
    """The values that a number may have."""

    low: float
    high: float
    above_low: bool = False
    """Whether `low` itself is out."""
    or_zero: bool = False
    """Whether 0 is in as well."""

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or math.isnan(value):
            return False
        low = c_float(self.low).value  # as the message would hold it
        within = (low < value if self.above_low else low <= value) and value <= self.high
        return within or (self.or_zero and value == 0)

    def __str__(self) -> str:
        return f"{'0 or ' if self.or_zero else ''}in {'(' if self.above_low else '['}{self.low}, {self.high}]"


_UINT32 = (1 << 32) - 1
# What is smaller than the least temperature or penalty would overflow the logits that it divides, and what a length is
# raised to must not overflow scores.
RANGES = {
    "max_new_tokens": Range(1, _UINT32),
    "min_new_tokens": Range(0, _UINT32),
    "temperature": Range(1e-4, 100, or_zero=True),
    "top_k": Range(0, _UINT32),
    "top_p": Range(0, 1, above_low=True),
    "min_p": Range(0, 1),
    "typical_p": Range(0, 1, above_low=True),
    "repetition_penalty": Range(1e-2, 100),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "no_repeat_ngram_size": Range(0, _UINT32),
    "num_beams": Range(1, MOST_BEAMS),
    "length_penalty": Range(-5, 5),
    "top_logprobs": Range(0, 20),
}
BIAS = Range(-100, 100)


def check_ranges(sampling: SamplingParameters) -> None:
    """Raises InvalidArgumentError where a number that is set is out of its range."""
    for field, value in sampling.ListFields():
        range_ = RANGES.get(field.name)
        if range_ is not None and value not in range_:
            raise InvalidArgumentError(f"sampling.{field.name}", f"{value!r} is not {range_}")
    for token_id, bias in sampling.logit_bias.items():
        if bias not in BIAS:
            raise InvalidArgumentError(f"sampling.logit_bias[{token_id}]", f"{bias!r} is not {BIAS}")
