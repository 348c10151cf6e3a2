"""Reading a checkpoint's configuration by a table: what each key is called in a spec, and which values it may have."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from tercet.server.models.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

REQUIRED = object()
MAX_CONFIG_BYTES = 16 << 20  # configs are a few kilobytes, with many labels a few hundred


@dataclass(frozen=True)
class Key:
    """A key of a configuration: the name a spec is made from, the values it may have, and its default."""

    name: str
    allowed: str
    """The allowed values, for the error."""
    accept: Callable[[Any], Any]
    """The value, converted; raises `ValueError`, `TypeError` or `KeyError` for one that is not allowed."""
    default: Any = REQUIRED
    nullable: bool = False
    """Whether null is a value, `None`; else it is the same as no key."""


Table = Mapping[str, "Key | Section | None"]
"""Keys of the file; `None` marks one that is known and unused. Two keys with one name are alternatives."""


@dataclass(frozen=True)
class Section:
    """A key whose value is an object with keys of its own; names are of the outer configuration."""

    keys: Table


def integer(name: str, low: int, high: int, default: Any = REQUIRED) -> Key:
    """An integer from `low` to `high`."""

    def accept(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return Key(name, f"an integer from {low} to {high}", accept, default)


def number(name: str, low: float, high: float, default: Any = REQUIRED) -> Key:
    """A finite number above `low`, up to `high`."""

    def accept(value: Any) -> float:
        if isinstance(value, bool) or not low < float(value) <= high or not math.isfinite(value):
            raise ValueError
        return float(value)

    return Key(name, f"a number above {low:g}, at most {high:g}", accept, default)


def choice(name: str, choices: Mapping[Any, Any], default: Any = REQUIRED) -> Key:
    """One of `choices`, and what each means."""
    allowed = " or ".join(json.dumps(value) for value in choices)
    # JSON's true is not 1, though Python's is.
    return Key(name, allowed, lambda value: {(type(k), k): v for k, v in choices.items()}[type(value), value], default)


def each(name: str, choices: Mapping[Any, Any], default: Any = REQUIRED) -> Key:
    """A list of `choices`, as a tuple of what they mean."""
    one = choice(name, choices)

    def accept(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise TypeError
        return tuple(map(one.accept, cast("list[Any]", value)))

    return Key(name, f"a list of {one.allowed}", accept, default)


def flag(name: str, default: Any = REQUIRED) -> Key:
    """One of true and false."""
    return choice(name, {True: True, False: False}, default)


def nullable(key: Key) -> Key:
    """A key that may also be null."""
    return replace(key, nullable=True, accept=lambda value: None if value is None else key.accept(value))


class Config:
    """The values of a configuration by their names in a spec; errors name the key and the file they came from."""

    def __init__(
        self, file: Path, table: Table, content: Mapping[str, Any], implied: Mapping[str, Any] | None = None
    ) -> None:
        """Checks `content` against the table; keys the table doesn't know are ignored.

        `implied`: values by name for what this kind of file leaves unsaid.
        """
        self.file = file
        self._values: dict[str, Any] = dict(implied or {})
        self._given: dict[str, tuple[str, Any]] = {}  # by name: the key and its value in the file
        self._read(table, content, "")
        self._fill_in(table, "")

    def _read(self, table: Table, content: Mapping[str, Any], prefix: str) -> None:
        for key, rule in table.items():
            value = content.get(key)
            null = isinstance(rule, Key) and rule.nullable and key in content
            if rule is None or (value is None and not null):
                continue
            path = prefix + key
            if isinstance(rule, Section):
                if not isinstance(value, Mapping):
                    raise CheckpointError(f"{self.file}: {path} is {shorten(value)}, it must be an object")
                self._read(rule.keys, cast("Mapping[str, Any]", value), f"{path}.")
                continue
            try:
                accepted = rule.accept(value)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                raise CheckpointError(f"{self.file}: {path} is {shorten(value)}, it must be {rule.allowed}") from error
            self._values[rule.name] = accepted
            self._given[rule.name] = path, value

    def _fill_in(self, table: Table, prefix: str) -> None:
        for key, rule in table.items():
            if isinstance(rule, Section):
                self._fill_in(rule.keys, f"{prefix}{key}.")
            elif rule is not None and rule.name not in self._values:
                if rule.default is REQUIRED:
                    raise CheckpointError(f"{self.file}: {prefix}{key} is missing")
                self._values[rule.name] = rule.default

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def get(self, name: str, default: Any) -> Any:
        """A value, or the default where there is none."""
        value = self._values.get(name)
        return default if value is None else value

    def refuse(self, name: str, reason: str) -> CheckpointError:
        """The error for a value that doesn't go with the others."""
        key, value = self._given.get(name, (name, self._values.get(name)))
        return CheckpointError(f"{self.file}: {key} is {shorten(value)}, {reason}")

    def quotient(self, name: str, divisor: str) -> int:
        """One value divided by another, which must leave no remainder."""
        if self[name] % self[divisor]:
            dividend, _ = self._given.get(name, (name, None))
            raise self.refuse(divisor, f"it must divide {dividend} = {self[name]}")
        return self[name] // self[divisor]


def shorten(value: object) -> str:
    """A value as JSON, short enough for a line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises CheckpointError naming the file."""
    content = _read(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return cast("dict[str, Any]", content)


def read_json_list(file: Path) -> list[Any]:
    """A file that holds one JSON array. Raises CheckpointError naming the file."""
    content = _read(file)
    if not isinstance(content, list):
        raise CheckpointError(f"{file}: not a JSON array")
    return cast("list[Any]", content)


def _read(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{file}: larger than the limit of {MAX_CONFIG_BYTES} bytes")
        return json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from error
