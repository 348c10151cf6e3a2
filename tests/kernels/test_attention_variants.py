"""Every way in which attention can read keys and share tiles out gives what the reference gives, and compiles to what
its name says.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from support.attention_batches import NAN, Batch, make_batch
from tercet.kernels import attention, attention_plan, configurations, dispatch
from tercet.kernels.configurations import READS, Tile

LENGTHS = (17, 0, 1, 40)


@pytest.fixture(autouse=True)
def _triton():
    dispatch.select("triton")
    yield
    dispatch.select("auto")


@pytest.fixture
def check(reference, assert_close, monkeypatch):
    """Runs attention with a tile and compares with the reference in float64; returns what the kernel was told."""
    from tercet.kernels.jit import attention as module  # only now: triton asks when it decorates a kernel

    told: list[dict] = []
    kernel = module.attention_kernel

    class Spy:
        def __getitem__(self, grid):
            def launch(*arguments, **options):
                told.append(options | {"grid": grid})
                kernel[grid](*arguments, **options)

            return launch

    monkeypatch.setattr(module, "attention_kernel", Spy())

    def run(batch: Batch, tile: Tile, **plan: torch.Tensor) -> dict:
        wide = {"causal": False, "window": None, "bias": None, "out": None, "scale": batch.q.shape[-1] ** -0.5}
        wide |= {name: x.double() if name == "bias" else x for name, x in batch.options.items()}
        expected = reference.attention(batch.q.double(), batch.k.double(), batch.v.double(), **wide)
        with configurations.using(tile):
            assert_close(attention(batch.q, batch.k, batch.v, **batch.options, **plan), expected)
        return told.pop()

    return run


def small(reads: str = "pointers", programs: int = 0, block_n: int = 16) -> Tile:
    return Tile(16, block_n, 4, 1, 0, reads, programs)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize(("programs", "heads"), [(0, (3, 1)), (1, (2, 2)), (3, (2, 1))], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_ways_of_reading_flat_keys(check, reads, programs, causal, heads):
    batch = make_batch(LENGTHS, heads=heads[0], kv_heads=heads[1], causal=causal, spare=37, padded=programs == 3)
    told = check(batch, small(reads, programs))
    assert (told["DESCRIPTORS"], told["SPECIALIZED"]) == (reads == "descriptors", reads == "specialized")


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize(("window", "reach"), [((5, 0), None), ((40, 3), 9), (None, 9)], ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_windows_and_biases(check, reads, window, reach, causal):
    """Long rows have tiles of keys beyond a bias's reach on either side."""
    told = check(make_batch((90, 3), heads=2, kv_heads=1, window=window, reach=reach, causal=causal), small(reads, 2))
    assert not told["SPECIALIZED"]
    assert told["DESCRIPTORS"] == (reads != "pointers")


@pytest.mark.parametrize("programs", [0, 2])
@pytest.mark.parametrize("shared", [False, True], ids=["", "beams"])
@pytest.mark.parametrize("reach", [None, 6], ids=["", "bias"])
def test_pages_are_read_by_pointers(check, programs, shared, reach):
    batch = make_batch(
        (20, 1, 0), (70, 33, 5), heads=2, kv_heads=1, paged=True, shared=shared, causal=True, reach=reach
    )
    assert not check(batch, small("descriptors", programs))["DESCRIPTORS"]


@pytest.mark.parametrize("reads", ["descriptors", "specialized"])
def test_cross_attention(check, reads):
    """Some rows have no key, and some more queries than keys."""
    check(make_batch((1, 17, 0, 3), (63, 1, 5, 0), heads=2), small(reads))
    check(make_batch((17, 40, 4), (5, 20, 0), heads=2, causal=True), small(reads))


@pytest.mark.parametrize("reads", ["descriptors", "specialized"])
def test_slices_of_one_product_have_descriptors(check, reads):
    batch = make_batch((33, 5), heads=6, kv_heads=2, dtype=torch.float16)
    fused = torch.full((len(batch.q), 10 * 32), NAN, dtype=torch.float16)
    for name, first in (("q", 0), ("k", 6), ("v", 8)):
        x = getattr(batch, name)
        setattr(batch, name, fused[:, first * 32 : first * 32 + x[0].numel()].view(x.shape).copy_(x))
    told = check(batch, small(reads))
    assert told["DESCRIPTORS"] or told["SPECIALIZED"]


@pytest.mark.parametrize(
    ("head_dim", "columns", "offset"), [(80, 160, 0), (32, 67, 0), (32, 72, 3)], ids=["head dim", "stride", "start"]
)
def test_what_descriptors_cannot_hold_is_read_by_pointers(check, head_dim, columns, offset):
    """A head that is no power of two, tokens not 16 bytes apart, and keys that don't begin at 16 bytes."""
    batch = make_batch((33, 5), heads=2, kv_heads=2, head_dim=head_dim, dtype=torch.float16)
    for name in ("k", "v"):
        x = getattr(batch, name)
        wide = torch.full((len(x), max(columns, offset + 2 * head_dim)), NAN, dtype=torch.float16)
        setattr(batch, name, wide[:, offset : offset + 2 * head_dim].view(x.shape).copy_(x))
    for reads in ("descriptors", "specialized"):
        told = check(batch, small(reads))
        assert not told["DESCRIPTORS"]
        assert not told["SPECIALIZED"]


