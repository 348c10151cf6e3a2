"""The table of compiled kernels, `compiled.csv`: what each version of triton made of each launch for each target."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tercet.kernels.calls import CALLS

if TYPE_CHECKING:
    from collections.abc import Iterable

TABLE = Path(__file__).with_name("compiled.csv")
LAUNCH_COLUMNS = ("call", "kernel", "configuration", "hash")
WGMMA_KERNELS = ("attention_kernel", "head_topk_kernel")  # on Hopper they multiply asynchronously
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # bytes a program


Key = tuple[str, str, str, str]


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
    tma: int

    @property
    def key(self) -> Key:
        return self.triton, self.call, self.kernel, self.target


def _says(row: Row, part: str) -> bool:
    """Whether the configuration of a row has a part on its target: that of all, then what targets have of their own."""
    whole, *changes = row.configuration.split("; ")
    own = next((what for targets, what in (change.split(": ") for change in changes) if row.target in targets), "")
    name = part.split("=", maxsplit=1)[0] + "="
    return part in own.split() or (part in whole.split() and name not in own)


def broken_requirements(row: Row) -> list[str]:
    """What a row must be and isn't."""
    call, where = CALLS[row.call], f"{row.call} {row.kernel} {row.target} (triton {row.triton})"
    broken: list[str] = []
    if row.shared > SHARED_LIMIT[row.target]:
        broken.append(f"{where}: {row.shared} bytes of shared memory, the limit is {SHARED_LIMIT[row.target]}")
    half = call.dtype in ("float16", "bfloat16")
    if row.spills and half and call.head_dim <= 128 and row.target in ("sm_80", "sm_90"):
        broken.append(f"{where}: {row.spills} bytes of spills")
    if not row.wgmma and half and row.kernel in WGMMA_KERNELS and row.target == "sm_90":
        broken.append(f"{where}: no wgmma instructions")
    if not row.tma and row.target == "sm_90" and _says(row, "DESCRIPTORS=True"):
        broken.append(f"{where}: descriptors, but no TMA instructions")
    return broken


def read_table(path: Path = TABLE) -> dict[Key, Row]:
    """The results by key."""
    if not path.exists():
        return {}
    rows: list[Row] = []
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            call, kernel, configuration, digest = (line.pop(name) for name in LAUNCH_COLUMNS)
            for column, cell in line.items():
                if cell:
                    version, target = column.split()
                    numbers = (int(part) for part in cell.split("/"))
                    rows.append(Row(call, kernel, configuration, digest, version, target, *numbers))
    return {row.key: row for row in rows}


def write_table(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Replaces the table: a line a launch, a column `version target` with registers/shared/spills/wgmma/tma.

    A line has one hash, that of the first row: results made from other source are left out.
    """
    lines: dict[tuple[str, str, str, str], dict[str, str]] = {}
    first: dict[tuple[str, str], tuple[str, str, str, str]] = {}
    for row in rows:
        launch = (row.call, row.kernel, row.configuration, row.hash)
        if first.setdefault((row.call, row.kernel), launch) == launch:
            cell = f"{row.registers}/{row.shared}/{row.spills}/{row.wgmma}/{row.tma}"
            lines.setdefault(launch, {})[f"{row.triton} {row.target}"] = cell
    columns = sorted({column for cells in lines.values() for column in cells})
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*LAUNCH_COLUMNS, *columns])
        for launch, cells in sorted(lines.items()):
            writer.writerow([*launch, *(cells.get(column, "") for column in columns)])
