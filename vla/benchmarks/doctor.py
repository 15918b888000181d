"""`vla bench doctor`: recall of injected faults and false alarms of `vla data doctor`.

Demonstrations of several tasks are recorded, with the noise and the randomized scenes of `vla record`. Each fault is
injected into a fifth of the episodes of each task. Recall is the share of these episodes in which the corresponding
check reports the fault. A false alarm is any report, including hints, about a clean episode. `lerobot-doctor` and
`lerobot-lint`, if environment variables name their interpreters, get the same episodes as LeRobotDatasets; any
complaint about an episode that they do not have without the fault counts as a detection.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vla.benchmarks.doctor_faults import FAULTS, HARDER, Fault
from vla.benchmarks.doctor_peers import PYTHONS, Complaints, complaints, exported
from vla.common.result_table import Table, Target
from vla.datasets.doctor.diagnose import diagnose
from vla.datasets.doctor.finding import Finding
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment
from vla.types import Episode

TASKS = ("pick", "place", "stack", "drawer-open", "press", "bimanual-lift")
OURS = "vla data doctor"
CLEAN = "none (clean): false alarms an episode"
RECALL, FALSE_ALARMS, SECONDS = 0.95, 0.02, 10.0
MANY = 1000
"""The number of episodes in the timing of checks without images."""
Found = list[tuple[str, str, list[float]]]
"""Fault, tool, and whether each episode was reported."""


def bench_doctor(tasks: Sequence[str] = TASKS, episodes: int = 40, many: int = MANY, seed: int = 100_000) -> Table:
    """Measures recall, false alarms and speed.

    Args:
        tasks: The tasks.
        episodes: Episodes per task.
        many: Episodes in the timing of checks without images.
        seed: The seeds of the tasks are multiples of it.
    """
    tools = [OURS, *(tool for tool, variable in PYTHONS.items() if os.environ.get(variable))]
    for tool in PYTHONS.keys() - set(tools):
        print(f"{tool} is skipped: {PYTHONS[tool]} is not set to an interpreter")
    found: dict[tuple[str, str], list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="vla-bench-") as folder,
        ProcessPoolExecutor(min(len(tasks), os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool,
        tqdm(total=len(tasks), desc="doctor", unit="task") as bar,
    ):
        jobs = [pool.submit(_of_task, t, episodes, seed * (i + 1), tools, folder) for i, t in enumerate(tasks)]
        for _ in as_completed(jobs):
            bar.update()
        for fault, tool, values in chain.from_iterable(job.result() for job in jobs):
            found.setdefault((fault, tool), []).extend(values)
    rows = [_row(name, tool, values) for (name, tool), values in found.items()]
    return Table(rows, _targets(rows, _seconds(many), many))


def _of_task(task: str, episodes: int, seed: int, tools: Sequence[str], folder: str) -> Found:
    """The findings of each tool in demonstrations of one task, clean and with each fault."""
    clean = _record(task, episodes, Path(folder) / f"{task}.zarr", seed)
    blind = [_blind(episode) for episode in clean]
    others = [tool for tool in tools if tool != OURS]
    before, without = _complaints(tools, clean, Path(folder)), _complaints(others, blind, Path(folder))
    found: Found = [(CLEAN, tool, [float(bool(before[tool].get(i))) for i in range(episodes)]) for tool in tools]
    for fault in (*FAULTS, *HARDER):
        rng = np.random.default_rng([seed, len(fault.name)])
        faulty = rng.choice(episodes, max(1, round(fault.share * episodes)), replace=False)
        source, usual = (clean, before) if fault.images else (blind, without)
        planted = [fault.plant(e, rng) if i in faulty else e for i, e in enumerate(source)]
        for tool, reported in _complaints(tools, planted, Path(folder), fault).items():
            known: Complaints = {} if tool == OURS else usual[tool]
            hits = [float(bool(reported.get(i, set()) - known.get(i, set()))) for i in faulty.tolist()]
            found.append((fault.name, tool, hits))
    return found


def _row(name: str, tool: str, values: Sequence[float]) -> dict[str, Any]:
    share = float(np.mean(values))
    is_clean = name == CLEAN
    return {
        "fault": name,
        "tool": tool,
        "recall": None if is_clean else share,
        "false alarms an episode": share if is_clean else None,
        "episodes": len(values),
    }


def _targets(rows: Sequence[dict[str, Any]], seconds: float, many: int) -> list[Target]:
    ours = {row["fault"]: row for row in rows if row["tool"] == OURS}
    alarms = ours[CLEAN]["false alarms an episode"]
    return [
        *(Target(f"recall, {fault.name}", ours[fault.name]["recall"], RECALL) for fault in FAULTS),
        Target(f"false alarms an episode, {ours[CLEAN]['episodes']} clean", alarms, FALSE_ALARMS, at_most=True),
        Target(f"s for {many} episodes without images", seconds, SECONDS, at_most=True),
    ]


def _complaints(
    tools: Sequence[str], episodes: Sequence[Episode], folder: Path, fault: Fault | None = None
) -> dict[str, Complaints]:
    """The complaints of each tool about each episode; ours are limited to those about `fault`, if set."""
    by_tool = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if OURS in tools:
            by_tool[OURS] = _ours(episodes, Path(scratch) / "a.zarr", fault)
        others = [tool for tool in tools if tool != OURS]
        dataset = exported(episodes, Path(scratch) / "dataset") if others else folder
        return by_tool | {tool: complaints(tool, dataset) for tool in others}


def _ours(episodes: Sequence[Episode], path: Path, fault: Fault | None) -> Complaints:
    with EpisodeStore.create(path, episodes[0].embodiment, "lz4") as store:
        for episode in episodes:
            store.append(episode)
    with EpisodeStore.open(path) as store:
        findings = diagnose(store, range(len(store))).findings
    named: Complaints = {}
    for finding in findings:
        if fault is None or finding.check in fault.check:
            for number in finding.episodes:
                named.setdefault(number, set()).add(_kind(finding))
    return named


def _kind(finding: Finding) -> str:
    return f"{finding.check} {finding.subject}"


def _blind(episode: Episode) -> Episode:
    body = replace(episode.embodiment, cameras=())
    return replace(episode, embodiment=body, images={}, points=None)


def _record(task: str, episodes: int, path: Path, seed: int) -> list[Episode]:
    from vla.commands.record import record_demonstrations

    record_demonstrations(task, episodes, str(path), seed, noise=0.03, randomize=True, workers=1, holdout=True)
    with EpisodeStore.open(path) as store:
        return [replace(episode, points=None) for episode in store]


def _seconds(episodes: int, steps: int = 200) -> float:
    """The time of all checks without images on episodes of six joints [s]."""
    rng = np.random.default_rng(0)
    names = tuple(f"joint {i} [rad]" for i in range(6))
    robot = Embodiment("bench", (), names, names, (-3.0,) * 6, (3.0,) * 6, 30.0)
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder:
        with EpisodeStore.create(Path(folder) / "a.zarr", robot) as store:
            for _ in range(episodes):
                path = _smooth(rng, steps + 3)
                noise = rng.normal(0, 0.005, (steps, 6))
                times = np.arange(steps) / robot.control_hz
                store.append(Episode({}, path[:-3] + noise, path[3:], times, "", robot, True))
        with EpisodeStore.open(Path(folder) / "a.zarr") as store:
            start = time.perf_counter()
            diagnose(store, range(len(store)), images=False)
            return time.perf_counter() - start


def _smooth(rng: np.random.Generator, steps: int) -> np.ndarray:
    t = np.arange(steps)[:, None, None] / 30
    waves = np.sin(t * rng.uniform(1, 3, (2, 6)) + rng.uniform(0, 6, (2, 6)))
    return waves[:, 0] + 0.5 * waves[:, 1]


def markdown(table: dict[str, Any]) -> str:
    """The benchmark's JSON as a table for docs/data-quality.md: one line per fault, one column per tool."""
    tools = list(dict.fromkeys(row["tool"] for row in table["rows"]))
    faults = list(dict.fromkeys(row["fault"] for row in table["rows"]))
    cells = {(row["fault"], row["tool"]): row for row in table["rows"]}
    lines = [f"| fault | {' | '.join(f'`{tool}`' for tool in tools)} |", "|---" * (len(tools) + 1) + "|"]
    for fault in faults:
        values = [cells[fault, tool] for tool in tools]
        shown = [v["recall"] if v["recall"] is not None else v["false alarms an episode"] for v in values]
        lines.append(f"| {fault} | {' | '.join(f'{value:.3f}' for value in shown)} |")
    return "\n".join(lines)