def test_the_scale_is_any_above_zero(check):
    for scale in (1e-3, 3.0):
        check(make_batch((40, 5), scale=scale, reach=4), small())
    batch = make_batch((5,))
    with pytest.raises(ValueError, match="scale must be above 0, not -1"):
        attention(batch.q, batch.k, batch.v, **batch.options, scale=-1.0)


@pytest.mark.parametrize("programs", [0, 2])
def test_the_grid_depends_on_storage_alone(check, programs):
    """A recorded launch serves other lengths: neither the grid nor a constant follows them."""
    tellings = []
    for lengths in ((60, 3, 17), (0, 80, 0), (27, 27, 26)):
        batch = make_batch(lengths, heads=2, kv_heads=1, spare=80 - sum(lengths), causal=True)
        batch.options |= {"longest_q": 96, "longest_kv": 96}
        tellings.append(check(batch, small("descriptors", programs)))
    assert tellings[0] == tellings[1] == tellings[2]
    every = 8 * 2 + 5  # tiles and heads, and blocks to clear
    most = programs * configurations.processors(batch.q.device) if programs else every
    assert tellings[0]["grid"] == (min(every, most),)


def order(queries: list[int], keys: list[int], *, spare: int, causal: bool) -> tuple[list[tuple[int, int]], int]:
    """The plan of prefill attention: (row, tile) in order, and how many blocks of storage it wants looked through."""
    q, k = torch.empty(sum(queries) + spare, 2, 16), torch.empty(sum(keys), 1, 16)
    lengths = {"q_length": torch.tensor(queries), "kv_length": torch.tensor(keys)}
    with configurations.using(small()):
        plan = attention_plan(q, k, q_start=lengths["q_length"], **lengths, longest_q=max(queries), causal=causal)
    tiles, blocks, *places = plan.tolist()
    return [(place % len(queries), place // len(queries)) for place in places[:tiles]], blocks


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_tiles_come_longest_first(causal):
    """Every tile is there once, and none sees more keys than the one before it."""
    queries, keys = [40, 0, 700, 3, 40, 16, 33], [40, 9, 700, 300, 90, 0, 20]
    listed, blocks = order(queries, keys, spare=5, causal=causal)
    assert sorted(listed) == [(row, tile) for row, length in enumerate(queries) for tile in range(-(-length // 16))]
    assert blocks == -(-(sum(queries) + 5) // 16)
    seen = [keys[row] - queries[row] + (tile + 1) * 16 if causal else keys[row] for row, tile in listed]
    assert seen == sorted(seen, reverse=True)


def test_more_rows_than_the_order_takes_at_once():
    queries = [17 * (row % 5) for row in range(70)]
    listed, blocks = order(queries, queries, spare=0, causal=True)
    assert sorted(listed) == [(row, tile) for row, length in enumerate(queries) for tile in range(-(-length // 16))]
    assert blocks == 0  # rows cover all of the storage


def test_a_plan_serves_every_layer(check):
    for options in ({}, {"causal": True}, {"reach": 5}):
        batch = make_batch(LENGTHS, heads=2, kv_heads=1, spare=7, **options)
        shared = ("q_start", "q_length", "kv_length", "longest_q", "causal", "bias")
        rows = {name: value for name, value in batch.options.items() if name in shared}
        with configurations.using(small("descriptors")):
            plan = attention_plan(batch.q, batch.k, **rows)
        kept = plan.clone()
        for _ in range(2):
            check(batch, small("descriptors"), plan=plan)
        assert torch.equal(plan, kept)


COMPILES = """
import re, sys
import triton
from triton.backends.compiler import GPUTarget
from tercet.kernels import configurations
from tercet.kernels.calls import CALLS
from tercet.kernels.compile import TARGETS, resources
from tercet.kernels.launches import launches, source

tile = configurations.Tile(128, 128, 4, 2, 0, sys.argv[1])
with configurations.using(tile):
    launch = next(x for x in launches(CALLS["encoder bfloat16 64"]) if x.kernel.__name__ == "attention_kernel")
given, options = source(launch)
compiled = triton.compile(given, target=GPUTarget(*TARGETS["sm_90"]), options=options)
found = resources(compiled, "sm_90")
print(found["tma"] > 0, len(re.findall(r"partition[0-9]", compiled.asm["ttgir"])), found["spills"], found["wgmma"] > 0)
"""


@pytest.mark.parametrize(("reads", "expected"), [("descriptors", "True 0"), ("specialized", "True 2 0 True")])
def test_a_way_of_reading_compiles_to_what_its_name_says(tmp_path, reads, expected):
    """Descriptors to TMA; specialized warps to two partitions beside the default one, without spills."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-c", COMPILES, reads], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.startswith(expected), result.stdout + result.stderr
