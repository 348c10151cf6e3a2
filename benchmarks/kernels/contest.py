"""What every kernel row shares: the gate on errors, contestants that can't run, our earlier self."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import torch

from benchmarks.kernels.earlier import Earlier, answer_timings
from benchmarks.limits import H100
from benchmarks.measure import compare, interleave
from benchmarks.rows import Goal, Result
from benchmarks.timing import graphed, timer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from torch import Tensor

    from benchmarks.limits import Chip
    from benchmarks.rows import Settings

OURS, EARLIER = "tercet", "tercet as it was"
MOST_ERROR = 0.05  # of a peer, which else computes something else
ERROR_FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
Contestants = dict[str, "Callable[[], Tensor]"]


def relative_error(answer: Tensor, truth: Tensor) -> float:
    """‖answer - truth‖ / ‖truth‖ in float64."""
    truth = truth.double()
    return float(torch.linalg.vector_norm(answer.double() - truth) / torch.linalg.vector_norm(truth))


def runnable(
    contestants: Mapping[str, Callable[[], Tensor]], settings: Settings, *, graphs: bool = False
) -> tuple[Contestants, dict[str, str]]:
    """Those that run here, warmed by a call, and why the others do not. `graphs` makes each a CUDA graph."""
    able: Contestants = {}
    unable: dict[str, str] = {}
    for name, run in contestants.items():
        if able and time.monotonic() > settings.deadline:
            unable[f"{name} can't run:"] = "the budget was spent"
            continue
        try:
            run()
            able[name] = graphed(run) if graphs else run
        except Exception as error:  # a backend that does not take these shapes or this device, a compiler that fails
            unable[f"{name} can't run:"] = f"{type(error).__name__} {str(error).strip()}".splitlines()[0][:160]
    return able, unable


def contest(
    title: str,
    contestants: Mapping[str, Callable[[], Tensor]],
    *,
    row: str,
    truth: Callable[[Tensor], tuple[Tensor, Tensor]],
    judge: str,
    device: torch.device,
    dtype: torch.dtype,
    amount: float,
    unit: str,
    bars: Mapping[str, float | None],
    settings: Settings,
    limit: Callable[[Chip], float] | None = None,
    graphs: bool = False,
    unlike: Collection[str] = (),
    prebuilt: Collection[str] = (),
) -> Result:
    """Times the contestants that can run, if our answer is right.

    `truth` gives, for a contestant's answer, the part that is compared and what it should be. Our error may be twice
    that of the contestant `judge`, or the dtype's floor where that is more; else there are no figures. Peers whose
    answer is another are left out, but for those `unlike` ours by design. `limit` gives the most of `unit` that a chip
    can do. `graphs` times CUDA graphs of the contestants, where there is a GPU. Those that come `prebuilt` compile
    nothing: they need no preparation.
    """
    graphs = graphs and device.type == "cuda"
    left_out = set(contestants) - {OURS} if settings.answers else set(prebuilt) if settings.only_warm else ()
    chosen = {name: run for name, run in contestants.items() if name not in left_out}
    able, facts = runnable(chosen, settings, graphs=graphs)
    if OURS not in able:
        return Result(title, not_measured=facts[f"{OURS} can't run:"], missed=["the row failed"])
    measure = timer(device, settings.seconds)
    if settings.answers:
        answer_timings(lambda: measure(able[OURS]))
    if settings.answers or settings.only_warm:
        return Result(title, not_measured="only warmed")
    errors = {name: relative_error(*truth(run())) for name, run in able.items() if name not in unlike}
    most = max(2 * errors.get(judge, 0.0), ERROR_FLOOR[dtype])
    if not errors[OURS] <= most:
        wrong = f"wrong answer: error {errors[OURS]:.1e} > {most:.1e}"
        return Result(title, not_measured=wrong, missed=["correctness"])
    for name in [name for name, error in errors.items() if not error <= MOST_ERROR]:
        facts[f"{name} is left out:"] = f"its error is {errors[name]:.1e}"
        del able[name]
    with contextlib.ExitStack() as stack:
        timed: dict[str, Callable[[], object]] = {**able}
        if settings.against:
            try:
                timed[EARLIER] = stack.enter_context(Earlier(row, settings))
            except RuntimeError as error:
                facts[f"{EARLIER} can't run:"] = str(error)
        seconds = interleave(
            timed, settings, timer=lambda run: run.seconds() if isinstance(run, Earlier) else measure(run)
        )
    limits = {which: limit(chip) for which, chip in settings.chips.items()} if limit else {}
    compared = {name: bars.get(name) for name in timed if name != OURS}
    return compare(
        title, seconds, ours=OURS, amount=amount, unit=unit, bars=compared, limits=limits,
        facts={"error": errors[OURS], **facts},
    )  # fmt: skip


def absolute(settings: Settings, result: Result, what: str, bar: float | None, scale: float = 1.0) -> Sequence[Goal]:
    """A goal on our own rate, which is stated for one GPU: on others, and without figures, there is none."""
    if bar is None or settings.device_name != H100 or OURS not in result.rates:
        return []
    return [Goal(what, result.rates[OURS] * scale, bar)]
