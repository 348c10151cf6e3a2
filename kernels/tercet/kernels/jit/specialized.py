"""Attention with specialized warps on Hopper: one warp group moves tiles of keys, two compute (Shah et al.,
FlashAttention-3, 2024, section 3.1).

Triton 3.6 and 3.7 divide the work only if num_warps is 4, everything is loaded through descriptors, and there is one
loop: so every tile of keys is masked, unlike in `attention.attend`. A second loop, or a load by pointers, ends the
compiler (tests/kernels/test_attention_variants.py compiles what is offered and looks for the partitions).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_specialized(
    first_q, q_ptr, k_ptr, v_ptr, q_length, kv_length, Q_STRIDE, K_STRIDE, scale,
    CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Acc [BLOCK_M, HEAD_DIM] and sum l [BLOCK_M] of the queries of a row from `first_q` on.

    Pointers are to the row's first token in this head. Descriptors end where the row ends: beyond it they load zeros.
    """
    q_tiles = tl.make_tensor_descriptor(q_ptr, [q_length, HEAD_DIM], [Q_STRIDE, 1], [BLOCK_M, HEAD_DIM])
    keys = tl.maximum(kv_length, 1)  # a descriptor of nothing is none; its key is never loaded
    k_tiles = tl.make_tensor_descriptor(k_ptr, [keys, HEAD_DIM], [K_STRIDE, 1], [BLOCK_N, HEAD_DIM])
    v_tiles = tl.make_tensor_descriptor(v_ptr, [keys, HEAD_DIM], [K_STRIDE, 1], [BLOCK_N, HEAD_DIM])
    q = q_tiles.load([first_q, 0])
    q_pos = first_q + tl.arange(0, BLOCK_M) + kv_length - q_length
    hi = kv_length
    if CAUSAL:
        hi = tl.minimum(hi, tl.minimum(first_q + BLOCK_M, q_length) + kv_length - q_length)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    for first in tl.range(0, hi, BLOCK_N, warp_specialize=True):
        n = first + tl.arange(0, BLOCK_N)
        k = k_tiles.load([first, 0])
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        visible = n[None, :] < kv_length
        if CAUSAL:
            visible = visible & (n[None, :] <= q_pos[:, None])
        s = tl.where(visible, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1) * scale)
        # A query that lies before every key has no maximum; 0 keeps -inf - -inf out.
        origin = tl.where(m_new == float("-inf"), 0.0, m_new) if CAUSAL else m_new
        p = tl.exp2(s * scale - origin[:, None])
        alpha = tl.exp2(m - origin)
        l = l * alpha + tl.sum(p, axis=1)
        acc = acc * alpha[:, None]
        v = v_tiles.load([first, 0])
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        m = m_new
    return acc, l
