"""The likeliest tokens of rows of logits and their log probabilities, in one pass over the logits: programs keep the
best of a chunk of the vocabulary and the sum of its exponentials (Milakov and Gimelshein, Online normalizer calculation
for softmax, 2018), bitonic merges (Batcher, 1968) bring them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels import reference
from tercet.kernels.jit.head_topk import LOWEST, order_of, sort_bitonic

if TYPE_CHECKING:
    from torch import Tensor

LENGTH, BLOCKS = 5, 3
"""A program, which is one warp, keeps 2 ** LENGTH keys; it reads 2 ** BLOCKS times as many at once."""
CHUNK, MAX_CHUNKS = 2048, 64  # tokens of a program at least, and programs of a row


@triton.jit
def best_of_lists(h, LENGTH: tl.constexpr, LISTS: tl.constexpr):
    """The best of 2 ** LISTS lists h [2, 2, ...], each falling or, every other one, rising; they fall."""
    for level in tl.static_range(LISTS):
        h = tl.max(h, axis=LISTS - 1 - level)
        h = sort_bitonic(h, LENGTH, LISTS - 2 - level, 0)
    return h


@triton.jit
def top_logprobs_kernel(
    logits_ptr,  # float32 [N, V]
    keys_ptr,  # int64 [N, CHUNKS, 2 ** LENGTH], each rising
    sums_ptr,  # float32 [N, CHUNKS, 2]: the highest logit, and the sum of exponentials relative to it
    V, CHUNK,
    LENGTH: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Grid (N, CHUNKS)."""
    row = tl.program_id(0).to(tl.int64)
    place = row * tl.num_programs(1) + tl.program_id(1)
    begin = tl.program_id(1) * CHUNK
    BLOCK: tl.constexpr = 1 << (LENGTH + BLOCKS)
    best = tl.full([2] * LENGTH, LOWEST, tl.int64)
    highest = float("-inf")
    total = 0.0
    for first in range(begin, tl.minimum(begin + CHUNK, V), BLOCK):
        v = first + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + row * V + v, mask=v < V, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(x, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(x - base), axis=0)
        highest = higher
        key = tl.where(v < V, (order_of(x).to(tl.int64) << 32) | (0x7FFFFFFF - v).to(tl.int64), LOWEST)
        if tl.max(key, axis=0) > tl.min(tl.reshape(best, [1 << LENGTH]), axis=0):
            h = tl.reshape(key, [2] * (BLOCKS + LENGTH))
            for length in tl.static_range(1, LENGTH + 1):
                h = sort_bitonic(h, length, BLOCKS + LENGTH - length - 1, 0)
            best = sort_bitonic(tl.maximum(best, best_of_lists(h, LENGTH, BLOCKS)), LENGTH, -1, 1)
    each = tl.arange(0, 1 << LENGTH)
    tl.store(keys_ptr + place * (1 << LENGTH) + each, tl.reshape(best, [1 << LENGTH]))
    tl.store(sums_ptr + 2 * place, highest)
    tl.store(sums_ptr + 2 * place + 1, total)


@triton.jit
def merge_logprobs_kernel(
    keys_ptr,  # int64 [N, CHUNKS, 2 ** LENGTH], each rising
    sums_ptr,  # float32 [N, CHUNKS, 2]
    values_ptr,  # float32 [N, KEPT]
    ids_ptr,  # [N, KEPT]
    CHUNKS, KEPT,
    LENGTH: tl.constexpr, LISTS: tl.constexpr,
):  # fmt: skip
    """Grid (N,)."""
    LIST: tl.constexpr = 1 << LENGTH
    row = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, 1 << LISTS)
    place = tl.arange(0, LIST)
    known = number < CHUNKS
    turned = tl.where((number & 1)[:, None] == 0, LIST - 1 - place[None, :], place[None, :])
    h = tl.load(keys_ptr + (row * CHUNKS + number)[:, None] * LIST + turned, mask=known[:, None], other=LOWEST)
    key = tl.reshape(best_of_lists(tl.reshape(h, [2] * (LISTS + LENGTH)), LENGTH, LISTS), [LIST])
    highest = tl.load(sums_ptr + (row * CHUNKS + number) * 2, mask=known, other=float("-inf"))
    total = tl.load(sums_ptr + (row * CHUNKS + number) * 2 + 1, mask=known, other=0.0)
    base = tl.max(highest, axis=0)
    norm = tl.log(tl.sum(total * tl.exp(highest - base), axis=0))
    order = (key >> 32).to(tl.int32)
    value = tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)
    tl.store(values_ptr + row * KEPT + place, value - base - norm, mask=place < KEPT)
    tl.store(ids_ptr + row * KEPT + place, 0x7FFFFFFF - (key & 0xFFFFFFFF).to(tl.int32), mask=place < KEPT)


def top_logprobs(logits: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    kept = 1 << LENGTH
    if k > kept:
        return reference.top_logprobs(logits, k=k)
    rows, vocabulary = logits.shape
    values = torch.empty((rows, k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((rows, k), dtype=torch.int32, device=logits.device)
    if rows:
        block = kept << BLOCKS
        chunk = max(CHUNK, triton.cdiv(triton.cdiv(vocabulary, MAX_CHUNKS), block) * block)
        chunks = triton.cdiv(vocabulary, chunk)
        keys = torch.empty((rows, chunks, kept), dtype=torch.int64, device=logits.device)
        sums = torch.empty((rows, chunks, 2), dtype=torch.float32, device=logits.device)
        top_logprobs_kernel[rows, chunks](
            logits, keys, sums, vocabulary, chunk, LENGTH=LENGTH, BLOCKS=BLOCKS, num_warps=1
        )  # fmt: skip
        merge_logprobs_kernel[rows,](
            keys, sums, values, ids, chunks, k, LENGTH=LENGTH, LISTS=(chunks - 1).bit_length()
        )  # fmt: skip
    return values, ids
