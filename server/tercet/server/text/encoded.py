"""A text, or a pair of texts, as tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class Encoded:
    """One text, or a pair of texts, as tokens: parallel lists, one entry a token.

    Tokens of a text's middle can be left out, where it is cut or divided into windows; of a pair's, the second text's.
    """

    ids: list[int]
    type_ids: list[int]
    """Segment of each token."""
    added_before: int
    added_after: int
    """How many tokens at either end always stay: those that the tokenizer added ([CLS], [SEP], ...), and of a pair the
    first text."""
    tokens: list[str] = field(default_factory=list[str])
    """As the vocabulary spells them; none, as of all that follows, unless spans were asked for."""
    starts: list[int] = field(default_factory=list[int])
    ends: list[int] = field(default_factory=list[int])
    """The token is `text[start:end]` of its text, in code points; 0 and 0 for tokens that the tokenizer added."""
    sequence: list[int | None] = field(default_factory=list[int | None])
    """Which text the token is of: 0, of a pair 0 or 1; None for tokens that the tokenizer added."""
    words: list[int | None] = field(default_factory=list[int | None])
    """Which word of its text, as the tokenizer divides it, the token is of; None for tokens that it added."""

    def __len__(self) -> int:
        return len(self.ids)

    def truncated(self, max_length: int) -> Encoded:
        """At most `max_length` tokens: the text, of a pair the second, loses its end.

        Raises ValueError if the tokens that stay are more alone.
        """
        return self if len(self) <= max_length else self._window(0, self._room(max_length))

    def windows(self, max_length: int, overlap: int) -> list[Encoded]:
        """Windows of at most `max_length` tokens on the text, of a pair the second; neighbours share `overlap` of them.

        As tokenizers' truncation with a stride: the last window may be shorter. Raises ValueError if the tokens that
        stay are more than `max_length`, or leave a window too little to go on by.
        """
        if len(self) <= max_length:
            return [self]
        room, length = self._room(max_length), len(self) - self.added_before - self.added_after
        if room <= overlap:
            raise ValueError(f"windows of {room} tokens can't overlap by {overlap}")
        starts = range(0, max(length - overlap, 1), room - overlap)
        return [self._window(start, min(start + room, length)) for start in starts]

    def _room(self, max_length: int) -> int:
        room = max_length - self.added_before - self.added_after
        if room < 0:
            raise ValueError(f"{self.added_before + self.added_after} special tokens don't fit into {max_length}")
        return room

    def _window(self, start: int, end: int) -> Encoded:
        """Tokens `start` to `end` of the text, and those that stay."""
        first, last = self.added_before + start, self.added_before + end
        after = len(self) - self.added_after

        def cut(entries: list[Any]) -> list[Any]:
            return [*entries[: self.added_before], *entries[first:last], *entries[after:]]

        lists = {each.name: value for each in fields(self) if isinstance(value := getattr(self, each.name), list)}
        return replace(self, **{name: cut(entries) for name, entries in lists.items() if entries})


def from_encoding(encoding: tokenizers.Encoding, spans: bool) -> Encoded:
    """What the Rust library made of one text or pair."""
    if encoding.n_sequences > 1:
        stays = [sequence != 1 for sequence in encoding.sequence_ids]
    else:
        # 1 for what the post-processor added, 0 for special tokens in the text
        stays = [bool(added) for added in encoding.special_tokens_mask]
    before = next((i for i, flag in enumerate(stays) if not flag), len(stays))
    after = next((i for i, flag in enumerate(reversed(stays)) if not flag), 0)
    plain = Encoded(encoding.ids, encoding.type_ids, before, after)
    if not spans:
        return plain
    offsets = encoding.offsets
    return replace(
        plain,
        tokens=encoding.tokens,
        starts=[start for start, _ in offsets],
        ends=[end for _, end in offsets],
        sequence=encoding.sequence_ids,
        words=encoding.word_ids,
    )
