"""The norm of each head, rotary position embedding (Su et al., RoFormer, 2021) and the write of keys and values into
pages, in one launch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from tercet.kernels.jit.rows import PER_BATCH

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def turn_into(
    x_ptr, y_ptr, norm_ptr, eps, cos, sin, HEADS,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, NORM: tl.constexpr,
    COPY_REST: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """One token's heads x [HEADS, HEAD_DIM], normed with NORM, then rotated by cos and sin [BLOCK_HALF], into y, which
    may be x.
    """
    h = tl.arange(0, BLOCK_H)
    pair = tl.arange(0, BLOCK_HALF)
    a_dim = 2 * pair if INTERLEAVED else pair
    b_dim = a_dim + (1 if INTERLEAVED else HALF)
    rest_dim = 2 * HALF + tl.arange(0, BLOCK_REST)
    heads = h[:, None] * HEAD_DIM
    mask = (h < HEADS)[:, None] & (pair < HALF)[None, :]
    rest_mask = (h < HEADS)[:, None] & (rest_dim < HEAD_DIM)[None, :]
    a = tl.load(x_ptr + heads + a_dim[None, :], mask=mask, other=0.0).to(tl.float32)  # [BLOCK_H, BLOCK_HALF]
    b = tl.load(x_ptr + heads + b_dim[None, :], mask=mask, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(a * a + b * b, axis=1)
        if HEAD_DIM > 2 * HALF:
            rest = tl.load(x_ptr + heads + rest_dim[None, :], mask=rest_mask, other=0.0).to(tl.float32)
            squares += tl.sum(rest * rest, axis=1)
        inverse = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        a *= inverse * tl.load(norm_ptr + a_dim, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        b *= inverse * tl.load(norm_ptr + b_dim, mask=pair < HALF, other=0.0).to(tl.float32)[None, :]
        if HEAD_DIM > 2 * HALF:
            weight = tl.load(norm_ptr + rest_dim, mask=rest_dim < HEAD_DIM, other=0.0).to(tl.float32)
            rest *= inverse * weight[None, :]
            tl.store(y_ptr + heads + rest_dim[None, :], rest.to(y_ptr.dtype.element_ty), mask=rest_mask)
    elif COPY_REST and HEAD_DIM > 2 * HALF:
        rest = tl.load(x_ptr + heads + rest_dim[None, :], mask=rest_mask, other=0.0)
        tl.store(y_ptr + heads + rest_dim[None, :], rest, mask=rest_mask)
    turned_a = a * cos[None, :] - b * sin[None, :]
    turned_b = b * cos[None, :] + a * sin[None, :]
    tl.store(y_ptr + heads + a_dim[None, :], turned_a.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + heads + b_dim[None, :], turned_b.to(y_ptr.dtype.element_ty), mask=mask)


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
    q_norm_ptr,  # [HEAD_DIM] or None
    k_norm_ptr,  # as q_norm
    Q_HEADS, KV_HEADS, Q_STRIDE, K_STRIDE, V_STRIDE, eps,
    ROTATE: tl.constexpr, TURN_Q: tl.constexpr, NORM_Q: tl.constexpr, NORM_K: tl.constexpr, WRITE: tl.constexpr,
    INTERLEAVED: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_KV: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_COPY: tl.constexpr,
):  # fmt: skip
    """Grid (T, 2): keys and values, then queries, 1 where these stay as they are."""
    token = tl.program_id(0).to(tl.int64)
    cos = tl.full([BLOCK_HALF], 1.0, tl.float32)
    sin = tl.zeros([BLOCK_HALF], tl.float32)
    if ROTATE:
        pair = tl.arange(0, BLOCK_HALF)
        angle = tl.load(positions_ptr + token).to(tl.int64) * HALF + pair
        cos = tl.load(cos_ptr + angle, mask=pair < HALF, other=0.0)  # [BLOCK_HALF]
        sin = tl.load(sin_ptr + angle, mask=pair < HALF, other=0.0)
    if tl.program_id(1) == 1:
        if TURN_Q:
            q_ptr += token * Q_STRIDE
            turn_into(
                q_ptr, q_ptr, q_norm_ptr, eps, cos, sin, Q_HEADS, HEAD_DIM, HALF, INTERLEAVED, NORM_Q, False, BLOCK_Q,
                BLOCK_HALF, BLOCK_REST,
            )  # fmt: skip
    else:
        k_ptr += token * K_STRIDE
        if WRITE:
            slot = tl.load(slots_ptr + token).to(tl.int64)
            if slot >= 0:
                k_pages_ptr += slot * KV_HEADS * HEAD_DIM
                if ROTATE or NORM_K:
                    turn_into(
                        k_ptr, k_pages_ptr, k_norm_ptr, eps, cos, sin, KV_HEADS, HEAD_DIM, HALF, INTERLEAVED, NORM_K,
                        True, BLOCK_KV, BLOCK_HALF, BLOCK_REST,
                    )  # fmt: skip
                else:
                    copy_heads(k_ptr, k_pages_ptr, KV_HEADS * HEAD_DIM, BLOCK_COPY)
                copy_heads(
                    v_ptr + token * V_STRIDE, v_pages_ptr + slot * KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, BLOCK_COPY
                )  # fmt: skip
        elif ROTATE or NORM_K:
            turn_into(
                k_ptr, k_ptr, k_norm_ptr, eps, cos, sin, KV_HEADS, HEAD_DIM, HALF, INTERLEAVED, NORM_K, False,
                BLOCK_KV, BLOCK_HALF, BLOCK_REST,
            )  # fmt: skip


def kv_write(
    k: Tensor, v: Tensor | None, q: Tensor | None, *, k_pages: Tensor | None, v_pages: Tensor | None,
    slots: Tensor | None, positions: Tensor | None, cos: Tensor | None, sin: Tensor | None, interleaved: bool,
    q_norm: Tensor | None, k_norm: Tensor | None, eps: float,
) -> None:  # fmt: skip
    tokens, kv_heads, head_dim = k.shape
    if tokens == 0:
        return
    q_heads = 0 if q is None else q.shape[1]
    half = 0 if cos is None else cos.shape[1]
    turns_q = q is not None and (cos is not None or q_norm is not None)
    kv_write_kernel[tokens, 2 if turns_q else 1](
        q, k, v, k_pages, v_pages, slots, positions, cos, sin, q_norm, k_norm, q_heads, kv_heads,
        0 if q is None else q.stride(0), k.stride(0), 0 if v is None else v.stride(0), eps,
        ROTATE=cos is not None, TURN_Q=turns_q, NORM_Q=q_norm is not None, NORM_K=k_norm is not None,
        WRITE=k_pages is not None, INTERLEAVED=interleaved, HEAD_DIM=head_dim, HALF=half,
        BLOCK_Q=triton.next_power_of_2(max(1, q_heads)), BLOCK_KV=triton.next_power_of_2(kv_heads),
        BLOCK_HALF=triton.next_power_of_2(max(1, half)),
        BLOCK_REST=triton.next_power_of_2(max(1, head_dim - 2 * half)),
        BLOCK_COPY=triton.next_power_of_2(kv_heads * head_dim),
    )  # fmt: skip
