"""Which tile each attention kernel runs with on which device: `tiles.csv`, which `tune.py` writes and `compile.py`
compiles without a GPU.

A row is for an op, a kind of number, a form and the head dims up to its own, on a device: a GPU by name (H100), by
architecture (sm_90, gfx942), or any. A device takes the most particular row there is. What was not measured says so.
"""

from __future__ import annotations

import contextlib
import csv
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

TABLE = Path(__file__).with_name("tiles.csv")
NOT_MEASURED = "not measured"
INTERPRETER_PROCESSORS = 8  # the interpreter runs program by program: enough to share work out

Reads = Literal["pointers", "descriptors", "specialized"]
READS: tuple[Reads, ...] = get_args(Reads)


class Tile(NamedTuple):
    """How a kernel cuts up its work."""

    block_m: int
    """Queries (or heads times queries) of one program."""
    block_n: int
    """Keys of one step."""
    num_warps: int
    num_stages: int
    block_d: int
    """The head dim, rounded up to a power of two."""
    reads: Reads = "pointers"
    """How flat keys are read: by descriptors (TMA), by a warp group that does nothing else, or neither."""
    programs: int = 0
    """Programs a processor keeps, each taking several tiles; 0: a program for every tile."""


class Choice(NamedTuple):
    """A row of the table."""

    op: str
    device: str
    kind: str
    """half (float16, bfloat16) or float (float32)."""
    form: str
    head_dim: int
    tile: Tile
    measured: str


def block_d(head_dim: int) -> int:
    """The head dim as kernels hold it: a power of two, at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def kind(dtype: torch.dtype) -> str:
    """Half or float."""
    return "float" if dtype == torch.float32 else "half"


def form(*, paged: bool, masked: bool) -> str:
    """The form of prefill attention: where its keys lie, and whether a bias or a window asks for more registers."""
    return f"{'paged' if paged else 'flat'}{' masked' if masked else ''}"


_FIELDS = ("op", "device", "kind", "form", "head_dim")
_TILE_FIELDS = ("block_m", "block_n", "num_warps", "num_stages", "reads", "programs")


def read_tiles(path: Path = TABLE) -> list[Choice]:
    """The rows; raises `ValueError` that names the line for one that is none."""
    with path.open(newline="") as file:
        return [_choice(path, number, line) for number, line in enumerate(csv.DictReader(file), 2)]


def _choice(path: Path, number: int, line: dict[str, str]) -> Choice:
    try:
        head_dim = int(line["head_dim"])
        reads = READS[READS.index(line["reads"])]  # pyright: ignore[reportArgumentType] - checked by it
        m, n, warps, stages, programs = (int(line[name]) for name in _TILE_FIELDS if name != "reads")
        tile = Tile(m, n, warps, stages, block_d(head_dim), reads, programs)
        return Choice(line["op"], line["device"], line["kind"], line["form"], head_dim, tile, line["measured"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}, line {number} is no configuration: {error!r}") from error


def write_tiles(choices: Iterable[Choice], path: Path = TABLE) -> None:
    """Replaces the table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_FIELDS, *_TILE_FIELDS, "measured"])
        for choice in sorted(choices):
            tile = [getattr(choice.tile, name) for name in _TILE_FIELDS]
            writer.writerow([*(getattr(choice, name) for name in _FIELDS), *tile, choice.measured])
    _rows.cache_clear()
    _tile.cache_clear()


_table = TABLE
_forced: Tile | None = None


@contextlib.contextmanager
def using(choice: Path | Tile) -> Generator[None]:
    """Takes tiles from another table, or one tile for everything: for tuning and tests."""
    global _table, _forced  # noqa: PLW0603 - one process tunes one thing at a time
    before = _table, _forced
    if isinstance(choice, Path):
        _table, _forced = choice, None
    else:
        _forced = choice
    try:
        yield
    finally:
        _table, _forced = before


@functools.cache
def _rows(path: Path) -> dict[tuple[str, str, str, str], dict[int, Tile]]:
    rows: dict[tuple[str, str, str, str], dict[int, Tile]] = {}
    for choice in read_tiles(path):
        rows.setdefault((choice.op, choice.device, choice.kind, choice.form), {})[choice.head_dim] = choice.tile
    return rows


def tile(op: str, dtype: torch.dtype, head_dim: int, *, form: str = "", device: torch.device | None = None) -> Tile:
    """The tile of an attention op for a `form` of it, on a device; None is any."""
    if _forced is not None:
        return _forced._replace(block_d=block_d(head_dim))
    return _tile(_table, op, kind(dtype), form, head_dim, ("any",) if device is None else device_keys(device))


@functools.cache
def _tile(path: Path, op: str, kind: str, form: str, head_dim: int, keys: tuple[str, ...]) -> Tile:
    for key in keys:
        sizes = _rows(path).get((op, key, kind, form), {})
        fitting = [size for size in sizes if size >= head_dim]
        if fitting:
            return sizes[min(fitting)]._replace(block_d=block_d(head_dim))
    raise ValueError(f"{path.name} has no row for {op} {form}, {kind}, head dim {head_dim} on {' or '.join(keys)}")


@functools.cache
def device_keys(device: torch.device) -> tuple[str, ...]:
    """What rows may call a device, the most particular first."""
    if device.type != "cuda":
        return ("any",)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return (properties.gcnArchName.split(":")[0], "any")
    major, minor = properties.major, properties.minor
    return (*properties.name.replace("-", " ").split(), f"sm_{major}{minor}", f"sm_{major}0", "any")


@functools.cache
def processors(device: torch.device) -> int:
    """Processors that run programs at the same time."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return INTERPRETER_PROCESSORS


# (kind, more than the best is kept) -> most rows -> (block_v, block_n, block_d, num_warps, num_stages)
_HEAD_TILES: dict[tuple[str, bool], dict[int, tuple[int, int, int, int, int]]] = {
    ("half", False): {16: (64, 16, 128, 4, 3), 64: (128, 64, 64, 4, 3), 128: (128, 128, 64, 8, 3)},
    ("half", True): {16: (128, 16, 64, 4, 3), 32: (128, 32, 64, 8, 3)},
    ("float", False): {16: (64, 16, 32, 4, 1)},
    ("float", True): {16: (128, 16, 16, 4, 1)},
}


class HeadTile(NamedTuple):
    """How `head_topk` cuts up its work."""

    block_v: int
    """Tokens of the vocabulary of one step."""
    block_n: int
    """Rows of hidden states of one program."""
    block_d: int
    """Dimensions of one step of the product."""
    num_warps: int
    num_stages: int


@functools.cache
def head_tile(dtype: torch.dtype, rows: int, *, greedy: bool) -> HeadTile:
    """The shipped tile for so many rows."""
    tiles = _HEAD_TILES[kind(dtype), not greedy]
    return HeadTile(*tiles[min((size for size in tiles if size >= rows), default=max(tiles))])


def row_warps(block_n: int) -> int:
    """Warps for a kernel that holds one row of `block_n` elements."""
    return min(max(block_n // 512, 1), 8)
