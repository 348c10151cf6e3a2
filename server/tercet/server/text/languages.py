"""The languages that a translating checkpoint is told, and what they ask of tokenizing and generating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from tercet.server.text.language_codes import M2M100, MBART, MBART50, NLLB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tercet.server.text.fields import Fields

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
    """The special tokens around the source."""
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
    """What given targets begin with where a request names none; what is generated begins as the checkpoint says."""
    suffix: bool = False
    """Whether the source's language comes after its end, not before its text."""

    @property
    def codes(self) -> list[str]:
        """Sorted."""
        return sorted(self.ids)

    def translation(self, source: str | None = None, target: str | None = None) -> Translation:
        """Raises LanguageError: a code that the checkpoint does not know, or a source that it is not told."""
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


class _Told(NamedTuple):
    """Languages of a class of tokenizers."""

    codes: tuple[str, ...]
    default_source: str
    suffix: bool = False
    spelling: str = "{}"


_TOLD = {
    "MBartTokenizer": _Told(MBART, "en_XX", suffix=True),
    "MBart50Tokenizer": _Told(MBART50, "en_XX"),
    "NllbTokenizer": _Told(NLLB, "eng_Latn"),
    "M2M100Tokenizer": _Told(M2M100["m2m100"], "en", spelling="__{}__"),
}


def read_languages(
    kind: str | None, config: Fields, vocabulary: Mapping[str, int], named: Mapping[str, str]
) -> Languages | None:
    """Those of a folder whose tokenizer is of `kind`, and whose tokenizer_config.json is `config`; None without any.

    Raises CheckpointTextError: an unknown src_lang.
    """
    end = vocabulary.get(named.get("eos_token", "</s>"))
    if end is None:
        return None
    if kind == "MarianTokenizer":
        ids = {token[2:-2]: i for token, i in vocabulary.items() if token.startswith(">>") and token.endswith("<<")}
        return Languages(ids, end, default_source=None) if ids else None
    if kind not in _TOLD:
        return None
    told = _TOLD[kind]
    codes = M2M100["wmt21"] if config.string("language_codes", None) == "wmt21" else told.codes
    ids = {code: vocabulary[token] for code in codes if (token := told.spelling.format(code)) in vocabulary}
    stated = config.string("src_lang", None)
    if not ids and stated is None:
        return None  # a fine-tune whose vocabulary has no languages
    source = stated or told.default_source
    if source not in ids:
        raise config.error("src_lang", f"the vocabulary has no language {source!r}")
    target = config.string("tgt_lang", None)
    return Languages(
        ids,
        end,
        source,
        target if target in ids else None,
        suffix=told.suffix or config.boolean("legacy_behaviour", False),
    )
