"""Layer norm (Ba et al., 2016) and RMS norm (Zhang and Sennrich, 2019), each with the residual sum fused in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels.configurations import row_warps

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def normalize_row(x, weight_ptr, bias_ptr, n, N, eps, RMS: tl.constexpr, BIAS: tl.constexpr):
    """The norm of one row x, float32 [BLOCK_N], zeros beyond N."""
    if not RMS:
        x = tl.where(n < N, x - tl.sum(x, axis=0) / N, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, axis=0) / N + eps)
    x = x * tl.load(weight_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    return x


@triton.jit
def norm_kernel(
    x_ptr,  # [T, N]
    residual_ptr,  # [T, N], updated to x + residual, or None
    weight_ptr,  # [N]
    bias_ptr,  # [N] or None
    out_ptr,  # [T, N]
    N, eps,
    RMS: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (T,)."""
    offset = tl.program_id(0).to(tl.int64) * N
    n = tl.arange(0, BLOCK_N)
    x = tl.load(x_ptr + offset + n, mask=n < N, other=0.0)  # [BLOCK_N]
    if RESIDUAL:
        x = (x.to(tl.float32) + tl.load(residual_ptr + offset + n, mask=n < N, other=0.0).to(tl.float32)).to(x.dtype)
        tl.store(residual_ptr + offset + n, x, mask=n < N)
    y = normalize_row(x.to(tl.float32), weight_ptr, bias_ptr, n, N, eps, RMS, BIAS)
    tl.store(out_ptr + offset + n, y.to(out_ptr.dtype.element_ty), mask=n < N)


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    eps: float,
    *,
    rms: bool,
) -> Tensor:
    out = torch.empty_like(x) if out is None else out
    tokens, n = x.shape
    if tokens:
        block_n = triton.next_power_of_2(n)
        norm_kernel[(tokens,)](
            x, residual, weight, bias, out, n, eps, RMS=rms, BIAS=bias is not None, RESIDUAL=residual is not None,
            BLOCK_N=block_n, num_warps=row_warps(block_n),
        )  # fmt: skip
    return out


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, eps: float, residual: Tensor | None, out: Tensor | None
) -> Tensor:
    return _norm(x, weight, bias, residual, out, eps, rms=False)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, residual: Tensor | None, out: Tensor | None) -> Tensor:
    return _norm(x, weight, None, residual, out, eps, rms=True)
