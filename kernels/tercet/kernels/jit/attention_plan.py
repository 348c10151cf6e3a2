"""The work list of attention for few queries a row: which keys each program of a fixed grid reads, in equal shares
(Osama et al., Stream-K, 2023). It is made on the GPU, once a step for all layers that see the same keys.

A row's (query, head of a group) pairs are cut into query tiles. A query tile and a key head make an item, whose work is
the tiles of keys that its queries see, at least one. The key tiles of all items, by query tile, then by key head, are
one sequence; a program's share is a run of it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tercet.kernels.configurations import tile
from tercet.kernels.jit.rows import PER_BATCH, find_rows
from tercet.kernels.jit.tile_order import tile_order

if TYPE_CHECKING:
    from torch import Tensor

    from tercet.kernels.configurations import Tile

# A plan is int32 [PROGRAMS * SHARE + 2 + T]: of each program the query tile where its share begins, the place of its
# first key tile among those of that query tile and all key heads, its key tiles, and a counter of `paged_attention`'s
# that is 0 between launches; then the key tiles of all shares, the tokens that no row covers, and which these are.
SHARE: tl.constexpr = tl.constexpr(4)
RESIDENT = {128: 3, 256: 2}  # programs on a processor at once, by largest head dim; shares are equal: none may wait
REGISTERS = 1 << 16  # of a processor
INTERPRETER_PROGRAMS = 13  # the interpreter runs one after the other: enough to cut items


@triton.jit
def share_begin(program, tiles, PROGRAMS):
    """Where a program's share begins in the sequence of all key tiles; the first shares are one longer."""
    return program * (tiles // PROGRAMS) + tl.minimum(program, tiles % PROGRAMS)


@triton.jit
def sharer(place, tiles, PROGRAMS):
    """The program whose share a place of the sequence lies in."""
    share = tiles // PROGRAMS
    longer = tiles % PROGRAMS
    bound = longer * (share + 1)
    return tl.where(place < bound, place // (share + 1), longer + (place - bound) // tl.maximum(share, 1))


@triton.jit
def item_keys(
    first, q_length, kv_length, GROUP, left, right, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """For the query tile from pair `first` on: the keys [lo, hi) that some query of it sees, and their tiles.

    `lo` is the start of a tile. Tiles are at least 1, of no keys if need be, but 0 beyond the row's queries.
    """
    offset = kv_length - q_length
    last = tl.minimum((first + BLOCK_M - 1) // GROUP, q_length - 1)
    lo = tl.zeros_like(kv_length)
    hi = kv_length
    if CAUSAL:
        hi = tl.minimum(hi, last + offset + 1)
    if WINDOW:
        lo = tl.maximum(first // GROUP + offset - left, 0) // BLOCK_N * BLOCK_N
        hi = tl.minimum(hi, last + offset + right + 1)
    tiles = tl.maximum(tl.cdiv(tl.maximum(hi - lo, 0), BLOCK_N), 1)
    return lo, hi, tl.where(first < q_length * GROUP, tiles, 0)


@triton.jit
def key_tiles(
    query_tile, q_length_ptr, kv_length_ptr, ROWS, QUERY_TILES, GROUP, left, right, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The key tiles of one key head for query tiles [BLOCK_Q], 0 beyond the last row."""
    row = query_tile // QUERY_TILES
    q_length = tl.load(q_length_ptr + row, mask=row < ROWS, other=0).to(tl.int32)
    kv_length = tl.load(kv_length_ptr + row, mask=row < ROWS, other=0).to(tl.int32)
    first = query_tile % QUERY_TILES * BLOCK_M
    return item_keys(first, q_length, kv_length, GROUP, left, right, CAUSAL, WINDOW, BLOCK_M, BLOCK_N)[2]


@triton.jit(do_not_specialize=PER_BATCH)
def attention_plan_kernel(
    plan_ptr,  # [PROGRAMS * SHARE + 2 + TOKENS]
    q_start_ptr,  # [B]
    q_length_ptr,  # [B]
    kv_length_ptr,  # [B]
    TOKENS, ROWS, PROGRAMS, QUERY_TILES, KV_HEADS, GROUP, left, right,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of BLOCK_P shares, then 1 that lists the tokens no row covers)."""
    totals_ptr = plan_ptr + PROGRAMS * SHARE
    program = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    if tl.program_id(0) * BLOCK_P >= PROGRAMS:
        uncovered = 0
        for first in range(0, TOKENS, BLOCK_T):
            token = first + tl.arange(0, BLOCK_T)
            owner, _ = find_rows(token, q_start_ptr, q_length_ptr, ROWS, BLOCK_T, 32)
            bare = ((token < TOKENS) & (owner < 0)).to(tl.int32)
            tl.store(totals_ptr + 1 + uncovered + tl.cumsum(bare, axis=0), token, mask=bare > 0)
            uncovered += tl.sum(bare, axis=0)
        tl.store(totals_ptr + 1, uncovered)
        return

    q = tl.arange(0, BLOCK_Q)
    total = 0
    for first in range(0, ROWS * QUERY_TILES, BLOCK_Q):
        tiles = key_tiles(
            first + q, q_length_ptr, kv_length_ptr, ROWS, QUERY_TILES, GROUP, left, right, CAUSAL, WINDOW, BLOCK_M,
            BLOCK_N,
        )  # fmt: skip
        total += tl.sum(tiles, axis=0) * KV_HEADS
    begin = share_begin(program, total, PROGRAMS)  # [BLOCK_P]
    query_tile = tl.zeros([BLOCK_P], tl.int32)
    before = tl.zeros([BLOCK_P], tl.int32)  # key tiles of the query tiles before
    passed = 0
    for first in range(0, ROWS * QUERY_TILES, BLOCK_Q):
        tiles = KV_HEADS * key_tiles(
            first + q, q_length_ptr, kv_length_ptr, ROWS, QUERY_TILES, GROUP, left, right, CAUSAL, WINDOW, BLOCK_M,
            BLOCK_N,
        )  # fmt: skip
        ends = passed + tl.cumsum(tiles, axis=0)
        earlier = ends[None, :] <= begin[:, None]  # [BLOCK_P, BLOCK_Q]
        query_tile += tl.sum(earlier.to(tl.int32), axis=1)
        before += tl.sum(tl.where(earlier, tiles[None, :], 0), axis=1)
        passed += tl.sum(tiles, axis=0)
    share_ptr = plan_ptr + program * SHARE
    ours = program < PROGRAMS
    tl.store(share_ptr, query_tile, mask=ours)
    tl.store(share_ptr + 1, begin - before, mask=ours)
    tl.store(share_ptr + 2, share_begin(program + 1, total, PROGRAMS) - begin, mask=ours)
    tl.store(share_ptr + 3, tl.zeros([BLOCK_P], tl.int32), mask=ours)
    tl.store(totals_ptr + tl.zeros([BLOCK_P], tl.int32), total, mask=program == 0)


def resident_programs(blocks: Tile) -> int:
    """Programs that a processor runs at once."""
    return RESIDENT[min(size for size in RESIDENT if size >= blocks.block_d)]


@functools.cache
def program_count(device: torch.device, blocks: Tile) -> int:
    """Programs of the grid, whatever the batch."""
    if device.type == "cuda":
        return resident_programs(blocks) * torch.cuda.get_device_properties(device).multi_processor_count
    return INTERPRETER_PROGRAMS


def register_limit(blocks: Tile) -> dict[str, int]:
    """The compiler's option that leaves all resident programs their registers; AMD's compiler has none."""
    threads = 32 * blocks.num_warps * resident_programs(blocks)
    return {} if torch.version.hip else {"maxnreg": min(REGISTERS // threads // 8 * 8, 248)}


def query_tiles(longest_q: int, group: int, blocks: Tile) -> int:
    """Query tiles of a row."""
    return triton.cdiv(max(1, longest_q) * group, blocks.block_m)


def attention_plan(
    q: Tensor, k: Tensor, *, q_start: Tensor, q_length: Tensor, kv_length: Tensor, longest_q: int,
    page_table: Tensor | None, key_rows: Tensor | None, causal: bool, window: tuple[int, int] | None,
    masked: bool = False, split: bool = True,
) -> Tensor:  # fmt: skip
    """`page_table` and `key_rows` are of no use here: a kernel looks keys up as it reads them."""
    if not split:
        return tile_order(
            q, k, q_length=q_length, kv_length=kv_length, longest_q=longest_q, causal=causal, masked=masked
        )
    tokens, heads, head_dim = q.shape
    kv_heads = k.shape[-2]
    blocks = tile("paged_attention", q.dtype, head_dim)
    programs = program_count(q.device, blocks)
    plan = torch.empty(programs * SHARE.value + 2 + tokens, dtype=torch.int32, device=q.device)
    left, right = window or (0, 0)
    block_p = 16
    attention_plan_kernel[triton.cdiv(programs, block_p) + 1,](
        plan, q_start, q_length, kv_length, tokens, len(q_start), programs,
        query_tiles(longest_q, heads // kv_heads, blocks), kv_heads, heads // kv_heads, left, right,
        CAUSAL=causal and longest_q > 1, WINDOW=window is not None, BLOCK_M=blocks.block_m, BLOCK_N=blocks.block_n,
        BLOCK_P=block_p, BLOCK_Q=128, BLOCK_T=128,
    )  # fmt: skip
    return plan
