"""Token ids to text as they come."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

from tercet.server.text.stop import open_match
from tercet.server.text.tokenizer import CLEAN_UP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server.text.tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes one stream of token ids: the pieces joined are `tokenizer.decode` of all the ids.

    A piece never ends inside a character: bytes of an incomplete one are held back until it is complete or known to be
    broken. The work is constant per token, whatever the length of the stream.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        byte_level = tokenizer.decoder_kinds == ("ByteLevel",)
        self._text: _Assembler = _Bytes(tokenizer) if byte_level else _Window(tokenizer)
        self._stages: list[_Stage] = [_Strip()] if tokenizer.strip else []
        if tokenizer.clean_up:
            self._stages += [_Replacement(old, new) for old, new in CLEAN_UP]

    def push(self, ids: Sequence[int]) -> str:
        """Takes the next ids; returns the text that they make certain, which may be empty."""
        token_of = self._tokenizer.backend.id_to_token
        text = self._text.push([i for i in ids if i not in self._skipped and token_of(i) is not None])
        for stage in self._stages:
            text = stage.push(text)
        return text

    def finish(self) -> str:
        """The text still held back, once no more ids come; an incomplete character is U+FFFD."""
        text = self._text.finish()
        for stage in self._stages:
            text = stage.push(text) + stage.finish()
        return text


class _Assembler(Protocol):
    """Ids that all belong to the text, to text."""

    def push(self, ids: list[int]) -> str: ...

    def finish(self) -> str: ...


class _Stage(Protocol):
    """Text to text, in pieces."""

    def push(self, text: str) -> str: ...

    def finish(self) -> str: ...


class _Bytes:
    """For byte-level vocabularies: tokens are bytes, and their sequence is UTF-8 with its errors replaced."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes_of = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: list[int]) -> str:
        return self._utf8.decode(b"".join(map(self._bytes_of, ids)))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Window:
    """For every other vocabulary: a token's text depends on its place (the first one loses its space, "##" joins), so
    it is what the token adds to the text of the tokens just before it.

    With byte fallback a run of byte tokens is one unit: if any of it is not UTF-8 then all of it becomes U+FFFD, so the
    run is held back until it ends.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._held: list[int] = []

    def push(self, ids: list[int]) -> str:
        pieces: list[str] = []
        for token_id in ids:
            self._held.append(token_id)
            if token_id not in self._tokenizer.byte_ids:
                pieces.append(self.finish())
        return "".join(pieces)

    def finish(self) -> str:
        if not self._held:
            return ""
        decode = self._tokenizer.backend.decode
        text = decode(self._context + self._held, skip_special_tokens=False)
        added = text[len(self._context_text) :]
        # once there is text it doesn't matter which; the token that added the last of it places the next, with those
        # after it that added none
        self._context = [self._tokenizer.visible_id, self._held[-1]] if added else self._context + self._held
        self._context_text = decode(self._context, skip_special_tokens=False)
        self._held = []
        return added


class _Replacement:
    """`str.replace` over a text that comes in pieces."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._held = ""

    def push(self, text: str) -> str:
        *done, rest = (self._held + text).split(self._old)
        certain = open_match(rest, (self._old,))
        self._held = rest[certain:]
        return self._new.join([*done, rest[:certain]])

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class _Strip:
    """`str.strip` over a text that comes in pieces."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + (text if self._begun else text.lstrip())
        certain = text.rstrip()
        self._begun = self._begun or bool(certain)
        self._held = text[len(certain) :]
        return certain

    def finish(self) -> str:
        return ""
