"""Token ids to text as they come."""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from tercet.server.text.stop import open_match
from tercet.server.text.tokenizer import CLEAN_UP

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from tercet.server.text.tokenizer import Tokenizer

_MOST_STEPS = 1 << 16  # remembered of one tokenizer; some 200 bytes each
_MACHINES = 64  # tokenizers, with and without special tokens


class IncrementalDecoder:
    """Decodes one stream of token ids: the pieces joined are `tokenizer.decode` of all the ids.

    A piece never ends inside a character: bytes of an incomplete one are held back until it is complete or known to be
    broken. The work is constant per token, whatever the length of the stream, and mostly a look into a table: what a
    token adds to the text depends on very little of what was before it, so it is found out once for all streams.
    """

    __slots__ = ("_machine", "_stages", "_steps")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._machine = _machine(tokenizer, skip_special_tokens)
        self._steps = self._machine.at(self._machine.start)
        self._stages: list[_Stage] = [_Strip()] if tokenizer.strip else []
        if tokenizer.clean_up:
            self._stages += [_Replacement(old, new) for old, new in CLEAN_UP]

    def add(self, token_id: int) -> str:
        """Takes the next id; returns the text that it makes certain, which may be empty."""
        text, self._steps = self._steps[token_id]
        for stage in self._stages:
            text = stage.push(text)
        return text

    def push(self, ids: Sequence[int]) -> str:
        """As `add` for several."""
        return "".join(map(self.add, ids))

    def finish(self) -> str:
        """The text still held back, once no more ids come; an incomplete character is U+FFFD."""
        text = self._machine.rest(self._steps.state)
        for stage in self._stages:
            text = stage.push(text) + stage.finish()
        return text


class _Steps(dict[int, "tuple[str, _Steps]"]):
    """From one state, by the next token: what it adds to the text, and the steps from the state after it."""

    __slots__ = ("_machine", "state")

    def __init__(self, machine: _Machine, state: Any) -> None:
        super().__init__()
        self._machine = machine
        self.state = state

    def __missing__(self, token_id: int) -> tuple[str, _Steps]:
        text, state = self._machine.step(self.state, token_id)
        found = self[token_id] = (text, self._machine.at(state))
        return found


class _Machine:
    """How ids become text: an automaton that is built as it is used."""

    start: Hashable

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._known: dict[Hashable, _Steps] = {}
        self._asked = 0

    def at(self, state: Hashable) -> _Steps:
        """The steps from a state."""
        self._asked += 1
        if self._asked > _MOST_STEPS:
            for steps in self._known.values():
                steps.clear()
            self._known.clear()
            self._asked = 1
        steps = self._known.get(state)
        if steps is None:
            steps = self._known[state] = _Steps(self, state)
        return steps

    def step(self, state: Any, token_id: int) -> tuple[str, Hashable]:
        """What a token adds to the text, and the state after it."""
        if token_id in self._skipped or self._tokenizer.backend.id_to_token(token_id) is None:
            return "", state
        return self._read(state, token_id)

    def rest(self, state: Any) -> str:
        """The text held back in a state, where no more ids come."""
        raise NotImplementedError

    def _read(self, state: Any, token_id: int) -> tuple[str, Hashable]:
        """As `step`, for a token that belongs to the text."""
        raise NotImplementedError


class _Bytes(_Machine):
    """For byte-level vocabularies: tokens are bytes, and their sequence is UTF-8 with its errors replaced. The state is
    the bytes of an incomplete character.
    """

    start = b""

    def _read(self, state: bytes, token_id: int) -> tuple[str, bytes]:
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        text = utf8.decode(state + self._tokenizer.token_bytes(token_id))
        return text, utf8.getstate()[0]

    def rest(self, state: bytes) -> str:
        return state.decode("utf-8", "replace")


class _Window(_Machine):
    """For every other vocabulary: a token's text depends on its place (the first one loses its space, "##" joins), so
    it is what the token adds to the text of the tokens just before it. The state is these, and tokens held back.

    With byte fallback a run of byte tokens is one unit: if any of it is not UTF-8 then all of it becomes U+FFFD, so the
    run is held back until it ends.
    """

    start = ((), ())

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        super().__init__(tokenizer, skip_special_tokens)
        self._alone = _reads_tokens_alone(tokenizer)

    def _read(self, state: tuple[tuple[int, ...], ...], token_id: int) -> tuple[str, Hashable]:
        context, held = state
        held = (*held, token_id)
        return ("", (context, held)) if token_id in self._tokenizer.byte_ids else self._add(context, held)

    def rest(self, state: tuple[tuple[int, ...], ...]) -> str:
        context, held = state
        return self._add(context, held)[0] if held else ""

    def _add(self, context: tuple[int, ...], held: tuple[int, ...]) -> tuple[str, Hashable]:
        decode = self._tokenizer.backend.decode
        before = decode(list(context), skip_special_tokens=False)
        added = decode([*context, *held], skip_special_tokens=False)[len(before) :]
        visible = (self._tokenizer.visible_id,)
        if self._alone and (added or context == visible):
            return added, (visible, ())
        # once there is text it doesn't matter which; the token that added the last of it places the next, with those
        # after it that added none
        return added, ((*visible, held[-1]) if added else context + held, ())


def _reads_tokens_alone(tokenizer: Tokenizer) -> bool:
    """Whether, once there is text, what a token adds depends on no token before it.

    So it is where the decoder works on one token after the other, and what follows, once they are joined, is about the
    start of the text alone.
    """
    joined = False
    for part in tokenizer.decoder_parts:
        match part["type"]:
            case "WordPiece" | "Metaspace" | "ByteFallback" | "Replace":
                alone = not joined
            case "Fuse":
                joined = alone = True
            case "Strip":
                alone = not part["stop"]
            case _:
                alone = False
        if not alone:
            return False
    return bool(tokenizer.decoder_parts)


@lru_cache(_MACHINES)
def _machine(tokenizer: Tokenizer, skip_special_tokens: bool) -> _Machine:
    kind = _Bytes if tokenizer.decoder_kinds == ("ByteLevel",) else _Window
    return kind(tokenizer, skip_special_tokens)


class _Stage(Protocol):
    """Text to text, in pieces."""

    def push(self, text: str) -> str: ...

    def finish(self) -> str: ...


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
