"""The split-KV schedule: how a plan shares work out, what comes of any number of programs, and that nothing of a launch
depends on what rows hold.
"""

from __future__ import annotations

import pytest
import torch

from support.device import ON_GPU
from tercet.kernels import attention_plan, dispatch, paged_attention
from tercet.kernels.configurations import tile

NAN = float("nan")
HEAD_DIM, PAGE_SIZE = 16, 8


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    monkeypatch.setattr(dispatch, "_selected", "triton")


@pytest.fixture
def programs(monkeypatch):
    """Sets the programs of the grid, as a GPU's size does."""
    from tercet.kernels.jit import attention_plan as plan_module
    from tercet.kernels.jit import paged_attention as attention_module

    def set_count(count: int) -> int:
        for module in (plan_module, attention_module):
            monkeypatch.setattr(module, "program_count", lambda device, blocks: count)
        return count

    return set_count


def ints(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def batch(
    lengths, *, heads=2, kv_heads=1, head_dim=HEAD_DIM, spare=0, pages=64
) -> tuple[tuple[torch.Tensor, ...], dict]:
    """q, k, v and the rows, (queries, keys) each; what no row holds is NaN."""
    queries, keys = (ints(x) for x in zip(*lengths, strict=True))
    table = torch.full((len(lengths), pages), -(10**6), dtype=torch.int32)
    counts = [-(-count // PAGE_SIZE) for count in keys.tolist()]
    k = torch.full((sum(counts) + 1, PAGE_SIZE, kv_heads, head_dim), NAN)
    v = k.clone()
    for row, ids in enumerate(torch.randperm(sum(counts)).split(counts)):
        table[row, : len(ids)] = ids
        count = int(keys[row])
        k[ids], v[ids] = 3 * torch.randn(2, len(ids), PAGE_SIZE, kv_heads, head_dim)  # pieces whose sums differ much
        if count % PAGE_SIZE:
            k[ids[-1], count % PAGE_SIZE :] = v[ids[-1], count % PAGE_SIZE :] = NAN
    q = torch.full((int(queries.sum()) + spare, heads, head_dim), NAN)
    q[: int(queries.sum())] = torch.randn(int(queries.sum()), heads, head_dim)
    rows = {
        "q_start": (queries.cumsum(0) - queries).int(), "q_length": queries, "kv_length": keys,
        "longest_q": int(queries.max()), "page_table": table,
    }  # fmt: skip
    return (q, k, v), rows


def attend(tensors, rows, **options) -> torch.Tensor:
    return paged_attention(*tensors, **rows, longest_kv=int(rows["kv_length"].max()), **options)


@pytest.fixture
def check(reference, assert_close):
    def compare(tensors, rows, **options) -> torch.Tensor:
        actual = attend(tensors, rows, **options)
        wide = {"causal": False, "window": None, "bias": None} | options | rows
        wide = {name: x for name, x in wide.items() if name != "plan"}
        scale = tensors[0].shape[-1] ** -0.5
        expected = reference.attention(*(x.double() for x in tensors), **wide, longest_kv=0, scale=scale, out=None)
        assert_close(actual, expected)
        return actual

    return compare


LENGTHS = ((1, 300), (0, 0), (1, 0), (1, 1), (0, 9), (1, 32), (1, 33), (1, 64), (0, 0))


@pytest.mark.parametrize("count", [1, 2, 5, 29, 70])
def test_any_number_of_programs(programs, check, count):
    """From one that reads everything to more than there are tiles: items whole, cut in two and cut in many."""
    programs(count)
    check(*batch(LENGTHS, heads=6, kv_heads=2, spare=3))


@pytest.mark.parametrize("window", [None, (40, 0), (50, 7)], ids=str)
@pytest.mark.parametrize("count", [3, 40])
def test_several_query_tiles_in_any_number_of_programs(programs, check, count, window):
    programs(count)
    check(*batch(((9, 130), (1, 70), (16, 16), (0, 3), (12, 5)), heads=6, kv_heads=2), causal=True, window=window)


@pytest.mark.parametrize("head_dim", [24, 80, 96, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_head_dims(programs, check, head_dim, dtype):
    programs(5)
    tensors, rows = batch(((1, 200), (2, 33)), head_dim=head_dim)
    check(tuple(x.to(dtype) for x in tensors), rows)


def test_one_item_in_more_programs_than_tiles(programs, check):
    programs(150)
    check(*batch(((1, 1300),), pages=200))


def test_beams_over_the_pages_of_their_source(programs, check):
    """Rows with one source have the same page ids in their tables."""
    programs(9)
    tensors, rows = batch(((1, 90), (1, 90), (1, 45), (1, 45)))
    rows["page_table"][1], rows["page_table"][3] = rows["page_table"][0].clone(), rows["page_table"][2].clone()
    check(tensors, rows)


@pytest.mark.parametrize(("count", "repeated"), [(1, 1), (4, 1), (29, 1), (500, 1), (29, 9)])
@pytest.mark.parametrize("window", [None, (40, 3)], ids=str)
@pytest.mark.parametrize("heads", [(4, 2), (8, 1)], ids=str)
def test_shares_are_equal_and_cover_the_work(programs, count, window, heads, repeated):
    """Each program's share begins where the one before ends; together they are the tiles that queries see. Many rows
    and many tokens outside them are more than a step of the kernel takes.
    """
    programs(count)
    spare = 2 if repeated == 1 else 200
    lengths = ((1, 300), (0, 0), (5, 0), (7, 100), (16, 16), (3, 1), (0, 8), (9, 250)) * repeated
    (q, k, _), rows = batch(lengths, heads=heads[0], kv_heads=heads[1], spare=spare)
    plan = attention_plan(q, k, **rows, causal=True, window=window)
    shape, group = tile("paged_attention", q.dtype, HEAD_DIM), heads[0] // heads[1]
    per_row = -(-16 * group // shape.block_m)
    sequence = []  # (query tile, place in it) of every key tile
    for row, (queries, keys) in enumerate(lengths):
        position = torch.arange(queries)[:, None] + keys - queries
        distance = torch.arange(keys)[None] - position
        seen = (distance <= 0) & (distance >= -window[0]) if window else distance <= 0
        seen = seen.repeat_interleave(group, dim=0)
        for index in range(-(-queries * group // shape.block_m)):
            part = seen[index * shape.block_m : (index + 1) * shape.block_m].any(0)
            tiles = int(torch.stack([x.any() for x in part.split(shape.block_n)]).sum()) if part.any() else 1
            sequence += [(row * per_row + index, place) for place in range(tiles * heads[1])]
    shares, totals = plan[: 4 * count].view(count, 4), plan[4 * count :]
    begin = 0
    for query_tile, place, tiles, counter in shares.tolist():
        assert counter == 0
        assert tiles - len(sequence) // count in (0, 1)
        if tiles:
            assert (query_tile, place) == sequence[begin]
        begin += tiles
    assert begin == len(sequence) == int(totals[0])
    assert totals[1] == spare
    assert totals[2 : 2 + spare].tolist() == list(range(len(q) - spare, len(q)))


def test_a_plan_serves_many_calls(check):
    """The layers of a step share it: counters are back at 0 after each. Whoever ends last, the answer is the same."""
    tensors, rows = batch(LENGTHS * (12 if ON_GPU else 1), heads=6, kv_heads=3)
    plan = attention_plan(*tensors[:2], **rows)
    fresh = plan.clone()
    first = check(tensors, rows, plan=plan)
    for _ in range(300 if ON_GPU else 1):
        assert torch.equal(plan, fresh)
        assert torch.equal(attend(tensors, rows, plan=plan), first)


@pytest.fixture
def launches(monkeypatch) -> list[tuple]:
    """What is launched: kernel, grid and every argument but the tensors' contents."""
    from triton.runtime.jit import KernelInterface

    recorded, of_grid = [], KernelInterface.__getitem__

    def record(kernel, grid):
        def launch(*arguments, **options):
            shapes = [(x.shape, x.dtype) if isinstance(x, torch.Tensor) else x for x in arguments]
            recorded.append((kernel.fn.__name__, grid, shapes, options))
            return of_grid(kernel, grid)(*arguments, **options)

        return launch

    monkeypatch.setattr(KernelInterface, "__getitem__", record)
    return recorded


def test_no_launch_depends_on_lengths(launches):
    """A CUDA graph of one batch replays another with as many rows."""
    for keys in ((1, 1, 1), (300, 0, 17), (1, 250, 511)):
        tensors, rows = batch([(1, count) for count in keys])
        tensors = tensors[0], *(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 0, 0, 99 - len(x))) for x in tensors[1:])
        attend(tensors, rows, causal=True, window=(2**31 - 1, 0))
    names = [name for name, *_ in launches]
    assert names == ["attention_plan_kernel", "paged_attention_kernel"] * 3
    assert launches[:2] == launches[2:4] == launches[4:]
