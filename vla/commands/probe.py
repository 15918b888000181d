"""`vla probe`: compares a model's answers with the simulator's ground truth: perception, counting, hallucination."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vla.errors import InputError

if TYPE_CHECKING:
    from vla.evaluation.vlm.probes.probe import ProbeResult


def probe(*, policy: str, probes: Sequence[str] | None, n: int, seed: int, out: str, json: str | None) -> None:
    """Runs probes on the backbone of a policy, prints a table and writes the page `out`/probes.html.

    Args:
        policy: Model, as `vla.evaluation.vlm.answerer.open_answerer` accepts it.
        probes: Names of `vla.evaluation.vlm.probes.registry`; None: all that the model supports.
        n: Scenes for each probe.
        seed: Seed of the scenes.
        out: Output folder.
        json: File for the results; None: no file.

    Raises:
        InputError: A probe is unknown, or the model cannot be opened or queried.
    """
    if n < 2 or seed < 0:
        raise InputError(f"a probe needs 2 scenes or more and a seed of 0 or more, not n={n} seed={seed}")
    from vla.common.atomic import write_json
    from vla.evaluation.vlm.answerer import open_answerer
    from vla.evaluation.vlm.probes.names import check_names
    from vla.evaluation.vlm.probes.probe_report import write_probe_page
    from vla.evaluation.vlm.probes.registry import select_probes

    check_names(probes)
    answerer = open_answerer(policy)
    results: dict[str, ProbeResult] = {}
    for name, run in select_probes(probes, answerer).items():
        results[name] = run(answerer, n, seed)
        print(table(name, results[name]), flush=True)
    page = write_probe_page(Path(out) / "probes.html", policy, results)
    if json is not None:
        Path(json).parent.mkdir(parents=True, exist_ok=True)
        figures = {name: {**result.report, "blank": result.blank} for name, result in results.items()}
        write_json(Path(json), {"policy": policy, "n": n, "seed": seed, "probes": figures})
    print(page)


def table(name: str, found: ProbeResult) -> str:
    """The scores of a probe with their intervals, next to those with a blank image."""
    lines = [f"{name:24}{'value':>9}  {'95 % interval':18}{'blank':>7}"]
    for label, score in found.report["scores"].items():
        (low, high), blank = score["ci95"], found.blank.get(label)
        last = "" if blank is None else f"{blank:7.3f}"
        lines.append(f"  {label:22}{score['value']:9.3f}  {f'[{low:.3f}, {high:.3f}]':18}{last}")
    return "\n".join(lines)
