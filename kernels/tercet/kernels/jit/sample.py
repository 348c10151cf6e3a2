"""Sampling without a sort: top-k and top-p find the key of the last token they keep digit by digit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

MAX_BLOCK = 1024  # [MAX_BLOCK, 16] sums are held by eight warps


@triton.jit
def load_scores(logits_ptr, i, V, highest, temperature):
    """Scores i [BLOCK], (logit - highest) / temperature so that no temperature is too small, and their keys.

    Keys are the bits as unsigned integers in the order of the floats, 0 beyond V.
    """
    x = tl.load(logits_ptr + i, mask=i < V, other=float("-inf"))
    x = tl.math.div_rn(x - highest, temperature) + 0.0  # -0 becomes 0
    bits = x.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
    return x, tl.where(i < V, key, 0)


@triton.jit
def key_score(key):
    """The score of a key."""
    bits = key.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -2147483648, ~bits).to(tl.float32, bitcast=True)


@triton.jit
def mass_from(logits_ptr, V, highest, temperature, least, BLOCK: tl.constexpr):
    """The mass of the tokens whose key is at least `least`, relative to the likeliest one's."""
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, V, BLOCK):
        x, key = load_scores(logits_ptr, first + tl.arange(0, BLOCK), V, highest, temperature)
        total += tl.where(key >= least, tl.exp(x), 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def last_key(logits_ptr, V, highest, temperature, floor, target, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key such that the tokens from it upwards reach `target`, found four bits a pass from the top.

    Tokens below `floor` don't count.
    """
    key = tl.full([], 0, tl.uint32)
    shift = tl.full([], 28, tl.uint32)
    digit = tl.arange(0, 16)
    for _ in range(8):
        candidate = tl.maximum(key | (digit.to(tl.uint32) << shift), floor)  # [16]
        total = tl.zeros([BLOCK, 16], tl.float32)
        for first in range(0, V, BLOCK):
            x, key_of = load_scores(logits_ptr, first + tl.arange(0, BLOCK), V, highest, temperature)
            weight = tl.full([BLOCK], 1.0, tl.float32) if COUNT else tl.exp(x)
            total += tl.where(key_of[:, None] >= candidate[None, :], weight[:, None], 0.0)
        reached = (tl.sum(total, axis=0) >= target) & (digit > 0)
        key = key | (tl.sum(reached.to(tl.int32), axis=0).to(tl.uint32) << shift)
        shift = shift - 4
    return key


@triton.jit
def kept_weights(
    logits_ptr, first, V, highest, temperature, floor, ties, seen_ties, min_p, BLOCK: tl.constexpr
):  # fmt: skip
    """The weights [BLOCK] of tokens from `first`, 0 for those that may not be drawn, and the ties seen so far."""
    x, key = load_scores(logits_ptr, first + tl.arange(0, BLOCK), V, highest, temperature)
    tie = key == floor
    rank = seen_ties + tl.cumsum(tie.to(tl.int32), axis=0)
    weight = tl.exp(x)
    kept = ((key > floor) | (tie & (rank <= ties))) & (weight >= min_p)
    return tl.where(kept, weight, 0.0), seen_ties + tl.sum(tie.to(tl.int32), axis=0)


@triton.jit
def draw_token(
    logits_ptr, V, highest, temperature, floor, ties, min_p, uniform, BLOCK: tl.constexpr
):  # fmt: skip
    """The first token whose cumulated weight exceeds `uniform` of the whole."""
    total = 0.0
    seen_ties = 0
    for first in range(0, V, BLOCK):
        weight, seen_ties = kept_weights(
            logits_ptr, first, V, highest, temperature, floor, ties, seen_ties, min_p, BLOCK
        )  # fmt: skip
        total += tl.sum(weight, axis=0)
    target = uniform * total
    token = V
    last = 0  # rounding may leave the sum short of its target: then the last token that may be drawn
    mass = 0.0
    seen_ties = 0
    for first in range(0, V, BLOCK):
        i = first + tl.arange(0, BLOCK)
        weight, seen_ties = kept_weights(
            logits_ptr, first, V, highest, temperature, floor, ties, seen_ties, min_p, BLOCK
        )  # fmt: skip
        hit = (mass + tl.cumsum(weight, axis=0) > target) & (weight > 0)
        token = tl.minimum(token, tl.min(tl.where(hit, i, V), axis=0))
        last = tl.maximum(last, tl.max(tl.where(weight > 0, i, 0), axis=0))
        mass += tl.sum(weight, axis=0)
    return tl.minimum(token, last)


@triton.jit
def sample_kernel(
    logits_ptr,  # float32 [N, V]
    temperature_ptr,  # float32 [N]
    top_k_ptr,  # [N]
    top_p_ptr,  # float32 [N]
    min_p_ptr,  # float32 [N]
    seed_ptr,  # int64 [N]
    sample_ptr,  # [N]
    position_ptr,  # [N]
    out_ptr,  # int64 [N]
    V,
    BLOCK: tl.constexpr,
):
    """Grid (N,)."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    highest = float("-inf")
    token = 0
    lost = 0  # whether a logit is NaN
    for first in range(0, V, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + i, mask=i < V, other=float("-inf"))  # [BLOCK]
        best = tl.max(x, axis=0)
        where = tl.min(tl.where((x == best) & (i < V), i, V), axis=0)
        token = tl.where(best > highest, where, token)
        highest = tl.maximum(highest, best)
        lost = tl.maximum(lost, tl.max((x != x).to(tl.int32), axis=0))  # noqa: PLR0124 - true of NaN

    temperature = tl.load(temperature_ptr + row)
    finite = (lost == 0) & (tl.abs(highest) < float("inf"))
    if finite & (temperature > 0):
        top_k = tl.load(top_k_ptr + row).to(tl.int32)
        top_p = tl.load(top_p_ptr + row)
        floor = tl.full([], 0, tl.uint32)  # tokens below this key are not kept
        ties = V  # nor those of this key after so many
        if (top_k > 0) & (top_k < V):
            floor = last_key(logits_ptr, V, highest, temperature, floor, top_k.to(tl.float32), True, BLOCK)
        if top_p < 1:
            # However small top_p is, the likeliest token stays.
            target = tl.maximum(top_p * mass_from(logits_ptr, V, highest, temperature, floor, BLOCK), 1e-30)
            floor = tl.maximum(floor, last_key(logits_ptr, V, highest, temperature, floor, target, False, BLOCK))
            missing = target - mass_from(logits_ptr, V, highest, temperature, floor + 1, BLOCK)
            each = tl.exp(key_score(floor))
            ties = tl.maximum(tl.ceil(missing / tl.maximum(each, 1e-37)), 1.0).to(tl.int32)
        bits, _, _, _ = tl.philox(
            tl.load(seed_ptr + row).to(tl.uint64, bitcast=True),
            tl.load(sample_ptr + row).to(tl.int32).to(tl.uint32, bitcast=True),
            tl.load(position_ptr + row).to(tl.int32).to(tl.uint32, bitcast=True),
            tl.full([], 0, tl.uint32),
            tl.full([], 0, tl.uint32),
        )
        uniform = (bits >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
        token = draw_token(
            logits_ptr, V, highest, temperature, floor, ties, tl.load(min_p_ptr + row), uniform, BLOCK
        )  # fmt: skip
    tl.store(out_ptr + row, tl.where(finite, token, V).to(tl.int64))


def sample(
    logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seed: Tensor,
    sample_index: Tensor, position: Tensor,
) -> Tensor:  # fmt: skip
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        sample_kernel[(rows,)](
            logits, temperature, top_k, top_p, min_p, seed, sample_index, position, tokens, vocabulary,
            BLOCK=min(triton.next_power_of_2(vocabulary), MAX_BLOCK), num_warps=8,
        )  # fmt: skip
    return tokens
