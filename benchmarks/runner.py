"""The command line: which rows, for how long, and where the report goes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import environment, report
from benchmarks.rows import Result, Row, Settings, Tier

if TYPE_CHECKING:
    from collections.abc import Sequence

TIERS = ("kernels", "models", "serving")
TEST_PACKAGES = ("pytest", "hypothesis", "pytest_timeout")
RESULTS = Path(__file__).parent / "results"


def _arguments(arguments: Sequence[str] | None, tiers: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures Tercet beside its peers.")
    parser.add_argument("tiers", nargs="*", metavar="tier", help=f"of {', '.join(TIERS)} (default: {', '.join(tiers)})")
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=7, help="times each contestant is timed (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=environment.cores(), help="CPU threads of each contestant")
    parser.add_argument(
        "--budget", type=float, default=os.environ.get("BUDGET"), help="seconds after which no row is begun"
    )
    parser.add_argument("--skip-tests", action="store_true", help="measure without testing first; the report says so")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the report (default: %(default)s)")
    parser.add_argument("--name", help="the report's file name; default: date, tiers and device")
    parsed = parser.parse_args(arguments)
    parsed.tiers = parsed.tiers or list(tiers)
    if unknown := set(parsed.tiers) - set(TIERS):
        parser.error(f"no such tier: {', '.join(unknown)}; there are {', '.join(TIERS)}")
    parsed.budget = None if parsed.budget is None else float(parsed.budget)
    return parsed


def _test(paths: Sequence[str]) -> str:
    """Runs the tests and says so; leaves if one is red, since figures of wrong answers are worth nothing."""
    missing = [package for package in TEST_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        return f"not run, {' and '.join(missing)} not installed; each row's own check of its answers held"
    present = [path for path in dict.fromkeys(paths) if (environment.ROOT / path).exists()]
    parallel = ["-n", str(environment.cores()), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", *parallel, *present]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = subprocess.run(command, cwd=environment.ROOT, env=one_thread, stdout=sys.stderr, check=False).returncode
    if code:
        raise SystemExit(f"no report: the tests are red (pytest ended with {code})")
    return f"green ({' '.join(present)})"


def _measure(row: Row, settings: Settings, *, gpu: bool, over_budget: bool) -> Result:
    if row.needs_gpu and not gpu:
        return Result(row.name, not_measured="no GPU")
    if over_budget:
        return Result(row.name, not_measured="the budget was spent")
    try:
        return row.measure(settings)
    except Exception as error:  # one row's failure is reported and costs no other row its figures
        return Result(row.name, not_measured=f"{type(error).__name__}: {error}", missed=["the row failed"])


def main(arguments: Sequence[str] | None = None, tiers: Sequence[str] = TIERS) -> int:
    """Measures the rows, writing the report after each. Returns 1 if a bar was missed, else 0."""
    options = _arguments(arguments, tiers)
    started = time.monotonic()
    loaded = {name: importlib.import_module(f"benchmarks.{name}") for name in options.tiers}
    chosen: dict[str, Tier] = {name: module.TIER for name, module in loaded.items()}
    rows = [row for tier in chosen.values() for row in tier.rows if options.rows in row.name]
    if not rows:
        raise SystemExit(f"no row's name contains {options.rows!r}")
    tested = "skipped" if options.skip_tests else _test([path for tier in chosen.values() for path in tier.tests])
    described = environment.describe() | {"rounds": options.rounds, "threads": options.threads, "tests": tested}
    gpu = described["gpu"] is not None
    day = str(described["date"])[:10]
    name = options.name or f"{day}-{'-'.join(options.tiers)}-{'gpu' if gpu else 'cpu'}"
    settings = Settings(rounds=options.rounds, threads=options.threads)
    results: dict[str, Result] = {}
    for row in rows:
        over_budget = options.budget is not None and time.monotonic() - started > options.budget
        print(f"{row.name} …", file=sys.stderr, flush=True)
        results[row.name] = _measure(row, settings, gpu=gpu, over_budget=over_budget)
        report.write(options.output, name, described, results)
    print(report.markdown(described, results))
    return 0 if all(result.met for result in results.values()) else 1
