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

T = TypeVar("T")

# The tokens that transformers knows by name; chat templates see them as variables of these names.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

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


def checked(backend: tokenizers.Tokenizer, file: Path) -> tokenizers.Tokenizer:
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
    named: Mapping[str, str],
    *,
    lowercase: bool,
    strip_accents: bool | None,
    split_chinese: bool,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer (Devlin et al. 2019): cleaned text, split at spaces and punctuation, "##" inside words."""
    first, last = named["cls_token"], named["sep_token"]
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=named["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=split_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    return backend


def byte_level_bpe(
    vocabulary: dict[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    split: str | None = None,
    prefix_space: bool = False,
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer (Radford et al. 2019). `split` is the regex that text is cut by; None is GPT-2's."""
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, list(merges), continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    )
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


def surround(backend: tokenizers.Tokenizer, before: str | None, after: str | None) -> None:
    """Has `backend` put the special tokens `before` and `after` around a text."""
    names = [name for name in (before, after) if name is not None]
    ids = {name: backend.token_to_id(name) for name in names}
    single = " ".join(f"{part}:0" for part in (before, "$A", after) if part is not None)
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=" ".join([single, *(f"{part}:1" for part in (before, "$B", after) if part is not None)]),
        special_tokens=[(name, token_id) for name, token_id in ids.items() if token_id is not None],
    )
