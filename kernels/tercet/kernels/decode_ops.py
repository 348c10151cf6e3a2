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
