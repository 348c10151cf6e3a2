"""Tokenizers from vocab.txt or vocab.json and merges.txt, and the special tokens around their texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, models, processors

from tercet.server.text.errors import CheckpointTextError
from tercet.server.text.vocabularies.builders import (
    byte_level_bpe,
    guarded,
    lowercase_bpe,
    surround,
    surround_by,
    wordpiece,
)
from tercet.server.text.vocabularies.spm import sized

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import tokenizers

    from tercet.server.text.fields import Fields
    from tercet.server.text.vocabularies.piece_backend import PieceBackend


@dataclass
class Parts:
    """What one checkpoint's tokenizer is made of."""

    files: list[Path]
    config: Fields
    """tokenizer_config.json."""
    named: dict[str, str]
    """Special tokens by name."""
    added: list[str | AddedToken] = field(default_factory=list[str | AddedToken])
    """Tokens that match as a whole, which the vocabulary file itself or the kind asks for: found while building."""


def _vocabulary(parts: Parts) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocabulary, merges = (sized(file) for file in parts.files)
    return guarded(lambda: models.BPE.read_file(str(vocabulary), str(merges)), merges)


def wordpiece_files(parts: Parts) -> tokenizers.Tokenizer:
    file = sized(parts.files[0])
    vocabulary = guarded(lambda: models.WordPiece.read_file(str(file)), file)
    for name in ("cls_token", "sep_token", "unk_token"):
        if parts.named[name] not in vocabulary:
            raise CheckpointTextError(file, name, f"the vocabulary has no {parts.named[name]!r}")
    return wordpiece(
        vocabulary,
        parts.named["unk_token"],
        lowercase=parts.config.boolean("do_lower_case", True),
        strip_accents=parts.config.boolean("strip_accents", None),
        split_chinese=parts.config.boolean("tokenize_chinese_chars", True),
    )


def byte_level_files(**how: Any) -> Callable[[Parts], tokenizers.Tokenizer]:
    def build(parts: Parts) -> tokenizers.Tokenizer:
        vocabulary, merges = _vocabulary(parts)
        prefix_space = parts.config.boolean("add_prefix_space", False)
        return guarded(lambda: byte_level_bpe(vocabulary, merges, prefix_space=prefix_space, **how), parts.files[1])

    return build


def lowercase_bpe_files(parts: Parts) -> tokenizers.Tokenizer:
    vocabulary, merges = _vocabulary(parts)
    return guarded(lambda: lowercase_bpe(vocabulary, merges, parts.named["unk_token"]), parts.files[1])


def around(single: str, pair: str) -> Callable[[tokenizers.Tokenizer, Parts], None]:
    return lambda backend, parts: surround(backend, single, pair, parts.named)


def by_flags(backend: tokenizers.Tokenizer, parts: Parts) -> None:
    first, last = (parts.config.boolean(key, False) for key in ("add_bos_token", "add_eos_token"))
    surround_by(backend, parts.named, first=first, last=last)


def like_roberta(backend: tokenizers.Tokenizer, parts: Parts) -> None:
    """RoBERTa's `<s> A </s></s> B </s>`, whose offsets leave out the spaces that tokens begin with."""
    (sep, sep_id), (cls, cls_id) = (
        (parts.named[name], backend.token_to_id(parts.named[name])) for name in ("sep_token", "cls_token")
    )
    if sep_id is not None and cls_id is not None:
        backend.post_processor = processors.RobertaProcessing(
            (sep, sep_id),
            (cls, cls_id),
            trim_offsets=parts.config.boolean("trim_offsets", True),
            add_prefix_space=parts.config.boolean("add_prefix_space", False),
        )


def told(default: str, *, suffix: bool = False) -> Callable[[tokenizers.Tokenizer, Parts], None]:
    """The source's language before the text, or with `suffix` after its end, as tokenizer_config.json's src_lang."""

    def finish(backend: tokenizers.Tokenizer, parts: Parts) -> None:
        named = {**parts.named, "language": parts.config.string("src_lang", default)}
        last = suffix or parts.config.boolean("legacy_behaviour", False)
        single = "$A eos_token language" if last else "language $A eos_token"
        surround(backend, single, single.replace("$A", "$A $B"), named)

    return finish


def pieces_told(backend: PieceBackend, parts: Parts) -> None:
    """As `told`, for M2M-100."""
    language = f"__{parts.config.string('src_lang', 'en')}__"
    _between(backend, [language], [parts.named["eos_token"]])


def pieces_ended(backend: PieceBackend, parts: Parts) -> None:
    """The end alone."""
    _between(backend, [], [parts.named["eos_token"]])


def _between(backend: PieceBackend, before: list[str], after: list[str]) -> None:
    ids = [[backend.get_vocab()[token] for token in tokens] for tokens in (before, after)]
    backend.surround(*map(tuple, ids))
