"""GGUF metadata, and the tokenizer in it.

The `gguf` library wraps every string of a vocabulary in arrays of its own, which takes seconds. A server's start can't
wait for that, so the metadata is read here, by the format's description (ggml's docs/gguf.md).
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from tercet.server.text.byte_level import spell, spelled
from tercet.server.text.errors import CheckpointTextError
from tercet.server.text.fields import Fields
from tercet.server.text.vocabularies.builders import (
    QWEN_SPLIT,
    byte_fallback_bpe,
    byte_level_bpe,
    checked,
    guarded,
    surround_by,
)
from tercet.server.text.vocabularies.spm import implied_merges

if TYPE_CHECKING:
    from pathlib import Path

_VERSIONS = (2, 3)
_MAX_KEYS = 1 << 16
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CONTROL, _USER_DEFINED = 3, 4  # token types


def read_metadata(file: Path) -> Fields:
    """The metadata of a GGUF file. Raises CheckpointTextError: not GGUF, cut short, or of another version."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Fields(file, _Reader(file, data).metadata())
    except OSError as error:
        raise CheckpointTextError(file, None, error.strerror or "can't be read") from None
    except ValueError as error:
        if isinstance(error, CheckpointTextError):
            raise
        raise CheckpointTextError(file, None, "not a GGUF file: empty") from None


