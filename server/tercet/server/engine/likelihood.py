"""How likely tokens are by the logits a model gave, before anything else is done to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tercet.server.wire import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import Tensor


class Likelihood(NamedTuple):
    """Log probabilities over the whole vocabulary."""

    given: Tensor
    """float32 [W]: of tokens asked for."""
    top: Tensor
    """float32 [N, K]: of the likeliest tokens of each row, falling."""
    top_ids: Tensor
    """int32 [N, K]: which those are."""


def likelihood(logits: Tensor, rows: Tensor, token_ids: Tensor, *, top: int) -> Likelihood:
    """The log softmax of logits, float32 [N, V], at `token_ids` [W] of `rows` [W], and at the `top` likeliest of each
    row, or at the whole vocabulary where that is smaller.
    """
    total = logits.logsumexp(-1)
    best, ids = logits.topk(min(top, logits.shape[1]))
    return Likelihood(logits[rows, token_ids] - total[rows], best - total[:, None], ids.int())


def token_logprobs(
    given: NDArray[Any], top: NDArray[Any], top_ids: NDArray[Any], counts: Iterable[int]
) -> list[TokenLogprob]:
    """The rows of a `Likelihood`, on the host, that have one token given each; so many of the likeliest are told."""
    rows = zip(given.tolist(), top.tolist(), top_ids.tolist(), counts, strict=True)
    return [
        TokenLogprob(logprob=logprob, top_logprobs=likeliest[:count], top_ids=ids[:count])
        for logprob, likeliest, ids, count in rows
    ]
