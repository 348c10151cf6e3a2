"""Compiles the shipped configurations without a GPU and keeps a table of what came out, `compiled.csv`.

    python -m tercet.kernels.compile            every row, with the installed triton; other versions' rows are kept
    python -m tercet.kernels.compile --check    what changed and a sample; exit code 1 on a broken requirement

A row is one kernel of one call in `calls.CALLS`, a cell what a version of triton made of it for a target: registers,
shared memory and spills as the vendor's assembler reports them, and how many wgmma instructions (Hopper's asynchronous
matrix products) it has. The launchers themselves say what they launch: they run on tensors of torch's "meta" device
while the launch is recorded.
"""

from __future__ import annotations

import argparse
import csv
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch

from tercet.kernels import dispatch
from tercet.kernels.calls import CALLS, Call

if TYPE_CHECKING:
    from collections.abc import Iterable

TABLE = Path(__file__).with_name("compiled.csv")
KERNELS = "tercet.kernels.jit."
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # bytes a program
POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
LAUNCH_COLUMNS = ("call", "kernel", "configuration", "hash")
CHECK_SECONDS = 90  # `--check` starts no further compilation after so long


class Row(NamedTuple):
    """What one version of triton made of one launch, for one target: a cell of the table."""

    call: str
    kernel: str
    configuration: str
    hash: str
    """Of the kernels' source and the configuration."""
    triton: str
    target: str
    registers: int
    """Of a thread."""
    shared: int
    """Bytes of shared memory of a program."""
    spills: int
    """Bytes of local memory of a thread (NVIDIA) or spilled vector registers (AMD)."""
    wgmma: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.triton, self.call, self.kernel, self.target


class Job(NamedTuple):
    """Launch `index` of a call, for a target."""

    call: str
    index: int
    target: str


class Launch(NamedTuple):
    """A recorded `kernel[grid](*arguments, **keywords)`."""

    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def launches(call: Call) -> list[Launch]:
    """What the Triton launchers launch for a call."""
    from triton.runtime.jit import KernelInterface

    recorded: list[Launch] = []

    def record(kernel: Any, grid: object) -> Any:
        return lambda *arguments, **keywords: recorded.append(Launch(kernel, arguments, keywords))

    dispatch.select("triton")
    with (
        mock.patch.object(KernelInterface, "__getitem__", record),
        mock.patch.object(dispatch, "_reasons", return_value=()),
    ):
        call.run()
    return recorded


def source(launch: Launch) -> tuple[Any, dict[str, Any]]:
    """The compiler's input for a launch, specialized as triton does: 1 is a constant, multiples of 16 are known."""
    from triton.compiler import ASTSource

    kernel = launch.kernel
    names: list[str] = kernel.arg_names
    values = dict(zip(names, launch.arguments, strict=False)) | launch.keywords
    constants = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, name in enumerate(names):
        value = values[name]
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constexprs[index,] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[index,] = [["tt.divisibility", 16]]
    options = {name: value for name, value in values.items() if name not in names}
    return ASTSource(kernel, signature, constexprs, attributes), options


def describe(launch: Launch) -> str:
    """The constants and options that make a launch's configuration."""
    constants = {p.name for p in launch.kernel.params if p.is_constexpr}
    chosen = {name: value for name, value in launch.keywords.items() if name in constants or name.startswith("num_")}
    return " ".join(f"{name}={value}" for name, value in chosen.items())


def fingerprint(call: Call, launch: Launch) -> str:
    """Changes with the source of the kernel, of what it calls, and with the configuration."""
    digest = hashlib.sha256(f"{call.name} {describe(launch)}".encode())
    for module in sorted(_modules(launch.kernel.fn.__module__)):
        digest.update(Path(str(sys.modules[module].__file__)).read_bytes())
    return digest.hexdigest()[:16]


def _modules(name: str) -> set[str]:
    """A module of kernels and those whose kernels it calls."""
    found = {name}
    for value in vars(sys.modules[name]).values():
        other = getattr(value, "__module__", name)
        if isinstance(other, str) and other.startswith(KERNELS) and other not in found:
            found |= _modules(other)
    return found


def resources(compiled: Any, target: str) -> dict[str, int]:
    """Registers, spills and wgmma instructions of a compiled kernel."""
    if target.startswith("gfx"):
        assembly: str = compiled.asm["amdgcn"]
        counts = {name: int(value) for name, value in re.findall(r"\.(\w+_count):\s*(\d+)", assembly)}
        return {"registers": counts["vgpr_count"], "spills": counts["vgpr_spill_count"], "wgmma": 0}
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
    }


def compile_row(job: Job, deadline: float | None) -> Row | None:
    """Compiles one launch; None if the deadline, of time.monotonic(), is over."""
    if deadline is not None and time.monotonic() > deadline:
        return None
    import triton
    from triton.backends.compiler import GPUTarget

    call, target = CALLS[job.call], job.target
    launch = launches(call)[job.index]
    compiler_source, options = source(launch)
    compiled = triton.compile(compiler_source, target=GPUTarget(*TARGETS[target]), options=options)
    return Row(
        triton=triton.__version__, call=job.call, kernel=launch.kernel.__name__, target=target,
        configuration=describe(launch), shared=compiled.metadata.shared, hash=fingerprint(call, launch),
        **resources(compiled, target),
    )  # fmt: skip


