"""The values that say how tokens are chosen: checked, and filled up from the checkpoint's own."""

from __future__ import annotations

import math
import secrets
from ctypes import c_float
from typing import TYPE_CHECKING, Any, NamedTuple

from tercet.server import wire
from tercet.server.service.errors import InvalidArgumentError

if TYPE_CHECKING:
    from tercet.server.text import GenerationDefaults
    from tercet.v1.generation_pb2 import SamplingParameters


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
# What is smaller than the least temperature or penalty would overflow the logits that it divides.
RANGES = {
    "max_new_tokens": Range(1, _UINT32),
    "min_new_tokens": Range(0, _UINT32),
    "temperature": Range(1e-4, 100, or_zero=True),
    "top_k": Range(0, _UINT32),
    "top_p": Range(0, 1, above_low=True),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(1e-2, 100),
}


def check_ranges(sampling: SamplingParameters) -> None:
    """Raises InvalidArgumentError where a number that is set is out of its range."""
    for name, range_ in RANGES.items():
        value = getattr(sampling, name)
        if sampling.HasField(name) and value not in range_:
            raise InvalidArgumentError(f"sampling.{name}", f"{value!r} is not {range_}")


def wanted_tokens(sampling: SamplingParameters, defaults: GenerationDefaults, prompt_tokens: int) -> int | None:
    """The most tokens to generate as the request, else the checkpoint says; None where neither does."""
    if sampling.HasField("max_new_tokens"):
        return sampling.max_new_tokens
    return defaults.new_tokens(prompt_tokens)


def resolve(
    sampling: SamplingParameters, defaults: GenerationDefaults, *, wanted: int | None, room: int
) -> wire.Sampling:
    """Every value concrete: the request's, else the checkpoint's, else neutral. `room`: the most tokens that fit.

    Raises InvalidArgumentError.
    """
    own: dict[str, Any] = {
        "min_new_tokens": defaults.min_new_tokens,
        "temperature": defaults.temperature if defaults.do_sample else 0.0,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repetition_penalty": defaults.repetition_penalty,
        "seed": secrets.randbits(64),
    }
    values = {name: getattr(sampling, name) if sampling.HasField(name) else value for name, value in own.items()}
    max_new_tokens = min(room, wanted) if wanted is not None else room
    if values["min_new_tokens"] > (wanted if wanted is not None else room):
        if sampling.HasField("min_new_tokens"):
            most = f"max_new_tokens, {wanted}" if wanted is not None else f"the room left, {room}"
            raise InvalidArgumentError("sampling.min_new_tokens", f"{values['min_new_tokens']} is more than {most}")
        values["min_new_tokens"] = max_new_tokens
    return wire.Sampling(max_new_tokens=max_new_tokens, **values)
