"""The tokenizer of a Hugging Face folder: tokenizer.json, or the older vocabulary files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, models

from tercet.server.text.builders import NAMED_TOKENS, byte_level_bpe, checked, guarded, surround, wordpiece
from tercet.server.text.errors import CheckpointTextError
from tercet.server.text.fields import MAX_TOKEN_ID, Fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAX_VOCABULARY_BYTES = 512 << 20
_ID_DIGITS = len(str(MAX_TOKEN_ID))

# Which vocabulary files are read how: by the tokenizer class that tokenizer_config.json names, else by the model_type.
_WORDPIECE = frozenset({"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "bert", "distilbert", "electra"})
_BYTE_LEVEL = frozenset({"GPT2Tokenizer", "gpt2", "gpt_neo", "opt"})
_WORDPIECE_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_BYTE_LEVEL_TOKENS = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")


def folder_tokenizer(folder: Path, config: Fields) -> tuple[tokenizers.Tokenizer, dict[str, str], Path]:
    """The tokenizer of `folder`, whose tokenizer_config.json is `config`; its named special tokens, and its main file.

    Raises CheckpointTextError: no tokenizer, or a malformed one.
    """
    stated = {name: token for name, value in _stated(folder, config) if (token := _added_token(config, name, value))}
    if (file := folder / "tokenizer.json").is_file():
        backend = guarded(lambda: tokenizers.Tokenizer.from_file(_sized(file)), file)
    elif (file := folder / "vocab.txt").is_file():
        stated = {name: AddedToken(token, special=True) for name, token in _WORDPIECE_TOKENS.items()} | stated
        backend = _wordpiece(file, config, _contents(stated))
    elif (file := folder / "vocab.json").is_file():
        stated = {name: AddedToken(token, special=True) for name, token in _BYTE_LEVEL_TOKENS.items()} | stated
        backend = _byte_level(file, config, _contents(stated))
    else:
        raise CheckpointTextError(folder, None, "has no tokenizer.json, no vocab.txt and no vocab.json with merges.txt")
    _add_tokens(backend, config, stated)
    return checked(backend, file), _contents(stated), file


def _wordpiece(file: Path, config: Fields, named: Mapping[str, str]) -> tokenizers.Tokenizer:
    _require_kind(file, config, _WORDPIECE)
    vocabulary = guarded(lambda: models.WordPiece.read_file(_sized(file)), file)
    for name in ("cls_token", "sep_token", "unk_token"):
        if named[name] not in vocabulary:
            raise CheckpointTextError(file, name, f"the vocabulary has no {named[name]!r}")
    return wordpiece(
        vocabulary,
        named,
        lowercase=config.boolean("do_lower_case", True),
        strip_accents=config.boolean("strip_accents", None),
        split_chinese=config.boolean("tokenize_chinese_chars", True),
    )


def _byte_level(file: Path, config: Fields, named: Mapping[str, str]) -> tokenizers.Tokenizer:
    _require_kind(file, config, _BYTE_LEVEL)
    merges_file = file.with_name("merges.txt")
    vocabulary, merges = guarded(lambda: models.BPE.read_file(_sized(file), _sized(merges_file)), merges_file)
    prefix_space = config.boolean("add_prefix_space", False)
    backend = guarded(lambda: byte_level_bpe(vocabulary, merges, prefix_space=prefix_space), merges_file)
    surround(
        backend,
        before=named["bos_token"] if config.boolean("add_bos_token", False) else None,
        after=named["eos_token"] if config.boolean("add_eos_token", False) else None,
    )
    return backend


def _require_kind(file: Path, config: Fields, known: frozenset[str]) -> None:
    kind = config.string("tokenizer_class", None) or Fields.read(file.with_name("config.json")).string("model_type", "")
    if kind.removesuffix("Fast") not in known:
        raise CheckpointTextError(
            file, "tokenizer_class", f"{kind!r} can't be built from this file: save tokenizer.json"
        )


def _sized(file: Path) -> str:
    """The path of `file` for the Rust library, which reads it whole."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise CheckpointTextError(file, None, error.strerror or "can't be read") from None
    if size > MAX_VOCABULARY_BYTES:
        raise CheckpointTextError(file, None, f"larger than the limit of {MAX_VOCABULARY_BYTES} bytes")
    return str(file)


def _stated(folder: Path, config: Fields) -> Iterator[tuple[str, Any]]:
    """The named tokens of tokenizer_config.json; of special_tokens_map.json too where that is the older kind."""
    files = [config]
    if "added_tokens_decoder" not in config.values:
        files.append(Fields.read(folder / "special_tokens_map.json"))
    for fields in files:
        yield from ((name, fields.values[name]) for name in NAMED_TOKENS if fields.values.get(name) is not None)


def _add_tokens(backend: tokenizers.Tokenizer, config: Fields, named: Mapping[str, AddedToken]) -> None:
    """Tokens that the folder's files add to the vocabulary: by id, by name, and the nameless special ones."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    key = "added_tokens_decoder"
    by_id = config.values.get(key) or {}
    if not isinstance(by_id, dict) or not all(
        i.isdecimal() and len(i) <= _ID_DIGITS and int(i) <= MAX_TOKEN_ID for i in by_id
    ):
        raise config.error(key, "must be an object whose keys are token ids")
    for token_id in sorted(by_id, key=int):
        token = _added_token(config, key, by_id[token_id])
        if token.content not in known:
            backend.add_tokens([token])
            known[token.content] = token
            if backend.token_to_id(token.content) != int(token_id):
                raise config.error(key, f"the vocabulary can't give {token.content!r} the id {token_id}")
    key = "extra_special_tokens"
    extra = config.values.get(key) or config.values.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    if not isinstance(extra, list):
        raise config.error(key, "must be a list of tokens")
    special = [*named.values(), *(_added_token(config, key, value) for value in extra)]
    # a token that is there already keeps its way of matching spaces
    backend.add_special_tokens([known.get(token.content, token) for token in special])


def _added_token(config: Fields, key: str, value: object) -> AddedToken:
    match value:
        case str():
            return AddedToken(value, special=True, normalized=False)
        case {"content": str(content), **flags}:
            return AddedToken(
                content,
                single_word=flags.get("single_word") is True,
                lstrip=flags.get("lstrip") is True,
                rstrip=flags.get("rstrip") is True,
                normalized=flags.get("normalized") is True,
                special=flags.get("special", True) is True,
            )
        case _:
            raise config.error(key, "must be a token: a string, or an object with its content")


def _contents(named: Mapping[str, AddedToken]) -> dict[str, str]:
    return {name: token.content for name, token in named.items()}
