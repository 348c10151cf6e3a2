"""Our kernels of another source tree compete in a process of their own."""

import dataclasses
import shutil

import pytest
from benchmarks.kernels import TIER
from benchmarks.kernels.earlier import Earlier
from benchmarks.revision import source_tree
from benchmarks.rows import Settings

from benchmarks import environment

ROW = next(row for row in TIER.rows if row.name == "kernels/cpu/rms_norm")
SETTINGS = Settings(rounds=2, threads=1, settle=0, seconds=0.01)


SLOW = """

import time

_at_once = rms_norm


def rms_norm(*arguments, **options):
    time.sleep(0.1)
    return _at_once(*arguments, **options)
"""


def test_the_other_trees_kernels_are_timed_beside_ours(tmp_path):
    shutil.copytree(environment.ROOT / "kernels", tmp_path / "kernels")
    with (tmp_path / "kernels/tercet/kernels/cpu.py").open("a") as file:
        file.write(SLOW)
    result = ROW.measure(dataclasses.replace(SETTINGS, against=tmp_path))
    earlier = next(ratio for ratio in result.ratios if ratio.against == "tercet as it was")
    assert earlier.median > 5, "its kernels sleep"


def test_a_tree_that_cannot_run_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="there are no kernels in"):
        Earlier(ROW.name, dataclasses.replace(SETTINGS, against=tmp_path))


def test_a_tree_is_a_folder_or_a_revision(tmp_path):
    with source_tree(str(tmp_path)) as tree:
        assert tree == tmp_path
    with source_tree(None) as tree:
        assert tree is None
    with pytest.raises(SystemExit, match="worktree"), source_tree("no-such-revision"):
        pass
