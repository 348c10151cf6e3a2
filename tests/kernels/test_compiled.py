"""The committed table of compiled kernels: complete, up to date, and within its requirements."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tercet.kernels.calls import CALLS, HEAD_DIMS
from tercet.kernels.compiled import SHARED_LIMIT, TABLE, broken_requirements, read_table, write_table

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PINNED = re.search(r"^triton==(.+)$", CONSTRAINTS.read_text(), re.MULTILINE)[1]
TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}
RESERVED_SHARED = {"sm_80": 1 << 10, "sm_90": 1 << 10}  # bytes the system takes for a program


def check(table, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`--check` in a process whose triton compiles; ours interprets."""
    return compiling("-m", "tercet.kernels.compile", "--check", "--table", str(table), *arguments)


def compiling(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_the_committed_table_holds():
    result = check(TABLE, "--sample", "1", "--seed", "3", "--processes", "1")
    assert result.returncode == 0, result.stderr


def test_every_call_target_and_version_is_there():
    rows = read_table()
    assert len({(row.call, row.kernel) for row in rows.values()}) <= 200
    versions = {row.triton for row in rows.values()}
    assert versions == {"3.6.0", PINNED}
    for version in versions:
        for call in CALLS:
            assert {row.target for row in rows.values() if (row.triton, row.call) == (version, call)} == TARGETS
    assert {call.head_dim for call in CALLS.values()} >= set(HEAD_DIMS)


def test_all_programs_of_paged_attention_run_at_once():
    """Their shares are equal: one that waited for a place would end last."""
    from tercet.kernels.jit.attention_plan import REGISTERS, RESIDENT

    rows = [
        row for row in read_table().values() if row.kernel == "paged_attention_kernel" and row.target in RESERVED_SHARED
    ]
    assert {CALLS[row.call].head_dim for row in rows} == set(HEAD_DIMS)
    for row in rows:
        programs = RESIDENT[min(size for size in RESIDENT if size >= CALLS[row.call].head_dim)]
        warps = int(re.search(r"num_warps=(\d+)", row.configuration)[1])
        reserved = RESERVED_SHARED[row.target]
        assert programs * 32 * warps * -(-row.registers // 8) * 8 <= REGISTERS, row
        assert programs * (row.shared + reserved) <= SHARED_LIMIT[row.target] + reserved, row


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


FINGERPRINTS = """
from unittest import mock
from tercet.kernels import calls, dispatch
from tercet.kernels.launches import fingerprint, launches

NAMES = ("prefill window bfloat16 64", "decode bfloat16 64", "pad float16", "unpad float16", "sample float32")

def digests(**sizes):
    with mock.patch.multiple(calls, **sizes):
        return [[fingerprint(launch) for launch in launches(calls.CALLS[name])] for name in NAMES]

given = digests(ROWS=calls.ROWS)
print(digests(ROWS=1, LONGEST=33) == given, digests(HEADS=16)[1] == given[1], digests(PAGE_SIZE=32)[1] == given[1])
print(dispatch._selected)
"""


def test_a_launch_is_told_apart_by_what_the_compiler_sees():
    """One row or odd lengths change nothing: kernels aren't compiled anew for a batch. Other heads or pages do."""
    result = compiling("-c", FINGERPRINTS)
    assert result.stdout.split() == ["True", "False", "False", "None"], result.stderr


ABORTS = """
import os
from tercet.kernels import compile

def compile_row(job, deadline):
    return os._exit(1) if job.call == "aborts" else job

if __name__ == "__main__":
    compile.compile_row = compile_row
    work = [compile.Job(call, 0, "sm_80") for call in ("first", "aborts", "second", "third")]
    rows, failures = compile.compile_rows(work, processes=2)
    print(*sorted(row.call for row in rows), *failures)
"""


def test_a_compiler_that_aborts_fails_its_own_job_alone(tmp_path):
    program = tmp_path / "aborts.py"
    program.write_text(ABORTS)
    result = compiling(str(program))
    assert result.stdout.strip() == "first second third aborts sm_80 does not compile: the compiler aborts", (
        result.stderr
    )


LAUNCHES = """
from types import SimpleNamespace
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from tercet.kernels.calls import CALLS
from tercet.kernels.launches import launches, source

here = {"get_current_device": 0, "get_current_stream": 0, "get_current_target": GPUTarget("cuda", 90, 32)}
driver.set_active(SimpleNamespace(**{name: lambda *device, told=told: told for name, told in here.items()}))
asked = []

def ask(kernel, key, signature, device, constants, options, attributes, warmup):
    asked.append(kernel.ASTSource(kernel, signature, constants, attributes).hash())

JITFunction._do_compile = ask
found = [launch for call in CALLS.values() for launch in launches(call, ("sm_90", "any"))]
for launch in found:
    launch.kernel.run(*launch.arguments, grid=(1,), warmup=True, **launch.keywords)
wrong = [launch.kernel.__name__ for launch, key in zip(found, asked, strict=True) if source(launch)[0].hash() != key]
print(len(found) > 100, wrong)
"""


def test_what_is_compiled_beforehand_is_found_when_it_is_launched():
    """Triton's cache knows both by one key."""
    result = compiling("-c", LAUNCHES)
    assert result.stdout == "True []\n", result.stderr
