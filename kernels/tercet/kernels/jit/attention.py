"""Attention in one pass over the keys with an online softmax (Dao et al., FlashAttention, 2022; Milakov and
Gimelshein, 2018), for packed or padded queries and flat or paged keys. Tiles of queries are taken longest first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from tercet.kernels import dispatch
from tercet.kernels.configurations import processors
from tercet.kernels.jit.rows import PER_BATCH, find_rows
from tercet.kernels.jit.specialized import attend_specialized
from tercet.kernels.jit.tile_order import TOTALS, prefill_tile, tile_capacity, tile_order

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.configurations import Reads, Tile

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
    k_tiles, v_tiles, column, DESCRIPTORS: tl.constexpr, side=0, FAR: tl.constexpr = False,
):  # fmt: skip
    """Adds the keys of tiles [lo, hi) to the running softmax: acc [BLOCK_M, BLOCK_D], maximum m and sum l [BLOCK_M].

    Scores are in powers of two: `scale`, above 0, holds log2(e). MASKED tiles hold keys that not every query sees; the
    others come through DESCRIPTORS k_tiles and v_tiles of flat keys, from `column` on, if there are any. FAR tiles lie
    beyond the bias's reach of every query: the bias at `side` is theirs.
    """
    d = tl.arange(0, BLOCK_D)
    for first in range(lo, hi, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        if DESCRIPTORS:
            k = k_tiles.load([row_base + first, column])  # [BLOCK_N, BLOCK_D]
        elif MASKED:
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
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N], not scaled yet
        if BIAS:
            # Scores are scaled later: the bias, which isn't, is divided by the scale.
            if FAR:
                s += tl.load(bias_ptr + side) * (LOG2E / scale)
            else:
                distance = n[None, :] - q_pos[:, None]
                distance = tl.minimum(tl.maximum(distance, -reach), reach)
                s += tl.load(bias_ptr + distance + reach) * (LOG2E / scale)
        if MASKED:
            visible = visible_keys(q_pos[:, None], n[None, :], kv_length, left, right, CAUSAL, WINDOW)
            s = tl.where(visible, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1) * scale)
        # A query that has seen no key yet has no maximum; 0 keeps -inf - -inf out.
        origin = tl.where(m_new == float("-inf"), 0.0, m_new) if MASKED else m_new
        p = tl.exp2(s * scale - origin[:, None])
        alpha = tl.exp2(m - origin)
        l = l * alpha + tl.sum(p, axis=1)
        acc = acc * alpha[:, None]
        if DESCRIPTORS:
            v = v_tiles.load([row_base + first, column])
        elif MASKED:
            v = tl.load(v_ptr + offsets[:, None] + d[None, :], mask=loaded, other=0.0)  # [BLOCK_N, BLOCK_D]
        elif HEAD_DIM == BLOCK_D:
            v = tl.load(v_ptr + offsets[:, None] + d[None, :])
        else:
            v = tl.load(v_ptr + offsets[:, None] + d[None, :], mask=(d < HEAD_DIM)[None, :], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        m = m_new
    return acc, m, l


@triton.jit
def attend_tile(
    row, head, tile,
    q_ptr, k_ptr, v_ptr, out_ptr, k_tiles, v_tiles, q_start_ptr, q_length_ptr, kv_start_ptr, kv_length_ptr,
    page_table_ptr, key_rows_ptr, bias_ptr, HEADS, GROUP, PAGES, KEYS, Q_STRIDE, K_STRIDE, reach, left, right, scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BIAS: tl.constexpr, PAGED: tl.constexpr, KEY_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr, SPECIALIZED: tl.constexpr, PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The output of one tile of a row's queries in one head."""
    d = tl.arange(0, BLOCK_D)
    q_length = tl.load(q_length_ptr + row).to(tl.int32)
    kv_length = tl.load(kv_length_ptr + row).to(tl.int32)
    q_start = tl.load(q_start_ptr + row).to(tl.int64)
    row_base = 0 if PAGED else tl.load(kv_start_ptr + row).to(tl.int32)
    page_row_ptr = page_table_ptr
    key_row_ptr = key_rows_ptr
    if KEY_ROWS:
        key_row_ptr += row.to(tl.int64) * KEYS
    elif PAGED:
        page_row_ptr += row.to(tl.int64) * PAGES
    column = (head // GROUP) * HEAD_DIM
    k_ptr += column
    v_ptr += column
    if BIAS:
        bias_ptr += head * (2 * reach + 1)

    first_q = tile * BLOCK_M
    i = first_q + tl.arange(0, BLOCK_M)
    q_mask = (i < q_length)[:, None] & (d < HEAD_DIM)[None, :]
    if SPECIALIZED:
        row_keys = row_base.to(tl.int64) * K_STRIDE
        acc, l = attend_specialized(
            first_q, q_ptr + q_start * Q_STRIDE + head * HEAD_DIM, k_ptr + row_keys, v_ptr + row_keys, q_length,
            kv_length, Q_STRIDE, K_STRIDE, scale, CAUSAL, HEAD_DIM, BLOCK_M, BLOCK_N, PRECISION,
        )  # fmt: skip
    else:
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
                acc, m, l, q, q_pos, k_ptr, v_ptr, row_base, page_row_ptr, key_row_ptr, bias_ptr, lo, full_lo,
                kv_length, left, right, scale, PAGES, K_STRIDE, reach, True, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS,
                PAGE_SIZE, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, k_tiles, v_tiles, column, False,
            )  # fmt: skip
        near_lo = full_lo
        near_hi = full_hi
        if BIAS:
            near_lo = tl.maximum(first_pos - reach + 1, 0) // BLOCK_N * BLOCK_N
            near_lo = tl.minimum(tl.maximum(near_lo, full_lo), full_hi)
            near_hi = tl.cdiv(tl.maximum(last_pos + reach, 0), BLOCK_N) * BLOCK_N
            near_hi = tl.minimum(tl.maximum(near_hi, near_lo), full_hi)
            acc, m, l = attend(
                acc, m, l, q, q_pos, k_ptr, v_ptr, row_base, page_row_ptr, key_row_ptr, bias_ptr, full_lo, near_lo,
                kv_length, left, right, scale, PAGES, K_STRIDE, reach, False, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS,
                PAGE_SIZE, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, k_tiles, v_tiles, column, DESCRIPTORS, 0, True,
            )  # fmt: skip
        acc, m, l = attend(
            acc, m, l, q, q_pos, k_ptr, v_ptr, row_base, page_row_ptr, key_row_ptr, bias_ptr, near_lo, near_hi,
            kv_length, left, right, scale, PAGES, K_STRIDE, reach, False, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS,
            PAGE_SIZE, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, k_tiles, v_tiles, column, DESCRIPTORS,
        )  # fmt: skip
        if BIAS and not CAUSAL:
            acc, m, l = attend(
                acc, m, l, q, q_pos, k_ptr, v_ptr, row_base, page_row_ptr, key_row_ptr, bias_ptr, near_hi, full_hi,
                kv_length, left, right, scale, PAGES, K_STRIDE, reach, False, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS,
                PAGE_SIZE, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, k_tiles, v_tiles, column, DESCRIPTORS, 2 * reach,
                True,
            )  # fmt: skip
        acc, m, l = attend(
            acc, m, l, q, q_pos, k_ptr, v_ptr, row_base, page_row_ptr, key_row_ptr, bias_ptr, full_hi, hi,
            kv_length, left, right, scale, PAGES, K_STRIDE, reach, True, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS,
            PAGE_SIZE, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION, k_tiles, v_tiles, column, False,
        )  # fmt: skip
    # Queries that see no key have l = 0 and acc = 0.
    acc = acc / tl.where(l == 0, 1.0, l)[:, None]
    out_offsets = (q_start + i)[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + d[None, :]
    tl.store(out_ptr + out_offsets, acc.to(out_ptr.dtype.element_ty), mask=q_mask)


@triton.jit
def clear_block(
    block, out_ptr, q_start_ptr, q_length_ptr, TOKENS, ROWS, HEADS,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Zeros for those of BLOCK_M tokens of storage that no row covers, in every head."""
    d = tl.arange(0, BLOCK_D)
    token = block * BLOCK_M + tl.arange(0, BLOCK_M)
    owner, _ = find_rows(token, q_start_ptr, q_length_ptr, ROWS, BLOCK_M, 32)
    empty = (token < TOKENS) & (owner < 0)
    pointers = out_ptr + token.to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + d[None, :]
    zeros = tl.zeros([BLOCK_M, BLOCK_D], out_ptr.dtype.element_ty)
    if tl.max(empty.to(tl.int32), axis=0) > 0:
        for head in range(0, HEADS):
            tl.store(pointers + head * HEAD_DIM, zeros, mask=empty[:, None] & (d < HEAD_DIM)[None, :])


@triton.jit(do_not_specialize=PER_BATCH)
def attention_kernel(
    q_ptr,  # [T, H, HEAD_DIM], a token every Q_STRIDE elements
    k_ptr,  # [T_k, H_kv, HEAD_DIM] or [pages, PAGE_SIZE, H_kv, HEAD_DIM], a token every K_STRIDE elements
    v_ptr,  # as k
    out_ptr,  # [T, H, HEAD_DIM]
    k_tiles, v_tiles,  # descriptors of flat k and v as [T_k, H_kv * HEAD_DIM], unused unless DESCRIPTORS
    q_start_ptr,  # [B]
    q_length_ptr,  # [B]
    kv_start_ptr,  # [B], unused when PAGED
    kv_length_ptr,  # [B]
    page_table_ptr,  # [B, PAGES], unused unless PAGED
    key_rows_ptr,  # [B, KEYS], unused unless KEY_ROWS
    bias_ptr,  # float32 [H, 2 * reach + 1], unused unless BIAS
    order_ptr,  # of `tile_order`
    TOKENS, ROWS, HEADS, GROUP, PAGES, KEYS, Q_STRIDE, K_STRIDE, reach, left, right, scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BIAS: tl.constexpr, PAGED: tl.constexpr, KEY_ROWS: tl.constexpr,
    DESCRIPTORS: tl.constexpr, SPECIALIZED: tl.constexpr, PERSISTENT: tl.constexpr, PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (a program for every tile and head there may be, and block to clear; PERSISTENT: fewer, that take several).

    The heads of a tile are neighbours, so that those of a group find their keys in the cache.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    items = tl.load(order_ptr) * HEADS
    if PERSISTENT:
        for first in range(0, items, programs):
            # Every other round runs backwards: who got the longest tile of one gets the shortest of the next.
            item = first + tl.where(first // programs % 2 == 0, program, programs - 1 - program)
            if item < items:
                place = tl.load(order_ptr + TOTALS + item // HEADS)
                attend_tile(
                    place % ROWS, item % HEADS, place // ROWS,
                    q_ptr, k_ptr, v_ptr, out_ptr, k_tiles, v_tiles, q_start_ptr, q_length_ptr, kv_start_ptr,
                    kv_length_ptr, page_table_ptr, key_rows_ptr, bias_ptr, HEADS, GROUP, PAGES, KEYS, Q_STRIDE,
                    K_STRIDE, reach, left, right, scale, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS, DESCRIPTORS,
                    SPECIALIZED, PAGE_SIZE, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION,
                )  # fmt: skip
    elif program < items:
        place = tl.load(order_ptr + TOTALS + program // HEADS)
        attend_tile(
            place % ROWS, program % HEADS, place // ROWS,
            q_ptr, k_ptr, v_ptr, out_ptr, k_tiles, v_tiles, q_start_ptr, q_length_ptr, kv_start_ptr,
            kv_length_ptr, page_table_ptr, key_rows_ptr, bias_ptr, HEADS, GROUP, PAGES, KEYS, Q_STRIDE,
            K_STRIDE, reach, left, right, scale, CAUSAL, WINDOW, BIAS, PAGED, KEY_ROWS, DESCRIPTORS,
            SPECIALIZED, PAGE_SIZE, HEAD_DIM, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION,
        )  # fmt: skip
    # Those that have the least to do clear first.
    blocks = tl.load(order_ptr + 1)
    for block in range((program + programs - items % programs) % programs, blocks, programs):
        clear_block(block, out_ptr, q_start_ptr, q_length_ptr, TOKENS, ROWS, HEADS, HEAD_DIM, BLOCK_D, BLOCK_M)


def readable(k: Tensor, v: Tensor, head_dim: int, blocks: Tile, *, masked: bool) -> Reads:
    """How the keys can be read, at best as the tile says.

    A descriptor needs flat keys, a head of a power of two, and 16 bytes between what it points to; warps are
    specialized only where no bias and no window is asked for.
    """
    aligned = all(
        x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0 and head_dim * x.element_size() % 16 == 0
        for x in (k, v)
    )
    if k.ndim == 4 or not aligned or head_dim != blocks.block_d or len(k) == 0:
        return "pointers"
    return "descriptors" if blocks.reads == "specialized" and masked else blocks.reads


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    longest_kv: int, kv_start: Tensor | None, page_table: Tensor | None, key_rows: Tensor | None, causal: bool,
    window: tuple[int, int] | None, scale: float, bias: Tensor | None, plan: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    out = q.new_empty(q.shape) if out is None else out
    tokens, heads, head_dim = q.shape
    rows, paged, masked = len(q_start), page_table is not None, bias is not None or window is not None
    blocks = prefill_tile(q, k, masked=masked)
    reads = readable(k, v, head_dim, blocks, masked=masked)
    k_tiles = v_tiles = None
    if reads == "descriptors":
        k_tiles, v_tiles = (
            TensorDescriptor(x, [len(x), x.shape[1] * head_dim], [x.stride(0), 1], [blocks.block_n, head_dim])
            for x in (k, v)
        )
    elif reads == "specialized":
        # The descriptors of a row are made in the kernel. Their memory is the caching allocator's: a graph keeps it.
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=q.device))
    if plan is None:
        plan = tile_order(
            q, k, q_length=q_length, kv_length=kv_length, longest_q=longest_q, causal=causal, masked=masked
        )
    left, right = window or (0, 0)
    # Every tile and head that there may be, and blocks of storage to clear.
    programs = tile_capacity(tokens, rows, longest_q, blocks.block_m) * heads + triton.cdiv(tokens, blocks.block_m)
    if blocks.programs:
        programs = min(programs, blocks.programs * processors(q.device))
    attention_kernel[max(1, programs),](
        q, k, v, out, k_tiles, v_tiles, q_start, q_length, kv_start, kv_length, page_table, key_rows, bias, plan,
        tokens, rows, heads, heads // k.shape[-2], 0 if page_table is None else page_table.shape[1],
        0 if key_rows is None else key_rows.shape[1], q.stride(0), k.stride(-3),
        0 if bias is None else bias.shape[1] // 2, left, right, scale * LOG2E.value,
        CAUSAL=causal, WINDOW=window is not None, BIAS=bias is not None, PAGED=paged,
        KEY_ROWS=key_rows is not None, DESCRIPTORS=reads == "descriptors", SPECIALIZED=reads == "specialized",
        PERSISTENT=blocks.programs > 0, PAGE_SIZE=k.shape[1] if paged else 1, HEAD_DIM=head_dim,
        BLOCK_D=blocks.block_d, BLOCK_M=blocks.block_m, BLOCK_N=blocks.block_n,
        PRECISION=dispatch.input_precision(), num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    return out
