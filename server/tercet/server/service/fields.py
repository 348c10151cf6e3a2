"""What requests and responses have in common: numbers in a range, values of enums, names among those known, usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from tercet.server.service.errors import InvalidArgumentError
from tercet.v1.types_pb2 import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.message import Message

T = TypeVar("T")
MOST_RESULTS = 1000  # candidates or answers of one input
_MOST_NAMES = 20  # in an error


class _Item(Protocol):
    @property
    def prompt_tokens(self) -> int: ...


def usage(items: Iterable[_Item]) -> Usage:
    """What the items of a response consumed."""
    return Usage(prompt_tokens=sum(item.prompt_tokens for item in items))


def number(request: Message, name: str, unset: int, high: int | None = None) -> int:
    """A number of a request that is at least 1 and at most `high`, or `unset`. Raises InvalidArgumentError."""
    value = getattr(request, name) if request.HasField(name) else unset
    if value < 1:
        raise InvalidArgumentError(name, "must be at least 1")
    if high is not None and value > high:
        raise InvalidArgumentError(name, f"{value} is more than the limit, {high}")
    return value


def choice(field: str, value: int, kind: str, meanings: Mapping[int, T]) -> T:
    """What a value of an enum means; `kind` is that enum, with its article. Raises InvalidArgumentError."""
    if value not in meanings:
        raise InvalidArgumentError(field, f"{value} is not {kind}, 0 to {max(meanings)}")
    return meanings[value]


def unknown(field: str, kind: str, names: Iterable[str]) -> InvalidArgumentError:
    """The error for a name that is not among those that a model has."""
    known = sorted(names)
    listed = ", ".join(known[:_MOST_NAMES]) + (f" and {len(known) - _MOST_NAMES} more" * (len(known) > _MOST_NAMES))
    return InvalidArgumentError(field, f"the model has no such {kind}; it has {listed or 'none'}")
