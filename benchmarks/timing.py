"""Timers of a device: host time on a CPU, events with the L2 cache cleared on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import torch

from benchmarks.measure import repeated

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measure import Timer

Answer = TypeVar("Answer")
WARM_UPS = 3  # before a capture: compilers, autotuners and libraries' handles


def timer(device: torch.device, seconds: float) -> Timer:
    """Seconds a call, over `seconds`: on a GPU the median by events with the L2 cache cleared before each call."""
    if device.type == "cpu":
        return repeated(seconds)
    from triton.testing import do_bench  # here: a machine without triton still measures its CPU

    def median(run: Callable[[], object]) -> float:
        milliseconds = do_bench(run, warmup=10, rep=round(seconds * 1000), return_mode="median")
        return cast("float", milliseconds) / 1000

    return median


def synchronized(run: Callable[[], Answer], device: torch.device) -> Callable[[], Answer]:
    """`run` that returns when the device is done, to be timed by the host's clock."""
    if device.type == "cpu":
        return run

    def waiting() -> Answer:
        answer = run()
        torch.cuda.synchronize(device)
        return answer

    return waiting


def graphed(run: Callable[[], Answer]) -> Callable[[], Answer]:
    """`run` as a CUDA graph: the replay takes what the kernels take, whoever launches them. Raises if it can't be."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run()

    def replay() -> Answer:
        graph.replay()
        return answer

    return replay
