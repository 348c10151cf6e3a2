"""What a run refuses, what it leaves out and what it writes."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
from benchmarks.limits import Chip
from benchmarks.rows import Curve, Goal, Ratio, Result, Row, Tier
from benchmarks.runner import main

from benchmarks import calibration, environment, runner, testing

ENVIRONMENT = {"date": "2026-01-02T03:04:05+00:00", "sources": "abc", "gpu": None, "versions": {"python": "3.11"}}
SKIP = ("--skip-tests",)


def measured(_settings, median=2.0):
    ratio = Ratio("theirs", median, median - 0.1, median + 0.1, bar=1.5)
    return Result("a comparison", "texts/s", rates={"ours": 20.0, "theirs": 10.0}, ratios=[ratio])


def broken(_settings):
    raise RuntimeError("no such checkpoint")


@pytest.fixture
def one_core(monkeypatch):
    """Tests that are run for a report run in one process: starting more takes longer than they do."""
    monkeypatch.setattr(environment, "cores", lambda: 1)


@pytest.fixture
def run(monkeypatch, tmp_path, one_core):
    """Runs rows as the tier `serving`, without a GPU; gives the exit code, the Markdown and the JSON's rows."""
    monkeypatch.setattr(calibration, "chips", lambda *arguments: {"calibrated": Chip(2e12, 3e9)})
    monkeypatch.setattr(runner, "release", lambda: True)  # would look at all that other tests left behind

    def run(*rows, tests=(), options=SKIP, tiers=("serving",), **changes):
        monkeypatch.setattr(environment, "describe", lambda: ENVIRONMENT | changes)
        monkeypatch.setitem(sys.modules, "benchmarks.serving", SimpleNamespace(TIER=Tier(rows, tests)))
        code = main([*tiers, "--output", str(tmp_path), "--name", "report", *options])
        text = (tmp_path / "report.json").read_text()
        return code, (tmp_path / "report.md").read_text(), json.loads(text)["rows"]

    return run


def test_figures_are_reported_with_interval_and_verdict(run, capsys):
    code, markdown, rows = run(Row("serving/a", measured))
    assert code == 0
    assert "| serving/a | theirs | 10 texts/s | 2.00 × (1.90-2.10) | ≥ 1.5: met |" in markdown
    assert markdown in capsys.readouterr().out
    assert rows["serving/a"]["met"] is True
    assert "- versions: python 3.11" in markdown


def test_a_missed_bar_is_the_exit_code(run):
    code, markdown, rows = run(Row("serving/a", lambda settings: measured(settings, 1.4)), Row("serving/b", measured))
    assert code == 1
    assert "≥ 1.5: MISSED" in markdown
    assert [row["met"] for row in rows.values()] == [False, True]


def test_without_a_gpu_its_rows_are_not_measured(run):
    code, markdown, rows = run(Row("serving/a", broken, device="cuda"))
    assert code == 0
    assert "| serving/a | not measured: no GPU |" in markdown
    assert rows["serving/a"]["rates"] == {}


def test_a_row_that_fails_says_why_and_costs_no_other_row(run):
    code, markdown, rows = run(Row("serving/a", broken), Row("serving/b", measured))
    assert code == 1
    assert "not measured: RuntimeError: no such checkpoint" in markdown
    assert rows["serving/b"]["rates"] == {"ours": 20.0, "theirs": 10.0}


def test_no_row_begins_after_the_budget(run):
    _, markdown, rows = run(Row("serving/a", measured), options=("--skip-tests", "--budget", "0"))
    assert rows["serving/a"]["not_measured"] == "the budget was spent"
    assert "texts/s" not in markdown


def test_rows_are_chosen_by_name(run):
    _, _, rows = run(Row("serving/a", measured), Row("serving/b", measured), options=("--skip-tests", "--rows", "/b"))
    assert list(rows) == ["serving/b"]
    with pytest.raises(SystemExit, match="no row's name"):
        run(Row("serving/a", measured), options=("--skip-tests", "--rows", "nothing"))


def test_red_tests_forbid_a_report(run, tmp_path):
    red = tmp_path / "test_red.py"
    red.write_text("def test_red():\n    assert False\n")
    with pytest.raises(SystemExit, match="red"):
        run(Row("serving/a", measured), tests=(str(red),), options=())
    assert not (tmp_path / "report.json").exists()


def test_green_tests_are_named_in_the_report(run, tmp_path):
    green = tmp_path / "test_green.py"
    green.write_text("def test_green():\n    pass\n")
    code, markdown, _ = run(Row("serving/a", measured), tests=(str(green),), options=())
    assert code == 0
    assert f"- tests: green: 1 passed ({green})" in markdown


def test_tests_that_do_not_end_are_interrupted_and_the_report_says_so(one_core, tmp_path):
    (tmp_path / "test_fast.py").write_text("def test_green():\n    pass\n")
    (tmp_path / "test_slow.py").write_text("import time\n\ndef test_slow():\n    time.sleep(60)\n")
    told = testing.run_tests([str(tmp_path / "test_fast.py"), str(tmp_path / "test_slow.py")], "cpu", 10)
    assert told.startswith("green: 1 passed; NOT ALL: ended after 10 s")


