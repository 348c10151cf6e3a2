"""The shipped configurations: which tile each kernel runs with. `compile.py` compiles every one without a GPU."""

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


# Tiles by the rounded head dim: (block_m, block_n, num_warps, num_stages).
# float32 multiplies on the plain cores and is the correctness path: small tiles that keep it out of local memory.
_HALF = ("float16", "bfloat16")
_TILES: dict[str, dict[tuple[str, ...], dict[int, tuple[int, int, int, int]]]] = {
    "attention": {
        _HALF: {
            16: (128, 64, 4, 3),
            32: (128, 64, 4, 3),
            64: (128, 64, 4, 3),
            128: (128, 64, 8, 2),
            256: (64, 32, 8, 2),
        },
        ("float32",): {
            16: (32, 32, 4, 2),
            32: (32, 32, 4, 2),
            64: (32, 32, 4, 2),
            128: (32, 16, 4, 2),
            256: (16, 16, 4, 2),
        },
    },
    "paged_attention": {
        _HALF: {
            16: (16, 64, 4, 2),
            32: (16, 64, 4, 2),
            64: (16, 64, 4, 2),
            128: (16, 64, 4, 2),
            256: (16, 32, 4, 2),
        },
        ("float32",): {
            16: (16, 32, 4, 2),
            32: (16, 32, 4, 2),
            64: (16, 32, 4, 2),
            128: (16, 16, 4, 2),
            256: (16, 16, 4, 2),
        },
    },
}


@functools.cache
def tile(op: str, dtype: torch.dtype, head_dim: int) -> Tile:
    """The shipped tile of an attention op."""
    block_d = max(16, 1 << (head_dim - 1).bit_length())
    name = str(dtype).removeprefix("torch.")
    tiles = next(by_dim for dtypes, by_dim in _TILES[op].items() if name in dtypes)
    return Tile(*tiles[block_d], block_d)


def row_warps(block_n: int) -> int:
    """Warps for a kernel that holds one row of `block_n` elements."""
    return min(max(block_n // 512, 1), 8)
