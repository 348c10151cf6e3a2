"""The sum of word, position and type embeddings and its norm, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from tercet.kernels.configurations import row_warps
from tercet.kernels.jit.norm import normalize_row
from tercet.kernels.jit.rows import PER_BATCH

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.ops import NormKind


@triton.jit(do_not_specialize=PER_BATCH)
def embedding_kernel(
    token_ids_ptr,  # [T]
    word_ptr,  # [V, D]
    positions_ptr,  # [T] or None
    position_ptr,  # [P, D] or None
    type_ids_ptr,  # [T], None for type 0
    type_ptr,  # [K, D] or None
    weight_ptr,  # [D] or None
    bias_ptr,  # [D] or None
    out_ptr,  # [T, D]
    D, scale, eps,
    POSITION: tl.constexpr, TYPE: tl.constexpr, TYPE_IDS: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr,
    BIAS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    word = tl.load(token_ids_ptr + token).to(tl.int64) * D
    x = tl.load(word_ptr + word + d, mask=d < D, other=0.0).to(tl.float32) * scale  # [BLOCK_D]
    if POSITION:
        position = tl.load(positions_ptr + token).to(tl.int64) * D
        x += tl.load(position_ptr + position + d, mask=d < D, other=0.0).to(tl.float32)
    if TYPE:
        if TYPE_IDS:
            type_ptr += tl.load(type_ids_ptr + token).to(tl.int64) * D
        x += tl.load(type_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    if NORM:
        x = normalize_row(x, weight_ptr, bias_ptr, d, D, eps, RMS, BIAS)
    tl.store(out_ptr + token * D + d, x.to(out_ptr.dtype.element_ty), mask=d < D)


def embedding(
    word: Tensor, token_ids: Tensor, *, positions: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    type_table: Tensor | None, scale: float, weight: Tensor | None, bias: Tensor | None, eps: float,
    norm: NormKind | None,
) -> Tensor:  # fmt: skip
    tokens, d = len(token_ids), word.shape[1]
    out = word.new_empty((tokens, d))
    if tokens:
        block_d = triton.next_power_of_2(d)
        embedding_kernel[(tokens,)](
            token_ids, word, positions, position, type_ids, type_table, weight, bias, out, d, float(scale), eps,
            POSITION=position is not None, TYPE=type_table is not None, TYPE_IDS=type_ids is not None,
            NORM=norm is not None, RMS=norm == "rms_norm", BIAS=bias is not None,
            BLOCK_D=block_d, num_warps=row_warps(block_d),
        )  # fmt: skip
    return out
