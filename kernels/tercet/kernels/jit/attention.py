"""Attention in one pass over the keys with an online softmax (Dao et al., FlashAttention, 2022; Milakov and
Gimelshein, 2018), for packed or padded queries and flat or paged keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from tercet.kernels import dispatch
from tercet.kernels.configurations import tile
from tercet.kernels.jit.rows import PER_BATCH, find_rows

if TYPE_CHECKING:
    from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def key_offsets(
    n, row_base, page_row_ptr, key_row_ptr, PAGES, K_STRIDE, PAGED: tl.constexpr, KEY_ROWS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, mask,
):  # fmt: skip
    """Where keys n [BLOCK_N] of a row begin in flat storage or in pages, in elements; `mask` as for tl.load or None.

    With KEY_ROWS, `page_row_ptr` is of row 0, and `key_row_ptr` says in which row's pages each key lies.
    """
    if PAGED:
        if KEY_ROWS:
            page_row_ptr += tl.load(key_row_ptr + n, mask=mask) * PAGES  # a table has far fewer entries than 2**31
        page = tl.load(page_row_ptr + n // PAGE_SIZE, mask=mask).to(tl.int64)
        return (page * PAGE_SIZE + n % PAGE_SIZE) * K_STRIDE
    return (row_base + n).to(tl.int64) * K_STRIDE


@triton.jit
def visible_keys(q_pos, n, kv_length, left, right, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Which keys n [1, BLOCK_N] the queries at q_pos [BLOCK_M, 1] see."""
    visible = n < kv_length
    if CAUSAL:
        visible = visible & (n <= q_pos)
    if WINDOW:
        visible = visible & (n >= q_pos - left) & (n <= q_pos + right)
    return visible


