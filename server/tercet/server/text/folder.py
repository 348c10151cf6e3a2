"""The tokenizer of a Hugging Face folder: tokenizer.json, or the older vocabulary files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken

from tercet.server.text.errors import CheckpointTextError
from tercet.server.text.fields import MAX_TOKEN_ID, Fields
from tercet.server.text.vocabularies.builders import NAMED_TOKENS, checked, guarded
from tercet.server.text.vocabularies.files import Parts
from tercet.server.text.vocabularies.kinds import CLASSES, KINDS
from tercet.server.text.vocabularies.spm import sized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tercet.server.text.tokenizer import Backend
    from tercet.server.text.vocabularies.kinds import Kind

# Classes that say nothing of the vocabulary's kind.
_GENERIC = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer", "AutoTokenizer"})
_ID_DIGITS = len(str(MAX_TOKEN_ID))


@dataclass(frozen=True)
class FolderTokenizer:
    """What a folder says of its tokenizer."""

    backend: Backend
    target: Backend
    """What tokenizes a seq2seq model's targets; `backend` where nothing else does."""
    special_tokens: dict[str, str]
    """By the names of transformers: bos_token, eos_token, ..."""
    file: Path
    """The main file."""
    kind: str | None
    """The tokenizer's class in transformers; None where neither stated nor known."""


def folder_tokenizer(folder: Path, config: Fields) -> FolderTokenizer:
    """The tokenizer of `folder`, whose tokenizer_config.json is `config`.

    Raises CheckpointTextError: no tokenizer, or a malformed one.
    """
    kind = _class(folder, config)
    stated = {name: token for name, value in _stated(folder, config) if (token := _added_token(config, name, value))}
    if (file := folder / "tokenizer.json").is_file():
        backend = guarded(lambda: tokenizers.Tokenizer.from_file(str(sized(file))), file)
        backend.no_truncation()
        backend.no_padding()
        _add_tokens(backend, config, stated, [])
        checked(backend, file)
        return FolderTokenizer(backend, backend, _contents(stated), file, kind)
    made_by = _kind(folder, config, kind)
    named = {name: _added_token(config, name, token) for name, token in made_by.tokens.items()} | stated
    parts = Parts([folder / name for name in made_by.files], config, _contents(named))

    def make(build: Callable[[Parts], Backend]) -> Backend:
        backend = build(parts)
        _add_tokens(backend, config, named, [_added_token(config, "added_tokens", token) for token in parts.added])
        guarded(lambda: made_by.finish(backend, parts), parts.files[0])
        return checked(backend, parts.files[0])

    backend = make(made_by.build)
    target = backend if made_by.build_target is None else make(made_by.build_target)
    return FolderTokenizer(backend, target, _contents(named), parts.files[0], kind)


def _class(folder: Path, config: Fields) -> str | None:
    model = Fields.read(folder / "config.json")
    stated = config.string("tokenizer_class", None) or model.string("tokenizer_class", None)
    if stated is None or stated in _GENERIC:
        return CLASSES.get(model.string("model_type", ""))
    return stated.removesuffix("Fast")


def _kind(folder: Path, config: Fields, name: str | None) -> Kind:
    vocabularies = sorted({file for kind in KINDS.values() for file in kind.files[:1]})
    kind = KINDS.get(name or "")
    if kind is not None and (folder / kind.files[0]).is_file():
        return kind
    found = [file for file in vocabularies if (folder / file).is_file()]
    if not found:
        raise CheckpointTextError(folder, None, f"has no tokenizer.json and none of {', '.join(vocabularies)}")
    raise CheckpointTextError(
        folder / found[0], "tokenizer_class", f"{name!r} can't be built from this file: save tokenizer.json"
    )


def _stated(folder: Path, config: Fields) -> Iterator[tuple[str, Any]]:
    """The named tokens of tokenizer_config.json; of special_tokens_map.json too where that is the older kind."""
    files = [config]
    if "added_tokens_decoder" not in config.values:
        files.append(Fields.read(folder / "special_tokens_map.json"))
    for fields in files:
        yield from ((name, fields.values[name]) for name in NAMED_TOKENS if fields.values.get(name) is not None)


def _add_tokens(backend: Backend, config: Fields, named: Mapping[str, AddedToken], whole: Sequence[AddedToken]) -> None:
    """Tokens that the folder's files add to the vocabulary: by id, by name, and the nameless special ones.

    `whole` are those that match as a whole by their kind.
    """
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
    backend.add_tokens(list(whole))
    special = [*named.values(), *(_added_token(config, key, value) for value in extra)]
    # a token that is there already keeps its way of matching spaces
    backend.add_special_tokens([known.get(token.content, token) for token in special])


def _added_token(config: Fields, key: str, value: object) -> AddedToken:
    match value:
        case AddedToken():
            return value
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
