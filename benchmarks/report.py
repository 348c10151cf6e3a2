"""A run's rows as Markdown for people and JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.rows import Ratio, Result

Environment = dict[str, object]


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
    return lines


def markdown(environment: Environment, results: Mapping[str, Result]) -> str:
    """One table with a line for each contestant, then each row's title and facts."""
    versions = environment["versions"]
    described = [f"{key}: {value}" for key, value in environment.items() if key != "versions"]
    if isinstance(versions, dict):
        described.append("versions: " + ", ".join(f"{package} {version}" for package, version in versions.items()))
    table = [
        "| row | contestant | median | Tercet is faster by (95 % interval) | bar |",
        "|---|---|---|---|---|",
        *(line for name, result in results.items() for line in _lines(name, result)),
    ]
    notes: list[str] = []
    for name, result in results.items():
        if result.not_measured and not result.missed:
            continue
        facts = ", ".join(f"{key} {_number(value)}" for key, value in result.facts.items())
        missed = "".join(f" **MISSED: {bar}.**" for bar in result.missed)
        notes.append(f"- `{name}`: {result.title}.{' ' if facts else ''}{facts}{missed}")
    return "\n".join([*(f"- {line}" for line in described), "", *table, "", *notes, ""])


def write(folder: Path, name: str, environment: Environment, results: Mapping[str, Result]) -> None:
    """Writes `name`.json and `name`.md, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {row: dataclasses.asdict(result) | {"met": result.met} for row, result in results.items()}
    texts = {
        "json": json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n",
        "md": markdown(environment, results),
    }
    for suffix, text in texts.items():
        unfinished = folder / f".{name}.{suffix}"
        unfinished.write_text(text)
        unfinished.replace(folder / f"{name}.{suffix}")
