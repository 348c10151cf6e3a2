"""The languages that a translating checkpoint is told, and what they ask of tokenizing and generating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOWN = 10  # codes in an error


class LanguageError(ValueError):
    """A language that the checkpoint does not know, or is not told, in one line for the caller."""

    def __init__(self, field: Literal["source_lang", "target_lang"], problem: str) -> None:
        super().__init__(problem)
        self.field: Literal["source_lang", "target_lang"] = field


@dataclass(frozen=True)
class Translation:
    """What a source is read between and a target starts with."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    """The special tokens around the source: encode its text without any, see `Encoded.surrounded`."""
    forced_bos_id: int | None
    """The first token to generate; None is the checkpoint's own."""


@dataclass(frozen=True)
class Languages:
    """How a checkpoint is told languages: by a token with the source, by the first token of the target."""

    ids: Mapping[str, int]
    """The token of each code."""
    end: int
    """The token that ends a source."""
    default_source: str | None
    """Where a request names none; None for checkpoints that are told the target alone, before the source's text."""
    default_target: str | None = None
    suffix: bool = False
    """Whether the source's language comes after its end, not before its text."""

    @property
    def codes(self) -> list[str]:
        """Sorted."""
        return sorted(self.ids)

    def translation(self, source: str | None = None, target: str | None = None) -> Translation:
        """Raises LanguageError: a code that the checkpoint does not know, or a source that it is not told."""
        target = self.default_target if target is None else target
        target_id = None if target is None else self._id("target_lang", target)
        if self.default_source is None:
            if source is not None:
                raise LanguageError("source_lang", "the model is told the target's language alone")
            return Translation(() if target_id is None else (target_id,), (self.end,), None)
        language = self._id("source_lang", self.default_source if source is None else source)
        if self.suffix:
            return Translation((), (self.end, language), target_id)
        return Translation((language,), (self.end,), target_id)

    def _id(self, field: Literal["source_lang", "target_lang"], code: str) -> int:
        if code not in self.ids:
            codes = self.codes
            more = f" and {len(codes) - _SHOWN} more" if len(codes) > _SHOWN else ""
            raise LanguageError(field, f"must be one of {', '.join(codes[:_SHOWN])}{more}, is {code[:40]!r}")
        return self.ids[code]