class _Reader:
    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self._file, self._data = file, data
        self._at = 0
        self._key: str | None = None

    def metadata(self) -> dict[str, Any]:
        if self._data[:4] != b"GGUF":
            raise CheckpointTextError(self._file, None, "not a GGUF file")
        self._at = 4
        version, _tensors, keys = self._unpack("<IQQ")
        if version not in _VERSIONS:
            raise CheckpointTextError(self._file, None, f"GGUF version {version} is not one of {_VERSIONS}")
        if keys > _MAX_KEYS:
            raise CheckpointTextError(self._file, None, f"{keys} metadata keys exceed the limit of {_MAX_KEYS}")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            self._key = None
            self._key = self._strings(1)[0]
            (kind,) = self._unpack("<I")
            metadata[self._key] = self._array() if kind == _ARRAY else self._values(kind, 1)[0]
        return metadata

    def _array(self) -> list[Any]:
        kind, count = self._unpack("<IQ")
        return self._values(kind, count)

    def _values(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return self._strings(count)
        if kind not in _SCALARS:
            raise CheckpointTextError(self._file, self._key, f"unknown value type {kind}")
        if count > len(self._data):
            raise self._cut_short()
        return list(self._unpack(f"<{count}{_SCALARS[kind]}"))

    def _strings(self, count: int) -> list[str]:
        data, at, end = self._data, self._at, len(self._data)
        strings: list[str] = []
        for _ in range(count):
            start = at + 8
            at = start + int.from_bytes(data[at:start], "little")
            if at > end or start > end:
                raise self._cut_short()
            try:
                strings.append(data[start:at].decode())
            except UnicodeDecodeError:
                raise CheckpointTextError(self._file, self._key, f"string {len(strings)} is not UTF-8") from None
        self._at = at
        return strings

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        try:
            values = struct.unpack_from(layout, self._data, self._at)
        except struct.error:
            raise self._cut_short() from None
        self._at += struct.calcsize(layout)
        return values

    def _cut_short(self) -> CheckpointTextError:
        return CheckpointTextError(
            self._file, self._key, f"the file ends at byte {len(self._data)}, inside the metadata"
        )


_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN_SPLIT = (  # of Mistral's later models
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre: the regex that text is cut by before BPE; None is GPT-2's own. smollm's training cut digits apart
# first, which its vocabulary makes needless: no token of it has several of 0 to 9. transformers reads it so too.
_SPLITS: dict[str, str | None] = {
    "default": None,
    "gpt-2": None,
    "smollm": None,
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "pixtral"), _LLAMA3_SPLIT),
    "tekken": _TEKKEN_SPLIT,
    "deepseek-r1-qwen": QWEN_SPLIT,
    "qwen2": QWEN_SPLIT,
}
_MERGES = "tokenizer.ggml.merges"
_SCORES = "tokenizer.ggml.scores"
_TOKEN_ID_KEYS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def gguf_tokenizer(metadata: Fields) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of a GGUF file and its named special tokens, as transformers reads them.

    Raises CheckpointTextError: another kind of tokenizer, or one that contradicts itself.
    """
    kind = metadata.string("tokenizer.ggml.model", None)
    if kind not in _KINDS:
        known = " or ".join(f"{name!r} ({what})" for name, (what, _) in _KINDS.items())
        raise metadata.error("tokenizer.ggml.model", f"must be {known}, is {kind!r}")
    tokens = metadata.strings("tokenizer.ggml.tokens")
    backend = _KINDS[kind][1](metadata, tokens)
    named = {
        name: tokens[token_id]
        for name, key in _TOKEN_ID_KEYS.items()
        if (token_id := metadata.integer(key, None, 0, len(tokens) - 1)) is not None
    }
    bytewise = kind == "gpt2"
    _add_tokens(backend, metadata, tokens, named, bytewise=bytewise)
    # llama.cpp begins sequences of a SentencePiece vocabulary where older files don't say
    first = metadata.boolean("tokenizer.ggml.add_bos_token", not bytewise)
    last = metadata.boolean("tokenizer.ggml.add_eos_token", False)
    surround_by(backend, named, first=first, last=last)
    return checked(backend, metadata.file), named


def _byte_level(metadata: Fields, tokens: list[str]) -> Tokenizer:
    split = metadata.string("tokenizer.ggml.pre", "default")
    if split not in _SPLITS:
        raise metadata.error("tokenizer.ggml.pre", f"must be one of {', '.join(_SPLITS)}, is {split!r}")
    merges = _pairs(metadata, metadata.strings(_MERGES))
    vocabulary = {token if spelled(token) else spell(token.encode()): index for index, token in enumerate(tokens)}
    return guarded(lambda: byte_level_bpe(vocabulary, merges, split=_SPLITS[split]), metadata.file, _MERGES)


def _sentencepiece(metadata: Fields, tokens: list[str]) -> Tokenizer:
    """A SentencePiece BPE. Most files have its scores in place of merges, which these imply."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if _MERGES in metadata.values:
        merges = _pairs(metadata, metadata.strings(_MERGES))
    else:
        scores = metadata.values.get(_SCORES)
        if not isinstance(scores, list) or len(scores) != len(tokens):
            raise metadata.error(_SCORES, f"must be a list of {len(tokens)} numbers where there are no merges")
        merges = implied_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    return guarded(lambda: byte_fallback_bpe(vocabulary, merges), metadata.file, _MERGES)


_KINDS = {"gpt2": ("byte-level BPE", _byte_level), "llama": ("SentencePiece", _sentencepiece)}


def _pairs(metadata: Fields, merges: list[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space or " " in right:
            raise metadata.error(_MERGES, f"{merge!r} is not a pair of tokens")
        pairs.append((left, right))
    return pairs


def _add_tokens(
    backend: Tokenizer, metadata: Fields, tokens: list[str], named: dict[str, str], *, bytewise: bool
) -> None:
    key = "tokenizer.ggml.token_type"
    kinds = metadata.values.get(key) or []
    if not isinstance(kinds, list) or (kinds and len(kinds) != len(tokens)):
        raise metadata.error(key, f"must be a list of {len(tokens)} token types")
    control = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL]
    if bytewise:
        # one outside the byte alphabet is in the vocabulary under another spelling: adding it would grow that
        control = [token for token in control if spelled(token)]
    user_defined = [token for token, kind in zip(tokens, kinds, strict=False) if kind == _USER_DEFINED]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    in_vocabulary = (token for token in user_defined if backend.token_to_id(token) is not None)
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in in_vocabulary])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in named.values()])
