"""Tokenizers from their vocabularies, as the architectures' authors and transformers put them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from tercet.server.text.errors import CheckpointTextError
from tercet.server.text.fields import MAX_TOKEN_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tercet.server.text.tokenizer import Backend

T = TypeVar("T")
Made = TypeVar("Made", bound="Backend")

# The tokens that transformers knows by name; chat templates see them as variables of these names.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# The regex by which Qwen2 cuts text before BPE.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A tokenizer that can't encode this would fail requests: a letter, and a character that no vocabulary has.
_PROBE = "a \U0010fffd"


def guarded(make: Callable[[], T], file: Path, key: str | None = None) -> T:
    """What `make` returns; what the Rust library complains of becomes a CheckpointTextError about `file` and `key`."""
    try:
        return make()
    except CheckpointTextError:
        raise
    except Exception as error:
        raise CheckpointTextError(file, key, f"not a usable tokenizer: {error}") from None
    except BaseException as error:
        # a panic of the Rust code derives from BaseException
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointTextError(file, key, f"not a usable tokenizer: {error}") from None


def checked(backend: Made, file: Path) -> Made:
    """`backend`, proven to encode, and to have tokens with ids in reason. Raises CheckpointTextError."""
    guarded(lambda: backend.encode(_PROBE), file)
    if not backend.get_vocab_size(with_added_tokens=False):
        raise CheckpointTextError(file, None, "the vocabulary is empty")
    largest = max(backend.get_vocab().values())
    if largest > MAX_TOKEN_ID:
        raise CheckpointTextError(file, None, f"token id {largest} exceeds {MAX_TOKEN_ID}")
    return backend


def wordpiece(
    vocabulary: dict[str, int],
    unknown: str,
    *,
    lowercase: bool,
    strip_accents: bool | None,
    split_chinese: bool,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer (Devlin et al. 2019): cleaned text, split at spaces and punctuation, "##" inside words."""
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def byte_level_bpe(
    vocabulary: dict[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    split: str | None = None,
    prefix_space: bool = False,
    compose: bool = False,
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer (Radford et al. 2019).

    `split` is the regex that text is cut by; None is GPT-2's. `compose`: whether text is normalised to NFC first.
    """
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, list(merges), continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    )
    if compose:
        backend.normalizer = normalizers.NFC()
    if split is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    else:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    return backend


def lowercase_bpe(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], unknown: str) -> tokenizers.Tokenizer:
    """GPT's tokenizer (Radford et al. 2018): BERT's words, lowered, as BPE whose last token ends in "</w>"."""
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            list(merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=unknown,
        )
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    return backend


def metaspace(
    model: models.Model, normal: Sequence[normalizers.Normalizer], *, words: bool, prefix_space: bool = True
) -> tokenizers.Tokenizer:
    """SentencePiece's "▁" for spaces (Kudo and Richardson 2018). `words`: whether all white space is one space."""
    backend = tokenizers.Tokenizer(model)
    if normal:
        backend.normalizer = normalizers.Sequence(list(normal))
    scheme = "always" if prefix_space else "never"
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]) if words else spaces
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
    return backend


def byte_fallback_bpe(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], *, prefix_space: bool = True
) -> tokenizers.Tokenizer:
    """Llama's tokenizer (Touvron et al. 2023): a SentencePiece BPE whose unknown characters become bytes."""
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, list(merges), fuse_unk=True, byte_fallback=True))
    scheme = "first" if prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if prefix_space else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def surround(backend: tokenizers.Tokenizer, single: str, pair: str, named: Mapping[str, str]) -> None:
    """Has `backend` put special tokens around a text and a pair.

    Both are templates of the Rust library whose tokens are keys of `named`: "cls_token $A sep_token $B:1 sep_token:1".
    """
    tokens = {name: named[name] for name in named if name in f"{single} {pair}".replace(":1", "").split()}

    def filled(template: str) -> list[str]:
        parts = (part.partition(":") for part in template.split())
        return [
            tokens.get(name, name) + colon + (segment or (":0" if not colon else "")) for name, colon, segment in parts
        ]

    backend.post_processor = processors.TemplateProcessing(
        single=filled(single),
        pair=filled(pair),
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(tokens.values())],
    )


def surround_by(backend: tokenizers.Tokenizer, named: Mapping[str, str], *, first: bool, last: bool) -> None:
    """Has `backend` put the tokens that begin and end sequences around a text and each of a pair."""
    before = "bos_token" if first and "bos_token" in named else ""
    after = "eos_token" if last and "eos_token" in named else ""
    second = " ".join(f"{part}:1" for part in (before, "$B", after) if part)
    surround(backend, f"{before} $A {after}", f"{before} $A {after} {second}", named)
