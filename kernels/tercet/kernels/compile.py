"""Compiles the shipped configurations without a GPU and keeps a table of what came out, `compiled.csv`.

    python -m tercet.kernels.compile            every row, with the installed triton; other versions' rows are kept
    python -m tercet.kernels.compile --check    what changed and a sample; exit code 1 on a broken requirement

A row is one kernel of one call in `calls.CALLS`, a cell what a version of triton made of it for a target: registers,
shared memory and spills as the vendor's assembler reports them, and how many wgmma instructions (Hopper's asynchronous
matrix products) and TMA loads it has. Where devices of a target have configurations of their own, it is the worst.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tercet.kernels import configurations
from tercet.kernels.calls import CALLS
from tercet.kernels.compiled import TABLE, Row, broken_requirements, read_table, write_table
from tercet.kernels.launches import describe, fingerprint, shipped, source

if TYPE_CHECKING:
    from collections.abc import Iterable

    from triton.backends.compiler import GPUTarget

    from tercet.kernels.configurations import Tile
    from tercet.kernels.launches import Launch

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


INSTRUCTIONS = ("wgmma", "tma")  # of which fewer are worse


class Job(NamedTuple):
    """One launch of a call, for a target."""

    call: str
    number: int
    target: str
    configuration: str = ""
    hash: str = ""
    tile: Tile | None = None
    """Instead of the shipped one."""


def resources(compiled: Any, target: str) -> dict[str, int]:
    """Registers, spills, wgmma and TMA instructions of a compiled kernel."""
    if target.startswith("gfx"):
        assembly: str = compiled.asm["amdgcn"]
        counts = {name: int(value) for name, value in re.findall(r"\.(\w+_count):\s*(\d+)", assembly)}
        return {"registers": counts["vgpr_count"], "spills": counts["vgpr_spill_count"], "wgmma": 0, "tma": 0}
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", report.stdout))
    return {
        "registers": int(usage["REG"]),
        "spills": int(usage["STACK"]) + int(usage["LOCAL"]),
        "wgmma": compiled.asm["ptx"].count("wgmma.mma_async"),
        "tma": compiled.asm["ptx"].count("cp.async.bulk.tensor"),
    }


def compile_row(job: Job, deadline: float | None) -> Row | None:
    """Compiles one launch; None if the deadline, of time.monotonic(), is over."""
    if deadline is not None and time.monotonic() > deadline:
        return None
    import triton
    from triton.backends.compiler import GPUTarget

    with configurations.using(job.tile) if job.tile else nullcontext():
        launches = shipped(CALLS[job.call], job.target)[job.number]
    made = [_compiled(launch, GPUTarget(*TARGETS[job.target])) for launch in launches]
    found = [{"shared": compiled.metadata.shared, **resources(compiled, job.target)} for compiled in made]
    worst = {name: (min if name in INSTRUCTIONS else max)(each[name] for each in found) for name in found[0]}
    return Row(
        triton=triton.__version__, call=job.call, kernel=launches[0].kernel.__name__, target=job.target,
        configuration=job.configuration, hash=job.hash, **worst,
    )  # fmt: skip


def _compiled(launch: Launch, target: GPUTarget) -> Any:
    import triton

    given, options = source(launch)
    return triton.compile(given, target=target, options=options)


def jobs() -> dict[tuple[str, str, str], Job]:
    """What compiles every launch for every target.

    A launch that several calls have in common belongs to the first of them. Its hash and its configuration are of all
    targets.
    """
    seen: set[str] = set()
    wanted: dict[tuple[str, str, str], Job] = {}
    for name, call in CALLS.items():
        for number, on_targets in enumerate(zip(*(shipped(call, target) for target in TARGETS), strict=True)):
            digest = "".join(sorted({fingerprint(launch) for launches in on_targets for launch in launches}))
            digest = hashlib.sha256(digest.encode()).hexdigest()[:16]
            if digest in seen:
                continue
            seen.add(digest)
            whole = describe(on_targets[0][0]).split()
            changes: dict[str, list[str]] = {}
            for target, launches in zip(TARGETS, on_targets, strict=True):
                different = [[part for part in describe(one).split() if part not in whole] for one in launches]
                changes.setdefault(" or ".join(map(" ".join, different)), []).append(target)
            changed = [f"; {' '.join(targets)}: {what}" for what, targets in changes.items() if what]
            configuration = " ".join(whole) + "".join(changed)
            for target in TARGETS:
                kernel = on_targets[0][0].kernel.__name__
                wanted[name, kernel, target] = Job(name, number, target, configuration, digest)
    return wanted


def compile_rows(work: Iterable[Job], *, processes: int, seconds: float | None = None) -> tuple[list[Row], list[str]]:
    """Compiles in other processes, starting none after `seconds`: the results, and what could not be compiled.

    A compiler that aborts ends its process, and all that its pool had left to do is given up: that is compiled again
    in pools of one process, where the first job given up is the one that aborts.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    rows: list[Row] = []
    failures: list[str] = []
    left = list(work)
    while left:
        given_up: list[Job] = []
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            pending = {pool.submit(compile_row, job, deadline): job for job in left}
            for done, future in enumerate(as_completed(pending), 1):
                job, error = pending[future], future.exception()
                if isinstance(error, BrokenProcessPool):
                    given_up.append(job)
                elif error:
                    failures.append(f"{job.call} {job.target} does not compile: {error!r}")
                elif row := future.result():
                    rows.append(row)
                if sys.stderr.isatty():
                    print(f"\r{done}/{len(pending)} {job.call} {job.target}\033[K", end="", file=sys.stderr)
        left = [job for job in left if job in given_up]
        if left and processes == 1:
            failures.append(f"{left[0].call} {left[0].target} does not compile: the compiler aborts")
            del left[0]
        processes = 1
    return rows, failures


