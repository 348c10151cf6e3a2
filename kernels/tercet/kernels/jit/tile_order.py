"""The order in which attention takes the tiles of a batch's queries: those that see the most keys first (Graham, Bounds
on multiprocessing timing anomalies, 1969: the longest job first). It is made on the GPU, once a step for all layers of
one causality; what is launched depends on sizes of storage alone, never on a length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels.configurations import form, tile
from tercet.kernels.jit.rows import PER_BATCH

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.configurations import Tile

# An order is int32 [2 + CAPACITY]: the number of tiles, that of the blocks of BLOCK_M tokens of storage to look through
# for what no row covers (all, or none where rows cover everything), and the tiles as tile * ROWS + row.
TOTALS: tl.constexpr = tl.constexpr(2)


@triton.jit(do_not_specialize=[*PER_BATCH, "BLOCK_M"])
def tile_order_kernel(
    order_ptr,  # [2 + CAPACITY]
    q_length_ptr,  # [B]
    kv_length_ptr,  # [B]
    TOKENS, ROWS, CAPACITY, BLOCK_M,
    CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Grid (B, at least 1): puts the tiles of a row where they belong among all. Equals go by row, then by tile."""
    row = tl.program_id(0)
    q_length = tl.load(q_length_ptr + row, mask=row < ROWS, other=0).to(tl.int32)
    kv_length = tl.load(kv_length_ptr + row, mask=row < ROWS, other=0).to(tl.int32)
    tiles = tl.cdiv(q_length, BLOCK_M)
    for first_tile in range(0, tl.maximum(tiles, 1), BLOCK_T):  # once even without tiles, for the totals
        t = first_tile + tl.arange(0, BLOCK_T)
        rank = tl.zeros([BLOCK_T], tl.int32)
        total = 0
        covered = 0
        for first in range(0, ROWS, BLOCK_B):
            b = first + tl.arange(0, BLOCK_B)
            queries = tl.load(q_length_ptr + b, mask=b < ROWS, other=0).to(tl.int32)
            keys = tl.load(kv_length_ptr + b, mask=b < ROWS, other=0).to(tl.int32)
            others = tl.cdiv(queries, BLOCK_M)
            earlier = (b < row).to(tl.int32)
            if CAUSAL:
                # Tile t sees the keys up to keys - queries + (t + 1) * BLOCK_M: so many tiles of row b see no more.
                more = (kv_length - q_length + t * BLOCK_M)[:, None] - (keys - queries + earlier)[None, :]
                ahead = tl.maximum(others[None, :] - tl.where(more < 0, 0, more // BLOCK_M + 1), 0)
            else:
                ahead = tl.where(keys + earlier > kv_length, others, 0)[None, :]  # [BLOCK_T, BLOCK_B]
                ahead = tl.where((b == row)[None, :], t[:, None], ahead)
            rank += tl.sum(ahead, axis=1)
            total += tl.sum(others, axis=0)
            covered += tl.sum(queries, axis=0)
        tl.store(order_ptr + TOTALS + rank, t * ROWS + row, mask=(t < tiles) & (rank < CAPACITY))
        if row == 0:
            tl.store(order_ptr, tl.minimum(total, CAPACITY))
            tl.store(order_ptr + 1, tl.where(covered < TOKENS, tl.cdiv(TOKENS, BLOCK_M), 0))


def tile_capacity(tokens: int, rows: int, longest_q: int, block_m: int) -> int:
    """The most tiles there can be: as many as the rows' longest could have, and no more than storage holds."""
    return min(triton.cdiv(tokens, block_m) + rows, rows * triton.cdiv(longest_q, block_m))


def prefill_tile(q: Tensor, k: Tensor, *, masked: bool) -> Tile:
    """The tile of prefill attention to flat or paged keys."""
    return tile("attention", q.dtype, q.shape[2], form=form(paged=k.ndim == 4, masked=masked), device=q.device)


def tile_order(
    q: Tensor, k: Tensor, *, q_length: Tensor, kv_length: Tensor, longest_q: int, causal: bool, masked: bool
) -> Tensor:
    """The order of the tiles of a batch's queries."""
    rows, tokens, block_m = len(q_length), len(q), prefill_tile(q, k, masked=masked).block_m
    capacity = tile_capacity(tokens, rows, longest_q, block_m)
    order = torch.empty(TOTALS.value + capacity, dtype=torch.int32, device=q.device)
    tile_order_kernel[max(1, rows),](
        order, q_length, kv_length, tokens, rows, capacity, block_m, CAUSAL=causal, BLOCK_T=32, BLOCK_B=32, num_warps=1
    )
    return order
