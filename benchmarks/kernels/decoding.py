"""Decode attention over pages against gathering them for SDPA, and against SDPA and FlexAttention without pages."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.kernels.attention_contestants import compiled
from benchmarks.kernels.contest import OURS, contest
from benchmarks.limits import H100
from benchmarks.rows import CALIBRATED, Goal, Row
from tercet import kernels
from tercet.kernels import reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.rows import Device, Result, Settings

PAGE_SIZE = 16
GATHER = "gather + SDPA"
CONTIGUOUS = "SDPA on contiguous keys"
FLEX = "FlexAttention on contiguous keys"
L2_MULTIPLE = 4  # pools are rotated whose bytes are this often those of the L2 cache: no key is found there
MOST_POOLS = 8


@dataclass(frozen=True)
class Case:
    """One new token for each of `rows` sequences whose caches hold between half of `longest` and `longest` tokens."""

    name: str
    device: Device
    dtype: torch.dtype
    rows: int
    longest: int
    heads: int
    kv_heads: int
    head_dim: int
    bars: tuple[tuple[str, float], ...] = ()
    share: float | None = None
    """Of the measured copy's bandwidth, to be reached on an H100."""
    priority: int = 1

    @property
    def pool_bytes(self) -> int:
        """Of one cache's keys and values."""
        return 2 * self.rows * self.longest * self.kv_heads * self.head_dim * self.dtype.itemsize

    def small(self) -> Case:
        """The same in small, on a CPU."""
        kv_heads = 2 if self.kv_heads == self.heads else 1
        return replace(self, device="cpu", rows=3, longest=48, heads=2, kv_heads=kv_heads, head_dim=16)


@dataclass(frozen=True)
class Pool:
    """One cache: its pages, which nobody else reads."""

    k: Tensor  # [pages, PAGE_SIZE, H_kv, D]
    v: Tensor


