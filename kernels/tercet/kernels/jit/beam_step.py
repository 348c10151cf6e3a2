"""What a step of beam search does with the likeliest tokens of its beams, a program a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels import reference_beams
from tercet.kernels.jit.head_topk import LOWEST, order_of, sort_bitonic

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.decode_ops import BeamLanes

LENGTH_K, LENGTH_C = 3, 5
MAX_BEAMS, MAX_CANDIDATES = 1 << LENGTH_K, 1 << LENGTH_C  # more are left to torch, so that nothing is compiled anew
LANES_AT_ONCE, KEYS_AT_ONCE = 128, 512  # that are looked through, and of which the holders are moved

NEVER: tl.constexpr = tl.constexpr(reference_beams.NEVER)
SETTINGS: tl.constexpr = tl.constexpr(7)  # of a search


@triton.jit
def score_key(score, place):
    """int64 keys in the order of scores, of equal ones the lower place first; NaN is above everything."""
    return (order_of(score).to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)


@triton.jit
def greater(key, other):
    """How many of other [M] are greater than each of key [N]."""
    return tl.sum((other[None, :] > key[:, None]).to(tl.int32), axis=1)


@triton.jit
def pick(chosen, x):
    """Of x [N] the one that each row of chosen [K, N] marks, 0 where none is."""
    return tl.sum(tl.where(chosen, x[None, :], tl.zeros_like(x)[None, :]), axis=1)


@triton.jit
def lanes_of(head, active_ptr, head_ptr, sample_ptr, LANES, BLOCK_K: tl.constexpr, BLOCK_L: tl.constexpr):
    """The lanes [BLOCK_K] of the beams of a search that takes part; -1 for none."""
    k = tl.arange(0, BLOCK_K)
    lane = tl.full([BLOCK_K], -1, tl.int32)
    for first in range(0, LANES, BLOCK_L):
        each = first + tl.arange(0, BLOCK_L)
        active = tl.load(active_ptr + each, mask=each < LANES, other=0) > 0
        ours = active & (tl.load(head_ptr + each, mask=active, other=-1) == head)
        beam = tl.load(sample_ptr + each, mask=ours, other=-1)
        lane = tl.maximum(lane, tl.max(tl.where(beam[None, :] == k[:, None], each[None, :], -1), axis=1))
    return lane


@triton.jit
def best_keys(likely_ptr, row, score, there, BEAMS, LIKELIEST, LENGTH_K: tl.constexpr, LENGTH_C: tl.constexpr):
    """The keys of the best continuations of all beams, falling, as [2 ** LENGTH_C].

    Those of one beam fall already: bitonic merges bring them together, of which every other is read backwards.
    """
    k = tl.arange(0, 1 << LENGTH_K)
    c = tl.arange(0, 1 << LENGTH_C)
    turned = tl.where((k & 1)[:, None] == 0, c[None, :], (1 << LENGTH_C) - 1 - c[None, :])
    known = turned < LIKELIEST
    value = tl.load(likely_ptr + row[:, None] * LIKELIEST + turned, mask=there[:, None] & known, other=float("-inf"))
    value = tl.where(there[:, None], value + score[:, None], float("-inf"))
    key = score_key(value, k[:, None] * LIKELIEST + turned)
    h = tl.reshape(tl.where((k < BEAMS)[:, None] & known, key, LOWEST), [2] * (LENGTH_K + LENGTH_C))
    for level in tl.static_range(LENGTH_K):
        h = tl.max(h, axis=LENGTH_K - 1 - level)
        h = sort_bitonic(h, LENGTH_C, LENGTH_K - 2 - level, 0)
    return tl.reshape(h, [1 << LENGTH_C])


@triton.jit
def among_ends(token, ends_ptr, count, BLOCK_E: tl.constexpr):
    """Which of token [C] are among the `count` tokens that end a text."""
    named = tl.zeros_like(token)
    for first in range(0, count, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        end = tl.load(ends_ptr + e, mask=e < count, other=-1)
        named = tl.maximum(named, tl.max((token[:, None] == end[None, :]).to(tl.int32), axis=1))
    return named > 0


@triton.jit
def power(tokens, penalty):
    """The power of tokens, at least 1, as exact as float32 can be."""
    return tl.exp(tl.log(tokens.to(tl.float64)) * penalty.to(tl.float64)).to(tl.float32)


@triton.jit
def move_holders(holders_ptr, lane, source, there, length, longest, WIDTH, BLOCK_H: tl.constexpr):
    """Each beam has the holders of its source, and holds its next key itself."""
    following = tl.minimum(length, longest - 1)
    for first in range(0, following + 1, BLOCK_H):
        key = first + tl.arange(0, BLOCK_H)
        inside = there[:, None] & (key <= following)[None, :]
        held = tl.load(holders_ptr + source.to(tl.int64)[:, None] * WIDTH + key[None, :], mask=inside, other=0)
        held = tl.where((key == following)[None, :], lane[:, None], held)  # [BLOCK_K, BLOCK_H]
        tl.debug_barrier()  # all are read before any is written: they change places
        tl.store(holders_ptr + lane.to(tl.int64)[:, None] * WIDTH + key[None, :], held, mask=inside)


@triton.jit(
    do_not_specialize=["BEAMS", "CANDIDATES", "LIKELIEST", "LANES", "longest", "WIDTH", "likely_ptr", "ids_ptr"]
)
def beam_step_kernel(
    likely_ptr,  # float32 [N, LIKELIEST]
    ids_ptr,  # [N, LIKELIEST]
    row_ptr,  # [LANES]
    heads_ptr,  # [S]
    active_ptr,  # [LANES]
    head_ptr,  # [lanes]
    sample_ptr,  # [lanes]
    length_ptr,  # [lanes]
    last_token_ptr,  # [lanes]
    scores_ptr,  # float32 [lanes]
    finished_ptr,  # float32 [lanes]
    ended_ptr,  # [lanes]
    holders_ptr,  # [lanes, WIDTH]
    ends_ptr,  # [lanes, MAX_ENDS]
    settings_ptr,  # [lanes, SETTINGS]
    floats_ptr,  # float32 [S, 1 + 2 * BEAMS]
    ints_ptr,  # [S, 4 * BEAMS + 2 * TOLD + 1]
    LANES, BEAMS, CANDIDATES, LIKELIEST, MAX_ENDS, longest, WIDTH,
    LENGTH_K: tl.constexpr, LENGTH_C: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Grid (S,)."""
    search = tl.program_id(0)
    head = tl.load(heads_ptr + search)
    k = tl.arange(0, 1 << LENGTH_K)
    c = tl.arange(0, 1 << LENGTH_C)
    lane = lanes_of(head, active_ptr, head_ptr, sample_ptr, LANES, 1 << LENGTH_K, BLOCK_L)
    if tl.max(lane, axis=0) < 0:
        return
    settings_ptr += head * SETTINGS
    beams = tl.load(settings_ptr)
    prompt = tl.load(settings_ptr + 3)
    limit = tl.load(settings_ptr + 4)
    early = tl.load(settings_ptr + 5)
    penalty = tl.load(settings_ptr + 6).to(tl.float32, bitcast=True)
    length = tl.load(length_ptr + head)
    there = (k < beams) & (lane >= 0)
    row = tl.load(row_ptr + lane, mask=there, other=0)

    score = tl.load(scores_ptr + lane, mask=there, other=0.0)
    key = best_keys(likely_ptr, row, score, there, BEAMS, LIKELIEST, LENGTH_K, LENGTH_C)
    TOLD = tl.minimum(CANDIDATES, BEAMS * LIKELIEST)
    known = c < TOLD
    counted = known & (c < tl.load(settings_ptr + 1))
    order = (key >> 32).to(tl.int32)
    best = tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)
    best = tl.where(counted, best, float("-inf"))
    found = tl.where(known, 0x7FFFFFFF - (key & 0xFFFFFFFF).to(tl.int32), 0)
    parent = found // LIKELIEST
    row = pick(parent[:, None] == k[None, :], row)
    token = tl.load(ids_ptr + row * LIKELIEST + found % LIKELIEST, mask=known, other=0)  # [BLOCK_C]

    ends = among_ends(token, ends_ptr + head * MAX_ENDS, tl.load(settings_ptr + 2), BLOCK_E) | (length + 1 >= limit)
    # Only the best candidates can be finished beams; there are more so that others go on.
    finishes = ends & (c < beams)
    written = length - prompt + 1
    # What the score of a text that ends now is divided by, and of the best that a running beam can still become.
    last = power(tl.where((early == 2) & (penalty > 0), limit - prompt, written), penalty)
    text = tl.math.div_rn(best, power(written, penalty) + tl.zeros_like(best)) + tl.where(finishes, 0.0, NEVER)
    place = tl.load(finished_ptr + lane, mask=there, other=float("-inf"))
    ended = tl.load(ended_ptr + lane, mask=there, other=0)
    place_key = tl.where(k < BEAMS, score_key(place, k), LOWEST)
    text_key = tl.where(known, score_key(text, BEAMS + c), LOWEST)
    rank = greater(place_key, place_key) + greater(place_key, text_key)
    stays = (rank[None, :] == k[:, None]) & (k < BEAMS)[None, :]
    rank = greater(text_key, place_key) + greater(text_key, text_key)
    comes = (rank[None, :] == k[:, None]) & known[None, :]
    finished = pick(stays, place) + pick(comes, text)
    kept = pick(stays, k) + pick(comes, -1 - c)
    ended = pick(stays, ended) + pick(comes, finishes.to(tl.int32))

    going = best + tl.where(ends, NEVER, 0.0)
    going_key = tl.where(known, score_key(going, c), LOWEST)
    chosen = (greater(going_key, going_key)[None, :] == k[:, None]) & known[None, :]
    running = pick(chosen, going)
    parents = pick(chosen, parent)
    tokens = pick(chosen, token)
    worst = tl.where(ended > 0, tl.min(tl.where(there, finished, float("inf")), axis=0), NEVER)
    hope = tl.math.div_rn(tl.where(k == 0, running, float("-inf")), last + tl.zeros_like(running))
    improvable = (tl.max(hope, axis=0) > worst) & there
    enough = (early == 1) & (tl.min(tl.where(there, ended, 1), axis=0) > 0)
    exhausted = tl.min((ends | ~counted).to(tl.int32), axis=0) > 0
    over = (tl.max(improvable.to(tl.int32), axis=0) == 0) | enough | exhausted

    floats_ptr += search * (1 + 2 * BEAMS)
    tl.store(floats_ptr + c, best, mask=c < 1)
    tl.store(floats_ptr + 1 + k, running, mask=k < BEAMS)
    tl.store(floats_ptr + 1 + BEAMS + k, finished, mask=k < BEAMS)
    ints_ptr += search * (4 * BEAMS + 2 * TOLD + 1)
    tl.store(ints_ptr + k, parents, mask=k < BEAMS)
    tl.store(ints_ptr + BEAMS + k, tokens, mask=k < BEAMS)
    tl.store(ints_ptr + 2 * BEAMS + k, kept, mask=k < BEAMS)
    tl.store(ints_ptr + 3 * BEAMS + k, ended, mask=k < BEAMS)
    tl.store(ints_ptr + 4 * BEAMS + c, parent, mask=known)
    tl.store(ints_ptr + 4 * BEAMS + TOLD + c, token, mask=known)
    tl.store(ints_ptr + 4 * BEAMS + 2 * TOLD, over.to(tl.int32))

    tl.debug_barrier()  # other threads may not have read yet what is written now
    tl.store(scores_ptr + lane, running, mask=there)
    tl.store(finished_ptr + lane, finished, mask=there)
    tl.store(ended_ptr + lane, ended, mask=there)
    tl.store(last_token_ptr + lane, tokens, mask=there)
    source = pick(parents[:, None] == k[None, :], lane)
    move_holders(holders_ptr, lane, source, there, length, longest, WIDTH, BLOCK_H)


