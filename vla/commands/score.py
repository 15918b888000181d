"""`vla score BENCHMARK`: scores existing answers to a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla.evaluation.vlm.scoring.registry import benchmark as known


def score(*, benchmark: str, predictions: str, references: str, json: str | None) -> None:
    """Prints the scores of a result file with 95 % bootstrap intervals, and a table of categories.

    Args:
        benchmark: Name of the benchmark.
        predictions: The result file.
        references: The official file or folder with questions and answers.
        json: File for the scores; None: no file.

    Raises:
        InputError: The benchmark is unknown, the files are not its own, or the answers do not match the questions.
    """
    bench = known(benchmark)
    questions = bench.entries(Path(references))
    report = bench.score(questions, bench.answers(Path(predictions), questions))
    if json is not None:
        from vla.common.atomic import write_json

        Path(json).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(json), {"benchmark": benchmark, "predictions": predictions, "references": references} | report)
    print(table(benchmark, report))


def table(name: str, report: Mapping[str, Any]) -> str:
    """The report as text."""
    main = next(iter(report["scores"]))
    lines = [f"{name}, {report['units']} units"]
    for label, found in report["scores"].items():
        low, high = found["ci95"]
        lines.append(f"  {label:24} {found['value']:9.4f}  [{low:.4f}, {high:.4f}]")
    if empty := report.get("unanswered"):
        lines.append(f"  empty answers {empty:20}")
    kinds = dict.fromkeys(row["kind"] for row in report["categories"])
    for kind in kinds:
        rows = [row for row in report["categories"] if row["kind"] == kind]
        width = max(24, *(len(row["name"]) for row in rows))
        lines.append(f"{kind:{width + 2}}{main:>10}  units")
        lines += [f"  {row['name']:{width}} {row[main]:9.4f}  {row['units']:5}" for row in rows]
    return "\n".join(lines)
