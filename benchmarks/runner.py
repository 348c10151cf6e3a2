"""The command line: which rows, for how long, and where the report goes."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import calibration, environment, report
from benchmarks.isolation import Worker, measured, release
from benchmarks.preparation import prepare
from benchmarks.revision import source_tree
from benchmarks.rows import Result, Row, Settings, Tier
from benchmarks.testing import run_gpu_tests, run_tests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.rows import Device

TIERS = ("kernels", "models", "serving")
OTHER_TIERS = ("peers",)  # run when named
RESULTS = Path(__file__).parent / "results"
# Shares of the budget that tests and compilers may take before the first row, on a GPU.
TEST_SHARE, PREPARATION_SHARE = 0.35, 0.2
GPU_SETTLE = 0.02  # seconds: its contestants leave no thread pools spinning
MEMORY_SHARE = 0.9  # of the GPU's, for rows that are prepared at a time


def _arguments(arguments: Sequence[str] | None, tiers: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures Tercet beside its peers.")
    parser.add_argument(
        "tiers", nargs="*", metavar="tier", help=f"of {', '.join((*TIERS, *OTHER_TIERS))} (default: {', '.join(tiers)})"
    )
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only rows of this device (default: both)")
    parser.add_argument("--rounds", type=int, default=7, help="times each contestant is timed (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=environment.cores(), help="CPU threads of each contestant")
    parser.add_argument(
        "--budget", type=float, default=os.environ.get("BUDGET") or None, help="seconds after which no row is begun"
    )
    parser.add_argument("--against", metavar="TREE", help="a revision, or a folder of one: its kernels compete too")
    parser.add_argument("--skip-tests", action="store_true", help="measure without testing first; the report says so")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the report (default: %(default)s)")
    parser.add_argument("--name", help="the report's file name; default: date, tiers and device")
    parser.add_argument(
        "--resume", type=Path, nargs="?", const=True, metavar="FOLDER",
        help="keep what today's report there (default: the output) measured with the same sources and settings",
    )  # fmt: skip
    parsed = parser.parse_args(arguments)
    parsed.tiers = parsed.tiers or list(tiers)
    if unknown := set(parsed.tiers) - {*TIERS, *OTHER_TIERS}:
        parser.error(f"no such tier: {', '.join(unknown)}; there are {', '.join((*TIERS, *OTHER_TIERS))}")
    parsed.budget = None if parsed.budget is None else float(parsed.budget)
    return parsed


class Run:
    """One run: its rows, and the report that grows with each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._started = time.monotonic()
        self._results: dict[str, Result] = {}
        self._tiers: dict[str, Tier] = {}
        self._worker = Worker()
        for name in options.tiers:
            self._load(name)
        self._rows = [
            (name, row)
            for name, tier in self._tiers.items()
            for row in tier.rows
            if options.rows in row.name and options.device in (None, row.device)
        ]
        self._rows.sort(key=lambda named: named[1].priority)
        if not self._rows and not self._results:
            raise SystemExit(f"no row's name contains {options.rows!r}")
        self._environment = environment.describe() | {
            "rounds": options.rounds, "threads": options.threads, "against": options.against,
        }  # fmt: skip
        self._gpu = str(self._environment["gpu"] or "")
        default = f"{str(self._environment['date'])[:10]}-{'-'.join(options.tiers)}-{'gpu' if self._gpu else 'cpu'}"
        self._name: str = options.name or default

    def _load(self, tier: str) -> None:
        try:
            self._tiers[tier] = importlib.import_module(f"benchmarks.{tier}").TIER
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] in ("benchmarks", "tercet"):
                raise
            self._results[tier] = Result(tier, not_measured=f"{error.name} is not installed")

    def measure(self) -> Mapping[str, Result]:
        """Every row, writing the report after each."""
        options = self._options
        self._environment["tests"] = "skipped" if options.skip_tests else self._test()
        if options.resume:
            folder = options.output if options.resume is True else options.resume
            self._results |= report.read(folder / f"{self._name}.json", self._environment)
        with source_tree(options.against) as against:
            settings = Settings(rounds=options.rounds, threads=options.threads, against=against)
            if options.budget is not None:
                settings = dataclasses.replace(settings, deadline=self._started + options.budget)
            left = [named for named in self._rows if named[1].name not in self._results]
            self._prepare([named for named in left if self._can(named[1])], settings)
            devices: list[Device] = sorted({row.device for _, row in left})
            chosen = {device: self._calibrated(device, settings) for device in devices}
            for tier, row in left:
                print(f"{row.name} …", file=sys.stderr, flush=True)
                self._results[row.name] = self._row(tier, row, chosen[row.device])
                self._write()
        self._worker.close()
        self._write()
        return self._results

    def text(self) -> str:
        """The report."""
        return report.markdown(self._environment, self._results)

    def _write(self) -> None:
        report.write(self._options.output, self._name, self._environment, self._results)

    def _test(self) -> str:
        """Tests every device that rows are measured on."""
        budget, told = self._options.budget, list[str]()
        if self._gpu and self._options.device != "cpu":
            told.append(run_gpu_tests(None if budget is None else budget * TEST_SHARE))
        if not self._gpu or self._options.device != "cuda":
            told.append(run_tests([path for tier in self._tiers.values() for path in tier.tests], "cpu", None))
        return "; ".join(told)

    def _can(self, row: Row) -> bool:
        return row.device == "cpu" or bool(self._gpu)

    def _prepare(self, rows: Sequence[tuple[str, Row]], settings: Settings) -> None:
        """Compiles in parallel where there is a GPU to compile for."""
        budget = self._options.budget
        if self._options.device != "cuda" or budget is None or not rows:
            return
        unready = prepare(rows, settings, environment.gpu_gib() * MEMORY_SHARE, budget * PREPARATION_SHARE)
        self._environment["prepared"] = f"{len(rows) - len(unready)} of {len(rows)} rows"
        for row, reason in unready.items():
            print(f"{row} is not compiled beforehand: {reason}", file=sys.stderr)

    def _calibrated(self, device: Device, settings: Settings) -> Settings:
        if device == "cuda" and not self._gpu:
            return settings
        chips = calibration.chips(device, self._gpu, settings.seconds)
        self._environment[f"{device} limits"] = {which: calibration.described(chip) for which, chip in chips.items()}
        release()
        return dataclasses.replace(
            settings,
            settle=GPU_SETTLE if device == "cuda" else settings.settle,
            chips=chips,
            device_name=self._gpu if device == "cuda" else "",
        )

    def _row(self, tier: str, row: Row, settings: Settings) -> Result:
        if not self._can(row):
            return Result(row.name, not_measured="no GPU")
        if time.monotonic() > settings.deadline:
            return Result(row.name, not_measured="the budget was spent")
        if row.device == "cuda":
            return self._worker.measure(tier, row, settings)
        result = measured(row, settings)
        release()
        return result


def main(arguments: Sequence[str] | None = None, tiers: Sequence[str] = TIERS) -> int:
    """Measures the rows and prints the report. Returns 1 if a bar was missed, else 0."""
    run = Run(_arguments(arguments, tiers))
    results = run.measure()
    print(run.text())
    return 0 if all(result.met for result in results.values()) else 1
