"""Compiles what rows need beforehand, in parallel processes, into the compilers' caches on disk."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import time
from typing import TYPE_CHECKING

from benchmarks import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.process import BaseProcess

    from benchmarks.rows import Row, Settings

MOST_PROCESSES = 16  # each holds a CUDA context and a row's inputs
POLL_SECONDS = 0.1


def warm(tier: str, row: str, settings: Settings) -> None:
    """Runs every contestant of a row once: a row that fails here will say so when it is measured."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # rows are parallel already
    rows = {each.name: each for each in importlib.import_module(f"benchmarks.{tier}").TIER.rows}
    rows[row].measure(dataclasses.replace(settings, only_warm=True))


def prepare(rows: Sequence[tuple[str, Row]], settings: Settings, gib: float, seconds: float) -> Mapping[str, str]:
    """Warms rows, each with its tier, in processes of their own; gives why some are not prepared.

    They take turns in `gib` of the GPU's memory, in their order; one that needs more has it alone. A process that
    crashes, or that is not done after `seconds`, costs nobody else anything.
    """
    context = multiprocessing.get_context("spawn")
    deadline = time.monotonic() + seconds
    waiting, running, unready = list(rows), dict[str, tuple[float, "BaseProcess"]](), dict[str, str]()
    most = min(MOST_PROCESSES, environment.cores())
    try:
        while (waiting or running) and time.monotonic() < deadline:
            taken = sum(each for each, _ in running.values())
            while waiting and len(running) < most and (not running or taken + waiting[0][1].gib <= gib):
                tier, row = waiting.pop(0)
                process = context.Process(target=warm, args=(tier, row.name, settings))
                process.start()
                running[row.name] = row.gib, process
                taken += row.gib
            for row, (_, process) in list(running.items()):
                if not process.is_alive():
                    if process.exitcode:
                        unready[row] = f"its process ended with {process.exitcode}"
                    del running[row]
            time.sleep(POLL_SECONDS)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    late = dict.fromkeys(running, f"not done after {seconds:.0f} s")
    return unready | late | {row.name: "not begun" for _, row in waiting}
