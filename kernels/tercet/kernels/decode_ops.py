"""The ops around a decode step of which every row reads one token: its inputs, and what becomes of what is drawn.

A row is a lane of tables on the device, which know how far it is; nothing of a step passes through the host. All
tensors are contiguous, and of integers int32 unless said otherwise. `B` lanes take part or not, `N` rows draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tercet.kernels import dispatch

if TYPE_CHECKING:
    from torch import Tensor


class DecodeInputs(NamedTuple):
    """What a model needs of a step beside the tokens, [B] each; of lanes that take no part 0, and no slot."""

    positions: Tensor
    """Of the tokens."""
    kv_length: Tensor
    """Tokens in pages once these are."""
    slots: Tensor
    """page * page_size + offset to write each token's key and value to; -1 for none."""
    cross_length: Tensor | None
    """Tokens of each source."""


def decode_inputs(
    length: Tensor,
    active: Tensor,
    page_table: Tensor,
    *,
    page_size: int,
    cross_length: Tensor | None = None,
    head: Tensor | None = None,
    holders: Tensor | None = None,
) -> DecodeInputs:
    """The inputs of a step that reads one token of each lane that takes part, whose `length` grows by it.

    - length [B]: tokens in pages, changed in place; less than pages have room for.
    - active [B]: 1 for the lanes that take part, else 0.
    - page_table [B, P]: the pages of each lane in order.
    - cross_length [B]: tokens of each source; None without sources.
    - head [B], holders [B, L], together: `key_rows` of attention. A lane that takes part and whose head is negative is
      no beam: its holders become itself, as many as it then has keys.
    """
    if (head is None) != (holders is None):
        raise ValueError("decode_inputs needs head and holders together")
    return dispatch.call(
        "decode_inputs", length, active, page_table, page_size=page_size, cross_length=cross_length, head=head,
        holders=holders,
    )  # fmt: skip


def next_tokens(
    choice: Tensor,
    ids: Tensor | None = None,
    *,
    vocabulary: int,
    last_token: Tensor | None = None,
    lanes: Tensor | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """The token of each row, int64 [N], and `vocabulary`, which is none, of one that can't choose.

    - choice: float32 [N, k], the logits of `ids`: the first is taken if it is finite. Or int64 [N], places among `ids`
      as `sample` gives them; without ids, tokens.
    - ids [N, k]: tokens that a row chooses from.
    - last_token: gets the tokens, in its places `lanes` [N], which are the rows themselves if None. One that can't
      choose gets a token, since what it gives may be read before it is rejected.
    - active [N]: 0 where last_token stays as it is; None is nowhere.
    """
    if choice.is_floating_point() and ids is None:
        raise ValueError("next_tokens needs the ids of logits")
    return dispatch.call(
        "next_tokens", choice, ids, vocabulary=vocabulary, last_token=last_token, lanes=lanes, active=active
    )


def top_logprobs(logits: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The `k` greatest log probabilities of each row of logits, float32 [N, V], and their tokens; k at most V.

    Returns float32 [N, k], falling, and [N, k]; of equal logits the lower token is first. The first log probability of
    a row with a NaN, with +inf or with nothing above -inf is NaN.
    """
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be 1 to {logits.shape[1]}, not {k}")
    return dispatch.call("top_logprobs", logits, k=k)


class BeamLanes(NamedTuple):
    """What is known of beams, by lane; of a search as a whole by the lane of its first beam, its head."""

    head: Tensor
    """[lanes]: the head of the search that a lane is a beam of; negative for others."""
    sample: Tensor
    """[lanes]: which beam of it."""
    length: Tensor
    """[lanes]: tokens in pages."""
    last_token: Tensor
    """[lanes]: the one that is read next."""
    scores: Tensor
    """float32 [lanes]: of the running beams."""
    finished: Tensor
    """float32 [lanes]: of the finished ones, which have as many places."""
    ended: Tensor
    """[lanes]: 1 if there is a finished beam in a place, else 0."""
    holders: Tensor
    """[lanes, W]: the lane whose pages hold each key."""
    ends: Tensor
    """[lanes, E]: tokens that end a text."""
    settings: Tensor
    """[lanes, 7]: a search's beams, how many candidates it chooses from, how many `ends` it has, the tokens of its
    prompt, those of a text, prompt included, at which it is cut off, early stopping (0 for no, 1 for yes, 2 for
    "never"), and its length penalty, a float32's bits."""


def beam_step(
    likely: Tensor,
    ids: Tensor,
    *,
    row: Tensor,
    heads: Tensor,
    active: Tensor,
    lanes: BeamLanes,
    beams: int,
    candidates: int,
    ends: int,
    longest: int,
) -> tuple[Tensor, Tensor]:
    """Continues beam searches, as `_beam_search` of transformers' generation/utils.py does, by the likeliest tokens.

    - likely float32 [N, C'], ids [N, C']: the greatest log probabilities of each row, falling, and their tokens.
    - row [L]: which row a lane that is a beam goes on from.
    - heads [S]: of searches. One of which no lane takes part stays as it is, and what is told of it means nothing.
    - active [L]: 1 for the lanes that take part, else 0; L up to the number of lanes.
    - lanes: scores, finished, ended, last_token and the first length + 1 holders of beams that take part are changed.
    - beams, candidates, ends: the most of one search, K, C and E; longest: more than every `length` of a beam.

    Scores that are equal come in the order of the beams, then of their likeliest tokens. Returns, with C no more than
    K * C',

    - float32 [S, 1 + 2K]: the score of the best candidate, not a number if any is none; the scores of the beams that
      run; those of the places for finished ones;
    - int32 [S, 4K + 2C + 1]: which beams the running ones continue, and with what; what is in each place now, what was
      in one or -1 less the number of a candidate; whether that is a finished beam; of the candidates, best first, the
      beam, and the token; whether the search is over.
    """
    return dispatch.call(
        "beam_step", likely, ids, row=row, heads=heads, active=active, lanes=lanes, beams=beams, candidates=candidates,
        ends=ends, longest=longest,
    )  # fmt: skip
