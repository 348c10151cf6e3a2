"""The tests that must be green before anything is reported."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from benchmarks import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.rows import Device

PACKAGES = ("pytest", "hypothesis", "pytest_timeout")
SERVER = ("msgspec", "safetensors", "tokenizers", "transformers")
GPU_TESTS = {  # and what they need
    "tests/kernels": (), "tests/engine/test_beam_graphs.py": SERVER, "tests/engine/test_graphs.py": SERVER,
    "tests/gpu": SERVER,
}  # fmt: skip
STOP_SECONDS = 20  # that a pytest which is interrupted has to write what it found
COUNTS = ("tests", "failures", "errors", "skipped")


def run_tests(paths: Sequence[str], device: Device, limit: float | None) -> str:
    """Runs the tests and says what they found; leaves if one is red: figures of wrong answers are worth nothing.

    limit: seconds after which the tests are interrupted; what they found until then counts and the rest is told.
    """
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        return f"not run, {' and '.join(missing)} not installed; each row's own check of its answers held"
    present = [path for path in dict.fromkeys(paths) if (environment.ROOT / path).exists()]
    several = environment.cores() > 1 and importlib.util.find_spec("xdist")
    parallel = ["-n", str(environment.cores()), "--dist", "worksteal"] if several else []
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", *parallel, f"--junit-xml={found}", *_for_device(device)]
        code, ended = _run([*command, *present], device, limit)
        counts = _counts(found)
    if code and not (ended and not counts["failures"] and not counts["errors"]):
        raise SystemExit(f"no report: the tests are red (pytest ended with {code})")
    if ended and not counts["tests"]:
        return f"not finished: none was done after {limit:.0f} s; each row's own check of its answers held"
    where = f" on {device}" if device != "cpu" else ""
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    cut = f"; NOT ALL: ended after {limit:.0f} s" if ended else ""
    return f"green{where}: {counts['tests'] - counts['skipped']} passed{skipped}{cut} ({' '.join(present)})"


def run_gpu_tests(limit: float | None) -> str:
    """The kernels compiled, and whole engines, on the GPU; says which tests lack a package there."""
    lacking = {
        path: [name for name in needed if importlib.util.find_spec(name) is None] for path, needed in GPU_TESTS.items()
    }
    told = run_tests([path for path, missing in lacking.items() if not missing], "cuda", limit)
    unrun = [f"; {path} NOT RUN: {', '.join(missing)} not installed" for path, missing in lacking.items() if missing]
    return told + "".join(unrun)


def _for_device(device: Device) -> list[str]:
    """Another machine's versions may warn of other things: that is no wrong answer."""
    return [] if device == "cpu" else ["-W", "default", "-p", "no:benchmark"]


def _run(command: Sequence[str], device: Device, limit: float | None) -> tuple[int, bool]:
    """Pytest's exit code, and whether the limit ended it."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TERCET_TEST_DEVICE": device}
    process = subprocess.Popen(command, cwd=environment.ROOT, env=variables, stdout=sys.stderr)
    try:
        return process.wait(limit), False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(STOP_SECONDS), True
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(), True


def _counts(path: Path) -> dict[str, int]:
    """What the report of the tests counts; nothing where it was not written."""
    if not path.exists():
        return dict.fromkeys(COUNTS, 0)
    suites = ElementTree.parse(path).getroot().iter("testsuite")  # noqa: S314 - pytest wrote it just now
    found = [{key: int(suite.get(key, 0)) for key in COUNTS} for suite in suites]
    return {key: sum(suite[key] for suite in found) for key in COUNTS}
