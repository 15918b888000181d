"""`vla data`: what a store holds, and whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla.errors import InputError

if TYPE_CHECKING:
    from vla.datasets.episodes import EpisodeStore

ACTIONS = ("info", "check")
SHOWN = 10
"""Instructions that `info` lists."""
FAR = 3.0
"""An outlier lies this many times the range of 98 % of the values beyond that range."""


def data(*, action: str, path: str, repair: bool) -> None:
    """Prints what the episode store at `path` holds ("info"), or verifies every byte of it ("check").

    `repair` also removes what a killed writer left behind. Raises InputError for an unknown action, for what is no
    episode store, and when an episode is damaged.
    """
    if action not in ACTIONS:
        raise InputError(f"vla data can do {' and '.join(ACTIONS)}, not {action!r}")
    if repair and action != "check":
        raise InputError("repair=true belongs to vla data check")
    if action == "info":
        print(info(Path(path)))
    else:
        check(Path(path), repair)


def info(path: Path) -> str:
    """A summary to read; no image is decoded. Raises InputError when there is no readable store at `path`."""
    from vla.datasets.episodes import EpisodeStore

    with EpisodeStore.open(path) as store:
        summary = store.summary
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        cameras = ", ".join(f"{name} {width}x{height}" for name, (height, width) in summary.images.items())
        lengths = [record.length for record in store.records] or [0]
        lines = [
            f"{path}: {summary.episodes} episodes of {summary.embodiment}, {summary.successes} successful",
            f"  {summary.frames} steps, {summary.seconds / 3600:.2f} h at {store.embodiment.control_hz:g} Hz, "
            f"{min(lengths)} to {max(lengths)} an episode (mean {np.mean(lengths):.0f})",
            f"  {size / 1e6:.1f} MB; cameras: {cameras or 'none yet'}",
            f"  {len(summary.instructions)} instructions:",
        ]
        common = sorted(summary.instructions.items(), key=lambda item: -item[1])
        lines += [f"    {count:6} x {text}" for text, count in common[:SHOWN]]
        if len(common) > SHOWN:
            lines.append(f"    {sum(count for _, count in common[SHOWN:]):6} x others")
        if len(store):
            lines += _table(store)
    return "\n".join(lines)


def _table(store: EpisodeStore) -> list[str]:
    """A line for each component of state and action: quantiles, extremes, and how many values are outliers."""
    lines = [f"  {'':28}{'1 %':>10}{'99 %':>10}{'min':>10}{'max':>10}  outliers"]
    for kind, statistics in store.statistics().items():
        values = getattr(store, kind)
        low, high = statistics.q01, statistics.q99
        margin = FAR * (high - low)
        outliers = ((values < low - margin) | (values > high + margin)).sum(axis=0)
        for i, name in enumerate(getattr(store.embodiment, kind)):
            numbers = (low[i], high[i], statistics.min[i], statistics.max[i])
            row = "".join(f"{number:10.3f}" for number in numbers)
            lines.append(f"  {f'{kind} {name}':28}{row}  {outliers[i] or '-'}")
    return lines


def check(path: Path, repair: bool) -> None:
    """Reads every episode and compares it with its checksum. Raises InputError that lists the damaged ones.

    With `repair`, what lies beyond the last whole episode is removed, and half-written files are.
    """
    from tqdm import tqdm

    from vla.datasets.episodes import EpisodeStore

    damaged = []
    with EpisodeStore.open(path, "a" if repair else "r") as store:
        for index in tqdm(range(len(store)), desc="check", unit="episode"):
            try:
                store[index]
            except InputError as error:
                damaged.append(str(error))
        if repair:
            removed = store.trim()
            print(f"{path}: removed {removed} steps of an episode that was never finished")
        elif left := store.unfinished_frames:
            print(f"{path}: {left} steps of an episode that was never finished; repair=true removes them")
        count = len(store)
    if damaged:
        raise InputError(f"{len(damaged)} of {count} episodes of {path} are damaged: {'; '.join(damaged)}")
    print(f"{path}: {count} episodes, all sound")
