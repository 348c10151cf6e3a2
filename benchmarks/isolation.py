"""Rows of a GPU in a process of their own: one that crashes, hangs or loses the GPU costs no other row its figures."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import multiprocessing
import sys
from typing import TYPE_CHECKING

from benchmarks.clocks import gpu_state
from benchmarks.rows import Result

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from benchmarks.rows import Row, Settings

LONGEST = 300  # seconds of a row: one that takes more does not end


def measured(row: Row, settings: Settings) -> Result:
    """What a row gives, measured in this process; what it raises is told in the result."""
    state = gpu_state() if row.device == "cuda" else None
    before = state.read() if state else None
    try:
        result = row.measure(dataclasses.replace(settings, clock=state and state.clock))
    except Exception as error:  # one row's failure is reported and costs no other row its figures
        return Result(row.name, not_measured=f"{type(error).__name__}: {error}", missed=["the row failed"])
    if state and before:
        after = state.read()
        result.facts = {**result.facts, **{key: f"{before[key]:.0f} → {after[key]:.0f}" for key in before}}
    return result


def release() -> bool:
    """Gives back what this process held on the GPU; False if the GPU does not answer it any more."""
    gc.unfreeze()  # an engine takes what there is when it is loaded to stay, what its peers hold too
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:  # after an illegal access every call fails, for as long as the process lives
            return False
    return True


class Worker:
    """A process that measures row after row; another takes its place when it ends."""

    def __init__(self) -> None:
        self._running: tuple[BaseProcess, Connection] | None = None

    def measure(self, tier: str, row: Row, settings: Settings) -> Result:
        """What a row of a tier gives, as `measured` there."""
        process, connection = self._running = self._running or _started()
        try:
            connection.send((tier, row.name, settings))
            if connection.poll(LONGEST):
                result, whole = connection.recv()
                if not whole:
                    self.close()
                return result
            reason = f"not done after {LONGEST} s"
        except (EOFError, OSError):
            process.join()
            reason = f"its process ended with {process.exitcode}"
        self.close()
        return Result(row.name, not_measured=reason, missed=["the row failed"])

    def close(self) -> None:
        """Ends the process."""
        if self._running:
            process, connection = self._running
            connection.close()
            process.kill()
            process.join()
        self._running = None


def _started() -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _serve(connection: Connection) -> None:
    """The other side: a result, and whether the next row can be measured here, for each row asked for."""
    whole = True
    while whole:
        try:
            tier, name, settings = connection.recv()
        except EOFError:
            return
        rows = {row.name: row for row in importlib.import_module(f"benchmarks.{tier}").TIER.rows}
        result = measured(rows[name], settings)
        whole = release()
        connection.send((result, whole))
