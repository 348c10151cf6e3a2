"""Attention on a CPU: torch's fused kernel over views of each row, or over all rows of a decode step at once.

The queries of one key head stand together as the rows of one matrix, so grouped heads need no copies of the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    longest_kv: int, kv_start: Tensor | None, page_table: Tensor | None, key_rows: Tensor | None, causal: bool,
    window: tuple[int, int] | None, scale: float, bias: Tensor | None, plan: Lookup | None, out: Tensor | None,
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


class Lookup(NamedTuple):
    """Where the keys of a decode step lie, found once for all its layers."""

    rows: Tensor
    """int64 [R]: those that have a query and keys."""
    in_order: bool
    """Whether their queries are q as it lies."""
    kv_length: Tensor
    """[R]"""
    longest: int
    slots: Tensor
    """[R * longest]: page * page_size + offset. What is beyond a row's length is its first slot: others may be unused,
    and what lies there is never read."""
    mask: Tensor | None
    """[R, 1, 1, longest]: 0, and -inf where a query doesn't see a key; None where it sees every one."""


def attention_plan(
    q: Tensor, k: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    page_table: Tensor | None, key_rows: Tensor | None, causal: bool, window: tuple[int, int] | None,
    masked: bool = False, split: bool = True,
) -> Lookup | None:  # fmt: skip
    """None where keys are flat, rows have several queries, or none has any."""
    if longest_q > 1 or page_table is None:
        return None
    starts, queries, counts = q_start.tolist(), q_length.tolist(), kv_length.tolist()
    live = [row for row, (query, count) in enumerate(zip(queries, counts, strict=True)) if query and count]
    if not live:
        return None
    rows, longest = torch.tensor(live), max(counts[row] for row in live)
    kv_length = kv_length[rows]
    places = torch.arange(longest).expand(len(live), -1)
    real = places < kv_length[:, None]  # [R, longest]
    holders = rows[:, None]
    if key_rows is not None:  # the rows whose pages hold the keys
        holders = torch.where(real, key_rows[rows, :longest], key_rows[rows, :1])
    visible = real if window is None else real & _visible(_distance(longest, kv_length), causal=True, window=window)
    return Lookup(
        rows=rows,
        in_order=[starts[row] for row in live] == list(range(len(q))),
        kv_length=kv_length,
        longest=longest,
        slots=_slots(page_table, holders, torch.where(real, places, 0), k.shape[1]).flatten(),
        mask=None if bool(visible.all()) else _hidden(visible, q.dtype)[:, None, None],
    )


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    longest_kv: int, page_table: Tensor, key_rows: Tensor | None, causal: bool, window: tuple[int, int] | None,
    scale: float, bias: Tensor | None, plan: Lookup | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    """All rows of a decode step at once: one gather of keys and one of values."""
    if longest_q > 1:
        return attention(
            q, k, v, q_start=q_start, q_length=q_length, kv_length=kv_length, longest_q=longest_q,
            longest_kv=longest_kv, kv_start=None, page_table=page_table, key_rows=key_rows, causal=causal,
            window=window, scale=scale, bias=bias, plan=plan, out=out,
        )  # fmt: skip
    plan = plan or attention_plan(
        q, k, q_start=q_start, q_length=q_length, kv_length=kv_length, longest_q=longest_q, page_table=page_table,
        key_rows=key_rows, causal=causal, window=window,
    )  # fmt: skip
    if plan is None:
        return torch.zeros_like(q) if out is None else out.zero_()
    kv_heads, head_dim = k.shape[2:]
    shape = (len(plan.rows), kv_heads, q.shape[1] // kv_heads, head_dim)
    queries = q if plan.in_order else q[q_start[plan.rows].long()]
    k_rows, v_rows = (
        x.view(-1, kv_heads * head_dim).index_select(0, plan.slots).view(shape[0], plan.longest, kv_heads, head_dim)
        for x in (k, v)
    )
    mask = plan.mask
    if bias is not None:
        distance = _distance(plan.longest, plan.kv_length)
        mask = _mask(distance, causal=True, window=window, bias=bias, dtype=q.dtype)  # [H, R, longest]
        mask = mask.transpose(0, 1).view(*shape[:3], plan.longest)
    attended = functional.scaled_dot_product_attention(
        queries.view(shape), k_rows.transpose(1, 2), v_rows.transpose(1, 2), attn_mask=mask, scale=scale
    ).reshape(shape[0], -1, head_dim)
    if plan.in_order:
        return attended if out is None else out.copy_(attended)
    out = torch.zeros_like(q) if out is None else out.zero_()
    out[q_start[plan.rows].long()] = attended
    return out


def _distance(longest: int, kv_length: Tensor) -> Tensor:
    """Distances key - query [R, longest] where the query is the last of its row: no key is after it."""
    return torch.arange(longest) - (kv_length[:, None] - 1)


def _slots(page_table: Tensor, rows: Tensor, places: Tensor, page_size: int) -> Tensor:
    """Where the keys at `places` of the pages of `rows` lie: page * page_size + offset, of their broadcast shape."""
    return page_table[rows, places // page_size] * page_size + places % page_size


def _mask(
    distance: Tensor, *, causal: bool, window: tuple[int, int] | None, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """What is added to the scores at each distance key - query [a, b]: [a, b], or with a bias [H, a, b]."""
    visible = _visible(distance, causal=causal, window=window)
    if bias is None:
        return _hidden(visible, dtype)
    reach = bias.shape[1] // 2
    return bias[:, distance.clamp(-reach, reach) + reach].masked_fill_(~visible, -torch.inf).to(dtype)


def _visible(distance: Tensor, *, causal: bool, window: tuple[int, int] | None) -> Tensor:
    limit = torch.iinfo(distance.dtype).max
    left, right = (limit, limit) if window is None else window
    return (distance >= -left) & (distance <= (min(right, 0) if causal else right))


def _hidden(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the scores' dtype: torch would make that of a mask of booleans in every layer."""
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)
