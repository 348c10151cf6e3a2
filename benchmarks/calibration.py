"""What this machine's matrix units and memory give in this run: the limits that every row is read against."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.limits import DATASHEETS, Chip
from benchmarks.rows import CALIBRATED, DATASHEET
from benchmarks.timing import graphed, timer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.rows import Device

GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
COPY_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}
TIMINGS = 5
KERNELS = 200  # in the graph that an empty kernel is timed in


def calibrate(device: Device, seconds: float) -> Chip:
    """A square product of matrices by the vendor's library, a copy, and a kernel of one element in a graph.

    Matrices are bfloat16 on a GPU and float32 on a CPU, where there are no graphs either. They are random: products of
    zeros need less power and run faster. `seconds` are those of one timing.
    """
    import torch

    size, where = GEMM_SIZE[device], torch.device(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    source = torch.zeros(COPY_BYTES[device], dtype=torch.uint8, device=where)
    target, one = torch.empty_like(source), torch.zeros(1, device=where)

    def empty_kernels() -> torch.Tensor:
        for _ in range(KERNELS):
            one.add_(1)
        return one

    chain = graphed(empty_kernels) if device == "cuda" else empty_kernels
    measure = timer(where, seconds)

    def product() -> object:
        return torch.mm(left, right, out=out)

    def copy() -> object:
        return target.copy_(source)

    times = [statistics.median(measure(run) for _ in range(TIMINGS)) for run in (product, copy, chain)]
    return Chip(2 * size**3 / times[0], 2 * source.numel() / times[1], times[2] / KERNELS)


def chips(device: Device, gpu: str, seconds: float) -> Mapping[str, Chip]:
    """The limits of `device` as measured now, and its datasheet's where it is a GPU of a name that is known."""
    known = DATASHEETS.get(gpu) if device == "cuda" else None
    return {CALIBRATED: calibrate(device, seconds), **({DATASHEET: known} if known else {})}


def described(chip: Chip) -> str:
    """For the head of the report."""
    rates = f"{chip.flops / 1e12:,.4g} TFLOP/s, {chip.bandwidth / 1e9:,.4g} GB/s"
    return f"{rates}, {chip.launch * 1e6:.3g} µs a kernel" if chip.launch else rates
