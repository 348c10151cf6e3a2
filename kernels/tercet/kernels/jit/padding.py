"""Padding and its inverse, on the device that computes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels.jit.rows import PER_BATCH, find_rows

if TYPE_CHECKING:
    from torch import Tensor

MAX_BLOCK_N = 1024
BLOCK_ELEMENTS = 2048


@triton.jit(do_not_specialize=PER_BATCH)
def pad_kernel(
    packed_ptr,  # [T, N]
    padded_ptr,  # [B * longest, N]
    start_ptr,  # [B]
    length_ptr,  # [B]
    value, TOKENS, longest, N,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of padded tokens, tiles of N)."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = token // longest
    place = token % longest
    inside = token < TOKENS
    start = tl.load(start_ptr + row, mask=inside, other=0).to(tl.int64)
    real = place < tl.load(length_ptr + row, mask=inside, other=0)
    x = tl.load(
        packed_ptr + (start + place)[:, None] * N + n[None, :], mask=real[:, None] & (n < N)[None, :], other=0
    )  # [BLOCK_T, BLOCK_N]
    x = tl.where(real[:, None], x, tl.full([BLOCK_T, BLOCK_N], value, x.dtype))
    tl.store(padded_ptr + token.to(tl.int64)[:, None] * N + n[None, :], x, mask=inside[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=PER_BATCH)
def unpad_kernel(
    padded_ptr,  # [B * longest, N]
    packed_ptr,  # [T, N]
    start_ptr,  # [B]
    length_ptr,  # [B]
    TOKENS, ROWS, longest, N,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of packed tokens, tiles of N)."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, place = find_rows(token, start_ptr, length_ptr, ROWS, BLOCK_T, 32)
    source = row.to(tl.int64) * longest + place
    x = tl.load(
        padded_ptr + source[:, None] * N + n[None, :], mask=(row >= 0)[:, None] & (n < N)[None, :], other=0
    )  # [BLOCK_T, BLOCK_N], zeros where no row lies
    tl.store(
        packed_ptr + token.to(tl.int64)[:, None] * N + n[None, :], x, mask=(token < TOKENS)[:, None] & (n < N)[None, :]
    )


def _blocks(n: int) -> tuple[int, int]:
    block_n = min(triton.next_power_of_2(n), MAX_BLOCK_N)
    return min(BLOCK_ELEMENTS // block_n, 64), block_n


def _numbers(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def pad(packed: Tensor, start: Tensor, length: Tensor, *, longest: int, value: float) -> Tensor:
    tokens, n = len(start) * longest, math.prod(packed.shape[1:])
    padded = packed.new_empty((tokens, *packed.shape[1:]))
    if padded.numel():
        block_t, block_n = _blocks(n)
        pad_kernel[triton.cdiv(tokens, block_t), triton.cdiv(n, block_n)](
            _numbers(packed), _numbers(padded), start, length,
            float(value) if packed.is_floating_point() else int(value), tokens, longest, n,
            BLOCK_T=block_t, BLOCK_N=block_n,
        )  # fmt: skip
    return padded


def unpad(padded: Tensor, start: Tensor, length: Tensor, *, longest: int, tokens: int) -> Tensor:
    n = math.prod(padded.shape[1:])
    packed = padded.new_empty((tokens, *padded.shape[1:]))
    if packed.numel():
        block_t, block_n = _blocks(n)
        unpad_kernel[triton.cdiv(tokens, block_t), triton.cdiv(n, block_n)](
            _numbers(padded), _numbers(packed), start, length, tokens, len(start), longest, n,
            BLOCK_T=block_t, BLOCK_N=block_n,
        )  # fmt: skip
    return packed
