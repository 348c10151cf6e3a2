"""Attention for few queries a row over paged keys: every program of a fixed grid reads its share of a plan's key tiles
(`attention_plan.py`), and the last one to end a piece of an item combines the item's partial softmaxes (Dao et al.,
Flash-Decoding, 2023). All query heads of one key head share its loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels import dispatch
from tercet.kernels.configurations import tile
from tercet.kernels.jit.attention import LOG2E, visible_keys
from tercet.kernels.jit.attention_plan import (
    SHARE,
    attention_plan,
    item_keys,
    program_count,
    query_tiles,
    register_limit,
    share_begin,
    sharer,
)
from tercet.kernels.jit.rows import PER_BATCH

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def pages_of(n, hi, page_row_ptr, key_row_ptr, PAGES, KEY_ROWS: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """The pages of keys n [BLOCK_N] below `hi`; with KEY_ROWS, of the rows that `key_row_ptr` names."""
    if KEY_ROWS:
        page_row_ptr += tl.load(key_row_ptr + n, mask=n < hi, other=0) * PAGES  # a table has far fewer than 2**31 ids
    return tl.load(page_row_ptr + n // PAGE_SIZE, mask=n < hi, other=0)


@triton.jit
def attend_pages(
    q, q_pos, k_ptr, v_ptr, page_row_ptr, key_row_ptr, bias_ptr, lo, hi, left, right, scale, PAGES, K_STRIDE, reach,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BIAS: tl.constexpr, KEY_ROWS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of q [BLOCK_M, BLOCK_D] at q_pos to the keys [lo, hi) alone: out float32 [BLOCK_M, BLOCK_D] and lse
    [BLOCK_M], log2 of the sum of exponentials; 0 and -inf where a query sees none of them.

    The loads bound this, so every tile is masked: one loop keeps them in flight from the first to the last.
    """
    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    n = lo + tl.arange(0, BLOCK_N)
    page = pages_of(n, hi, page_row_ptr, key_row_ptr, PAGES, KEY_ROWS, PAGE_SIZE)
    for _ in range(lo, hi, BLOCK_N):
        offsets = (page.to(tl.int64) * PAGE_SIZE + n % PAGE_SIZE) * K_STRIDE
        loaded = (n < hi)[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(k_ptr + offsets[:, None] + d[None, :], mask=loaded, other=0.0)  # [BLOCK_N, BLOCK_D]
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # [BLOCK_M, BLOCK_N]
        if BIAS:
            distance = n[None, :] - q_pos[:, None]
            distance = tl.minimum(tl.maximum(distance, -reach), reach)
            s += tl.load(bias_ptr + distance + reach) * LOG2E
        visible = visible_keys(q_pos[:, None], n[None, :], hi, left, right, CAUSAL, WINDOW)
        s = tl.where(visible, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        # A query that has seen no key yet has no maximum; 0 keeps -inf - -inf out.
        origin = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - origin[:, None])
        alpha = tl.exp2(m - origin)
        l = l * alpha + tl.sum(p, axis=1)
        v = tl.load(v_ptr + offsets[:, None] + d[None, :], mask=loaded, other=0.0)  # [BLOCK_N, BLOCK_D]
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        m = m_new
        n += BLOCK_N
        page = pages_of(n, hi, page_row_ptr, key_row_ptr, PAGES, KEY_ROWS, PAGE_SIZE)  # a step ahead of its loads
    seen = l > 0
    sums = tl.where(seen, l, 1.0)
    return acc / sums[:, None], tl.where(seen, m + tl.log2(sums), float("-inf"))


@triton.jit
def combine(
    partial_ptr, lse_ptr, owner, last, pair, real, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr
):
    """What the pieces of programs `owner` ... `last` make together: each output weighed by its share of the sum."""
    d = tl.arange(0, BLOCK_D)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_M, 1], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M, 1], tl.float32)
    for program in tl.range(owner, last + 1, num_stages=3):
        slots = (2 * program + (program == owner)) * BLOCK_M + pair
        # From L2, where other processors' stores are.
        lse = tl.load(lse_ptr + slots, mask=real, other=float("-inf"), cache_modifier=".cg")
        partial = tl.load(
            partial_ptr + slots * HEAD_DIM + d, mask=real & (d < HEAD_DIM), other=0.0, cache_modifier=".cg"
        )  # [BLOCK_M, BLOCK_D]
        m_new = tl.maximum(m, lse)
        origin = tl.where(m_new == float("-inf"), 0.0, m_new)
        weight = tl.exp2(lse - origin)
        alpha = tl.exp2(m - origin)
        acc = acc * alpha + partial * weight
        l = l * alpha + weight
        m = m_new
    return acc / tl.where(l > 0, l, 1.0)


