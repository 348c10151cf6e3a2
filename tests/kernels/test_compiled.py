"""The committed table of compiled kernels: complete, up to date, and within its requirements."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tercet.kernels.calls import CALLS, HEAD_DIMS
from tercet.kernels.compiled import TABLE, broken_requirements, read_table, write_table

TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}


def check(table, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`--check` in a process whose triton compiles; ours interprets."""
    command = [sys.executable, "-m", "tercet.kernels.compile", "--check", "--table", str(table), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_committed_table_holds():
    result = check(TABLE, "--sample", "1", "--seed", "3", "--processes", "1")
    assert result.returncode == 0, result.stderr


def test_every_call_target_and_version_is_there():
    rows = read_table()
    assert len({(row.call, row.kernel) for row in rows.values()}) <= 200
    versions = {row.triton for row in rows.values()}
    assert "3.6.0" in versions
    for version in versions:
        for call in CALLS:
            assert {row.target for row in rows.values() if (row.triton, row.call) == (version, call)} == TARGETS
    assert {call.head_dim for call in CALLS.values()} >= set(HEAD_DIMS)


@pytest.mark.parametrize(
    ("call", "target", "change", "complaint"),
    [
        ("encoder bfloat16 64", "sm_80", {"spills": 8}, "spills"),
        ("encoder bfloat16 64", "sm_90", {"wgmma": 0}, "wgmma"),
        ("encoder bfloat16 64", "sm_90", {"shared": 10**6}, "shared memory"),
        ("encoder bfloat16 64", "sm_90", {"hash": "0" * 16}, "out of date"),
        ("encoder bfloat16 64", "sm_90", {"call": "encoder bfloat16 65"}, "not shipped"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_bad_row_is_found(tmp_path, call, target, change, complaint):
    rows = read_table()
    version = max(row.triton for row in rows.values())
    key = next(key for key, row in rows.items() if (row.triton, row.call, row.target) == (version, call, target))
    bad = rows[key]._replace(**change)
    if "hash" in change or "call" in change:
        path = tmp_path / "compiled.csv"
        write_table([bad, *(row for row in rows.values() if row.key != key)], path)
        result = check(path, "--sample", "0", "--seconds", "0")
        assert result.returncode == 1
        assert complaint in result.stderr
    else:
        assert broken_requirements(rows[key]) == []
        assert complaint in broken_requirements(bad)[0]


def test_the_table_reads_back_as_written(tmp_path):
    rows = read_table()
    write_table(rows.values(), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == TABLE.read_text()
