"""A head's product and the best of its logits, which are never written: tiles of the vocabulary keep their best ones,
bitonic merges (Batcher, 1968) bring them together.

A logit and its id are one integer, their key, whose order is that of the logits, and of equal ones the lower id first.
NaN is above everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels import dispatch
from tercet.kernels.configurations import head_tile

if TYPE_CHECKING:
    from torch import Tensor

LIST = 128
"""Keys that a program keeps where more than one is asked for, and tokens of a tile then."""
MAX_LISTS = 256  # of a row: programs that share a vocabulary
MERGED = 16  # lists that one program merges,
SINGLES = 4096  # and of one key each

LOWEST: tl.constexpr = tl.constexpr(-(1 << 63))  # the key of no token


@triton.jit
def order_of(x):
    """Integers of x, float16, bfloat16 or float32, in the order of the floats, as wide as they are."""
    lost = x != x  # noqa: PLR0124 - true of NaN
    if x.dtype.primitive_bitwidth == 16:
        x = (x.to(tl.float32) + 0.0).to(x.dtype)  # -0 becomes 0
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        order = tl.where(lost, 0x7FFF, tl.where(bits < 0, bits ^ 0x7FFF, bits))
    else:
        bits = (x + 0.0).to(tl.int32, bitcast=True)
        order = tl.where(lost, 0x7FFFFFFF, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
    return order


@triton.jit
def tile_keys(x, local, known, SHIFT: tl.constexpr):
    """Keys of logits x, the tokens `local` of a program, as narrow as they can be: SHIFT bits are the token's."""
    order = order_of(x)
    if SHIFT == 16:
        key = tl.where(known, (order << 16) | (0xFFFF - local), -(1 << 31))
    else:
        key = tl.where(known, (order.to(tl.int64) << 32) | (0x7FFFFFFF - local).to(tl.int64), LOWEST)
    return key


@triton.jit
def whole_keys(key, first, DTYPE: tl.constexpr, SHIFT: tl.constexpr):
    """Keys of float32 logits and tokens of the vocabulary, int64, from those of a program whose first is `first`."""
    if SHIFT == 16:
        order = key >> 16
        bits = tl.where(order < 0, order ^ 0x7FFF, order).to(tl.int16)
        whole = order_of(bits.to(DTYPE, bitcast=True).to(tl.float32)).to(tl.int64)
        id = first + 0xFFFF - (key & 0xFFFF)
        wide = tl.where(key == -(1 << 31), LOWEST, (whole << 32) | (0x7FFFFFFF - id).to(tl.int64))
    else:
        wide = tl.where(key == LOWEST, LOWEST, key - first)
    return wide


@triton.jit
def bit(AXIS: tl.constexpr, AXES: tl.constexpr):
    """0 and 1 along one of many axes of size 2."""
    return tl.reshape(tl.arange(0, 2), [1] * AXIS + [2] + [1] * (AXES - AXIS - 1))


@triton.jit
def sort_bitonic(h, LENGTH: tl.constexpr, RISING_AXIS: tl.constexpr, RISING: tl.constexpr):
    """Sorts bitonic sequences that lie along the last LENGTH axes, of size 2 each.

    They rise where the index along RISING_AXIS is 1, or all of them, by RISING, where that axis is -1.
    """
    AXES: tl.constexpr = tl.constexpr(len(h.shape))
    for i in tl.static_range(LENGTH):
        high = tl.max(h, axis=AXES - LENGTH + i, keep_dims=True)
        low = tl.min(h, axis=AXES - LENGTH + i, keep_dims=True)
        rising = RISING if RISING_AXIS < 0 else bit(RISING_AXIS, AXES)
        h = tl.where((bit(AXES - LENGTH + i, AXES) ^ rising) == 0, high, low)
    return h


@triton.jit
def sort_rising(x, LENGTH: tl.constexpr):
    """Each row of x [rows, 2 ** LENGTH] sorted, as [rows, 2, 2, ...]."""
    h = tl.reshape(x, [x.shape[0]] + [2] * LENGTH)
    for length in tl.static_range(1, LENGTH):
        h = sort_bitonic(h, length, LENGTH - length, 0)
    return sort_bitonic(h, LENGTH, -1, 1)