@triton.jit(do_not_specialize=PER_BATCH)
def paged_attention_kernel(
    q_ptr,  # [T, H, HEAD_DIM], a token every Q_STRIDE elements
    k_ptr,  # [pages, PAGE_SIZE, H_kv, HEAD_DIM], a token every K_STRIDE elements
    v_ptr,  # as k
    out_ptr,  # [T, H, HEAD_DIM]
    plan_ptr,  # as `attention_plan.py` says
    partial_ptr,  # float32 [PROGRAMS, 2, BLOCK_M, HEAD_DIM]: the piece of an item begun before, then of one begun here
    lse_ptr,  # float32 [PROGRAMS, 2, BLOCK_M]
    q_start_ptr,  # [B]
    q_length_ptr,  # [B]
    kv_length_ptr,  # [B]
    page_table_ptr,  # [B, PAGES]
    key_rows_ptr,  # [B, KEYS], unused unless KEY_ROWS
    bias_ptr,  # float32 [H, 2 * reach + 1], unused unless BIAS
    QUERY_TILES, HEADS, GROUP, PAGES, KEYS, Q_STRIDE, K_STRIDE, reach, left, right, scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BIAS: tl.constexpr, KEY_ROWS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (PROGRAMS). Storage outside every row becomes zeros."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    kv_heads = HEADS // GROUP
    totals_ptr = plan_ptr + programs * SHARE
    query_tile = tl.load(plan_ptr + program * SHARE)
    place = tl.load(plan_ptr + program * SHARE + 1)
    remaining = tl.load(plan_ptr + program * SHARE + 2)
    total = tl.load(totals_ptr)
    uncovered = tl.load(totals_ptr + 1)
    begin = share_begin(program, total, programs)
    r = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)

    for index in range(program, uncovered, programs):
        token = tl.load(totals_ptr + 2 + index).to(tl.int64)
        for first in range(0, HEADS, BLOCK_M):
            zeroed = (first + r < HEADS)[:, None] & (d < HEAD_DIM)[None, :]
            offsets = (token * HEADS + first + r)[:, None] * HEAD_DIM + d[None, :]
            tl.store(out_ptr + offsets, tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty), mask=zeroed)

    while remaining > 0:
        row = query_tile // QUERY_TILES
        q_length = tl.load(q_length_ptr + row).to(tl.int32)
        kv_length = tl.load(kv_length_ptr + row).to(tl.int32)
        q_start = tl.load(q_start_ptr + row).to(tl.int64)
        pair = query_tile % QUERY_TILES * BLOCK_M
        lo, hi, tiles = item_keys(
            pair, q_length, kv_length, GROUP, left, right, CAUSAL, WINDOW, BLOCK_M, BLOCK_N
        )  # fmt: skip
        kv_head = place // tl.maximum(tiles, 1)  # a query tile beyond the row's queries has no tiles: nothing is stored
        first = place % tl.maximum(tiles, 1)
        count = tl.minimum(tiles - first, remaining)

        i = (pair + r) // GROUP
        head = kv_head * GROUP + (pair + r) % GROUP
        pair_mask = i < q_length
        mask = pair_mask[:, None] & (d < HEAD_DIM)[None, :]
        q_offsets = (q_start + i) * Q_STRIDE + head * HEAD_DIM
        q = tl.load(q_ptr + q_offsets[:, None] + d[None, :], mask=mask, other=0.0)  # [BLOCK_M, BLOCK_D]
        page_row_ptr = page_table_ptr
        key_row_ptr = key_rows_ptr
        if KEY_ROWS:
            key_row_ptr += row.to(tl.int64) * KEYS
        else:
            page_row_ptr += row.to(tl.int64) * PAGES
        biases_ptr = bias_ptr
        if BIAS:
            biases_ptr += (head * (2 * reach + 1))[:, None]
        lo += first * BLOCK_N
        out, lse = attend_pages(
            q, i + kv_length - q_length, k_ptr + kv_head * HEAD_DIM, v_ptr + kv_head * HEAD_DIM, page_row_ptr,
            key_row_ptr, biases_ptr, lo, tl.minimum(hi, lo + count * BLOCK_N), left, right, scale, PAGES, K_STRIDE,
            reach, CAUSAL, WINDOW, BIAS, KEY_ROWS, PAGE_SIZE, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION,
        )  # fmt: skip

        out_ptrs = out_ptr + ((q_start + i) * HEADS + head)[:, None] * HEAD_DIM + d[None, :]
        if count == tiles:
            tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)
        else:
            slots = (2 * program + (first == 0)) * BLOCK_M + r
            tl.store(partial_ptr + slots[:, None] * HEAD_DIM + d[None, :], out, mask=mask)
            tl.store(lse_ptr + slots, lse, mask=pair_mask)
            owner = sharer(begin - first, total, programs)
            last = sharer(begin - first + tiles - 1, total, programs)
            # All threads' stores, then the count: who counts last sees every piece.
            tl.debug_barrier()
            counter_ptr = plan_ptr + owner * SHARE + 3
            if tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == last - owner:
                out = combine(
                    partial_ptr, lse_ptr, owner, last, r[:, None], pair_mask[:, None], HEAD_DIM, BLOCK_D, BLOCK_M
                )
                tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)
                tl.store(counter_ptr, 0)

        begin += count
        remaining -= count
        place += count
        ended = place == tiles * kv_heads
        query_tile = tl.where(ended, query_tile + 1, query_tile)
        place = tl.where(ended, 0, place)


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    longest_kv: int, page_table: Tensor, key_rows: Tensor | None, causal: bool, window: tuple[int, int] | None,
    scale: float, bias: Tensor | None, plan: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    """`longest_kv` is of no use here: nothing of the launch depends on what a row holds."""
    out = q.new_empty(q.shape) if out is None else out
    if plan is None:
        plan = attention_plan(
            q, k, q_start=q_start, q_length=q_length, kv_length=kv_length, longest_q=longest_q,
            page_table=page_table, key_rows=key_rows, causal=causal, window=window,
        )  # fmt: skip
    heads, head_dim = q.shape[1:]
    page_size, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    blocks = tile("paged_attention", q.dtype, head_dim)
    programs = program_count(q.device, blocks)
    partial = torch.empty((programs, 2, blocks.block_m, head_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((programs, 2, blocks.block_m), dtype=torch.float32, device=q.device)
    left, right = window or (0, 0)
    paged_attention_kernel[programs,](
        q, k, v, out, plan, partial, lse, q_start, q_length, kv_length, page_table, key_rows, bias,
        query_tiles(longest_q, group, blocks), heads, group, page_table.shape[1],
        0 if key_rows is None else key_rows.shape[1], q.stride(0), k.stride(1),
        0 if bias is None else bias.shape[1] // 2, left, right, scale * LOG2E.value,
        CAUSAL=causal and longest_q > 1, WINDOW=window is not None, BIAS=bias is not None,
        KEY_ROWS=key_rows is not None, PAGE_SIZE=page_size, HEAD_DIM=head_dim, BLOCK_D=blocks.block_d,
        BLOCK_M=blocks.block_m, BLOCK_N=blocks.block_n, PRECISION=dispatch.input_precision(),
        num_warps=blocks.num_warps, num_stages=blocks.num_stages, **register_limit(blocks),
    )  # fmt: skip
    return out
