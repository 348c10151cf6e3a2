"""Tokenizing by the sentencepiece library itself: for vocabularies whose ids are not those of its model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tercet.server.text.errors import CheckpointTextError
from tercet.server.text.vocabularies.spm import library, sized

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tokenizers import AddedToken

_LANGUAGE = re.compile(r">>.*?<<", re.DOTALL)


@dataclass(frozen=True)
class PieceEncoding:
    """What tokenizers.Encoding says of a text or a pair, under the same names."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    sequence_ids: list[int | None]
    word_ids: list[int | None]

    @property
    def type_ids(self) -> list[int]:
        return [0] * len(self.ids)

    @property
    def special_tokens_mask(self) -> list[int]:
        return [int(sequence is None) for sequence in self.sequence_ids]

    @property
    def n_sequences(self) -> int:
        return 2 if 1 in self.sequence_ids else 1


class PieceBackend:
    """What `Tokenizer` asks of tokenizers.Tokenizer, as transformers' tokenizers in Python do it."""

    decoder = None
    model = None

    def __init__(
        self, model: Path, vocabulary: Mapping[str, int], unknown: str, *, decode: Path | None = None, marian: bool
    ) -> None:
        """`model` divides texts; `decode`, if another, joins tokens.

        `marian`: whether a text may begin with its target's language, ">>fra<<", and special tokens are followed by
        spaces in text. `unknown` is of the vocabulary. Raises CheckpointTextError: no SentencePiece model.
        """
        self._splitter = _load(model)
        self._joiner = self._splitter if decode is None else _load(decode)
        self._ids = dict(vocabulary)
        self._tokens = {token_id: token for token, token_id in self._ids.items()}
        self._unknown = self._ids[unknown]
        self._marian = marian
        self._added: dict[int, AddedToken] = {}
        self._whole = re.compile("(?!)")
        self._before: tuple[int, ...] = ()
        self._after: tuple[int, ...] = ()

    def surround(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        """The special tokens around every text and pair."""
        self._before, self._after = before, after

    def add_tokens(self, tokens: Sequence[AddedToken]) -> None:
        """These match as a whole; one that the vocabulary lacks gets the next id."""
        for token in tokens:
            token_id = self._ids.setdefault(token.content, max(self._tokens, default=-1) + 1)
            self._tokens[token_id] = token.content
            self._added[token_id] = token
        longest_first = sorted((token.content for token in self._added.values()), key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def add_special_tokens(self, tokens: Sequence[AddedToken]) -> None:
        self.add_tokens(tokens)

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return dict(self._added)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return {token: i for token, i in self._ids.items() if with_added_tokens or i not in self._added}

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return len(self.get_vocab(with_added_tokens))

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self._tokens.get(token_id)

    def encode(self, text: str, pair: str | None = None, add_special_tokens: bool = True) -> PieceEncoding:
        made = PieceEncoding([], [], [], [], [])

        def add(token_ids: Sequence[int]) -> None:
            for token_id in token_ids if add_special_tokens else ():
                _append(made, token_id, self._tokens[token_id], (0, 0), None, None)

        add(self._before)
        for sequence, each in enumerate((text,) if pair is None else (text, pair)):
            word = -1
            for piece, start, end in self._pieces(each):
                word += word < 0 or piece.startswith("\u2581") or start == end
                _append(made, self._ids.get(piece, self._unknown), piece, (start, end), sequence, word)
        add(self._after)
        return made

    def encode_batch(
        self, inputs: Sequence[str] | Sequence[tuple[str, str]], add_special_tokens: bool = True
    ) -> list[PieceEncoding]:
        pairs = ((each, None) if isinstance(each, str) else each for each in inputs)
        return [self.encode(text, pair, add_special_tokens) for text, pair in pairs]

    encode_batch_fast = encode_batch

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """With the spaces at its ends, which transformers strips."""
        text, run = "", list[str]()
        for token_id in ids:
            token, added = self._tokens.get(token_id), self._added.get(token_id)
            special = added is not None and added.special
            if token is None or (special and skip_special_tokens):
                continue
            if special:
                text += self._joiner.decode(run) + token + (" " if self._marian else "")
                run = []
            else:
                run.append(token)
        text += self._joiner.decode(run)
        return text.replace("\u2581", " ") if self._marian else text

    def _pieces(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Each token with where it starts and ends."""
        at = 0
        for match in [*self._whole.finditer(text), None]:
            yield from self._segment(text, at, len(text) if match is None else match.start())
            if match is not None:
                yield match.group(), match.start(), match.end()
                at = match.end()

    def _segment(self, text: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
        if self._marian and (code := _LANGUAGE.match(text, start, end)):
            yield code.group(), start, code.end()
            start = code.end()
        data = text[start:end].encode()
        done = 0
        for piece in self._splitter.encode(data.decode(), return_type="proto").pieces:
            start += len(data[done : piece.begin].decode())
            length = len(data[piece.begin : piece.end].decode())
            yield piece.piece, start, start + length
            start, done = start + length, piece.end


def _append(
    made: PieceEncoding, token_id: int, token: str, offset: tuple[int, int], sequence: int | None, word: int | None
) -> None:
    made.ids.append(token_id)
    made.tokens.append(token)
    made.offsets.append(offset)
    made.sequence_ids.append(sequence)
    made.word_ids.append(word)


def _load(file: Path) -> Any:
    try:
        return library(file).SentencePieceProcessor(model_file=str(sized(file)))
    except (RuntimeError, OSError):
        raise CheckpointTextError(file, None, "not a SentencePiece model") from None
