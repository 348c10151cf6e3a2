"""Attention on a CPU: torch's fused kernel over views of each row, or over all rows of a decode step at once.

The queries of one key head stand together as the rows of one matrix, so grouped heads need no copies of the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    longest_kv: int, kv_start: Tensor | None, page_table: Tensor | None, key_rows: Tensor | None, causal: bool,
    window: tuple[int, int] | None, scale: float, bias: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    """Row by row: a row's keys are a view (flat) or one gather (paged), and nothing is padded."""
    out = torch.zeros_like(q) if out is None else out.zero_()
    starts, lengths, keys = (x.tolist() for x in (q_start, q_length, kv_length))
    firsts = kv_start.tolist() if kv_start is not None else [0] * len(starts)
    grouped = k.shape[-2] != q.shape[1]
    for row, (start, queries, count, first) in enumerate(zip(starts, lengths, keys, firsts, strict=True)):
        if queries == 0 or count == 0:
            continue
        if page_table is None:
            k_row, v_row = k[first : first + count], v[first : first + count]
        elif key_rows is None:
            pages = page_table[row, : -(-count // k.shape[1])]
            k_row, v_row = (x.index_select(0, pages).flatten(0, 1)[:count] for x in (k, v))
        else:
            slots = _slots(page_table, key_rows[row, :count], torch.arange(count), k.shape[1])
            k_row, v_row = (x.flatten(0, 1).index_select(0, slots) for x in (k, v))
        whole = causal and queries == count and window is None and bias is None
        mask = None
        if not whole and (causal or window is not None or bias is not None):
            distance = torch.arange(count) - torch.arange(count - queries, count)[:, None]  # key - query
            mask = _mask(distance, causal=causal, window=window, bias=bias, dtype=q.dtype)
        attended = functional.scaled_dot_product_attention(
            q[start : start + queries].transpose(0, 1)[None],
            k_row.transpose(0, 1)[None],
            v_row.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=whole,
            scale=scale,
            enable_gqa=grouped,
        )
        out[start : start + queries] = attended[0].transpose(0, 1)
    return out


def attention_plan(
    q: Tensor, k: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int, causal: bool,
    window: tuple[int, int] | None,
) -> Tensor:  # fmt: skip
    """Empty: one matrix product a row needs no work list."""
    return q_length.new_empty(0, dtype=torch.int32)


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    longest_kv: int, page_table: Tensor, key_rows: Tensor | None, causal: bool, window: tuple[int, int] | None,
    scale: float, bias: Tensor | None, plan: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    """All rows of a decode step at once: one gather of keys and one of values."""
    if longest_q > 1:
        return attention(
            q, k, v, q_start=q_start, q_length=q_length, kv_length=kv_length, longest_q=longest_q,
            longest_kv=longest_kv, kv_start=None, page_table=page_table, key_rows=key_rows, causal=causal,
            window=window, scale=scale, bias=bias, out=out,
        )  # fmt: skip
    starts, queries, counts = q_start.tolist(), q_length.tolist(), kv_length.tolist()
    live = [row for row, (query, count) in enumerate(zip(queries, counts, strict=True)) if query and count]
    if not live:
        return torch.zeros_like(q) if out is None else out.zero_()
    every_token = [starts[row] for row in live] == list(range(len(q)))  # the rows are q itself, in order
    rows = torch.tensor(live)
    if len(live) < len(starts):
        q_start, kv_length = q_start[rows], kv_length[rows]
    lengths = [counts[row] for row in live]
    longest = max(lengths)
    page_size, kv_heads, head_dim = k.shape[1:]
    group = q.shape[1] // kv_heads

    places = torch.arange(longest).expand(len(live), -1)
    holders = rows[:, None] if key_rows is None else key_rows[rows, :longest]  # the rows whose pages hold the keys
    mask = None
    if min(lengths) < longest:
        real = places < kv_length[:, None]  # [rows, keys]
        mask = real[:, None, None]
        # Keys beyond a row's length are read from its first slot: what lies in unused slots is never read.
        places = torch.where(real, places, 0)
        holders = holders if key_rows is None else torch.where(real, holders, holders[:, :1])
    slots = _slots(page_table, holders, places, page_size).flatten()
    k_rows, v_rows = (
        x.view(-1, kv_heads * head_dim).index_select(0, slots).view(len(live), longest, kv_heads, head_dim)
        for x in (k, v)
    )
    if window is not None or bias is not None:
        distance = torch.arange(longest) - (kv_length[:, None] - 1)  # key - query; no key is after the query
        mask = _mask(distance, causal=True, window=window, bias=bias, dtype=q.dtype)
        mask = mask[:, None, None] if bias is None else mask.transpose(0, 1).view(len(live), kv_heads, group, -1)
    attended = functional.scaled_dot_product_attention(
        (q if every_token else q[q_start.long()]).view(len(live), kv_heads, group, head_dim),
        k_rows.transpose(1, 2),
        v_rows.transpose(1, 2),
        attn_mask=mask,
        scale=scale,
    ).reshape(len(live), -1, head_dim)
    if every_token:
        return attended if out is None else out.copy_(attended)
    out = torch.zeros_like(q) if out is None else out.zero_()
    out[q_start.long()] = attended
    return out


def _slots(page_table: Tensor, rows: Tensor, places: Tensor, page_size: int) -> Tensor:
    """Where the keys at `places` of the pages of `rows` lie: page * page_size + offset, of their broadcast shape."""
    return page_table[rows, places // page_size] * page_size + places % page_size


def _mask(
    distance: Tensor, *, causal: bool, window: tuple[int, int] | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """What is visible at each distance key - query [a, b]: bool [a, b], or with a bias, scores of dtype [H, a, b]."""
    limit = torch.iinfo(distance.dtype).max
    left, right = (limit, limit) if window is None else window
    visible = (distance >= -left) & (distance <= (min(right, 0) if causal else right))
    if bias is None:
        return visible
    reach = bias.shape[1] // 2
    return bias[:, distance.clamp(-reach, reach) + reach].masked_fill_(~visible, -torch.inf).to(dtype)
