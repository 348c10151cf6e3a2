"""A text, or a pair of texts, as tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tokenizers

    from tercet.server.text.vocabularies.piece_backend import PieceEncoding

Cut = Literal["first", "second", "longest"]


@dataclass(frozen=True)
class Encoded:
    """One text, or a pair of texts, as tokens: parallel lists, one entry a token.

    Tokens can be left out, where a text is cut or divided into windows, which of a pair the second text alone is.
    """

    ids: list[int]
    type_ids: list[int]
    """Segment of each token."""
    added_before: int
    added_after: int
    """How many tokens at either end always stay: those that the tokenizer added ([CLS], [SEP], ...), and of a pair the
    first text."""
    first: range = range(0)
    """Of a pair the tokens of the first text."""
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

    def truncated(self, max_length: int, cut: Cut = "second") -> Encoded:
        """At most `max_length` tokens: the text, of a pair the one that is to be cut, loses its end.

        Where that is the longest of a pair the shorter text keeps up to half of the room, as tokenizers has it. Raises
        ValueError if the tokens that stay are more alone.
        """
        if len(self) <= max_length:
            return self
        first, second = len(self.first), len(self) - self.added_before - self.added_after
        room = max_length - (len(self) - first - second)
        if cut == "longest" and first:
            shorter = min(first, second, room // 2)
            keep = shorter if second < first else room - shorter
        else:
            keep = second if cut == "first" and first else room - first
        if not 0 <= keep <= room:
            raise ValueError(f"{max_length - min(keep, room - keep)} tokens that stay don't fit into {max_length}")
        return self._of(
            [
                *range(self.first.start + room - keep),
                *range(self.first.stop, self.added_before + keep),
                *range(len(self) - self.added_after, len(self)),
            ]
        )

    def windows(self, max_length: int, overlap: int) -> list[Encoded]:
        """Windows of at most `max_length` tokens on the text, of a pair the second; neighbours share `overlap` of them.

        As tokenizers' truncation with a stride: the last window may be shorter. Raises ValueError if the tokens that
        stay are more than `max_length`, or leave a window too little to go on by.
        """
        if len(self) <= max_length:
            return [self]
        stay = self.added_before + self.added_after
        room, length = max_length - stay, len(self) - stay
        if room < 0:
            raise ValueError(f"{stay} tokens that stay don't fit into {max_length}")
        if room <= overlap:
            raise ValueError(f"windows of {room} tokens can't overlap by {overlap}")
        before, after = range(self.added_before), range(len(self) - self.added_after, len(self))
        starts = range(self.added_before, self.added_before + max(length - overlap, 1), room - overlap)
        return [self._of([*before, *range(start, min(start + room, after.start)), *after]) for start in starts]

    def _of(self, kept: Sequence[int]) -> Encoded:
        """Some of the tokens."""
        lists = {each.name: value for each in fields(self) if isinstance(value := getattr(self, each.name), list)}
        chosen = {name: [entries[i] for i in kept] for name, entries in lists.items() if entries}
        first = range(self.first.start, self.first.start + sum(i in self.first for i in kept))
        return replace(self, **chosen, first=first, added_before=sum(i < self.added_before for i in kept))


def from_encoding(encoding: tokenizers.Encoding | PieceEncoding, spans: bool) -> Encoded:
    """What the Rust library made of one text or pair."""
    first = range(0)
    if encoding.n_sequences > 1:
        sequences = encoding.sequence_ids
        stays = [sequence != 1 for sequence in sequences]
        first = range(sequences.index(0), sequences.index(0) + sequences.count(0)) if 0 in sequences else first
    else:
        # 1 for what the post-processor added, 0 for special tokens in the text
        stays = [bool(added) for added in encoding.special_tokens_mask]
    before = next((i for i, flag in enumerate(stays) if not flag), len(stays))
    after = next((i for i, flag in enumerate(reversed(stays)) if not flag), 0)
    plain = Encoded(encoding.ids, encoding.type_ids, before, after, first)
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
