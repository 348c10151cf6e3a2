"""The garbage collector, told what a process that serves is like."""

from __future__ import annotations

import gc

_YOUNG = 20_000  # containers beyond those freed, at which it looks for cycles: many batches' worth, and a few MB


def settle() -> None:
    """What there is now lives as long as the process: the collector need not look at it again, and at what comes only
    now and then, since hardly any of it is in cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
