"""Chooses the tiles of prefill attention by measuring them on the GPU at hand, and writes them to `tiles.csv`.

    python -m tercet.kernels.tune [--table PATH] [--rounds 7] [--processes N] [--head-dims 32 64 96 128]

The candidates of each form are compiled in processes of their own, since a compiler may abort; what spills is left out.
What is left must give what the table's own tile gives, and all are measured in turn, in random order, in every round.
The one with the least median becomes the row of this GPU, by name. Nothing is tuned while requests are served.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import random
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from tercet.kernels import attention, configurations, dispatch
from tercet.kernels.calls import CALLS
from tercet.kernels.compile import Job, compile_rows
from tercet.kernels.compiled import SHARED_LIMIT
from tercet.kernels.configurations import READS, TABLE, Choice, Tile, block_d, kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Run = Callable[[], Tensor]

FORMS = {
    "flat": "encoder", "flat masked": "encoder bias", "paged": "prefill", "paged masked": "prefill bias",
}  # fmt: skip
"""The forms of prefill attention, and the calls of the compiled table that are of each."""
HEAD_DIMS = (32, 64, 96, 128)
HEADS, KV_HEADS, PAGE_SIZE, REACH = 12, 4, 16, 128  # as in the compiled table: the same binaries
LONG, SHORT = [1024] * 8, [32, 64, 96, 160, 224, 320, 448, 512] * 4  # tokens of the rows that are measured
REGISTERS = 192  # 32-bit values of a thread that an accumulator, a tile of scores and its probabilities may take
GAIN = 0.98  # of the time of the table's own tile: what is not that much faster stays out
TOLERANCE = 2e-2  # relative to that tile's output, in half precision


def candidates(dtype: torch.dtype, head_dim: int, form: str, target: str) -> list[Tile]:
    """The grid that is searched for a form of prefill attention, without what a target can't hold.

    Half precision: 64 or 128 queries by 32, 64 or 128 keys, 4 or 8 warps, 2 or 3 stages, read in every way there is,
    by a program a tile or by 2 a processor. float32 has small tiles on the plain cores.
    """
    width, half = block_d(head_dim), kind(dtype) == "half"
    blocks = itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3)) if half else (
        itertools.product((16, 32), (16, 32), (4,), (1, 2))
    )  # fmt: skip
    grid = [
        Tile(m, n, warps, stages, width, reads, programs)
        for (m, n, warps, stages), reads, programs in itertools.product(blocks, READS, (0, 2))
    ]
    return [tile for tile in grid if _holds(tile, dtype, head_dim, form, target)]


def _holds(tile: Tile, dtype: torch.dtype, head_dim: int, form: str, target: str) -> bool:
    """Whether a tile fits into shared memory and registers and can be read as it says."""
    size, width = dtype.itemsize, tile.block_d
    values = tile.block_m * (width + tile.block_n + tile.block_n * size // 4) // (32 * tile.num_warps)
    shared = size * width * (tile.block_m + 2 * tile.block_n * tile.num_stages)
    flat, hopper = form.startswith("flat"), target.startswith("sm_") and int(target[3:]) >= 90
    descriptors = flat and hopper and head_dim == width and kind(dtype) == "half"
    specialized = descriptors and target == "sm_90" and form == "flat"
    ways = {
        "pointers": True,
        "descriptors": descriptors,
        # Two warp groups compute, 64 queries each, and triton divides no other number of warps.
        "specialized": specialized and (tile.block_m, tile.num_warps, tile.programs) == (128, 4, 0),
    }
    registers = REGISTERS * (2 if tile.reads == "specialized" else 1)
    return ways[tile.reads] and values <= registers and shared <= SHARED_LIMIT[target]


class Case(NamedTuple):
    """What a row of the table is measured for."""

    dtype: torch.dtype
    head_dim: int
    form: str
    device: torch.device

    @property
    def call(self) -> str:
        """The call of the compiled table that is compiled for it."""
        return f"{FORMS[self.form]} {str(self.dtype).removeprefix('torch.')} {self.head_dim}"

    def run(self, lengths: list[int]) -> Run:
        """Attention of rows of these lengths, packed: flat and seen whole, or over pages and causal."""
        paged, masked = self.form.startswith("paged"), self.form.endswith("masked")
        generator = torch.Generator().manual_seed(0)
        kv_heads = HEADS if masked else KV_HEADS

        def tensor(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(self.device, self.dtype)

        length = torch.tensor(lengths, dtype=torch.int32)
        tokens, start = sum(lengths), length.cumsum(0, dtype=torch.int32) - length
        q, keys = tensor(tokens, HEADS, self.head_dim), {}
        if paged:
            pages = -(-max(lengths) // PAGE_SIZE)
            table = torch.arange(len(lengths) * pages, dtype=torch.int32).view(len(lengths), pages)
            keys["page_table"] = table.to(self.device)
            shape = (len(lengths) * pages, PAGE_SIZE, kv_heads, self.head_dim)
        else:
            keys["kv_start"] = start.to(self.device)
            shape = (tokens, kv_heads, self.head_dim)
        bias = torch.randn(HEADS, 2 * REACH + 1, generator=generator).to(self.device) if masked else None
        length = length.to(self.device)
        return partial(
            attention, q, tensor(*shape), tensor(*shape), q_start=start.to(self.device), q_length=length,
            kv_length=length, longest_q=max(lengths), longest_kv=max(lengths), causal=paged, bias=bias, **keys,
        )  # fmt: skip


def compiled(case: Case, tiles: list[Tile], target: str, processes: int) -> list[Tile]:
    """The tiles that a compiler makes something of without spills; what it made is in triton's cache then."""
    number = 1  # of the launches of a call: the first puts tiles in order
    jobs = {Job(case.call, number, target, hash=str(index), tile=tile): tile for index, tile in enumerate(tiles)}
    rows, failures = compile_rows(jobs, processes=processes)
    for failure in failures:
        print(failure, file=sys.stderr)
    fitting = {int(row.hash) for row in rows if not row.spills and row.shared <= SHARED_LIMIT[target]}
    return [tile for index, tile in enumerate(tiles) if index in fitting]


