"""The search for the highest rate that holds a goal."""

from __future__ import annotations

import math
from dataclasses import dataclass

CLOSE = 1.05  # the answer is known once a rate that held and one that missed are at most this far apart


@dataclass
class Search:
    """Doubles or halves the rate until one held and one missed, and then takes their geometric mean."""

    rate: float
    """To be probed next."""
    least: float
    """No rate below this is probed."""
    held: float = 0.0
    """The highest that held the goal; 0 if none has."""
    missed: float = math.inf
    """The lowest above it that missed it; infinite if none has."""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to find out."""
        return self.missed <= max(CLOSE * self.held, self.least)

    def learn(self, held: bool) -> None:
        """Takes in what the probe of `rate` gave."""
        if held:
            self.held = self.rate
        else:
            self.missed = self.rate
        if math.isinf(self.missed):
            self.rate *= 2
        elif self.held:
            self.rate = math.sqrt(self.held * self.missed)
        else:
            self.rate = max(self.rate / 2, self.least)
