"""Rows are prepared in processes of their own, whose end is nobody else's."""

import dataclasses

from benchmarks.kernels import TIER
from benchmarks.preparation import prepare
from benchmarks.rows import Row, Settings

SETTINGS = Settings(rounds=7, threads=1)
ROW = next(row for row in TIER.rows if row.name == "kernels/cpu/rms_norm")


def test_a_row_that_crashes_or_comes_too_late_costs_no_other_row():
    unknown = dataclasses.replace(ROW, name="kernels/cpu/unknown")
    last = Row("kernels/cpu/last", ROW.measure, gib=100)
    unready = prepare([("kernels", ROW), ("kernels", unknown)], SETTINGS, gib=10, seconds=200)
    assert unready == {"kernels/cpu/unknown": "its process ended with 1"}
    assert prepare([("kernels", last)], SETTINGS, gib=10, seconds=0) == {"kernels/cpu/last": "not begun"}
