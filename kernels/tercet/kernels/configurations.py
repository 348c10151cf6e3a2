"""The shipped configurations: which tile each kernel runs with. `compile.py` compiles them without a GPU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Tile(NamedTuple):
    """How a kernel cuts up its work."""

    block_m: int
    """Queries (or heads times queries) of one program."""
    block_n: int
    """Keys of one step."""
    num_warps: int
    num_stages: int
    block_d: int
    """The head dim, rounded up to a power of two."""


_HALF: tuple[str, ...] = ("float16", "bfloat16")
_FLOAT: tuple[str, ...] = ("float32",)

# (op, dtypes) -> largest head dim -> (block_m, block_n, num_warps, num_stages)
Tiles = dict[tuple[str, tuple[str, ...]], dict[int, tuple[int, int, int, int]]]

# float32 multiplies on the plain cores and is the correctness path: small tiles that stay in registers.
_TILES: Tiles = {
    ("attention", _HALF): {32: (128, 64, 4, 2), 64: (128, 64, 8, 2), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)},
    ("attention", _FLOAT): {64: (32, 32, 4, 1), 128: (16, 32, 4, 1), 256: (16, 16, 4, 1)},
    ("paged_attention", _HALF): {64: (16, 64, 4, 3), 128: (16, 32, 4, 3), 256: (16, 32, 4, 2)},
    ("paged_attention", _FLOAT): {64: (16, 32, 4, 3), 128: (16, 16, 4, 3), 256: (16, 16, 4, 1)},
}
# With a bias, a window, or several causal queries a row over pages: smaller where the tiles above would spill, and no
# second stage over pages, since triton 3.6 can't compile that with a bias for AMD.
_MASKED_TILES: Tiles = {
    ("attention", _HALF): {64: (128, 64, 8, 2), 128: (64, 32, 4, 2), 256: (64, 32, 8, 2)},
}


# (dtypes, more than the best is kept) -> most rows -> (block_v, block_n, block_d, num_warps, num_stages)
_HEAD_TILES: dict[tuple[tuple[str, ...], bool], dict[int, tuple[int, int, int, int, int]]] = {
    (_HALF, False): {16: (64, 16, 128, 4, 3), 64: (128, 64, 64, 4, 3), 128: (128, 128, 64, 8, 3)},
    (_HALF, True): {16: (128, 16, 64, 4, 3), 32: (128, 32, 64, 8, 3)},
    (_FLOAT, False): {16: (64, 16, 32, 4, 1)},
    (_FLOAT, True): {16: (128, 16, 16, 4, 1)},
}


class HeadTile(NamedTuple):
    """How `head_topk` cuts up its work."""

    block_v: int
    """Tokens of the vocabulary of one step."""
    block_n: int
    """Rows of hidden states of one program."""
    block_d: int
    """Dimensions of one step of the product."""
    num_warps: int
    num_stages: int


@functools.cache
def head_tile(dtype: torch.dtype, rows: int, *, greedy: bool) -> HeadTile:
    """The shipped tile for so many rows."""
    name = str(dtype).removeprefix("torch.")
    tiles = next(tiles for (names, many), tiles in _HEAD_TILES.items() if name in names and many is not greedy)
    return HeadTile(*tiles[min((size for size in tiles if size >= rows), default=max(tiles))])


@functools.cache
def tile(op: str, dtype: torch.dtype, head_dim: int, *, masked: bool = False) -> Tile:
    """The shipped tile of an attention op; `masked` for the forms of `_MASKED_TILES`."""
    name = str(dtype).removeprefix("torch.")
    key = next(key for key in _TILES if key[0] == op and name in key[1])
    tiles = _MASKED_TILES.get(key, _TILES[key]) if masked else _TILES[key]
    block_m, block_n, num_warps, num_stages = tiles[min(size for size in tiles if size >= head_dim)]
    return Tile(block_m, block_n, num_warps, num_stages, block_d=max(16, 1 << (head_dim - 1).bit_length()))


def row_warps(block_n: int) -> int:
    """Warps for a kernel that holds one row of `block_n` elements."""
    return min(max(block_n // 512, 1), 8)
