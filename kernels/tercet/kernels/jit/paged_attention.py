"""Attention for few queries a row over paged keys: the keys are split over a fixed grid, the partial softmaxes
combined (Dao et al., Flash-Decoding, 2023). All query heads of one key head share its loads.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels import dispatch
from tercet.kernels.configurations import tile
from tercet.kernels.jit.attention import LOG2E, attend, visible_range
from tercet.kernels.jit.rows import PER_BATCH, find_rows

if TYPE_CHECKING:
    from torch import Tensor

MAX_SPLITS = 64
COMBINED_SPLITS = 16  # so many splits are combined in a step
INTERPRETER_PROCESSORS = 8  # the interpreter runs program by program: enough to split


@triton.jit(do_not_specialize=PER_BATCH)
def split_kernel(
    q_ptr,  # [T, H, HEAD_DIM], a token every Q_STRIDE elements
    k_ptr,  # [pages, PAGE_SIZE, H_kv, HEAD_DIM], a token every K_STRIDE elements
    v_ptr,  # as k
    partial_ptr,  # float32 [SPLITS, T, H, HEAD_DIM]: each split's normalised output
    lse_ptr,  # float32 [SPLITS, T, H]: log2 of its sum of exponentials, -inf where a query sees no key of it
    q_start_ptr,  # [B]
    q_length_ptr,  # [B]
    kv_length_ptr,  # [B]
    page_table_ptr,  # [B, PAGES]
    key_rows_ptr,  # [B, KEYS], unused unless KEY_ROWS
    bias_ptr,  # float32 [H, 2 * reach + 1], unused unless BIAS
    TOKENS, HEADS, GROUP, PAGES, KEYS, Q_STRIDE, K_STRIDE, reach, left, right, scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BIAS: tl.constexpr, KEY_ROWS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (SPLITS, H_kv * tiles of GROUP * longest_q, B); a program's rows are (query, head of the group) pairs."""
    split = tl.program_id(0)
    splits = tl.num_programs(0)
    kv_heads = HEADS // GROUP
    kv_head = tl.program_id(1) % kv_heads
    row = tl.program_id(2)
    q_length = tl.load(q_length_ptr + row).to(tl.int32)
    first = tl.program_id(1) // kv_heads * BLOCK_M
    if first >= q_length * GROUP:
        return
    kv_length = tl.load(kv_length_ptr + row).to(tl.int32)
    q_start = tl.load(q_start_ptr + row).to(tl.int64)

    r = first + tl.arange(0, BLOCK_M)
    i = r // GROUP
    head = kv_head * GROUP + r % GROUP
    q_pos = i + kv_length - q_length
    d = tl.arange(0, BLOCK_D)
    q_mask = (i < q_length)[:, None] & (d < HEAD_DIM)[None, :]
    q_rows = (q_start + i) * HEADS + head
    q_offsets = (q_start + i) * Q_STRIDE + head * HEAD_DIM
    q = tl.load(q_ptr + q_offsets[:, None] + d[None, :], mask=q_mask, other=0.0)  # [BLOCK_M, BLOCK_D]

    first_pos = first // GROUP + kv_length - q_length
    last_pos = tl.minimum((first + BLOCK_M - 1) // GROUP, q_length - 1) + kv_length - q_length
    lo, hi, full_lo, full_hi = visible_range(first_pos, last_pos, kv_length, left, right, CAUSAL, WINDOW, BLOCK_N)
    # Every split takes an equal share of whole tiles.
    share = tl.cdiv(tl.cdiv(tl.maximum(hi - lo, 0), BLOCK_N), splits) * BLOCK_N
    lo = lo + split * share
    hi = tl.minimum(hi, lo + share)
    full_lo = tl.minimum(tl.maximum(full_lo, lo), tl.cdiv(tl.maximum(hi, lo), BLOCK_N) * BLOCK_N)
    full_hi = tl.maximum(tl.minimum(full_hi, hi) // BLOCK_N * BLOCK_N, full_lo)

    page_row_ptr = page_table_ptr
    key_row_ptr = key_rows_ptr
    if KEY_ROWS:
        key_row_ptr += row.to(tl.int64) * KEYS
    else:
        page_row_ptr += row.to(tl.int64) * PAGES
    k_ptr += kv_head * HEAD_DIM
    v_ptr += kv_head * HEAD_DIM
    if BIAS:
        bias_ptr += (head * (2 * reach + 1))[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    if WINDOW:
        acc, m, l = attend(
            acc, m, l, q, q_pos, k_ptr, v_ptr, 0, page_row_ptr, key_row_ptr, bias_ptr, lo, full_lo, kv_length,
            left, right, scale, PAGES, K_STRIDE, reach, True, CAUSAL, WINDOW, BIAS, True, KEY_ROWS, PAGE_SIZE,
            HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
        )  # fmt: skip
    acc, m, l = attend(
        acc, m, l, q, q_pos, k_ptr, v_ptr, 0, page_row_ptr, key_row_ptr, bias_ptr, full_lo, full_hi, kv_length,
        left, right, scale, PAGES, K_STRIDE, reach, False, CAUSAL, WINDOW, BIAS, True, KEY_ROWS, PAGE_SIZE,
        HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    acc, m, l = attend(
        acc, m, l, q, q_pos, k_ptr, v_ptr, 0, page_row_ptr, key_row_ptr, bias_ptr, full_hi, hi, kv_length,
        left, right, scale, PAGES, K_STRIDE, reach, True, CAUSAL, WINDOW, BIAS, True, KEY_ROWS, PAGE_SIZE,
        HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    seen = l > 0
    acc = acc / tl.where(seen, l, 1.0)[:, None]
    lse = tl.where(seen, m + tl.log2(tl.where(seen, l, 1.0)), float("-inf"))
    rows = split.to(tl.int64) * TOKENS * HEADS + q_rows
    tl.store(lse_ptr + rows, lse, mask=i < q_length)
    if lo < hi:  # an empty split is told by its lse and its output never read
        tl.store(partial_ptr + rows[:, None] * HEAD_DIM + d[None, :], acc, mask=q_mask)


@triton.jit(do_not_specialize=PER_BATCH)
def combine_kernel(
    partial_ptr,  # float32 [SPLITS, T, H, HEAD_DIM]
    lse_ptr,  # float32 [SPLITS, T, H]
    out_ptr,  # [T, H, HEAD_DIM]
    q_start_ptr,  # [B]
    q_length_ptr,  # [B]
    TOKENS, ROWS, HEADS, SPLITS,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (T, H). Weighs each split's output by its share of the sum; zeros where no row lies."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    owner, _ = find_rows(token + tl.zeros([1], tl.int32), q_start_ptr, q_length_ptr, ROWS, 1, 32)
    d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_D], tl.float32)
    m = tl.full([], float("-inf"), tl.float32)
    l = tl.zeros([], tl.float32)
    for first in range(0, SPLITS, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        rows = (split.to(tl.int64) * TOKENS + token) * HEADS + head
        covered = (split < SPLITS) & (owner >= 0)  # owner is [1]
        lse = tl.load(lse_ptr + rows, mask=covered, other=float("-inf"))  # [BLOCK_S]
        m_new = tl.maximum(m, tl.max(lse, axis=0))
        origin = tl.where(m_new == float("-inf"), 0.0, m_new)
        weight = tl.exp2(lse - origin)
        loaded = (lse > float("-inf"))[:, None] & (d < HEAD_DIM)[None, :]
        partial = tl.load(partial_ptr + rows[:, None] * HEAD_DIM + d[None, :], mask=loaded, other=0.0)
        alpha = tl.exp2(m - origin)
        acc = acc * alpha + tl.sum(weight[:, None] * partial, axis=0)  # partial is [BLOCK_S, BLOCK_D]
        l = l * alpha + tl.sum(weight, axis=0)
        m = m_new
    out = acc / tl.where(l > 0, l, 1.0)
    offsets = (token.to(tl.int64) * HEADS + head) * HEAD_DIM + d
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=d < HEAD_DIM)


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return INTERPRETER_PROCESSORS


def split_count(programs: int, tiles: int, processors: int) -> int:
    """Splits so that about two programs run on every processor, at most one a tile of keys."""
    return max(1, min(triton.cdiv(2 * processors, programs), tiles, MAX_SPLITS))


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    longest_kv: int, page_table: Tensor, key_rows: Tensor | None, causal: bool, window: tuple[int, int] | None,
    scale: float, bias: Tensor | None, out: Tensor | None,
) -> Tensor:  # fmt: skip
    out = q.new_empty(q.shape) if out is None else out
    tokens, heads, head_dim = q.shape
    page_size, kv_heads = k.shape[1:3]
    group, rows = heads // kv_heads, len(q_start)
    if tokens == 0:
        return out
    causal = causal and longest_q > 1  # one query sees every key anyway
    blocks = tile("paged_attention", q.dtype, head_dim, masked=causal or bias is not None or window is not None)
    programs = kv_heads * triton.cdiv(max(1, longest_q) * group, blocks.block_m)
    splits = split_count(rows * programs, triton.cdiv(longest_kv, blocks.block_n), _processors(q.device))
    partial = torch.empty((splits, tokens, heads, head_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((splits, tokens, heads), dtype=torch.float32, device=q.device)
    left, right = window or (0, 0)
    split_kernel[splits, programs, rows](
        q, k, v, partial, lse, q_start, q_length, kv_length, page_table, key_rows, bias,
        tokens, heads, group, page_table.shape[1], 0 if key_rows is None else key_rows.shape[1], q.stride(0),
        k.stride(1), 0 if bias is None else bias.shape[1] // 2, left, right, scale * LOG2E.value,
        CAUSAL=causal, WINDOW=window is not None, BIAS=bias is not None, KEY_ROWS=key_rows is not None,
        PAGE_SIZE=page_size, HEAD_DIM=head_dim, BLOCK_D=blocks.block_d, BLOCK_M=blocks.block_m, BLOCK_N=blocks.block_n,
        PRECISION=dispatch.input_precision(), num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    combine_kernel[tokens, heads](
        partial, lse, out, q_start, q_length, tokens, rows, heads, splits,
        HEAD_DIM=head_dim, BLOCK_D=blocks.block_d, BLOCK_S=COMBINED_SPLITS, num_warps=max(1, blocks.block_d // 64),
    )  # fmt: skip
    return out