def test_rows_are_measured_by_priority_and_chosen_by_device(run):
    order = []

    def row(name, priority, device="cpu"):
        def measure(settings):
            order.append(name)
            return measured(settings)

        return Row(f"serving/{name}", measure, device=device, priority=priority)

    rows = (row("late", 2), row("first", 0), row("usual", 1), row("gpu", 0, "cuda"))
    _, _, told = run(*rows, options=(*SKIP, "--device", "cpu"))
    assert order == ["first", "usual", "late"]
    assert "serving/gpu" not in told


def test_a_tier_whose_packages_are_missing_says_which(run, monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "benchmarks.models":
                raise ModuleNotFoundError("No module named 'msgspec'", name="msgspec")

    monkeypatch.delitem(sys.modules, "benchmarks.models", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    code, markdown, _ = run(Row("serving/a", measured), tiers=("models", "serving"))
    assert code == 0
    assert "| models | not measured: msgspec is not installed |" in markdown
    assert "| serving/a | theirs |" in markdown


def test_the_machines_limits_are_in_the_report_and_given_to_rows(run):
    def measure(settings):
        limits = {which: chip.flops * 2e-11 for which, chip in settings.chips.items()}
        return dataclasses.replace(measured(settings), fractions={"calibrated": 0.5}, limits=limits)

    _, markdown, rows = run(Row("serving/a", measure))
    assert "2 TFLOP/s, 3 GB/s" in markdown
    assert "50.0% of the calibrated limit of 40 texts/s" in markdown
    assert rows["serving/a"]["fractions"] == {"calibrated": 0.5}


def full(settings):
    """A result with a part of every kind."""
    return dataclasses.replace(
        measured(settings), goals=[Goal("ms", 1.0, 2.0, at_most=True)], flags=["clocks moved by 4.0% (ours)"],
        curves=[Curve("latency", "requests/s", "ms", {"ours": [(1.0, 2.0), (2.0, 5.0)]})], facts={"texts": 3},
        fractions={"calibrated": 0.5}, limits={"calibrated": 40.0},
    )  # fmt: skip


def test_goals_flags_and_plots_are_written(run, tmp_path):
    _, markdown, _ = run(Row("serving/a", full))
    assert "| serving/a | goal | 1 ms | | ≤ 2: met |" in markdown
    assert "**Uncertain: clocks moved by 4.0% (ours).**" in markdown
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        f"report-{plot}.svg" for plot in ("ratios", "limits", "curves")
    }


def test_resuming_keeps_what_was_measured_and_measures_the_rest(run):
    run(Row("serving/a", full), Row("serving/b", broken), Row("serving/c", broken, device="cuda"))
    rows = Row("serving/a", broken), Row("serving/b", measured)
    code, markdown, told = run(*rows, options=(*SKIP, "--resume"))
    assert code == 0
    assert told["serving/a"] == json.loads(json.dumps(dataclasses.asdict(full(None)) | {"met": True}))
    assert told["serving/b"]["rates"] == {"ours": 20.0, "theirs": 10.0}
    assert "≤ 2: met" in markdown


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"sources": "abd"}, ()), ({"date": "2026-01-03T03:04:05+00:00"}, ()), ({"gpu": "NVIDIA H200"}, ()),
        ({"versions": {"python": "3.12"}}, ()), ({}, ("--rounds", "9")), ({}, ("--threads", "77")),
    ],
)  # fmt: skip
def test_other_sources_machines_days_and_settings_are_measured_anew(run, changes, options):
    run(Row("serving/a", full))
    _, _, told = run(Row("serving/a", measured), options=(*SKIP, "--resume", *options), **changes)
    assert told["serving/a"]["facts"] == {}


def test_resuming_from_another_folder(run, tmp_path):
    run(Row("serving/a", full))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "report.json").rename(elsewhere / "report.json")
    _, _, told = run(Row("serving/a", broken), options=(*SKIP, "--resume", str(elsewhere)))
    assert told["serving/a"]["facts"] == {"texts": 3}


def test_tests_that_lack_a_package_on_a_gpus_machine_are_told(monkeypatch):
    ran = []
    monkeypatch.setattr(testing, "run_tests", lambda paths, device, limit: ran.append((paths, device)) or "green")
    monkeypatch.setattr(testing, "GPU_TESTS", {"tests/kernels": (), "tests/gpu": ("msgspec", "no_such_package")})
    assert testing.run_gpu_tests(1) == "green; tests/gpu NOT RUN: no_such_package not installed"
    assert ran == [(["tests/kernels"], "cuda")]


@pytest.mark.parametrize(
    ("gpu", "options", "tested"),
    [
        (None, (), "cpu"), ("NVIDIA H200", (), "gpu; cpu"), ("NVIDIA H200", ("--device", "cuda"), "gpu"),
        ("NVIDIA H200", ("--device", "cpu"), "cpu"),
    ],
)  # fmt: skip
def test_the_devices_that_are_measured_are_tested(run, monkeypatch, gpu, options, tested):
    monkeypatch.setattr(runner, "run_gpu_tests", lambda limit: "gpu")
    monkeypatch.setattr(runner, "run_tests", lambda paths, device, limit: device)
    monkeypatch.setattr(runner.Worker, "measure", lambda worker, tier, row, settings: row.measure(settings))
    rows = Row("serving/a", measured), Row("serving/b", measured, device="cuda")
    _, markdown, told = run(*rows, options=options, gpu=gpu)
    assert f"- tests: {tested}\n" in markdown
    assert (told.get("serving/b", {}).get("not_measured") == "no GPU") == (gpu is None)
