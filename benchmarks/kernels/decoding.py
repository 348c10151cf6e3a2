"""Decode attention over pages against gathering the pages and SDPA."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from benchmarks.kernels.contest import OURS, contest
from benchmarks.rows import Row
from tercet.kernels import attention, reference

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.rows import Result, Settings

PAGE_SIZE = 16
GATHER = "gather + SDPA"
CONTIGUOUS = "SDPA on contiguous keys"


@dataclass(frozen=True)
class Case:
    """One new token for each of `rows` sequences whose caches hold between half of `longest` and `longest` tokens."""

    name: str
    device: str
    dtype: torch.dtype
    rows: int
    longest: int
    heads: int
    kv_heads: int
    head_dim: int
    bars: tuple[tuple[str, float], ...] = ()


def _measure(case: Case, settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    generator = torch.Generator().manual_seed(0)
    pages = case.longest // PAGE_SIZE  # of a row
    kv_length = torch.linspace(case.longest // 2, case.longest, case.rows).to(torch.int32)
    table = torch.randperm(case.rows * pages, generator=generator).view(case.rows, pages).to(torch.int32)
    q = torch.randn(case.rows, case.heads, case.head_dim, generator=generator)
    shape = (case.rows * pages, PAGE_SIZE, case.kv_heads, case.head_dim)
    k, v = (torch.randn(shape, generator=generator) for _ in range(2))
    q, k, v = (tensor.to(case.device, case.dtype) for tensor in (q, k, v))
    kv_length, table = kv_length.to(case.device), table.to(case.device)
    q_start = torch.arange(case.rows, dtype=torch.int32, device=case.device)
    rows: dict[str, Any] = {
        "q_start": q_start, "q_length": torch.ones_like(q_start), "kv_length": kv_length, "longest_q": 1,
        "longest_kv": case.longest, "page_table": table, "causal": True,
    }  # fmt: skip
    mask = (torch.arange(case.longest, device=case.device) < kv_length[:, None])[:, None, None, :]  # [B, 1, 1, S]

    def gathered(cache: Tensor) -> Tensor:  # [B, H_kv, S, D]
        return cache[table.long()].view(case.rows, case.longest, case.kv_heads, case.head_dim).transpose(1, 2)

    def sdpa(keys: Tensor, values: Tensor) -> Tensor:
        attended = functional.scaled_dot_product_attention(
            q[:, :, None], keys, values, attn_mask=mask, enable_gqa=case.heads != case.kv_heads
        )
        return attended[:, :, 0]

    contiguous = gathered(k).contiguous(), gathered(v).contiguous()
    truth = reference.attention(
        q.double(), k.double(), v.double(), scale=case.head_dim**-0.5, window=None, bias=None, out=None, **rows
    )
    cached_bytes = 2 * int(kv_length.sum()) * case.kv_heads * case.head_dim * k.element_size()
    return contest(
        f"one token for each of {case.rows} rows over {case.longest // 2}-{case.longest} cached tokens, "
        f"{case.heads} heads of {case.head_dim} over {case.kv_heads}, {case.dtype}; "
        "bytes of the visible keys and values",
        {
            OURS: lambda: attention(q, k, v, **rows),
            GATHER: lambda: sdpa(gathered(k), gathered(v)),
            CONTIGUOUS: lambda: sdpa(*contiguous),
        },
        truth=lambda answer: (answer, truth),
        judge=CONTIGUOUS,
        device=q.device,
        dtype=case.dtype,
        amount=cached_bytes / 1e9,
        unit="GB/s",
        bars=dict(case.bars),
        settings=settings,
    )


CASES = (
    Case("64 rows 1k d64", "cuda", torch.bfloat16, 64, 1024, 16, 16, 64, bars=((GATHER, 2.0),)),
    Case("64 rows 4k d64 grouped", "cuda", torch.bfloat16, 64, 4096, 32, 8, 64, bars=((GATHER, 2.0),)),
    Case("64 rows 4k d128 grouped", "cuda", torch.bfloat16, 64, 4096, 32, 8, 128, bars=((GATHER, 2.0),)),
    Case("1 row 8k d128 grouped", "cuda", torch.bfloat16, 1, 8192, 32, 8, 128),
    Case("SmolLM2 16 rows", "cpu", torch.float32, 16, 256, 9, 3, 64),
)
ROWS = tuple(
    Row(
        f"kernels/{'gpu' if case.device == 'cuda' else 'cpu'}/decode {case.name}",
        functools.partial(_measure, case),
        needs_gpu=case.device == "cuda",
    )
    for case in CASES
)
