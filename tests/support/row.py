"""What a row of the tables of architectures is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

from tercet.server.models.architectures import ARCHITECTURES

VOCAB_SIZE = 331  # odd on purpose
LABELS = 5


@dataclass(frozen=True)
class Row:
    """A config of one architecture, saved with each of the heads."""

    architecture: str
    config: dict[str, Any]
    heads: tuple[str, ...] = ()
    """Classes of transformers; none are all of the architecture's but those of a seq2seq model's encoder alone."""
    seed: int = 20
    """Of its weights: one where every tensor moves what comes out."""
    text_seed: int = 22
    """Of its weights where texts are generated: one where those are varied."""
    text_gains: Mapping[str, float] = field(default_factory=dict[str, float])
    """By module names, what its weights are multiplied by for the same."""

    @property
    def classes(self) -> list[str]:
        """The classes that are tested; those that transformers has dropped are other names of ones it has."""
        heads = ARCHITECTURES[self.architecture].heads
        chosen = self.heads or [name for name, head in heads.items() if not head.encoder_only]
        return [name for name in chosen if hasattr(transformers, name)]


def cases(rows: dict[str, Row]) -> list[tuple[str, str]]:
    """(row, head) of every head of every row."""
    return [(name, head) for name, row in rows.items() for head in row.classes]
