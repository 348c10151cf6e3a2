"""Finds what is wrong with the bytes of a message that protobuf refuses, so that the error can name the field.

Follows the wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor

_VARINT, _FIXED64, _LENGTH, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_FIXED = {_FIXED64: 8, _FIXED32: 4}  # bytes
_LONGEST_VARINT = 10  # bytes
_HIGHEST_NUMBER = (1 << 29) - 1
_DEEPEST = 100  # protobuf's own limit of nesting
_MOST_FIELDS = 10_000  # looked at: about 30 ms, which the event loop can spare
_UNNAMED = "is not a protobuf message of its type"


class MalformedError(ValueError):
    """Where a message is broken: `field` as in "inputs[3].text", "" for the message itself, and what is wrong."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field or 'message'}: {problem}")
        self.field = field
        self.problem = problem


def diagnose(descriptor: Descriptor, data: bytes) -> MalformedError:
    """The first fault of `data` as a message of `descriptor`; unnamed where more than 10,000 fields come before it."""
    try:
        _walk(descriptor, memoryview(data), "", 0, iter(range(_MOST_FIELDS)))
    except MalformedError as error:
        return error
    return MalformedError("", _UNNAMED)


def _walk(descriptor: Descriptor, data: memoryview, path: str, depth: int, left: Iterator[int]) -> None:
    """Raises MalformedError at the first fault. `left` gives an item for each field that may yet be looked at."""
    if depth > _DEEPEST:
        raise MalformedError(path, f"is nested deeper than {_DEEPEST}")
    at = 0
    seen: dict[int, int] = {}
    while at < len(data):
        if next(left, None) is None:
            raise MalformedError("", _UNNAMED)
        tag, at = _varint(data, at, path)
        number, wire_type = tag >> 3, tag & 7
        field = descriptor.fields_by_number.get(number)
        name = _path(path, field, number, seen.get(number, 0))
        seen[number] = seen.get(number, 0) + 1
        if not 1 <= number <= _HIGHEST_NUMBER:
            raise MalformedError(path, f"has a field of number {number}")
        if wire_type == _VARINT:
            _, at = _varint(data, at, name)
        elif wire_type in _FIXED:
            at = _skip(data, at, _FIXED[wire_type], name)
        elif wire_type == _LENGTH:
            length, at = _varint(data, at, name)
            end = _skip(data, at, length, name)
            if field is not None:
                _check(field, data[at:end], name, depth, left)
            at = end
        else:
            raise MalformedError(name, f"has wire type {wire_type}, which proto3 does not know")


def _check(field: FieldDescriptor, data: memoryview, path: str, depth: int, left: Iterator[int]) -> None:
    if field.type == FieldDescriptor.TYPE_STRING:
        try:
            bytes(data).decode()
        except UnicodeDecodeError as error:
            raise MalformedError(path, f"is not UTF-8: {error.reason} at byte {error.start}") from None
    elif field.message_type is not None:
        _walk(field.message_type, data, path, depth + 1, left)


def _path(path: str, field: FieldDescriptor | None, number: int, index: int) -> str:
    name = f"field {number}" if field is None else field.name
    if field is not None and field.is_repeated:
        name += f"[{index}]"
    return f"{path}.{name}" if path else name


def _skip(data: memoryview, at: int, length: int, path: str) -> int:
    if at + length > len(data):
        raise MalformedError(path, f"is cut short: {len(data) - at} of {length} bytes")
    return at + length


def _varint(data: memoryview, at: int, path: str) -> tuple[int, int]:
    value = 0
    for i in range(_LONGEST_VARINT):
        if at + i >= len(data):
            raise MalformedError(path, "is cut short within a number")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise MalformedError(path, "has a number of more than 10 bytes")
