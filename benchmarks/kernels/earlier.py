"""Our kernels of another source tree, timed in a process of their own: two versions of a package share none.

The process runs this tree's benchmark on the other tree's kernels. It prepares the row, and then answers each line it
reads with the seconds of a call.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Self

from benchmarks.environment import ROOT
from benchmarks.rows import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

READY = "ready"


class Earlier:
    """The other version of the row's own contestant, as a context. Raises RuntimeError where it can't run."""

    def __init__(self, row: str, settings: Settings) -> None:
        tree = settings.against
        if tree is None or not (tree / "kernels").is_dir():
            raise RuntimeError(f"there are no kernels in {tree}")
        paths = [f"{tree}/{folder}" for folder in ("kernels", "server", "clients/python", "protos")]
        inherited = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.kernels.earlier", row, str(settings.threads), str(settings.seconds)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *inherited])},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._read() != READY:
            _, complaint = self._process.communicate()
            raise RuntimeError((complaint.strip().splitlines() or ["it did not start"])[-1][:160])

    def _read(self) -> str:
        lines = self._process.stdout
        return lines.readline().strip() if lines else ""

    def seconds(self) -> float:
        """Times it once."""
        if self._process.stdin:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return float(self._read())

    def __call__(self) -> None:
        """It is prepared already."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()


def answer_timings(seconds: Callable[[], float]) -> None:
    """The other side: ready, then a time for each line until the end of the input."""
    print(READY, flush=True)
    for _ in sys.stdin:
        print(seconds(), flush=True)


def main() -> None:
    """Runs the row named on the command line for `Earlier`."""
    row, threads, seconds = sys.argv[1:]
    rows = {each.name: each for each in importlib.import_module("benchmarks.kernels").TIER.rows}
    settings = Settings(rounds=0, threads=int(threads), seconds=float(seconds))
    result = rows[row].measure(dataclasses.replace(settings, answers=True))
    if result.missed:
        sys.exit(result.not_measured)


if __name__ == "__main__":
    main()
