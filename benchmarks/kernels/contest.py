"""What every kernel row shares: the timer of a device, the gate on errors, contestants that can't run."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from benchmarks.measure import compare, interleave, repeated
from benchmarks.rows import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from benchmarks.rows import Settings

OURS = "tercet"
CPU_SECONDS = 0.2  # of one timing, in which a short call is repeated
GPU_MILLISECONDS = 200
ERROR_FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def timer(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Seconds a call: on a GPU the median by events with the L2 cache cleared before each call."""
    if device.type == "cpu":
        return repeated(CPU_SECONDS)
    from triton.testing import do_bench  # here: a machine without triton still measures its CPU

    def median(run: Callable[[], object]) -> float:
        milliseconds = do_bench(run, rep=GPU_MILLISECONDS, return_mode="median")
        return cast("float", milliseconds) / 1000

    return median


def relative_error(answer: Tensor, truth: Tensor) -> float:
    """‖answer - truth‖ / ‖truth‖ in float64."""
    truth = truth.double()
    return float(torch.linalg.vector_norm(answer.double() - truth) / torch.linalg.vector_norm(truth))


def runnable(contestants: Mapping[str, Callable[[], Tensor]]) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Those that run here, warmed by a call, and why the others do not."""
    able: dict[str, Callable[[], Tensor]] = {}
    unable: dict[str, str] = {}
    for name, run in contestants.items():
        try:
            run()
        except RuntimeError as error:  # torch's way to say that a backend does not take these shapes or this device
            unable[f"{name} can't run:"] = str(error).strip().splitlines()[0][:120]
        else:
            able[name] = run
    return able, unable


def contest(
    title: str,
    contestants: Mapping[str, Callable[[], Tensor]],
    *,
    truth: Callable[[Tensor], tuple[Tensor, Tensor]],
    judge: str,
    device: torch.device,
    dtype: torch.dtype,
    amount: float,
    unit: str,
    bars: Mapping[str, float | None],
    settings: Settings,
) -> Result:
    """Times the contestants that can run, if our answer is right.

    `truth` gives, for a contestant's answer, the part that is compared and what it should be. Our error may be twice
    that of the contestant `judge`, or the dtype's floor where that is more; else there are no figures.
    """
    able, facts = runnable(contestants)
    if OURS not in able:
        return Result(title, not_measured=facts[f"{OURS} can't run:"])
    errors = {name: relative_error(*truth(able[name]())) for name in (OURS, judge) if name in able}
    limit = max(2 * errors.get(judge, 0.0), ERROR_FLOOR[dtype])
    if errors[OURS] > limit:
        return Result(
            title, not_measured=f"wrong answer: error {errors[OURS]:.1e} > {limit:.1e}", missed=["correctness"]
        )
    seconds = interleave(able, rounds=settings.rounds, timer=timer(device))
    compared = {name: bars.get(name) for name in able if name != OURS}
    return compare(
        title, seconds, ours=OURS, amount=amount, unit=unit, bars=compared, facts={"error": errors[OURS], **facts}
    )
