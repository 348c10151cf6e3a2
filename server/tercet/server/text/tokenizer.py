"""Text to token ids and back."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tercet.server.text.byte_level import unspell
from tercet.server.text.encoded import from_encoding
from tercet.server.text.vocabularies.piece_backend import PieceBackend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import tokenizers

    from tercet.server.text.encoded import Encoded

    Backend = tokenizers.Tokenizer | PieceBackend

# transformers' clean_up_tokenization: these replacements, one after another, over the whole text.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Tokenizer:
    """A checkpoint's tokenizer. Its methods hold no state between calls and may be called from several threads."""

    def __init__(self, backend: Backend, *, clean_up: bool = False) -> None:
        """`clean_up`: whether `decode` drops spaces before punctuation, as transformers does where a checkpoint asks.

        `backend` neither cuts nor pads: limits are the service's matter.
        """
        self.backend = backend
        self._token_bytes: dict[int, bytes] = {}
        # transformers ignores the wish for BPE, whose spaces are the text's own
        self.strip = isinstance(backend, PieceBackend)
        self.clean_up = clean_up and type(backend.model).__name__ != "BPE"

    @cached_property
    def vocab_size(self) -> int:
        """Token ids are below this, those of added tokens included."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that `decode` leaves out with `skip_special_tokens`."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """The ids of the tokens <0x00> to <0xFF>, where the decoder joins these to characters; else none."""
        if "ByteFallback" not in self.decoder_kinds:
            return frozenset()
        ids = (self.backend.token_to_id(f"<0x{byte:02{case}}>") for byte in range(0x100) for case in "Xx")
        return frozenset(i for i in ids if i is not None)

    @cached_property
    def visible_id(self) -> int:
        """A token whose text shows wherever it stands."""
        hidden = self.byte_ids | self.special_ids
        shows = (i for i in range(self.vocab_size) if i not in hidden and self.decode([i], False).strip())
        return next(shows, 0)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a byte-level token stands for."""
        data = self._token_bytes.get(token_id)
        if data is None:
            data = self._token_bytes[token_id] = unspell(self.backend.id_to_token(token_id) or "")
        return data

    @cached_property
    def decoder_parts(self) -> tuple[dict[str, Any], ...]:
        """What the decoder is made of, in order, each with its "type" and settings as in tokenizer.json."""
        decoder = self.backend.decoder
        return () if decoder is None else tuple(_parts(json.loads(decoder.__getstate__())))

    @cached_property
    def decoder_kinds(self) -> tuple[str, ...]:
        """The types of these: "ByteLevel", "WordPiece", "Metaspace", "ByteFallback", ..."""
        return tuple(str(part["type"]) for part in self.decoder_parts)

    @cached_property
    def subword_prefix(self) -> str:
        """What begins tokens inside words, "##"; empty where the vocabulary has no such mark."""
        return getattr(self.backend.model, "continuing_subword_prefix", None) or ""

    def encode(self, text: str, add_special_tokens: bool = True, spans: bool = False) -> Encoded:
        """The tokens of a text; `spans`, which take several times as long as the ids, are made where asked for."""
        return from_encoding(self.backend.encode(text, add_special_tokens=add_special_tokens), spans)

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True, spans: bool = False) -> list[Encoded]:
        """As `encode` for each, in parallel and with the interpreter lock released: call it off the event loop."""
        encode = self.backend.encode_batch if spans else self.backend.encode_batch_fast  # which counts no offsets
        return [from_encoding(e, spans) for e in encode(list(texts), add_special_tokens=add_special_tokens)]

    def encode_pair(self, first: str, second: str, spans: bool = False) -> Encoded:
        """The tokens of two texts as one sequence, put together as the checkpoint's tokenizer does."""
        return from_encoding(self.backend.encode(first, second), spans)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], spans: bool = False) -> list[Encoded]:
        """As `encode_pair` for each; otherwise as `encode_batch`."""
        encode = self.backend.encode_batch if spans else self.backend.encode_batch_fast
        return [from_encoding(e, spans) for e in encode(list(pairs))]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids that no token has are left out."""
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        text = text.strip() if self.strip else text
        for old, new in CLEAN_UP if self.clean_up else ():
            text = text.replace(old, new)
        return text


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    parts = decoder.get("decoders")
    if parts is None:
        yield decoder
    else:
        for part in parts:
            yield from _parts(part)
