"""`vla probe`: what a model sees, counts and makes up, held against the simulator's truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vla.errors import InputError

if TYPE_CHECKING:
    from vla.evaluation.vlm.probes.probe import ProbeResult


def probe(*, policy: str, probes: Sequence[str] | None, n: int, seed: int, out: str, json: str | None) -> None:
    """Puts the backbone of `policy` (`vla.evaluation.vlm.answerer.open_answerer`) to the probes, on n scenes each.

    Prints a table and writes a page, `out`/probes.html; `json` is a file that gets the figures. `probes` are names
    of `vla.evaluation.vlm.probes.registry`, None for all that the model can take. Raises InputError for an unknown
    one, and what opening and asking the model raises.
    """
    if n < 2 or seed < 0:
        raise InputError(f"a probe needs 2 scenes or more and a seed of 0 or more, not n={n} seed={seed}")
    from vla.common.atomic import write_json
    from vla.evaluation.vlm.answerer import open_answerer
    from vla.evaluation.vlm.probes.probe_report import write_probe_page
    from vla.evaluation.vlm.probes.registry import check, select_probes

    check(probes)
    answerer = open_answerer(policy)
    found: dict[str, ProbeResult] = {}
    for name, run in select_probes(probes, answerer).items():
        found[name] = run(answerer, n, seed)
        print(table(name, found[name]), flush=True)
    page = write_probe_page(Path(out) / "probes.html", policy, found)
    if json is not None:
        Path(json).parent.mkdir(parents=True, exist_ok=True)
        figures = {name: {**one.report, "blank": one.blank} for name, one in found.items()}
        write_json(Path(json), {"policy": policy, "n": n, "seed": seed, "probes": figures})
    print(page)


def table(name: str, found: ProbeResult) -> str:
    """Its scores with their intervals, beside those without a picture."""
    lines = [f"{name:24}{'value':>9}  {'95 % interval':18}{'blank':>7}"]
    for label, score in found.report["scores"].items():
        (low, high), blank = score["ci95"], found.blank.get(label)
        beside = "" if blank is None else f"{blank:7.3f}"
        lines.append(f"  {label:22}{score['value']:9.3f}  {f'[{low:.3f}, {high:.3f}]':18}{beside}")
    return "\n".join(lines)