@triton.jit(do_not_specialize=["N"])
def head_topk_kernel(
    hidden_ptr,  # [N, D]
    weight_ptr,  # [V, D]
    bias_ptr,  # [V] or None
    keys_ptr,  # int64 [N, programs of a row, 2 ** LENGTH]
    N, V, D, CHUNK,
    BIAS: tl.constexpr, EVEN: tl.constexpr, LENGTH: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, chunks of the vocabulary): row tiles of a chunk run together and read its weights once.

    Tokens are the rows of the product, so that few rows of hidden states still fill a tensor core's instruction.
    """
    DTYPE: tl.constexpr = hidden_ptr.dtype.element_ty
    SHIFT: tl.constexpr = tl.constexpr(16 if DTYPE.primitive_bitwidth == 16 else 32)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    chunk = tl.program_id(1) * CHUNK
    d = tl.arange(0, BLOCK_D)
    # What lies beyond the rows or the vocabulary is read in place of nothing, and never kept.
    hidden_rows = hidden_ptr + tl.minimum(row, N - 1).to(tl.int64)[:, None] * D + d[None, :]
    if SHIFT == 16:
        best = tl.full([BLOCK_N] + [2] * LENGTH, -(1 << 31), tl.int32)
    else:
        best = tl.full([BLOCK_N] + [2] * LENGTH, LOWEST, tl.int64)
    for first in range(chunk, tl.minimum(chunk + CHUNK, V), BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        weight_rows = weight_ptr + tl.minimum(v, V - 1).to(tl.int64)[:, None] * D + d[None, :]
        acc = tl.zeros([BLOCK_V, BLOCK_N], tl.float32)
        for k in range(0, D, BLOCK_D):
            if EVEN:
                w = tl.load(weight_rows + k)  # [BLOCK_V, BLOCK_D]
                x = tl.load(hidden_rows + k)  # [BLOCK_N, BLOCK_D]
            else:
                w = tl.load(weight_rows + k, mask=(d < D - k)[None, :], other=0.0)
                x = tl.load(hidden_rows + k, mask=(d < D - k)[None, :], other=0.0)
            acc = tl.dot(w, tl.trans(x), acc, input_precision=PRECISION)
        if BIAS:
            acc += tl.load(bias_ptr + v, mask=v < V, other=0.0).to(tl.float32)[:, None]
        key = tile_keys(acc.to(DTYPE), (v - chunk)[:, None], (v < V)[:, None], SHIFT)
        if LENGTH == 0:
            best = tl.maximum(best, tl.max(key, axis=0))
        else:
            best = tl.maximum(best, sort_rising(tl.trans(key), LENGTH))
            best = sort_bitonic(best, LENGTH, -1, 0)
    LIST: tl.constexpr = 1 << LENGTH
    key = tl.reshape(whole_keys(best, chunk, DTYPE, SHIFT), [BLOCK_N, LIST])
    place = (row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1))[:, None] * LIST + tl.arange(0, LIST)[None, :]
    tl.store(keys_ptr + place, key, mask=(row < N)[:, None])


@triton.jit(do_not_specialize=["LISTS"])
def merge_kernel(
    keys_ptr,  # int64 [N, LISTS, 2 ** LENGTH], each list falling
    merged_ptr,  # int64 [N, groups, 2 ** LENGTH], or None of the last merge
    values_ptr,  # float32 [N, KEPT], of the last merge
    ids_ptr,  # int32 [N, KEPT], of the last merge
    LISTS, KEPT,
    LAST: tl.constexpr, LENGTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Grid (N, groups of 2 ** GROUP lists)."""
    LIST: tl.constexpr = 1 << LENGTH
    row = tl.program_id(0).to(tl.int64)
    each = tl.arange(0, 1 << GROUP)
    number = tl.program_id(1) * (1 << GROUP) + each
    place = tl.arange(0, LIST)
    # Every other list is read backwards: a falling and a rising one are bitonic together.
    turned = tl.where((each & 1)[:, None] == 0, place[None, :], LIST - 1 - place[None, :])
    pointers = keys_ptr + (row * LISTS + number)[:, None] * LIST + turned
    h = tl.load(pointers, mask=(number < LISTS)[:, None], other=LOWEST)  # [2 ** GROUP, LIST]
    if LENGTH == 0:
        best = tl.max(h, axis=0)
    else:
        h = tl.reshape(h, [2] * (GROUP + LENGTH))
        for level in tl.static_range(GROUP):
            h = tl.max(h, axis=GROUP - 1 - level)
            h = sort_bitonic(h, LENGTH, GROUP - 2 - level, 0)
        best = tl.reshape(h, [LIST])
    if LAST:
        order = (best >> 32).to(tl.int32)
        value = tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)
        tl.store(values_ptr + row * KEPT + place, value, mask=place < KEPT)
        tl.store(ids_ptr + row * KEPT + place, 0x7FFFFFFF - (best & 0xFFFFFFFF).to(tl.int32), mask=place < KEPT)
    else:
        tl.store(merged_ptr + (row * tl.num_programs(1) + tl.program_id(1)) * LIST + place, best)


def head_topk(hidden: Tensor, weight: Tensor, *, k: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, vocabulary = len(hidden), len(weight)
    values = torch.empty((rows, k), dtype=torch.float32, device=hidden.device)
    ids = torch.empty((rows, k), dtype=torch.int32, device=hidden.device)
    if rows == 0:
        return values, ids
    length = 0 if k == 1 else LIST.bit_length() - 1
    blocks = head_tile(hidden.dtype, rows, greedy=k == 1)
    tiles = triton.cdiv(vocabulary, blocks.block_v)
    each = 1 if k == 1 else triton.cdiv(tiles, MAX_LISTS)
    lists = triton.cdiv(tiles, each)
    keys = torch.empty((rows, lists, 1 << length), dtype=torch.int64, device=hidden.device)
    head_topk_kernel[triton.cdiv(rows, blocks.block_n), lists](
        hidden, weight, bias, keys, rows, vocabulary, hidden.shape[1], each * blocks.block_v,
        BIAS=bias is not None, EVEN=hidden.shape[1] % blocks.block_d == 0, LENGTH=length, BLOCK_V=blocks.block_v,
        BLOCK_N=blocks.block_n, BLOCK_D=blocks.block_d, PRECISION=dispatch.input_precision(),
        num_warps=blocks.num_warps, num_stages=blocks.num_stages,
    )  # fmt: skip
    group = SINGLES if k == 1 else MERGED
    while True:
        groups = triton.cdiv(lists, group)
        merged = None if groups == 1 else keys.new_empty((rows, groups, 1 << length))
        merge_kernel[rows, groups](
            keys, merged, values, ids, lists, k,
            LAST=merged is None, LENGTH=length, GROUP=(group - 1).bit_length(), num_warps=8 if length else 4,
        )  # fmt: skip
        if merged is None:
            return values, ids
        keys, lists = merged, groups