def check(path: Path, sample: int, seed: int, processes: int, seconds: float) -> list[str]:
    """What is wrong: results out of date, requirements that are broken, and a sample that comes out differently.

    What a version of triton makes of the sample that the table has no results of must meet the requirements.
    """
    table, wanted = read_table(path), jobs()
    versions = sorted({version for version, *_ in table} or {triton_version()})
    stale = {
        (version, *key): key
        for version in versions
        for key, job in wanted.items()
        if (row := table.get((version, *key))) is None or row.hash != job.hash
    }
    problems = [f"{' '.join(key)}: out of date" for key in stale]
    problems += [f"{' '.join(row.key)}: not shipped any more" for row in table.values() if row.key[1:] not in wanted]
    shipped = [row for row in table.values() if row.key[1:] in wanted]
    problems += [problem for row in shipped for problem in broken_requirements(row)]
    changed = set(stale.values())
    unchanged = sorted(set(wanted) - changed)
    chosen = [*changed, *random.Random(seed).sample(unchanged, min(sample, len(unchanged)))]  # noqa: S311 - not secret
    rows, failures = compile_rows([wanted[key] for key in chosen], processes=processes, seconds=seconds)
    problems += failures
    problems += [problem for row in rows for problem in broken_requirements(row)]
    problems += [
        f"{' '.join(row.key)}: compiles to {row}"
        for row in rows
        if row.key not in stale and table.get(row.key, row) != row
    ]
    print(f"{len(table)} results, {len(stale)} out of date; compiled {len(rows)} with triton {triton_version()}")
    return sorted(set(problems))


def update(path: Path, processes: int, *, changed: bool) -> list[str]:
    """Compiles everything, or only what `changed`, and writes the table; other versions' results are kept."""
    table, version = read_table(path), triton_version()
    work, fresh = [], []
    for key, job in jobs().items():
        row = table.get((version, *key))
        if changed and row is not None and row.hash == job.hash:
            fresh.append(row)
        else:
            work.append(job)
    rows, failures = compile_rows(work, processes=processes)
    others = [row for row in table.values() if row.triton != version]
    write_table([*rows, *fresh, *others], path)
    print(f"{path.name}: compiled {len(rows)} with triton {version}, {len(fresh)} unchanged, {len(others)} of others")
    return failures + [problem for row in rows for problem in broken_requirements(row)]


def triton_version() -> str:
    """The installed version."""
    import triton

    return triton.__version__


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tercet.kernels.compile", description="Compiles the shipped kernel configurations without a GPU."
    )
    parser.add_argument("--check", action="store_true", help="check instead of writing the table")
    parser.add_argument("--changed", action="store_true", help="compile only what is out of date")
    parser.add_argument("--table", type=Path, default=TABLE, help="default %(default)s")
    parser.add_argument(
        "--sample", type=int, default=12, help="unchanged results to compile again (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--seconds", type=float, default=90, help="a check compiles no more after (default %(default)s)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # for the processes that compile: nothing old is taken for a result
        if arguments.check:
            problems = check(arguments.table, arguments.sample, arguments.seed, arguments.processes, arguments.seconds)
        else:
            problems = update(arguments.table, arguments.processes, changed=arguments.changed)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
