"""Tiny SentencePiece models, and the vocabulary files that stand beside them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import sentencepiece

from support.texts import texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CORPUS = [text for text in texts(700, seed=4) if text.isprintable() and text.strip()]


def train_pieces(file: Path, corpus: Sequence[str] = CORPUS, **how: Any) -> list[str]:
    """Trains a model on a corpus into a file; its pieces."""
    how = {"vocab_size": 400, "hard_vocab_limit": False, "character_coverage": 0.98, **how}
    prefix = file.with_name(f"{file.stem}-trained")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_prefix=str(prefix), minloglevel=2, num_threads=1, **how
    )
    prefix.with_name(f"{prefix.name}.model").rename(file)
    prefix.with_name(f"{prefix.name}.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(str(file))
    return [model.id_to_piece(i) for i in range(model.vocab_size())]


def ids(*tokens: str) -> dict[str, int]:
    """A vocabulary: each token once, in order."""
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def write(folder: Path, **files: Any) -> Path:
    """JSON files of a folder, by their names without the ending."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