def broken_requirements(row: Row) -> list[str]:
    """What a row must be and isn't."""
    call, where = CALLS[row.call], f"{row.call} {row.kernel} {row.target} (triton {row.triton})"
    broken: list[str] = []
    if row.shared > SHARED_LIMIT[row.target]:
        broken.append(f"{where}: {row.shared} bytes of shared memory, the limit is {SHARED_LIMIT[row.target]}")
    half = call.dtype in ("float16", "bfloat16")
    if row.spills and half and call.head_dim <= 128 and row.target in ("sm_80", "sm_90"):
        broken.append(f"{where}: {row.spills} bytes of spills")
    if not row.wgmma and half and row.kernel == "attention_kernel" and row.target == "sm_90":
        broken.append(f"{where}: no wgmma instructions")
    return broken


def read_table() -> dict[tuple[str, ...], Row]:
    """The committed results by key."""
    if not TABLE.exists():
        return {}
    rows: list[Row] = []
    with TABLE.open(newline="") as file:
        for line in csv.DictReader(file):
            launch = [line.pop(name) for name in LAUNCH_COLUMNS]
            for column, cell in line.items():
                if cell:
                    version, target = column.split()
                    rows.append(Row(*launch, version, target, *(int(part) for part in cell.split("/"))))
    return {row.key: row for row in rows}


def write_table(rows: Iterable[Row]) -> None:
    """Replaces the table: a line a launch, a column `version target` with registers/shared/spills/wgmma.

    A line has one hash: results of other versions that were made from other source are left out.
    """
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    newest: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in rows:
        launch = newest.setdefault((row.call, row.kernel), row[: len(LAUNCH_COLUMNS)])
        if launch == row[: len(LAUNCH_COLUMNS)]:
            cell = "/".join(str(number) for number in row[-4:])
            lines.setdefault(launch, {})[f"{row.triton} {row.target}"] = cell
    columns = sorted({column for cells in lines.values() for column in cells})
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*LAUNCH_COLUMNS, *columns])
        for launch, cells in sorted(lines.items()):
            writer.writerow([*launch, *(cells.get(column, "") for column in columns)])


def jobs(targets: Iterable[str] = TARGETS) -> dict[tuple[str, ...], tuple[Job, str]]:
    """Every row there should be: its key without the version, what compiles it and its hash."""
    wanted: dict[tuple[str, ...], tuple[Job, str]] = {}
    for name, call in CALLS.items():
        for index, launch in enumerate(launches(call)):
            for target in targets:
                key = (name, launch.kernel.__name__, target)
                wanted[key] = Job(name, index, target), fingerprint(call, launch)
    return wanted


def compile_rows(work: Iterable[Job], *, processes: int, seconds: float | None = None) -> list[Row]:
    """Compiles in processes of their own, for at most so long; a compiler that dies takes only its own row along."""
    deadline = None if seconds is None else time.monotonic() + seconds
    rows: list[Row] = []
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(compile_row, job, deadline): job for job in work}
        for number, future in enumerate(as_completed(pending), 1):
            row = future.result()
            if row is not None:
                rows.append(row)
            if sys.stderr.isatty():
                print(
                    f"\r{number}/{len(pending)} {pending[future].call} {pending[future].target}\033[K",
                    end="",
                    file=sys.stderr,
                )
    return rows


def check(sample: int, seed: int, processes: int) -> list[str]:
    """Problems: rows out of date, and requirements that the table or a fresh compilation breaks."""
    import triton

    table, wanted = read_table(), jobs()
    problems: list[str] = []
    versions = {key[0] for key in table}
    stale = {
        key: version
        for version in sorted(versions)
        for key, (_, fresh) in wanted.items()
        if (version, *key) not in table or table[version, *key].hash != fresh
    }
    problems += [f"{' '.join(key)}: the row of triton {version} is out of date" for key, version in stale.items()]
    problems += [f"{' '.join(row.key)}: no such row any more" for row in table.values() if row.key[1:] not in wanted]
    problems += [problem for row in table.values() for problem in broken_requirements(row)]
    unchanged = sorted(key for key in wanted if key not in stale)
    chosen = [*stale, *random.Random(seed).sample(unchanged, min(sample, len(unchanged)))]  # noqa: S311 - a seeded sample
    fresh_rows = compile_rows([wanted[key][0] for key in chosen], processes=processes, seconds=CHECK_SECONDS)
    print(f"{len(wanted)} rows, {len(stale)} out of date; compiled {len(fresh_rows)} with triton {triton.__version__}")
    return problems + [problem for row in fresh_rows for problem in broken_requirements(row)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tercet.kernels.compile", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="check instead of writing the table")
    parser.add_argument("--sample", type=int, default=12, help="unchanged rows to compile again (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if arguments.check:
        problems = check(arguments.sample, arguments.seed, arguments.processes)
    else:
        import triton

        rows = compile_rows([job for job, _ in jobs().values()], processes=arguments.processes)
        kept = [row for row in read_table().values() if row.triton != triton.__version__]
        write_table([*rows, *kept])
        problems = [problem for row in rows for problem in broken_requirements(row)]
        print(f"{TABLE.name}: {len(rows)} rows with triton {triton.__version__}, {len(kept)} with others kept")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
