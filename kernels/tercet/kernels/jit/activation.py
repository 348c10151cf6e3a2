"""Activations with the bias before them and the gate after them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.ops import ActivationKind

MAX_BLOCK_N = 1024


@triton.jit
def logistic(x):
    """1 / (1 + exp(-x)) without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def activate(x, KIND: tl.constexpr):
    if KIND == "gelu":
        x = x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        # (1 + tanh(u)) / 2 is the logistic function of 2u; Hendrycks and Gimpel, 2016.
        x = x * logistic(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == "silu":
        x = x * logistic(x)
    else:
        x = tl.maximum(x, 0.0)
    return x


@triton.jit
def activation_kernel(
    x_ptr,  # [T, N], [T, 2 * N] when GATED
    bias_ptr,  # as a row of x, or None
    out_ptr,  # [T, N]
    N,
    KIND: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (T, tiles of N)."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_ptr += row * (2 * N if GATED else N)
    x = tl.load(x_ptr + n, mask=n < N, other=0.0).to(tl.float32)  # [BLOCK_N]
    if BIAS:
        x += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    x = activate(x, KIND)
    if GATED:
        gate = tl.load(x_ptr + N + n, mask=n < N, other=0.0).to(tl.float32)
        if BIAS:
            gate += tl.load(bias_ptr + N + n, mask=n < N, other=0.0).to(tl.float32)
        x = x * gate
    tl.store(out_ptr + row * N + n, x.to(out_ptr.dtype.element_ty), mask=n < N)


def activation(x: Tensor, kind: ActivationKind, *, bias: Tensor | None, gated: bool) -> Tensor:
    tokens, n = x.shape[0], x.shape[1] // (2 if gated else 1)
    out = x.new_empty((tokens, n))
    if tokens:
        block_n = min(triton.next_power_of_2(n), MAX_BLOCK_N)
        activation_kernel[tokens, triton.cdiv(n, block_n)](
            x, bias, out, n, KIND=kind, GATED=gated, BIAS=bias is not None, BLOCK_N=block_n
        )
    return out
