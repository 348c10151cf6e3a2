"""The tuner: a grid that holds the shipped tiles, the fastest of those that are right, a table that is read back."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from tercet.kernels import configurations, dispatch, tune
from tercet.kernels.configurations import NOT_MEASURED, TABLE, Tile, read_tiles, write_tiles

CPU = torch.device("cpu")
TARGETS = ("sm_80", "sm_90", "sm_100")


@pytest.fixture(autouse=True)
def _triton():
    dispatch.select("triton")
    yield
    dispatch.select("auto")


@pytest.fixture
def table(tmp_path):
    """The shipped one without what was measured."""
    path = tmp_path / "tiles.csv"
    write_tiles([choice for choice in read_tiles() if choice.measured == NOT_MEASURED], path)
    return path


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", tune.FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_shipped_tiles_are_candidates(monkeypatch, target, form, dtype):
    monkeypatch.setattr(configurations, "device_keys", lambda device: (target, "any"))
    for head_dim in tune.HEAD_DIMS:
        shipped = configurations.tile("attention", dtype, head_dim, form=form, device=CPU)
        grid = tune.candidates(dtype, head_dim, form, target)
        assert shipped in grid
        assert len(set(grid)) == len(grid) <= 120


def test_candidates_are_what_a_target_can_run():
    """TMA from Hopper on, for flat keys of a power of two; specialized warps on Hopper alone, without a bias."""
    ways = {
        (target, form, head_dim): {tile.reads for tile in tune.candidates(torch.float16, head_dim, form, target)}
        for target in TARGETS
        for form in tune.FORMS
        for head_dim in (64, 96)
    }
    assert ways.pop(("sm_90", "flat", 64)) == {"pointers", "descriptors", "specialized"}
    for key in (("sm_90", "flat masked", 64), ("sm_100", "flat", 64), ("sm_100", "flat masked", 64)):
        assert ways.pop(key) == {"pointers", "descriptors"}
    assert set(map(frozenset, ways.values())) == {frozenset({"pointers"})}
    assert Tile(128, 128, 4, 2, 128) not in tune.candidates(torch.bfloat16, 128, "flat", "sm_90")  # it spills


def test_the_fastest_right_tile_is_written_and_read_back(monkeypatch, table):
    """A wrong one would be faster still, and one that raises is left out."""
    slow, fast, wrong, broken = (Tile(block_m, 16, 4, 1, 16) for block_m in (16, 64, 128, 0))
    seconds = {16: 2.0, 64: 1.0, 128: 0.1}
    attention = tune.attention

    def attend(*arguments, **options):
        out = attention(*arguments, **options)
        return out + 1 if configurations._forced == wrong else out

    monkeypatch.setattr(tune, "attention", attend)
    case = tune.Case(torch.float32, 16, "flat", CPU)
    before = read_tiles(table)
    measured: list[Tile] = []

    def time(run) -> float:
        measured.append(configurations._forced)
        return seconds.get(configurations._forced.block_m, 9.0)

    made = tune.tune(
        [case], "H100", table=table, rounds=3, time=time, choose=lambda case: [slow, fast, wrong, broken],
        lengths=([17, 5],),
    )  # fmt: skip
    assert [choice.tile for choice in made] == [fast]
    assert {measured.count(tile) for tile in (slow, fast)} == {3}
    assert wrong not in measured
    assert broken not in measured
    assert made[0].measured.split(": ")[1].startswith("1000000.0 µs")
    monkeypatch.setattr(configurations, "device_keys", lambda device: ("NVIDIA", "H100", "sm_90", "any"))
    with configurations.using(table):
        assert configurations.tile("attention", torch.float32, 16, form="flat", device=CPU) == fast
    kept = [choice for choice in read_tiles(table) if choice.device != "H100"]
    assert kept == before


def test_a_small_gain_changes_nothing(table):
    case = tune.Case(torch.float32, 16, "paged masked", CPU)
    own = configurations.tile("attention", torch.float32, 16, form="paged masked", device=CPU)
    other = own._replace(block_n=16)
    best, figures = tune.fastest(
        [case.run([9, 3])], [other], own, rounds=2, time=lambda run: 0.99 if configurations._forced == other else 1.0
    )
    assert best == own
    assert figures.endswith("best of 2")


def test_forms_have_rows_and_odd_tables_are_refused(tmp_path):
    for choice in read_tiles():
        assert choice.measured == NOT_MEASURED or re.match(r"\d{4}-\d\d-\d\d: ", choice.measured)
    path = tmp_path / "tiles.csv"
    write_tiles(read_tiles(), path)
    assert path.read_text() == TABLE.read_text()
    path.write_text(TABLE.read_text().replace("descriptors", "telepathy", 1))
    with pytest.raises(ValueError, match=r"tiles.csv, line \d+ is no configuration"):
        read_tiles(path)
    with pytest.raises(ValueError, match="no row for attention round, half, head dim 64 on any"):
        configurations.tile("attention", torch.float16, 64, form="round")


def test_a_device_takes_the_most_particular_row(table):
    rows = read_tiles(table)
    sm_90 = next(row for row in rows if (row.device, row.form, row.head_dim) == ("sm_90", "flat", 64))
    h200 = sm_90._replace(device="H200", tile=sm_90.tile._replace(num_stages=4))
    write_tiles([*rows, h200], table)
    with configurations.using(table), pytest.MonkeyPatch.context() as patch:
        for keys, expected in ((("NVIDIA", "H200", "sm_90", "any"), h200), (("NVIDIA", "H100", "sm_90", "any"), sm_90)):
            patch.setattr(configurations, "device_keys", lambda device, keys=keys: keys)
            assert configurations.tile("attention", torch.bfloat16, 64, form="flat", device=CPU) == expected.tile


def test_names_of_devices():
    assert tune._names(("NVIDIA", "H100", "80GB", "HBM3", "sm_90", "any")) == ("H100", "sm_90")
    assert tune._names(("NVIDIA", "A100", "SXM4", "80GB", "sm_80", "any")) == ("A100", "sm_80")


def test_without_a_gpu_it_says_so():
    result = subprocess.run(
        [sys.executable, "-m", "tercet.kernels.tune"], env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "NVIDIA GPU" in result.stderr