def fastest(
    runs: list[Run],
    tiles: list[Tile],
    own: Tile,
    *,
    rounds: int,
    time: Callable[[Run], float],
) -> tuple[Tile, str]:
    """The tile of the least median over all runs, and how it compares with the table's own.

    A tile that gives anything but what the own one gives, or raises, is left out, and so is a small gain.
    """
    with configurations.using(own):
        expected = [run().float() for run in runs]
    right = [own]
    for tile in tiles:
        try:
            with configurations.using(tile):
                errors = [
                    ((run().float() - each).norm() / each.norm()).item()
                    for run, each in zip(runs, expected, strict=True)
                ]
        except Exception as error:
            print(f"{tile}: {error!r}", file=sys.stderr)
            continue
        if tile != own and max(errors) <= TOLERANCE:
            right.append(tile)
    times: dict[Tile, list[float]] = {tile: [] for tile in right}
    order = random.Random(0)  # noqa: S311 - not secret
    for _ in range(rounds):
        for tile in order.sample(right, len(right)):
            with configurations.using(tile):
                times[tile].append(sum(time(run) for run in runs))
    medians = {tile: statistics.median(seconds) for tile, seconds in times.items()}
    best = min(right, key=medians.__getitem__)
    best = best if medians[best] < GAIN * medians[own] else own
    return best, f"{1e6 * medians[best]:.1f} µs of {1e6 * medians[own]:.1f}, best of {len(right)}"


def on_gpu(run: Run) -> float:
    """Seconds of a run on the GPU, with nothing of it in the L2 cache.

    Writing a gibibyte takes longer than the host takes to launch the run meanwhile: that is not measured.
    """
    flush = torch.empty(1 << 28, dtype=torch.int32, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def tune(
    cases: list[Case], device_key: str, *, table: Path, rounds: int, time: Callable[[Run], float],
    choose: Callable[[Case], list[Tile]], lengths: tuple[list[int], ...] = (LONG, SHORT),
) -> list[Choice]:  # fmt: skip
    """Measures what `choose` gives for each case and writes the rows of the device; the others stay."""
    made = []
    for case in cases:
        with configurations.using(table):
            own = configurations.tile("attention", case.dtype, case.head_dim, form=case.form, device=case.device)
        best, figures = fastest([case.run(each) for each in lengths], choose(case), own, rounds=rounds, time=time)
        measured = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {figures}"
        made.append(Choice("attention", device_key, kind(case.dtype), case.form, case.head_dim, best, measured))
        print(f"{case.call}: {best} {measured}", flush=True)
        rows = {choice[:5]: choice for choice in [*configurations.read_tiles(table), *made]}
        configurations.write_tiles(rows.values(), table)  # after every case: what was measured is kept
    return made


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tercet.kernels.tune", description="Measures tiles of prefill attention on this machine's GPU."
    )
    parser.add_argument("--table", type=Path, default=TABLE, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that compile")
    parser.add_argument("--head-dims", type=int, nargs="+", choices=HEAD_DIMS, default=HEAD_DIMS)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or torch.version.hip:
        print("tuning needs an NVIDIA GPU, and torch finds none", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    name, target = _names(configurations.device_keys(device))
    cases = [
        Case(torch.bfloat16, head_dim, form, device)
        for form, head_dim in itertools.product(arguments.forms, arguments.head_dims)
        if Case(torch.bfloat16, head_dim, form, device).call in CALLS
    ]
    dispatch.select("triton")

    def choose(case: Case) -> list[Tile]:
        return compiled(case, candidates(case.dtype, case.head_dim, case.form, target), target, arguments.processes)

    tune(cases, name, table=arguments.table, rounds=arguments.rounds, time=on_gpu, choose=choose)
    print(f"{arguments.table}: compile the table anew (python -m tercet.kernels.compile --changed)")
    return 0


def _names(keys: tuple[str, ...]) -> tuple[str, str]:
    """The name that a GPU's rows bear, H100 of "NVIDIA H100 80GB HBM3", and the target that is compiled for it."""
    targets = [key for key in keys if key in SHARED_LIMIT]
    names = [key for key in keys if key[0].isupper() and key[-1].isdigit()]
    return (names or targets)[0], targets[0]


if __name__ == "__main__":
    sys.exit(main())
