"""What a run refuses, what it leaves out and what it writes."""

import json
import sys
from types import SimpleNamespace

import pytest
from benchmarks.rows import Ratio, Result, Row, Tier
from benchmarks.runner import main

from benchmarks import environment

ENVIRONMENT = {"date": "2026-01-02T03:04:05+00:00", "gpu": None, "versions": {"python": "3.11"}}


def measured(_settings, median=2.0):
    ratio = Ratio("theirs", median, median - 0.1, median + 0.1, bar=1.5)
    return Result("a comparison", "texts/s", rates={"ours": 20.0, "theirs": 10.0}, ratios=[ratio])


def broken(_settings):
    raise RuntimeError("no such checkpoint")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs rows as the tier `serving`, without a GPU; gives the exit code, the Markdown and the JSON's rows."""
    monkeypatch.setattr(environment, "describe", lambda: dict(ENVIRONMENT))

    def run(*rows, tests=(), options=("--skip-tests",)):
        monkeypatch.setitem(sys.modules, "benchmarks.serving", SimpleNamespace(TIER=Tier(rows, tests)))
        code = main(["serving", "--output", str(tmp_path), "--name", "report", *options])
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
    code, markdown, rows = run(Row("serving/a", broken, needs_gpu=True))
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
    assert f"- tests: green ({green})" in markdown
