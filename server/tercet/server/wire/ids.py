"""Token ids as engines get them: arrays of int32, which travel as their bytes."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    TokenIds = array[int]
else:
    TokenIds = array  # which takes no parameters before Python 3.12

FEW_IDS = 64
"""Among so many Python finds the highest sooner than numpy."""


def token_ids(values: Iterable[int] | bytes = ()) -> TokenIds:
    """Token ids of integers, or of their bytes. Raises OverflowError past int32, ValueError for a part of an id."""
    return array("i", values)


def encode_ids(value: object) -> bytes:
    """The hook of msgspec for what it can't encode itself."""
    if isinstance(value, array):
        return value.tobytes()
    raise NotImplementedError(f"{type(value).__name__} is not sent")


def decode_ids(kind: type, value: Any) -> TokenIds:
    """The hook of msgspec for what it can't decode itself."""
    if kind is array and isinstance(value, bytes):
        return token_ids(value)
    raise TypeError("token ids come as bytes")
