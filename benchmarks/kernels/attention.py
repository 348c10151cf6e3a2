"""Prefill attention against SDPA's backends, torch's varlen attention and FlexAttention."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kernels.attention_contestants import BACKENDS, VARLEN, WITHOUT_BIAS, contestants
from benchmarks.kernels.batches import Case, make_batch
from benchmarks.kernels.contest import absolute, contest
from benchmarks.rows import Row
from tercet.kernels import reference

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.kernels.batches import Batch
    from benchmarks.rows import Result, Settings

FLASH, CUDNN, EFFICIENT, MATH = "SDPA flash", "SDPA cuDNN", "SDPA efficient", "SDPA math"


def _truth(case: Case, batch: Batch, answer: Tensor) -> tuple[Tensor, Tensor]:
    """The longest row's first group of heads, by the naive reference in float64."""
    row = int(batch.kv_length.argmax())
    queries, keys = int(batch.q_length[row]), int(batch.kv_length[row])
    group = case.heads // case.kv_heads
    q_start, kv_start = int(batch.q_start[row]), int(batch.kv_start[row])
    if answer.dim() == 4:  # [B, H, S_q, D]
        given = answer[row, :group, :queries].transpose(0, 1)
    else:
        given = answer[q_start : q_start + queries, :group]
    first = torch.zeros(1, dtype=torch.int32, device=case.device)
    right = reference.attention(
        batch.q[q_start : q_start + queries, :group].double().contiguous(),
        batch.k[kv_start : kv_start + keys, :1].double().contiguous(),
        batch.v[kv_start : kv_start + keys, :1].double().contiguous(),
        q_start=first, kv_start=first, q_length=first + queries, kv_length=first + keys, longest_q=queries,
        longest_kv=keys, causal=case.causal, scale=case.head_dim**-0.5, window=None, out=None,
        bias=None if batch.bias is None else batch.bias[:group],
    )  # fmt: skip
    return given, right


def _pairs(case: Case) -> int:
    """Queries and keys that see each other."""
    total = 0
    for keys in case.lengths():
        queries = min(case.queries or keys, keys)
        total += queries * keys - (queries * (queries - 1) // 2 if case.causal else 0)
    return total


def _measure(case: Case, settings: Settings) -> Result:
    torch.set_num_threads(settings.threads)
    batch = make_batch(case)
    fill = sum(case.lengths()) / (case.rows * case.longest)
    queries = f"{case.queries} queries over " if case.queries else ""
    result = contest(
        f"{case.rows} rows of {queries}{'up to ' if case.median else ''}{case.longest} tokens (fill {fill:.2f}), "
        f"{case.heads} heads of {case.head_dim} over {case.kv_heads}, {'causal, ' if case.causal else ''}"
        f"{'in pages, ' if case.paged else ''}{'relative bias, ' if case.bias else ''}{case.dtype}; "
        "operations on real tokens",
        contestants(case, batch, rehearsal=settings.rehearsal),
        row=row_name(case),
        truth=functools.partial(_truth, case, batch),
        judge=MATH,
        device=batch.q.device,
        dtype=case.dtype,
        amount=4 * case.head_dim * case.heads * _pairs(case) / 1e9,
        unit="GFLOP/s",
        bars=dict(case.bars),
        settings=settings,
        limit=lambda chip: chip.flops / 1e9,
        unlike=(WITHOUT_BIAS,),
        prebuilt=(*BACKENDS, VARLEN),
    )
    result.goals = absolute(settings, result, "TFLOP/s", case.goal, 1e-3)
    return result


def row_name(case: Case) -> str:
    """As the report has it."""
    return f"kernels/{'gpu' if case.device == 'cuda' else 'cpu'}/attention {case.name}"


def _gpu(name: str, longest: int, head_dim: int, **options: Any) -> Case:
    """16 Ki tokens in bf16, 2048 features: the shape that attention papers report; `options` are fields of `Case`."""
    heads = 2048 // head_dim
    shape: dict[str, Any] = {"rows": max(16384 // longest, 1), "heads": heads, "kv_heads": heads}
    return Case(name, "cuda", torch.bfloat16, longest=longest, head_dim=head_dim, **shape | options)


_cpu = functools.partial(Case, device="cpu", dtype=torch.float32, longest=256)
SHORT = ((FLASH, 1.1), (CUDNN, 1.0))
LONG = ((FLASH, 1.3),)
SPARSE = ((VARLEN, 1.6), (EFFICIENT, 3.0))
CASES = (
    _gpu("1k d64", 1024, 64, bars=SHORT, priority=0),
    _gpu("4k d64", 4096, 64, bars=LONG, goal=430, priority=0),
    _gpu("4k d64 causal", 4096, 64, causal=True, bars=LONG, goal=390, priority=0),
    _gpu("log-normal d64", 1024, 64, rows=64, median=256, bars=SPARSE, goal=370, priority=0),
    _gpu("1k d64 T5 bias", 1024, 64, bias=True, bars=((EFFICIENT, 1.9), (WITHOUT_BIAS, 0.85)), priority=0),
    _gpu("8k d128", 8192, 128, bars=((FLASH, 1.25),), goal=460, priority=0),
    _gpu("1k d64 causal", 1024, 64, causal=True, bars=SHORT),
    _gpu("2k d64", 2048, 64, bars=SHORT[:1]),
    _gpu("8k d64", 8192, 64, bars=LONG, goal=430),
    _gpu("8k d64 causal", 8192, 64, causal=True, bars=LONG, goal=390),
    _gpu("1k d32", 1024, 32),
    _gpu("4k d32", 4096, 32),
    _gpu("log-normal d32", 512, 32, rows=128, median=128, bars=SPARSE),
    _gpu("8k d128 causal grouped", 8192, 128, causal=True, kv_heads=4),
    _gpu("2k d128 causal grouped", 2048, 128, causal=True, kv_heads=4),
    _gpu("chunk of 512 over 4k d64 grouped", 4096, 64, rows=8, queries=512, causal=True, paged=True, kv_heads=8),
    _gpu("across 128 to 512 d64", 512, 64, rows=32, queries=128),
    _gpu("log-normal causal d64", 1024, 64, rows=64, median=256, causal=True),
    _gpu("log-normal d64 T5 bias", 512, 64, rows=64, median=128, bias=True),
    _cpu("MiniLM log-normal", rows=32, heads=12, kv_heads=12, head_dim=32, median=50),
    _cpu("MiniLM full", rows=8, heads=12, kv_heads=12, head_dim=32),
    _cpu("SmolLM2 prefill log-normal", rows=16, heads=9, kv_heads=3, head_dim=64, median=50, causal=True),
    _cpu("T5 bias log-normal", rows=32, heads=8, kv_heads=8, head_dim=64, median=50, bias=True),
)
ROWS = tuple(
    Row(
        row_name(case),
        functools.partial(_measure, case),
        device=case.device,
        priority=case.priority,
        small=functools.partial(_measure, case.small()),
    )
    for case in CASES
)
