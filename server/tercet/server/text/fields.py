"""Checked reading of a checkpoint's JSON files: every complaint names the file and the key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tercet.server.text.errors import CheckpointTextError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Default = TypeVar("Default")
Value = TypeVar("Value")

MAX_CONFIG_BYTES = 16 << 20
MAX_TOKEN_ID = (1 << 31) - 1  # token ids travel as int32


def read_text(file: Path, limit: int = MAX_CONFIG_BYTES) -> str:
    """The UTF-8 text of `file`. Raises CheckpointTextError: missing, over `limit` bytes, not UTF-8."""
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise CheckpointTextError(file, None, f"larger than the limit of {limit} bytes")
        return data.decode()
    except OSError as error:
        raise CheckpointTextError(file, None, error.strerror or "can't be read") from None
    except UnicodeDecodeError as error:
        raise CheckpointTextError(file, None, f"not UTF-8 at byte {error.start}") from None


def read_json(file: Path, limit: int = MAX_CONFIG_BYTES) -> Any:
    """The JSON value of `file`. Raises CheckpointTextError as `read_text`, and where it is not JSON."""
    text = read_text(file, limit)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointTextError(
            file, None, f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except (RecursionError, ValueError):  # nested too deep; an integer of too many digits
        raise CheckpointTextError(file, None, "not JSON within reason: nested too deep or a number too long") from None


@dataclass(frozen=True)
class Fields:
    """The keys of one JSON object, or of a GGUF's metadata. A key that is null counts as absent."""

    file: Path
    values: Mapping[str, Any]
    path: str = ""
    """What leads to these keys from the file's own, "task_specific_params.summarization."; goes before each."""

    @classmethod
    def read(cls, file: Path) -> Fields:
        """The object in `file`; no keys where there is no such file."""
        if not file.is_file():
            return cls(file, {})
        values = read_json(file)
        if not isinstance(values, dict):
            raise CheckpointTextError(file, None, f"must be a JSON object, is {_kind(values)}")
        return cls(file, values)

    def error(self, key: str, problem: str) -> CheckpointTextError:
        """An error about `key` of this file, to raise."""
        return CheckpointTextError(self.file, self.path + key, problem)

    def nested(self, key: str) -> Fields:
        """The object that is the value of `key`; no keys where that is absent."""
        value = self.values.get(key)
        if not isinstance(value, dict | None):
            raise self.error(key, f"must be an object, is {_show(value)}")
        return Fields(self.file, value or {}, f"{self.path}{key}.")

    def boolean(self, key: str, default: Default) -> bool | Default:
        return self._get(key, bool, "true or false", default)

    def string(self, key: str, default: Default) -> str | Default:
        return self._get(key, str, "a string", default)

    def strings(self, key: str) -> list[str]:
        """A list of strings that must be there."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "must be a list of strings" if key in self.values else "missing")
        return value

    def integer(self, key: str, default: Default, low: int, high: int = MAX_TOKEN_ID) -> int | Default:
        """An integer in [low, high]."""
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"must be an integer from {low} to {high}, is {_show(value)}")
        return value

    def number(self, key: str, default: float, low: float, high: float, *, above_low: bool = False) -> float:
        """A number in [low, high], or in (low, high] if `above_low`."""
        value = self.values.get(key)
        if value is None:
            return default
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # NaN does not
        if not fits or (above_low and value == low):
            raise self.error(
                key, f"must be a number {'above' if above_low else 'from'} {low} to {high}, is {_show(value)}"
            )
        return float(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; empty where the key is absent."""
        value = self.values.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        if not all(map(_is_token_id, ids)):
            raise self.error(key, f"must be a token id or a list of them, is {_show(value)}")
        return tuple(ids)

    def token_sequences(self, key: str) -> tuple[tuple[int, ...], ...]:
        """A list of lists of token ids, none of them empty; an empty one where the key is absent."""
        value = self.values.get(key) or []
        fits = isinstance(value, list) and all(isinstance(ids, list) and ids for ids in value)
        if not fits or not all(_is_token_id(i) for ids in value for i in ids):
            raise self.error(key, f"must be a list of lists of token ids, is {_show(value)}")
        return tuple(map(tuple, value))

    def _get(self, key: str, kind: type[Value], words: str, default: Default) -> Value | Default:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise self.error(key, f"must be {words}, is {_show(value)}")
        return value


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKEN_ID


def _kind(value: object) -> str:
    match value:
        case list():
            return "a list"
        case str():
            return "a string"
        case _:
            return _show(value)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
