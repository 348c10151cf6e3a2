"""The ops of attention: what they compute, on batches as `ops.py` describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tercet.kernels import dispatch

if TYPE_CHECKING:
    from torch import Tensor

SPLIT_KV_QUERIES = 16  # up to so many queries a row, paged keys are read by the split-KV schedule
MAX_POSITION = 2**30 - 1  # of a token; sums of a position and a window's side stay in int32


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    q_start: Tensor,
    q_length: Tensor,
    kv_length: Tensor,
    longest_q: int,
    longest_kv: int,
    kv_start: Tensor | None = None,
    page_table: Tensor | None = None,
    key_rows: Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    plan: object = None,
    out: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale + bias) v for every row, never holding the scores (Dao et al., FlashAttention, 2022).

    - q [T, H, D]; row `b` has the `q_length[b]` queries from `q_start[b]`.
    - k, v: flat [T_k, H_kv, D] with `kv_start` [B], or pages [pages, page_size, H_kv, D] with `page_table` [B, P]: key
      `i` of row `b` lies in page `page_table[b, i // page_size]`. Query head `h` reads key head `h * H_kv // H`.
    - key_rows [B, L], L at least longest_kv, over pages alone: key `i` of row `b` lies in the pages of row
      `key_rows[b, i]` instead of its own, at the same place. So beams share what they have in common.
    - kv_length [B]; query `i` of a row has position `i + kv_length - q_length`.
    - longest_q, longest_kv: upper bounds of the lengths.
    - causal: a query sees no key after its position.
    - window (left, right): a query sees the keys from `left` before to `right` after its position.
    - scale, above 0: None is 1/sqrt(D).
    - bias float32 [H, 2 * max_distance + 1], added to the score at
      `clamp(key position - query position, ±max_distance) + max_distance`.
    - plan: `attention_plan`'s of the same rows; None makes one.
    - out [T, H, D] to write into.

    Returns [T, H, D] of q's dtype: zeros for queries that see no key and for storage outside every row. Raises
    `ValueError` for shapes that don't fit, neither or both of `kv_start` and `page_table`, or `key_rows` without
    `page_table`, and `UnsupportedError` where the selected implementation can't run it.
    """
    if (kv_start is None) == (page_table is None):
        raise ValueError("attention takes kv_start (flat keys) or page_table (paged keys), exactly one of them")
    if key_rows is not None and page_table is None:
        raise ValueError("key_rows say in which row's pages keys lie: they need page_table")
    if page_table is not None and longest_q <= SPLIT_KV_QUERIES:
        return paged_attention(
            q, k, v, page_table=page_table, key_rows=key_rows, q_start=q_start, q_length=q_length,
            kv_length=kv_length, longest_q=longest_q, longest_kv=longest_kv, causal=causal, window=window, scale=scale,
            bias=bias, plan=plan, out=out,
        )  # fmt: skip
    _check_attention(q, k, v, bias, window, scale)
    _check_key_rows(key_rows, len(q_start), longest_kv)
    return dispatch.call(
        "attention", q, k, v, q_start=q_start, q_length=q_length, kv_length=kv_length, longest_q=longest_q,
        longest_kv=longest_kv, kv_start=kv_start, page_table=page_table, key_rows=key_rows, causal=causal,
        window=window and _bounded(window),
        scale=q.shape[-1] ** -0.5 if scale is None else scale, bias=bias, plan=plan, out=out, head_dim=q.shape[-1],
    )  # fmt: skip


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    page_table: Tensor,
    key_rows: Tensor | None = None,
    q_start: Tensor,
    q_length: Tensor,
    kv_length: Tensor,
    longest_q: int,
    longest_kv: int,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    plan: object = None,
    out: Tensor | None = None,
) -> Tensor:
    """`attention` over pages for few queries a row: keys are split over a fixed grid and combined (Flash-Decoding).

    What is launched depends on shapes, `longest_q` and the device alone, never on a length: a recorded launch serves
    other lengths.
    """
    _check_attention(q, k, v, bias, window, scale)
    _check_key_rows(key_rows, len(q_start), longest_kv)
    return dispatch.call(
        "paged_attention", q, k, v, page_table=page_table, key_rows=key_rows, q_start=q_start, q_length=q_length,
        kv_length=kv_length, longest_q=longest_q, longest_kv=longest_kv, causal=causal,
        window=window and _bounded(window),
        scale=q.shape[-1] ** -0.5 if scale is None else scale, bias=bias, plan=plan, out=out, head_dim=q.shape[-1],
    )  # fmt: skip


def attention_plan(
    q: Tensor,
    k: Tensor,
    *,
    q_start: Tensor,
    q_length: Tensor,
    kv_length: Tensor,
    longest_q: int,
    page_table: Tensor | None = None,
    key_rows: Tensor | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    bias: Tensor | None = None,
) -> object:
    """What attention finds out once for all layers of a step: its `plan`, for the implementation that made it.

    On a GPU an int32 tensor: over pages with few queries a row how the programs of `paged_attention`'s grid share its
    keys out, else the tiles of queries in their order, those that see the most keys first. On a CPU where the keys of
    a decode step lie. One plan serves the calls whose rows, causality and window are these, all with a bias or none,
    one after the other (a GPU counts pieces in it). Of q [T, H, D], of k, flat or pages, and of the bias only shapes,
    dtype and device matter. `page_table` and `key_rows` are None for flat keys.
    """
    _check_attention(q, k, k, bias, window, None)
    return dispatch.call(
        "attention_plan", q, k, q_start=q_start, q_length=q_length, kv_length=kv_length, longest_q=longest_q,
        page_table=page_table, key_rows=key_rows, causal=causal, window=window and _bounded(window),
        masked=bias is not None or window is not None, split=page_table is not None and longest_q <= SPLIT_KV_QUERIES,
        head_dim=q.shape[-1],
    )  # fmt: skip


def _bounded(window: tuple[int, int]) -> tuple[int, int]:
    """The same window for tokens up to MAX_POSITION."""
    left, right = window
    return min(left, MAX_POSITION), min(right, MAX_POSITION)


def _check_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, window: tuple[int, int] | None, scale: float | None
) -> None:
    heads, head_dim = q.shape[1:]
    if k.shape != v.shape or k.shape[-1] != head_dim or heads % k.shape[-2]:
        raise ValueError(f"q, k, v of shapes {list(q.shape)}, {list(k.shape)}, {list(v.shape)} don't fit together")
    if bias is not None and (bias.shape[0] != heads or bias.shape[1] % 2 == 0):
        raise ValueError(f"bias must be [{heads}, 2 * max_distance + 1], not {list(bias.shape)}")
    if window is not None and min(window) < 0:
        raise ValueError(f"window must be two numbers of keys, both at least 0, not {window}")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale must be above 0, not {scale}")


def _check_key_rows(key_rows: Tensor | None, rows: int, longest_kv: int) -> None:
    if key_rows is not None and (key_rows.shape[0] != rows or key_rows.shape[1] < longest_kv):
        raise ValueError(f"key_rows must be [{rows}, {longest_kv} or more], not {list(key_rows.shape)}")
