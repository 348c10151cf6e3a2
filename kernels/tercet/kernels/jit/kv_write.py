"""Rotary position embedding (Su et al., RoFormer, 2021) and the write of keys and values into pages, in one launch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from tercet.kernels.jit.rows import PER_BATCH

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def rotate_into(
    x_ptr, y_ptr, cos, sin, HEADS,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, COPY_REST: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """One token's heads x [HEADS, HEAD_DIM] rotated by cos and sin [BLOCK_HALF] into y, which may be x."""
    h = tl.arange(0, BLOCK_H)
    pair = tl.arange(0, BLOCK_HALF)
    a_offset = h[:, None] * HEAD_DIM + (2 * pair if INTERLEAVED else pair)[None, :]
    b_offset = a_offset + (1 if INTERLEAVED else HALF)
    mask = (h < HEADS)[:, None] & (pair < HALF)[None, :]
    a = tl.load(x_ptr + a_offset, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_H, BLOCK_HALF]
    b = tl.load(x_ptr + b_offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + a_offset, (a * cos[None, :] - b * sin[None, :]).to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + b_offset, (b * cos[None, :] + a * sin[None, :]).to(y_ptr.dtype.element_ty), mask=mask)
    if COPY_REST and BLOCK_REST > 0:
        d = 2 * HALF + tl.arange(0, BLOCK_REST)
        offset = h[:, None] * HEAD_DIM + d[None, :]
        rest = (h < HEADS)[:, None] & (d < HEAD_DIM)[None, :]
        tl.store(y_ptr + offset, tl.load(x_ptr + offset, mask=rest, other=0.0), mask=rest)


@triton.jit
def copy_heads(x_ptr, y_ptr, SIZE, BLOCK: tl.constexpr):
    """One token's heads x [SIZE] to y."""
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < SIZE, other=0.0), mask=i < SIZE)


@triton.jit(do_not_specialize=PER_BATCH)
def kv_write_kernel(
    q_ptr,  # [T, Q_HEADS, HEAD_DIM] or None, a token every Q_STRIDE elements
    k_ptr,  # [T, KV_HEADS, HEAD_DIM], a token every K_STRIDE elements
    v_ptr,  # as k, or None, a token every V_STRIDE elements
    k_pages_ptr,  # [pages * page_size, KV_HEADS, HEAD_DIM] or None
    v_pages_ptr,  # as k_pages
    slots_ptr,  # [T] or None
    positions_ptr,  # [T] or None
    cos_ptr,  # float32 [positions, HALF] or None
    sin_ptr,  # as cos
    Q_HEADS, KV_HEADS, Q_STRIDE, K_STRIDE, V_STRIDE,
    ROTATE: tl.constexpr, ROTATE_Q: tl.constexpr, WRITE: tl.constexpr, INTERLEAVED: tl.constexpr,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_COPY: tl.constexpr,
):  # fmt: skip
    """Grid (T, 2): keys and values, then queries."""
    token = tl.program_id(0).to(tl.int64)
    if ROTATE:
        pair = tl.arange(0, BLOCK_HALF)
        angle = tl.load(positions_ptr + token).to(tl.int64) * HALF + pair
        cos = tl.load(cos_ptr + angle, mask=pair < HALF, other=0.0)  # [BLOCK_HALF]
        sin = tl.load(sin_ptr + angle, mask=pair < HALF, other=0.0)
    if tl.program_id(1) == 1:
        if ROTATE_Q:
            q_ptr += token * Q_STRIDE
            rotate_into(
                q_ptr, q_ptr, cos, sin, Q_HEADS, HEAD_DIM, HALF, INTERLEAVED, False, BLOCK_Q, BLOCK_HALF, BLOCK_REST
            )
    else:
        k_ptr += token * K_STRIDE
        if WRITE:
            slot = tl.load(slots_ptr + token).to(tl.int64)
            if slot >= 0:
                k_pages_ptr += slot * KV_HEADS * HEAD_DIM
                if ROTATE:
                    rotate_into(
                        k_ptr, k_pages_ptr, cos, sin, KV_HEADS, HEAD_DIM, HALF, INTERLEAVED, True,
                        BLOCK_KV, BLOCK_HALF, BLOCK_REST,
                    )  # fmt: skip
                else:
                    copy_heads(k_ptr, k_pages_ptr, KV_HEADS * HEAD_DIM, BLOCK_COPY)
                copy_heads(
                    v_ptr + token * V_STRIDE, v_pages_ptr + slot * KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, BLOCK_COPY
                )  # fmt: skip
        elif ROTATE:
            rotate_into(
                k_ptr, k_ptr, cos, sin, KV_HEADS, HEAD_DIM, HALF, INTERLEAVED, False, BLOCK_KV, BLOCK_HALF, BLOCK_REST
            )


def kv_write(
    k: Tensor, v: Tensor | None, q: Tensor | None, *, k_pages: Tensor | None, v_pages: Tensor | None,
    slots: Tensor | None, positions: Tensor | None, cos: Tensor | None, sin: Tensor | None, interleaved: bool,
) -> None:  # fmt: skip
    tokens, kv_heads, head_dim = k.shape
    if tokens == 0:
        return
    q_heads = 0 if q is None else q.shape[1]
    half = 0 if cos is None else cos.shape[1]
    kv_write_kernel[tokens, 1 if q is None or cos is None else 2](
        q, k, v, k_pages, v_pages, slots, positions, cos, sin, q_heads, kv_heads,
        0 if q is None else q.stride(0), k.stride(0), 0 if v is None else v.stride(0),
        ROTATE=cos is not None, ROTATE_Q=q is not None and cos is not None, WRITE=k_pages is not None,
        INTERLEAVED=interleaved, HEAD_DIM=head_dim, HALF=half,
        BLOCK_Q=triton.next_power_of_2(max(1, q_heads)), BLOCK_KV=triton.next_power_of_2(kv_heads),
        BLOCK_HALF=triton.next_power_of_2(max(1, half)),
        BLOCK_REST=triton.next_power_of_2(head_dim - 2 * half) if head_dim > 2 * half else 0,
        BLOCK_COPY=triton.next_power_of_2(kv_heads * head_dim),
    )  # fmt: skip
