"""What a benchmark row is and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.limits import Chip

Device = Literal["cpu", "cuda"]
Fact = float | int | str
CALIBRATED, DATASHEET = "calibrated", "datasheet"


@dataclass(frozen=True)
class Settings:
    """How a run measures."""

    rounds: int
    """Times every contestant is timed; 7 or more for figures to be reported."""
    threads: int
    """CPU threads that each contestant may use: the server's, torch's and CTranslate2's."""
    settle: float = 0.4
    """Seconds before each timing: thread pools spin for up to 0.2 s after their work, which the next must not pay."""
    seconds: float = 0.2
    """Seconds that a short call is repeated for in one timing."""
    deadline: float = inf
    """time.monotonic() after which no contestant is prepared and no round begins."""
    chips: Mapping[str, Chip] = field(default_factory=dict[str, "Chip"])
    """The limits of the row's device: what was measured in this run, and the datasheet's where it is known."""
    device_name: str = ""
    """The GPU's name, for goals that are stated for one; "" on a CPU."""
    clock: Callable[[], float] | None = None
    """Reads the GPU's clock, in MHz."""
    against: Path | None = None
    """An earlier source tree, whose kernels compete too."""
    only_warm: bool = False
    """Prepare every contestant and time none: so that compilers' caches are full when it counts."""
    answers: bool = False
    """Prepare our own contestant alone, and time it when asked to (`kernels/earlier.py`)."""
    rehearsal: bool = False
    """What only GPUs measure is run in small on a CPU: nothing is compiled, and no figure means anything."""


@dataclass(frozen=True)
class Ratio:
    """How many times faster we are than `against`: the median over rounds and its bootstrap 95 % interval."""

    against: str
    median: float
    low: float
    high: float
    bar: float | None = None

    @property
    def met(self) -> bool:
        """True without a bar too."""
        return self.bar is None or self.median >= self.bar


@dataclass(frozen=True)
class Goal:
    """A bar on a figure of our own rather than on a ratio."""

    what: str
    """The figure and its unit: "TFLOP/s", "ms a token"."""
    value: float
    bar: float
    at_most: bool = False
    """Whether less is better."""

    @property
    def met(self) -> bool:
        """Whether the value reaches the bar."""
        return self.value <= self.bar if self.at_most else self.value >= self.bar


@dataclass(frozen=True)
class Curve:
    """A plot of a row: one line a contestant, as pairs of x and y."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass
class Result:
    """One row of the report."""

    title: str
    unit: str = ""
    """Of the rates: "texts/s", "tokens/s", "GFLOP/s"."""
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict[str, "Sequence[float]"])
    """Contestant -> seconds of its run in each round, in the order of the rounds."""
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    """Contestant -> median amount of `unit`."""
    ratios: Sequence[Ratio] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict[str, Fact])
    """What else the reader needs: fill, agreement, batch sizes, who could not run."""
    not_measured: str | None = None
    """Why there are no figures."""
    missed: Sequence[str] = ()
    """What else went wrong: a wrong answer, a bar on something that is no ratio."""
    goals: Sequence[Goal] = ()
    limits: Mapping[str, float] = field(default_factory=dict[str, float])
    """What the machine could give at most, in `unit`, by its own calibration and by its datasheet."""
    fractions: Mapping[str, float] = field(default_factory=dict[str, float])
    """Our share of each limit."""
    flags: Sequence[str] = ()
    """Why the figures are less certain than they look: clocks that moved, wide intervals, rounds left out."""
    curves: Sequence[Curve] = ()

    @property
    def met(self) -> bool:
        """False if a bar was missed."""
        return not self.missed and all(ratio.met for ratio in self.ratios) and all(goal.met for goal in self.goals)


@dataclass(frozen=True)
class Row:
    """One comparison of a tier."""

    name: str
    measure: Callable[[Settings], Result]
    device: Device = "cpu"
    priority: int = 1
    """Rows of low numbers are measured first, whatever their tier: a budget may end the run."""
    gib: float = 4
    """Memory of the GPU that it takes at most, so that several can be prepared at a time."""
    small: Callable[[Settings], Result] | None = None
    """The same comparison in small and on a CPU: the tests rehearse what only a GPU measures."""


@dataclass(frozen=True)
class Tier:
    """Rows, and the tests that must be green before they are reported."""

    rows: Sequence[Row]
    tests: Sequence[str]
