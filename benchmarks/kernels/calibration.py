"""What this machine's matrix units and memory give in this run: the limit that other rows are read against."""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING

import torch

from benchmarks.kernels.contest import timer
from benchmarks.measure import interleave
from benchmarks.rows import Result, Row

if TYPE_CHECKING:
    from benchmarks.rows import Settings

GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}


def _gemm(device: str, dtype: torch.dtype, settings: Settings) -> Result:
    """A square matrix product by the vendor's library."""
    size = GEMM_SIZE[device]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    seconds = interleave(
        {"torch": lambda: torch.mm(left, right, out=out)}, rounds=settings.rounds, timer=timer(left.device)
    )
    rate = 2 * size**3 / statistics.median(seconds["torch"]) / 1e9
    return Result(f"{size}³ {dtype} matrix product", "GFLOP/s", seconds, {"torch": rate})


def _copy(device: str, settings: Settings) -> Result:
    """Bytes read and written by a copy."""
    source = torch.zeros(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = interleave({"torch": lambda: target.copy_(source)}, rounds=settings.rounds, timer=timer(source.device))
    rate = 2 * source.numel() / statistics.median(seconds["torch"]) / 1e9
    return Result(f"copy of {source.numel() >> 20} MiB, bytes read and written", "GB/s", seconds, {"torch": rate})


ROWS = (
    Row("kernels/gpu/calibrate gemm bf16", functools.partial(_gemm, "cuda", torch.bfloat16), needs_gpu=True),
    Row("kernels/gpu/calibrate copy", functools.partial(_copy, "cuda"), needs_gpu=True),
    Row("kernels/cpu/calibrate gemm fp32", functools.partial(_gemm, "cpu", torch.float32)),
    Row("kernels/cpu/calibrate gemm bf16", functools.partial(_gemm, "cpu", torch.bfloat16)),
    Row("kernels/cpu/calibrate copy", functools.partial(_copy, "cpu")),
)
