"""What is generated, piece by piece, and as messages have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tercet.v1.generation_pb2 import FinishReason, TokenLogprob, TopLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tercet.server import wire

FINISH_REASONS: dict[wire.FinishReason | None, FinishReason] = {
    None: FinishReason.FINISH_REASON_UNSPECIFIED,
    "eos": FinishReason.FINISH_REASON_EOS,
    "stop": FinishReason.FINISH_REASON_STOP,
    "length": FinishReason.FINISH_REASON_LENGTH,
}


class Piece:
    """What is new of one output since it was last taken."""

    # of most pieces; those that have them hide these
    logprobs: Sequence[wire.TokenLogprob] = ()
    """One a token, where asked for."""
    finish_reason: wire.FinishReason | None = None
    score: float | None = None
    """Of a beam."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        """None is empty."""
        self.token_ids: list[int] = []

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)


def fields(piece: Piece) -> dict[str, Any]:
    """What outputs and pieces of them have in common."""
    return {
        "text": piece.text,
        "token_ids": piece.token_ids,
        "finish_reason": FINISH_REASONS[piece.finish_reason],
        "logprobs": logprobs(piece.logprobs),
        "score": piece.score,
    }


def logprobs(tokens: Sequence[wire.TokenLogprob]) -> list[TokenLogprob]:
    """How likely tokens were."""
    return [
        TokenLogprob(
            logprob=token.logprob,
            top=[TopLogprob(token_id=i, logprob=p) for i, p in zip(token.top_ids, token.top_logprobs, strict=True)],
        )
        for token in tokens
    ]
