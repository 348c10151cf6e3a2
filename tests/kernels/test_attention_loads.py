"""What attention touches, counted at the interpreter's own load and store: the tiles of keys that some query sees, once
each and nothing else; no score is ever stored.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from tercet.kernels import attention, attention_plan, dispatch
from tercet.kernels.configurations import form, tile

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 2, 1, 16, 8
LENGTHS = ((111, 111), (0, 5), (17, 250), (63, 40))
Q_LENGTHS, KV_LENGTHS = (torch.tensor(lengths, dtype=torch.int32) for lengths in zip(*LENGTHS, strict=True))


def starts(lengths: torch.Tensor) -> torch.Tensor:
    return (lengths.cumsum(0) - lengths).int()


@pytest.fixture
def accesses(monkeypatch):
    """Every load and store of a call: (program, addresses, whether the kernel gave it no mask)."""
    from triton.runtime import interpreter

    seen = {"load": [], "store": []}
    builder = interpreter.interpreter_builder
    load_without_mask = builder.create_load
    bare = False
    dispatch.select("triton")

    def create_load(*arguments):
        nonlocal bare
        bare = True
        result = load_without_mask(*arguments)
        bare = False
        return result

    monkeypatch.setattr(builder, "create_load", create_load)

    def spy(name):
        touch = getattr(interpreter._interpreter, name)

        def record(pointers, *arguments):
            mask = arguments[0] if name == "load" else arguments[1]
            seen[name].append((tuple(builder.grid_idx), np.asarray(pointers)[np.asarray(mask)], bare))
            return touch(pointers, *arguments)

        monkeypatch.setattr(interpreter._interpreter, name, record)

    spy("load")
    spy("store")
    yield seen
    dispatch.select("auto")


def elements(addresses: np.ndarray, x: torch.Tensor) -> np.ndarray:
    """The elements of x among the addresses."""
    offset = addresses.astype(np.int64) - x.data_ptr()
    return offset[(offset >= 0) & (offset < x.numel() * x.element_size())] // x.element_size()


def loaded_tiles(accesses: dict, k: torch.Tensor, v: torch.Tensor) -> dict[tuple, list[tuple[list[int], bool]]]:
    """(program, tensor) -> the places of the keys in each tile it loaded, and whether it did so without a mask."""
    loaded: dict[tuple, list] = defaultdict(list)
    for program, addresses, unmasked in accesses["load"]:
        for name, x in (("k", k), ("v", v)):
            touched = elements(addresses, x)
            if len(touched):
                loaded[program, name].append((np.unique(touched // (KV_HEADS * HEAD_DIM)).tolist(), unmasked))
    return loaded


def paged_keys() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Keys in pages, the page table, and where the keys of each row lie."""
    table = torch.zeros(len(LENGTHS), 32, dtype=torch.int32)
    counts = [-(-length // PAGE_SIZE) for length in KV_LENGTHS.tolist()]
    pages = torch.randperm(sum(counts)).split(counts)
    for row, row_pages in enumerate(pages):
        table[row, : len(row_pages)] = row_pages
    places = [(row_pages[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).flatten() for row_pages in pages]
    return torch.randn(sum(counts), PAGE_SIZE, KV_HEADS, HEAD_DIM), table, places


def visible(queries: int, keys: int, causal: bool, window: tuple[int, int] | None) -> np.ndarray:
    """Which keys each query of a row sees, [queries, keys]."""
    position = np.arange(queries)[:, None] + keys - queries
    key = np.arange(keys)[None]
    seen = np.ones((queries, keys), bool)
    if causal:
        seen &= key <= position
    if window is not None:
        seen &= (key >= position - window[0]) & (key <= position + window[1])
    return seen


def visible_tiles(seen: np.ndarray, place: np.ndarray, block_n: int) -> list[tuple[list[int], bool]]:
    """For one tile of queries: where the keys of each visible tile lie, and whether all queries see all of them."""
    tiles = []
    for first in range(0, seen.shape[1], block_n):
        part = seen[:, first : first + block_n]
        if part.any():
            stored = np.sort(place[first : min(first + block_n, seen.shape[1])])
            tiles.append((stored.tolist(), bool(part.all()) and part.shape[1] == block_n))
    return sorted(tiles)


@pytest.mark.parametrize("paged", [False, True], ids=["flat", "paged"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("window", [None, (30, 10), (5, 0)], ids=str)
def test_only_visible_tiles_are_loaded(accesses, paged, causal, window):
    keys = int(KV_LENGTHS.sum())
    q = torch.randn(int(Q_LENGTHS.sum()), HEADS, HEAD_DIM)
    if paged:
        k, table, places = paged_keys()
        where = {"page_table": table}
    else:
        k = torch.randn(keys, KV_HEADS, HEAD_DIM)
        where = {"kv_start": starts(KV_LENGTHS)}
        places = torch.arange(keys).split(KV_LENGTHS.tolist())
    v = torch.randn_like(k)
    attention(
        q, k, v, q_start=starts(Q_LENGTHS), q_length=Q_LENGTHS, kv_length=KV_LENGTHS, longest_q=111, longest_kv=250,
        causal=causal, window=window, **where,
    )  # fmt: skip

    shape = tile("attention", q.dtype, HEAD_DIM, form=form(paged=paged, masked=window is not None))
    expected = []  # of each tile of queries, in each head
    for row, (queries, count) in enumerate(LENGTHS):
        sees = visible(queries, count, causal, window)
        for first in range(0, queries, shape.block_m):
            tiles = visible_tiles(sees[first : first + shape.block_m], places[row].numpy(), shape.block_n)
            expected += [tiles] * (HEADS if tiles else 0)
    loaded = loaded_tiles(accesses, k, v)
    for name in ("k", "v"):
        assert sorted(sorted(tiles) for (_, tensor), tiles in loaded.items() if tensor == name) == sorted(expected)


@pytest.mark.parametrize("queries", [1, 16])
@pytest.mark.parametrize("window", [None, (30, 10), (5, 0)], ids=str)
def test_programs_share_the_visible_tiles_out(accesses, queries, window):
    """Every visible tile is loaded by one program, once for all heads of the group."""
    q_lengths = Q_LENGTHS.clamp(max=queries)
    q = torch.randn(int(q_lengths.sum()), HEADS, HEAD_DIM)
    k, table, places = paged_keys()
    v = torch.randn_like(k)
    attention(
        q, k, v, q_start=starts(q_lengths), q_length=q_lengths, kv_length=KV_LENGTHS, longest_q=queries, longest_kv=250,
        causal=True, window=window, page_table=table,
    )  # fmt: skip

    loads = loaded_tiles(accesses, k, v)
    assert len({program for program, _ in loads}) > 1
    shape = tile("paged_attention", q.dtype, HEAD_DIM)
    group = HEADS // KV_HEADS
    expected = []
    for row, count in enumerate(KV_LENGTHS.tolist()):
        sees = visible(int(q_lengths[row]), count, True, window).repeat(group, axis=0)  # (query, head) pairs
        for index in range(-(-queries * group // shape.block_m)):
            seen = sees[index * shape.block_m : (index + 1) * shape.block_m]
            seen = seen[:, : np.flatnonzero(seen.any(0)).max(initial=-1) + 1]
            expected += [keys for keys, _ in visible_tiles(seen, places[row].numpy(), shape.block_n)]
    for name in ("k", "v"):
        loaded = [keys for (_, tensor), tiles in loads.items() if tensor == name for keys, _ in tiles]
        assert sorted(loaded) == sorted(expected)


def test_nothing_but_the_output_is_stored(accesses):
    q = torch.randn(int(Q_LENGTHS.sum()) + 7, HEADS, HEAD_DIM)
    k = torch.randn(int(KV_LENGTHS.sum()), KV_HEADS, HEAD_DIM)
    rows = {"q_start": starts(Q_LENGTHS), "q_length": Q_LENGTHS, "kv_length": KV_LENGTHS, "longest_q": 111}
    plan = attention_plan(q, k, **rows)
    accesses["store"].clear()
    out = attention(q, k, k, **rows, kv_start=starts(KV_LENGTHS), longest_kv=250, plan=plan)
    stored = np.concatenate([addresses for _, addresses, _ in accesses["store"]])
    assert len(elements(stored, out)) == len(stored)
    assert np.array_equal(np.sort(elements(stored, out)), np.arange(out.numel()))