def _pools(case: Case) -> list[Pool]:
    """As many as the L2 cache can't hold; one on a CPU."""
    generator = torch.Generator(case.device).manual_seed(0)
    shape = (case.rows * -(-case.longest // PAGE_SIZE), PAGE_SIZE, case.kv_heads, case.head_dim)
    count = 1
    if case.device == "cuda":
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        count = min(MOST_POOLS, L2_MULTIPLE * cache // case.pool_bytes + 2)
    return [
        Pool(*(torch.randn(shape, generator=generator, dtype=case.dtype, device=case.device) for _ in range(2)))
        for _ in range(count)
    ]


def _sweep(attend: Callable[[int], Tensor], pools: int) -> Tensor:
    """Reads pool after pool; the answer is that of the last."""
    for index in range(pools - 1):
        attend(index)
    return attend(pools - 1)


def _step(q: Tensor, pools: list[Pool], rows: dict[str, Any]) -> Tensor:
    """Our layers of a step, a pool each. They share one plan; kernels of earlier trees have none."""
    options = dict(rows)
    if hasattr(kernels, "attention_plan"):
        told = {name: x for name, x in rows.items() if name != "longest_kv"}
        options["plan"] = kernels.attention_plan(q, pools[0].k, **told)
    return [kernels.attention(q, pool.k, pool.v, **options) for pool in pools][-1]


def _flex(case: Case, q: Tensor, kv_length: Tensor, keys: list[tuple[Tensor, Tensor]]) -> Callable[[int], Tensor]:
    """FlexAttention on keys [B, H_kv, S, D] of each pool, whose block mask ends each row."""

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head, query
        return key < kv_length[row]

    mask = create_block_mask(visible, case.rows, None, 1, keys[0][0].shape[2], case.device)
    attend = compiled(flex_attention, case.device)
    grouped = case.heads != case.kv_heads
    return lambda index: attend(q[:, :, None], *keys[index], block_mask=mask, enable_gqa=grouped)[:, :, 0]


def _truth(
    case: Case, q: Tensor, pool: Pool, table: Tensor, kv_length: Tensor, answer: Tensor
) -> tuple[Tensor, Tensor]:
    """The last row, whose cache is the longest, by the naive reference in float64."""
    keys, one = int(kv_length[-1]), torch.ones(1, dtype=torch.int32, device=q.device)
    k, v = (pages[table[-1].long()].flatten(0, 1)[:keys].double() for pages in (pool.k, pool.v))
    right = reference.attention(
        q[-1:].double(), k, v, q_start=one - 1, kv_start=one - 1, q_length=one, kv_length=kv_length[-1:], longest_q=1,
        longest_kv=keys, causal=True, scale=case.head_dim**-0.5, window=None, bias=None, out=None,
    )  # fmt: skip
    return answer[-1:], right


def _measure(case: Case, settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    generator = torch.Generator().manual_seed(0)
    pages = -(-case.longest // PAGE_SIZE)  # of a row
    kv_length = torch.linspace(case.longest // 2, case.longest, case.rows).to(case.device, torch.int32)
    table = torch.randperm(case.rows * pages, generator=generator).view(case.rows, pages).to(case.device, torch.int32)
    q = torch.randn(case.rows, case.heads, case.head_dim, generator=generator).to(case.device, case.dtype)
    q_start = torch.arange(case.rows, dtype=torch.int32, device=case.device)
    rows: dict[str, Any] = {
        "q_start": q_start, "q_length": torch.ones_like(q_start), "kv_length": kv_length, "longest_q": 1,
        "longest_kv": case.longest, "page_table": table, "causal": True,
    }  # fmt: skip
    pools = _pools(case)
    mask = (torch.arange(pages * PAGE_SIZE, device=case.device) < kv_length[:, None])[:, None, None, :]  # [B, 1, 1, S]

    def gathered(cache: Tensor) -> Tensor:  # [B, H_kv, S, D]
        return cache[table.long()].flatten(1, 2).transpose(1, 2)

    contiguous = [(gathered(pool.k).contiguous(), gathered(pool.v).contiguous()) for pool in pools]

    def sdpa(keys: Tensor, values: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(
            q[:, :, None], keys, values, attn_mask=mask, enable_gqa=case.heads != case.kv_heads
        )[:, :, 0]

    contestants: dict[str, Callable[[int], Tensor]] = {
        GATHER: lambda index: sdpa(gathered(pools[index].k), gathered(pools[index].v)),
        CONTIGUOUS: lambda index: sdpa(*contiguous[index]),
    }
    if case.device == "cuda" or settings.rehearsal:
        contestants[FLEX] = _flex(case, q, kv_length, contiguous)

    cached_bytes = 2 * int(kv_length.sum()) * case.kv_heads * case.head_dim * case.dtype.itemsize
    result = contest(
        f"one token for each of {case.rows} rows over {case.longest // 2}-{case.longest} cached tokens, "
        f"{case.heads} heads of {case.head_dim} over {case.kv_heads}, {case.dtype}, {len(pools)} pools in turn; "
        "bytes of the visible keys and values",
        {OURS: lambda: _step(q, pools, rows)}
        | {name: functools.partial(_sweep, attend, len(pools)) for name, attend in contestants.items()},
        row=row_name(case),
        truth=lambda answer: _truth(case, q, pools[-1], table, kv_length, answer),
        judge=CONTIGUOUS,
        device=q.device,
        dtype=case.dtype,
        amount=len(pools) * cached_bytes / 1e9,
        unit="GB/s",
        bars=dict(case.bars),
        settings=settings,
        limit=lambda chip: chip.bandwidth / 1e9,
        graphs=True,
        prebuilt=(GATHER, CONTIGUOUS),
    )
    if case.share is not None and settings.device_name == H100 and CALIBRATED in result.fractions:
        result.goals = [Goal("of the measured copy's bandwidth", result.fractions[CALIBRATED], case.share)]
    return result


def row_name(case: Case) -> str:
    """As the report has it."""
    return f"kernels/{'gpu' if case.device == 'cuda' else 'cpu'}/decode {case.name}"


def _gpu(name: str, rows: int, longest: int, heads: tuple[int, int, int], **options: Any) -> Case:
    """In bf16; heads, key heads and head dim."""
    return Case(name, "cuda", torch.bfloat16, rows, longest, *heads, **options)


TWICE = ((GATHER, 2.0),)
CASES = (
    _gpu("64 rows 2k d64", 64, 2048, (16, 16, 64), bars=TWICE, share=0.85, priority=0),  # 1k-2k tokens
    _gpu("64 rows 8k d128 grouped", 64, 8192, (32, 8, 128), bars=TWICE, share=0.85, priority=0),  # 4k-8k tokens
    _gpu("64 rows 1k d64", 64, 1024, (16, 16, 64), bars=TWICE),
    _gpu("64 rows 4k d64 grouped", 64, 4096, (32, 8, 64), bars=TWICE),
    _gpu("16 rows 512 d64", 16, 512, (12, 12, 64)),
    _gpu("1 row 8k d128 grouped", 1, 8192, (32, 8, 128)),
    Case("SmolLM2 16 rows", "cpu", torch.float32, 16, 256, 9, 3, 64),
)
ROWS = tuple(
    Row(
        row_name(case),
        functools.partial(_measure, case),
        device=case.device,
        priority=case.priority,
        gib=4 + 6 * case.pool_bytes / 2**30,
        small=functools.partial(_measure, case.small()),
    )
    for case in CASES
)
