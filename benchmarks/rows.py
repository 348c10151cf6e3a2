"""What a benchmark row is and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Settings:
    """How a run measures."""

    rounds: int
    """Times every contestant is timed; 7 or more for figures to be reported."""
    threads: int
    """CPU threads that each contestant may use: the server's, torch's and CTranslate2's."""


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


@dataclass
class Result:
    """One row of the report."""

    title: str
    unit: str = ""
    """Of the rates: "texts/s", "tokens/s", "TFLOP/s"."""
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict[str, "Sequence[float]"])
    """Contestant -> seconds of its run in each round, in the order of the rounds."""
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    """Contestant -> median amount of `unit`."""
    ratios: Sequence[Ratio] = ()
    facts: Mapping[str, float | int | str] = field(default_factory=dict[str, "float | int | str"])
    """What else the reader needs: fill, agreement, limits, cache state."""
    not_measured: str | None = None
    """Why there are no figures."""
    missed: Sequence[str] = ()
    """Bars on something else than a ratio that were not met."""

    @property
    def met(self) -> bool:
        """False if a bar was missed."""
        return not self.missed and all(ratio.met for ratio in self.ratios)


@dataclass(frozen=True)
class Row:
    """One comparison of a tier."""

    name: str
    measure: Callable[[Settings], Result]
    needs_gpu: bool = False


@dataclass(frozen=True)
class Tier:
    """Rows in order of priority, and the tests that must be green before they are reported."""

    rows: Sequence[Row]
    tests: Sequence[str]
