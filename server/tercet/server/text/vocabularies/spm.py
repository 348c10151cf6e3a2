"""SentencePiece models (Kudo and Richardson 2018) read for the Rust library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tercet.server.text.errors import CheckpointTextError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_BYTES = 512 << 20
_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type
_CONTROL, _USER_DEFINED = 3, 4  # a piece's type


@dataclass(frozen=True)
class SentencePieces:
    """What a SentencePiece model consists of."""

    file: Path
    pieces: list[tuple[str, float]]
    """Each with its score, by id."""
    added: list[tuple[str, bool]]
    """The pieces that match as a whole, and whether they are control tokens."""
    unk_id: int
    bpe: bool
    charsmap: bytes | None
    """The compiled rules that text is normalised by."""


def library(file: Path) -> Any:
    """The sentencepiece package. Raises CheckpointTextError, which names the extra, where it is not installed."""
    try:
        import sentencepiece
    except ImportError:
        problem = "needs the sentencepiece package: pip install 'tercet[sentencepiece]'"
        raise CheckpointTextError(file, None, problem) from None
    return sentencepiece


def read_pieces(file: Path) -> SentencePieces:
    """Raises CheckpointTextError: too large, no SentencePiece model, or one of words or characters."""
    library(file)
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(sized(file).read_bytes())
    except DecodeError:
        raise CheckpointTextError(file, None, "not a SentencePiece model") from None
    kind = model.trainer_spec.model_type
    if not model.pieces or kind not in (_UNIGRAM, _BPE):
        raise CheckpointTextError(file, None, "not a SentencePiece model of kind unigram or BPE")
    return SentencePieces(
        file=file,
        pieces=[(piece.piece, piece.score) for piece in model.pieces],
        added=[(p.piece, p.type == _CONTROL) for p in model.pieces if p.type in (_CONTROL, _USER_DEFINED)],
        unk_id=model.trainer_spec.unk_id,
        bpe=kind == _BPE,
        charsmap=model.normalizer_spec.precompiled_charsmap or None,
    )


def sized(file: Path) -> Path:
    """`file`, if it can be read whole. Raises CheckpointTextError."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise CheckpointTextError(file, None, error.strerror or "can't be read") from None
    if size > MAX_BYTES:
        raise CheckpointTextError(file, None, f"larger than the limit of {MAX_BYTES} bytes")
    return file


def implied_merges(vocabulary: Mapping[str, int], scores: Mapping[str, float] | None = None) -> list[tuple[str, str]]:
    """The merges that a BPE vocabulary implies: every way of cutting a token into two others.

    In the order of their tokens, or with `scores` of these, best first: a SentencePiece model keeps its pieces in the
    order of their merges.
    """
    found: list[tuple[tuple[float, ...], str, str]] = []
    for token, token_id in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left not in vocabulary or right not in vocabulary:
                continue
            order: tuple[float, ...] = (token_id, cut)
            if scores is not None:
                order = (-scores[token], -cut, cut - len(token), token_id)
            found.append((order, left, right))
    found.sort()
    return [(left, right) for _, left, right in found]
