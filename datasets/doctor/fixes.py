"""The command lines that repair findings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla.datasets.doctor.finding import (
    AddToAction,
    Advice,
    Cut,
    Drop,
    DropCamera,
    Finding,
    FixImages,
    ShiftActions,
    Steps,
    Trim,
)


class Fixes:
    """Commands for findings in a store.

    Args:
        path: The store.
        lengths: Number of steps of each episode.
        cameras: Names of the cameras.
        actions: Names of the action components.
    """

    def __init__(self, path: str, lengths: Mapping[int, int], cameras: Sequence[str], actions: Sequence[str]) -> None:
        self._path, self._lengths, self._cameras, self._actions = path, lengths, cameras, actions

    def of(self, finding: Finding) -> str:
        """The command that repairs a finding, or the advice if there is none."""
        remedy = finding.remedy
        if isinstance(remedy, Advice):
            return remedy.text
        if isinstance(remedy, AddToAction):
            name = self._component(remedy.component)
            return self._edit(finding.episodes, f"'action_offset={{{name}: {remedy.amount:.6g}}}'")
        if isinstance(remedy, FixImages):
            return self._edit(finding.episodes, shlex.quote(f"{remedy.option}=[{remedy.camera}]"))
        options = self.filter_options([finding])
        return self._filter(options) if options else "all episodes are affected: record again"

    def together(self, findings: Sequence[Finding]) -> str | None:
        """One command for all faults that `vla data filter` repairs; None if there is only one or none."""
        faults = [finding for finding in findings if finding.level == "fault"]
        options = self.filter_options(faults)
        repairable = [finding for finding in faults if self.filter_options([finding])]
        return self._filter(options) if options and len(repairable) > 1 else None

    def filter_options(self, findings: Sequence[Finding]) -> dict[str, str]:
        """The options of `vla data filter` that repair the findings; empty if no episode would be left."""
        dropped: set[int] = set()
        dropped_cameras: list[str] = []
        cut: dict[int, list[tuple[int, int]]] = {}
        options: dict[str, str] = {}
        for finding in findings:
            match finding.remedy:
                case Drop() if len(finding.episodes) < len(self._lengths):
                    dropped |= set(finding.episodes)
                case Drop() if finding.subject in self._cameras:
                    dropped_cameras.append(finding.subject)
                case DropCamera(camera):
                    dropped_cameras.append(camera)
                case Trim(seconds):
                    options["trim"] = f"{min(seconds, float(options.get('trim', seconds))):g}"
                case Cut():
                    for episode, ranges in finding.steps.items():
                        cut.setdefault(episode, []).extend(ranges)
                case ShiftActions(steps):
                    options["action_shift"] = str(steps)
        if dropped and len(dropped) < len(self._lengths):
            options["drop"] = numbers_text(sorted(dropped))
        if dropped_cameras and set(dropped_cameras) != set(self._cameras):
            options["drop_cameras"] = f"[{','.join(dict.fromkeys(dropped_cameras))}]"
        cut = {episode: ranges for episode, ranges in cut.items() if episode not in dropped}
        if remaining := self._remaining_steps(cut):
            options["steps"] = "{" + ", ".join(f'{episode}: "{text}"' for episode, text in remaining.items()) + "}"
        return options

    def _remaining_steps(self, cut: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, str]:
        """The remaining steps of each episode, as text."""
        remaining = {}
        for episode, ranges in cut.items():
            removed = {step for start, stop in ranges for step in range(start, stop)}
            if left := [step for step in range(self._lengths[episode]) if step not in removed]:
                remaining[episode] = numbers_text(left)
        return remaining

    def _filter(self, options: Mapping[str, str]) -> str:
        out = shlex.quote(f"out={_clean(self._path)}")
        rest = " ".join(shlex.quote(f"{name}={value}") for name, value in options.items())
        return f"vla data filter {shlex.quote(self._path)} {out} {rest}"

    def _edit(self, episodes: Sequence[int], change: str) -> str:
        every = len(episodes) == len(self._lengths)
        return f"vla data edit {shlex.quote(self._path)} episodes={':' if every else numbers_text(episodes)} {change}"

    def _component(self, name: str) -> str:
        """The component's name without unit, or its index if the name is not unique or not a valid key for Hydra."""
        bare = name.partition(" [")[0]
        unique = [action.partition(" [")[0] for action in self._actions].count(bare) == 1
        return bare if unique and re.fullmatch(r"[A-Za-z_][\w./-]*", bare) else str(self._actions.index(name))


def numbers_text(numbers: Sequence[int]) -> str:
    """Sorted numbers in the format of options: 3,7,9:12."""
    items: list[str] = []
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            first, last = numbers[start], numbers[i - 1]
            items.append(str(first) if first == last else f"{first}:{last + 1}")
            start = i
    return ",".join(items)


def steps_text(steps: Steps, max_episodes: int) -> str:
    """The steps as text, "3: 10:20, 44; …", for up to `max_episodes` episodes."""
    texts = [
        f"{episode}: {', '.join(f'{a}:{b}' if b > a + 1 else str(a) for a, b in ranges[:5])}"
        + (", …" if len(ranges) > 5 else "")
        for episode, ranges in list(steps.items())[:max_episodes]
    ]
    return "; ".join(texts) + ("; …" if len(steps) > max_episodes else "")


def _clean(path: str) -> str:
    """An unused path for the repaired store."""
    stem = path.rstrip("/").removesuffix(".zarr")
    number, candidate = 1, Path(f"{stem}-clean.zarr")
    while candidate.exists():
        number += 1
        candidate = Path(f"{stem}-clean-{number}.zarr")
    return str(candidate)