def beam_step(
    likely: Tensor, ids: Tensor, *, row: Tensor, heads: Tensor, active: Tensor, lanes: BeamLanes, beams: int,
    candidates: int, ends: int, longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if beams > MAX_BEAMS or candidates > MAX_CANDIDATES:
        return reference_beams.beam_step(
            likely, ids, row=row, heads=heads, active=active, lanes=lanes, beams=beams, candidates=candidates,
            ends=ends, longest=longest,
        )  # fmt: skip
    searches, likeliest = len(heads), likely.shape[1]
    told = min(candidates, beams * likeliest)
    floats = torch.empty((searches, 1 + 2 * beams), dtype=torch.float32, device=likely.device)
    ints = torch.empty((searches, 4 * beams + 2 * told + 1), dtype=torch.int32, device=likely.device)
    if searches:
        beam_step_kernel[searches,](
            likely, ids, row, heads, active, *lanes, floats, ints, len(active), beams, candidates, likeliest,
            lanes.ends.shape[1], longest, lanes.holders.shape[1],
            LENGTH_K=LENGTH_K, LENGTH_C=LENGTH_C, BLOCK_L=LANES_AT_ONCE, BLOCK_E=MAX_CANDIDATES // 2,
            BLOCK_H=KEYS_AT_ONCE,
        )  # fmt: skip
    return floats, ints