@triton.jit
def visible_range(
    first_pos, last_pos, kv_length, left, right, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The keys that queries at first_pos ... last_pos see: some see those in [lo, hi), all those in [full_lo, full_hi).

    `lo` and `full_lo` are starts of tiles. Tiles outside [lo, hi) are never loaded, those inside [full_lo, full_hi)
    need no mask.
    """
    lo = 0
    hi = kv_length
    full_lo = 0
    full_hi = kv_length
    if CAUSAL:
        hi = tl.minimum(hi, last_pos + 1)
        full_hi = tl.minimum(full_hi, first_pos + 1)
    if WINDOW:
        lo = tl.maximum(first_pos - left, 0) // BLOCK_N * BLOCK_N
        hi = tl.minimum(hi, last_pos + right + 1)
        full_lo = tl.cdiv(tl.maximum(last_pos - left, 0), BLOCK_N) * BLOCK_N
        full_hi = tl.minimum(full_hi, first_pos + right + 1)
    return lo, hi, full_lo, full_hi


@triton.jit
def attend(
    acc, m, l, q, q_pos,
    k_ptr, v_ptr, row_base, page_row_ptr, key_row_ptr, bias_ptr,
    lo, hi, kv_length, left, right, scale, PAGES, K_STRIDE, reach,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BIAS: tl.constexpr,
    PAGED: tl.constexpr, KEY_ROWS: tl.constexpr, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the keys of tiles [lo, hi) to the running softmax: acc [BLOCK_M, BLOCK_D], maximum m and sum l [BLOCK_M].

    Scores are in powers of two: `scale` holds log2(e). MASKED tiles hold keys that not every query sees.
    """
    d = tl.arange(0, BLOCK_D)
    for first in range(lo, hi, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        if MASKED:
            offsets = key_offsets(
                n, row_base, page_row_ptr, key_row_ptr, PAGES, K_STRIDE, PAGED, KEY_ROWS, PAGE_SIZE, n < kv_length
            )  # fmt: skip
            loaded = (n < kv_length)[:, None] & (d < HEAD_DIM)[None, :]
            k = tl.load(k_ptr + offsets[:, None] + d[None, :], mask=loaded, other=0.0)  # [BLOCK_N, BLOCK_D]
        else:
            offsets = key_offsets(
                n, row_base, page_row_ptr, key_row_ptr, PAGES, K_STRIDE, PAGED, KEY_ROWS, PAGE_SIZE, None
            )  # fmt: skip
            if HEAD_DIM == BLOCK_D:
                k = tl.load(k_ptr + offsets[:, None] + d[None, :])
            else:
                k = tl.load(k_ptr + offsets[:, None] + d[None, :], mask=(d < HEAD_DIM)[None, :], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # [BLOCK_M, BLOCK_N]
        if BIAS:
            distance = n[None, :] - q_pos[:, None]
            distance = tl.minimum(tl.maximum(distance, -reach), reach)
            s += tl.load(bias_ptr + distance + reach) * LOG2E
        if MASKED:
            visible = visible_keys(q_pos[:, None], n[None, :], kv_length, left, right, CAUSAL, WINDOW)
            s = tl.where(visible, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        # A query that has seen no key yet has no maximum; 0 keeps -inf - -inf out.
        origin = tl.where(m_new == float("-inf"), 0.0, m_new) if MASKED else m_new
        p = tl.exp2(s - origin[:, None])
        alpha = tl.exp2(m - origin)
        l = l * alpha + tl.sum(p, axis=1)
        acc = acc * alpha[:, None]
        if MASKED:
            v = tl.load(v_ptr + offsets[:, None] + d[None, :], mask=loaded, other=0.0)  # [BLOCK_N, BLOCK_D]
        elif HEAD_DIM == BLOCK_D:
            v = tl.load(v_ptr + offsets[:, None] + d[None, :])
        else:
            v = tl.load(v_ptr + offsets[:, None] + d[None, :], mask=(d < HEAD_DIM)[None, :], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        m = m_new
    return acc, m, l


@triton.jit(do_not_specialize=PER_BATCH)
def attention_kernel(
    q_ptr,  # [T, H, HEAD_DIM], a token every Q_STRIDE elements
    k_ptr,  # [T_k, H_kv, HEAD_DIM] or [pages, PAGE_SIZE, H_kv, HEAD_DIM], a token every K_STRIDE elements
    v_ptr,  # as k
    out_ptr,  # [T, H, HEAD_DIM]
    q_start_ptr,  # [B]
    q_length_ptr,  # [B]
    kv_start_ptr,  # [B], unused when PAGED
    kv_length_ptr,  # [B]
    page_table_ptr,  # [B, PAGES], unused unless PAGED
    key_rows_ptr,  # [B, KEYS], unused unless KEY_ROWS
    bias_ptr,  # float32 [H, 2 * reach + 1], unused unless BIAS
    TOKENS, ROWS, HEADS, GROUP, PAGES, KEYS, Q_STRIDE, K_STRIDE, reach, left, right, scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BIAS: tl.constexpr, PAGED: tl.constexpr, KEY_ROWS: tl.constexpr,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (query tiles of the longest row, H, B + 1); the last B writes zeros where no row lies."""
    head = tl.program_id(1)
    row = tl.program_id(2)
    d = tl.arange(0, BLOCK_D)
    out_stride = HEADS * HEAD_DIM
    if row == ROWS:
        # These programs share the storage out among them, whatever their head.
        programs = tl.num_programs(0) * HEADS
        for first in range((tl.program_id(0) * HEADS + head) * BLOCK_M, TOKENS, programs * BLOCK_M):
            token = first + tl.arange(0, BLOCK_M)
            owner, _ = find_rows(token, q_start_ptr, q_length_ptr, ROWS, BLOCK_M, 32)
            empty = (token < TOKENS) & (owner < 0)
            pointers = out_ptr + token.to(tl.int64)[:, None] * out_stride + d[None, :]
            zeros = tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty)
            if tl.max(empty.to(tl.int32), axis=0) > 0:
                for offset in range(0, out_stride, HEAD_DIM):
                    tl.store(pointers + offset, zeros, mask=empty[:, None] & (d < HEAD_DIM)[None, :])
        return

    q_length = tl.load(q_length_ptr + row).to(tl.int32)
    # The last tiles of a causal row see the most keys: they start first.
    first_q = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    if first_q >= q_length:
        return
    kv_length = tl.load(kv_length_ptr + row).to(tl.int32)
    q_start = tl.load(q_start_ptr + row).to(tl.int64)
    row_base = 0 if PAGED else tl.load(kv_start_ptr + row).to(tl.int32)
    page_row_ptr = page_table_ptr
    key_row_ptr = key_rows_ptr
    if KEY_ROWS:
        key_row_ptr += row.to(tl.int64) * KEYS
    elif PAGED:
        page_row_ptr += row.to(tl.int64) * PAGES
    k_ptr += (head // GROUP) * HEAD_DIM
    v_ptr += (head // GROUP) * HEAD_DIM
    if BIAS:
        bias_ptr += head * (2 * reach + 1)

    i = first_q + tl.arange(0, BLOCK_M)
    q_mask = (i < q_length)[:, None] & (d < HEAD_DIM)[None, :]
    q_offsets = (q_start + i)[:, None] * Q_STRIDE + head * HEAD_DIM + d[None, :]
    q = tl.load(q_ptr + q_offsets, mask=q_mask, other=0.0)  # [BLOCK_M, BLOCK_D]
    q_pos = i + kv_length - q_length

    first_pos = first_q + kv_length - q_length
    last_pos = tl.minimum(first_q + BLOCK_M, q_length) - 1 + kv_length - q_length
    lo, hi, full_lo, full_hi = visible_range(first_pos, last_pos, kv_length, left, right, CAUSAL, WINDOW, BLOCK_N)
    full_lo = tl.minimum(full_lo, tl.cdiv(tl.maximum(hi, lo), BLOCK_N) * BLOCK_N)
    full_hi = tl.maximum(full_hi // BLOCK_N * BLOCK_N, full_lo)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    if WINDOW:
        acc, m, l = attend(
            acc, m, l, q, q_pos, k_ptr, v_ptr, row_base, page_row_ptr, key_row_ptr, bias_ptr, lo, full_lo, kv_length,
            left, right, scale, PAGES, K_STRIDE, reach, True, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS, PAGE_SIZE,
            HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip
    acc, m, l = attend(
        acc, m, l, q, q_pos, k_ptr, v_ptr, row_base, page_row_ptr, key_row_ptr, bias_ptr, full_lo, full_hi, kv_length,
        left, right, scale, PAGES, K_STRIDE, reach, False, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS, PAGE_SIZE,
        HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    acc, m, l = attend(
        acc, m, l, q, q_pos, k_ptr, v_ptr, row_base, page_row_ptr, key_row_ptr, bias_ptr, full_hi, hi, kv_length,
        left, right, scale, PAGES, K_STRIDE, reach, True, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS, PAGE_SIZE,
        HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    # Queries that see no key have l = 0 and acc = 0.
    acc = acc / tl.where(l == 0, 1.0, l)[:, None]
    out_offsets = (q_start + i)[:, None] * out_stride + head * HEAD_DIM + d[None, :]
    tl.store(out_ptr + out_offsets, acc.to(out_ptr.dtype.element_ty), mask=q_mask)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    longest_kv: int, kv_start: Tensor | None, page_table: Tensor | None, key_rows: Tensor | None, causal: bool,
    window: tuple[int, int] | None, scale: float, bias: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    out = q.new_empty(q.shape) if out is None else out
    tokens, heads, head_dim = q.shape
    blocks = tile("attention", q.dtype, head_dim, masked=bias is not None or window is not None)
    left, right = window or (0, 0)
    grid = (max(1, triton.cdiv(longest_q, blocks.block_m)), heads, len(q_start) + 1)
    attention_kernel[grid](
        q, k, v, out, q_start, q_length, kv_start, kv_length, page_table, key_rows, bias,
        tokens, len(q_start), heads, heads // k.shape[-2], 0 if page_table is None else page_table.shape[1],
        0 if key_rows is None else key_rows.shape[1], q.stride(0), k.stride(-3),
        0 if bias is None else bias.shape[1] // 2, left, right, scale * LOG2E.value,
        CAUSAL=causal, WINDOW=window is not None, BIAS=bias is not None, PAGED=page_table is not None,
        KEY_ROWS=key_rows is not None, PAGE_SIZE=1 if page_table is None else k.shape[1],
        HEAD_DIM=head_dim, BLOCK_D=blocks.block_d, BLOCK_M=blocks.block_m, BLOCK_N=blocks.block_n,
        PRECISION=dispatch.input_precision(), num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    return out
