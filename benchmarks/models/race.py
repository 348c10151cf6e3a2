"""What every row of models shares: contestants that can't run, waiting for the device, what is only warmed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import torch

from benchmarks.measure import compare, interleave, repeated
from benchmarks.rows import Result
from benchmarks.timing import synchronized

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from benchmarks.rows import Fact, Settings

OURS = "tercet"


class Contestants:
    """Who competes, each made and warmed as it is added; why others can't is kept. A context, which cleans up."""

    def __init__(self, device: str, settings: Settings) -> None:
        self.able: dict[str, Callable[[], object]] = {}
        self.answers: dict[str, Any] = {}
        """What each gave when it was warmed."""
        self.unable: dict[str, str] = {}
        self.ends = ExitStack()
        """What contestants need done when the row is over."""
        self._device = torch.device(device)
        self._deadline = settings.deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ends.close()

    def add(self, name: str, make: Callable[[], Callable[[], object]], *, warm_ups: int = 1) -> None:
        """Makes a contestant and runs it: what is compiled or captured is so before it counts."""
        if self.able and time.monotonic() > self._deadline:
            self.unable[f"{name} can't run:"] = "the budget was spent"
            return
        try:
            run = synchronized(make(), self._device)
            for _ in range(warm_ups):
                self.answers[name] = run()
        except Exception as error:  # a device, version or package that lacks something; it costs nobody else anything
            self.unable[f"{name} can't run:"] = f"{type(error).__name__} {str(error).strip()}".splitlines()[0][:200]
        else:
            self.able[name] = run

    def leave_out(self, name: str, reason: str) -> None:
        """A peer whose answer is wrong does not compete."""
        del self.able[name]
        self.unable[f"{name} is left out:"] = reason

    def race(
        self, title: str, settings: Settings, *, amount: float, unit: str, bars: Mapping[str, float | None],
        facts: Mapping[str, Fact], limits: Mapping[str, float], unlike: Sequence[str] = (),
    ) -> Result:  # fmt: skip
        """Times them all; `unlike` do other work than the rest and are not compared with."""
        if OURS not in self.able:
            return Result(title, not_measured=self.unable[f"{OURS} can't run:"], missed=["the row failed"])
        if settings.only_warm:
            return Result(title, not_measured="only warmed")
        timings = interleave(self.able, settings, timer=repeated(settings.seconds))
        alike = [name for name in self.able if name not in unlike]
        compared = {name: bars.get(name) for name in alike if name != OURS}
        result = compare(
            title, timings, ours=OURS, amount=amount, unit=unit, bars=compared, facts={**facts, **self.unable},
            limits=limits,
        )  # fmt: skip
        result.rates = {name: result.rates[name] for name in alike}
        return result
