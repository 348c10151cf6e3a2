"""Compiles what rows need beforehand, in parallel processes, into the compilers' caches on disk."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import time
from typing import TYPE_CHECKING

from benchmarks import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.process import BaseProcess

    from benchmarks.rows import Settings

MOST_PROCESSES = 16  # each holds a CUDA context and a row's inputs
POLL_SECONDS = 0.1


def warm(tier: str, row: str, settings: Settings) -> None:
    """Runs every contestant of a row once: a row that fails here will say so when it is measured."""
    rows = {each.name: each for each in importlib.import_module(f"benchmarks.{tier}").TIER.rows}
    rows[row].measure(dataclasses.replace(settings, only_warm=True))


def prepare(rows: Sequence[tuple[str, str]], settings: Settings, seconds: float) -> Mapping[str, str]:
    """Warms rows, given as tier and name, in processes of their own; gives why some are not prepared.

    A process that crashes, or that is not done after `seconds`, costs nobody else anything.
    """
    context = multiprocessing.get_context("spawn")
    deadline = time.monotonic() + seconds
    waiting, running, unready = list(rows), dict[str, "BaseProcess"](), dict[str, str]()
    most = min(MOST_PROCESSES, environment.cores())
    plain = dataclasses.replace(settings, clock=None)
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < most:
                tier, row = waiting.pop(0)
                running[row] = context.Process(target=warm, args=(tier, row, plain))
                running[row].start()
            for row, process in list(running.items()):
                if not process.is_alive():
                    if process.exitcode:
                        unready[row] = f"its process ended with {process.exitcode}"
                    del running[row]
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.kill()
            process.join()
    late = dict.fromkeys(running, f"not done after {seconds:.0f} s")
    return unready | late | {row: "not begun" for _, row in waiting}
