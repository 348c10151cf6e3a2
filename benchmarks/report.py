"""A run's rows as Markdown for people, JSON for programs and SVG to look at."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from benchmarks.plots import PLOTS
from benchmarks.rows import Curve, Goal, Ratio, Result

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Environment = dict[str, object]
SAME = ("sources", "cpu", "gpu", "rounds", "threads", "against", "versions")  # what a row that is kept must share


def _number(value: float | int | str) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _verdict(ratio: Ratio) -> str:
    if ratio.bar is None:
        return "reported"
    return f"≥ {ratio.bar:g}: {'met' if ratio.met else 'MISSED'}"


def _lines(name: str, result: Result) -> list[str]:
    if result.not_measured:
        return [f"| {name} | not measured: {result.not_measured} | | | |"]
    ratios = {ratio.against: ratio for ratio in result.ratios}
    lines: list[str] = []
    for contestant, rate in result.rates.items():
        ratio = ratios.get(contestant)
        compared = f"{ratio.median:.2f} × ({ratio.low:.2f}-{ratio.high:.2f}) | {_verdict(ratio)}" if ratio else " | "
        lines.append(f"| {name} | {contestant} | {_number(rate)} {result.unit} | {compared} |")
    for goal in result.goals:
        bar = f"{'≤' if goal.at_most else '≥'} {goal.bar:g}: {'met' if goal.met else 'MISSED'}"
        lines.append(f"| {name} | goal | {_number(goal.value)} {goal.what} | | {bar} |")
    return lines


def _note(name: str, result: Result) -> str:
    facts = ", ".join(f"{key} {_number(value)}" for key, value in result.facts.items())
    shares = ", ".join(
        f"{share:.1%} of the {which} limit of {_number(result.limits[which])} {result.unit}"
        for which, share in result.fractions.items()
    )
    parts = [f"{result.title}.", *(f"{part}." for part in (facts, shares) if part)]
    parts += [f"**Uncertain: {flag}.**" for flag in result.flags]
    parts += [f"**MISSED: {bar}.**" for bar in result.missed]
    return f"- `{name}`: {' '.join(parts)}"


def markdown(environment: Environment, results: Mapping[str, Result]) -> str:
    """One table with a line for each contestant and goal, then each row's title, facts, limits and flags."""
    versions = environment["versions"]
    described = [f"{key}: {value}" for key, value in environment.items() if key != "versions"]
    if isinstance(versions, dict):
        described.append("versions: " + ", ".join(f"{package} {version}" for package, version in versions.items()))
    table = [
        "| row | contestant | median | Tercet is faster by (95 % interval) | bar |",
        "|---|---|---|---|---|",
        *(line for name, result in results.items() for line in _lines(name, result)),
    ]
    notes = [_note(name, result) for name, result in results.items() if not result.not_measured or result.missed]
    return "\n".join([*(f"- {line}" for line in described), "", *table, "", *notes, ""])


def write(folder: Path, name: str, environment: Environment, results: Mapping[str, Result]) -> None:
    """Writes `name`.json, `name`.md and the plots there are figures for, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row: dataclasses.asdict(result) | {"met": result.met} for row, result in results.items()}
    texts = {
        f"{name}.json": json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n",
        f"{name}.md": markdown(environment, results),
    }
    plots = {f"{name}-{kind}.svg": draw(results) for kind, draw in PLOTS.items()}
    for file, text in (texts | plots).items():
        if not text:  # nothing to plot
            (folder / file).unlink(missing_ok=True)
            continue
        unfinished = folder / f".{file}"
        unfinished.write_text(text)
        unfinished.replace(folder / file)


def read(path: Path, environment: Environment) -> dict[str, Result]:
    """The measured rows of an earlier report of the same day, sources, hardware and settings; else none."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    earlier = found["environment"]
    same_day = str(earlier.get("date"))[:10] == str(environment["date"])[:10]
    # As JSON: what is written there has no tuples.
    alike = all(json.dumps(earlier.get(key)) == json.dumps(environment.get(key)) for key in SAME)
    if not (same_day and alike):
        return {}
    return {name: _result(row) for name, row in found["rows"].items() if row["not_measured"] is None}


def _result(row: dict[str, object]) -> Result:
    parts = {"ratios": Ratio, "goals": Goal, "curves": Curve}
    plain = {key: value for key, value in row.items() if key not in (*parts, "met")}
    made = {key: [kind(**each) for each in row[key]] for key, kind in parts.items()}  # pyright: ignore
    return Result(**plain, **made)  # pyright: ignore[reportArgumentType]
