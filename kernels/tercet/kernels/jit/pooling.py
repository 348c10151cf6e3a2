"""One vector a row, and its scaling to length 1, in one pass over the row's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels.jit.rows import PER_BATCH

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.ops import PoolingKind

TILE_ELEMENTS = 8192


@triton.jit(do_not_specialize=PER_BATCH)
def pooling_kernel(
    hidden_ptr,  # [T, D]
    start_ptr,  # [B]
    length_ptr,  # [B]
    out_ptr,  # float32 [B, D]
    D,
    KIND: tl.constexpr, NORMALIZE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(start_ptr + row).to(tl.int64)
    length = tl.load(length_ptr + row).to(tl.int32)
    d = tl.arange(0, BLOCK_D)
    width = tl.where(length > 0, D, 0)
    if KIND == "mean" or KIND == "max":  # noqa: PLR1714 - Triton compares constants one by one
        pooled = tl.zeros([BLOCK_D], tl.float32) if KIND == "mean" else tl.full([BLOCK_D], float("-inf"), tl.float32)
        for first in range(0, length, BLOCK_T):
            t = first + tl.arange(0, BLOCK_T)
            mask = (t < length)[:, None] & (d < D)[None, :]
            pointers = hidden_ptr + (start + t)[:, None] * D + d[None, :]
            if KIND == "mean":
                pooled += tl.sum(tl.load(pointers, mask=mask, other=0.0).to(tl.float32), axis=0)
            else:
                x = tl.load(pointers, mask=mask, other=float("-inf")).to(tl.float32)  # [BLOCK_T, BLOCK_D]
                pooled = tl.maximum(pooled, tl.max(x, axis=0))
        if KIND == "mean":
            pooled = pooled / tl.maximum(length, 1)
    else:
        token = start + (0 if KIND == "cls" else length - 1)
        pooled = tl.load(hidden_ptr + token * D + d, mask=d < width, other=0.0).to(tl.float32)
    pooled = tl.where(d < width, pooled, 0.0)
    if NORMALIZE:
        pooled = pooled / tl.maximum(tl.sqrt(tl.sum(pooled * pooled, axis=0)), 1e-12)
    tl.store(out_ptr + row * D + d, pooled, mask=d < D)


def pooling(hidden: Tensor, start: Tensor, length: Tensor, *, kind: PoolingKind, normalize: bool) -> Tensor:
    rows, d = len(start), hidden.shape[1]
    out = torch.empty((rows, d), dtype=torch.float32, device=hidden.device)
    if rows:
        block_d = triton.next_power_of_2(d)
        pooling_kernel[(rows,)](
            hidden, start, length, out, d, KIND=kind, NORMALIZE=normalize,
            BLOCK_T=max(1, min(32, TILE_ELEMENTS // block_d)), BLOCK_D=block_d, num_warps=8,
        )  # fmt: skip
    return out
