"""The command that repairs a finding, as it is typed."""

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
    """Commands for findings in the store at `path`, of episodes of these lengths and with these cameras."""

    def __init__(self, path: str, lengths: Mapping[int, int], cameras: Sequence[str], actions: Sequence[str]) -> None:
        self._path, self._lengths, self._cameras, self._actions = path, lengths, cameras, actions

    def of(self, finding: Finding) -> str:
        """The command, or advice where there is none."""
        remedy = finding.remedy
        if isinstance(remedy, Advice):
            return remedy.text
        if isinstance(remedy, AddToAction):
            name = self._component(remedy.component)
            return self._edit(finding.episodes, f"'action_offset={{{name}: {remedy.amount:.6g}}}'")
        if isinstance(remedy, FixImages):
            return self._edit(finding.episodes, shlex.quote(f"{remedy.option}=[{remedy.camera}]"))
        options = self.filter_options([finding])
        return self._filter(options) if options else "it is so in all episodes: record again"

    def together(self, findings: Sequence[Finding]) -> str | None:
        """One command for all faults that `filter` repairs; None where that is no more than one."""
        faults = [finding for finding in findings if finding.level == "fault"]
        options = self.filter_options(faults)
        alone = [finding for finding in faults if self.filter_options([finding])]
        return self._filter(options) if options and len(alone) > 1 else None

    def filter_options(self, findings: Sequence[Finding]) -> dict[str, str]:
        """Options of `vla data filter`; none where no episode would be left."""
        dropped: set[int] = set()
        gone: list[str] = []
        cut: dict[int, list[tuple[int, int]]] = {}
        options: dict[str, str] = {}
        for finding in findings:
            match finding.remedy:
                case Drop() if len(finding.episodes) < len(self._lengths):
                    dropped |= set(finding.episodes)
                case Drop() if finding.subject in self._cameras:
                    gone.append(finding.subject)
                case DropCamera(camera):
                    gone.append(camera)
                case Trim(seconds):
                    options["trim"] = f"{min(seconds, float(options.get('trim', seconds))):g}"
                case Cut():
                    for episode, ranges in finding.steps.items():
                        cut.setdefault(episode, []).extend(ranges)
                case ShiftActions(steps):
                    options["action_shift"] = str(steps)
        if dropped and len(dropped) < len(self._lengths):
            options["drop"] = numbers_text(sorted(dropped))
        if gone and set(gone) != set(self._cameras):
            options["drop_cameras"] = f"[{','.join(dict.fromkeys(gone))}]"
        if kept := self._kept({episode: ranges for episode, ranges in cut.items() if episode not in dropped}):
            options["steps"] = "{" + ", ".join(f'{episode}: "{text}"' for episode, text in kept.items()) + "}"
        return options

    def _kept(self, cut: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, str]:
        """The steps that are left of each episode."""
        found = {}
        for episode, ranges in cut.items():
            gone = {step for start, stop in ranges for step in range(start, stop)}
            if left := [step for step in range(self._lengths[episode]) if step not in gone]:
                found[episode] = numbers_text(left)
        return found

    def _filter(self, options: Mapping[str, str]) -> str:
        out = shlex.quote(f"out={_clean(self._path)}")
        rest = " ".join(shlex.quote(f"{name}={value}") for name, value in options.items())
        return f"vla data filter {shlex.quote(self._path)} {out} {rest}"

    def _edit(self, episodes: Sequence[int], change: str) -> str:
        every = len(episodes) == len(self._lengths)
        return f"vla data edit {shlex.quote(self._path)} episodes={':' if every else numbers_text(episodes)} {change}"

    def _component(self, name: str) -> str:
        """The name as Hydra's grammar takes it for a key, or else its number."""
        bare = name.partition(" [")[0]
        alone = [each.partition(" [")[0] for each in self._actions].count(bare) == 1
        return bare if alone and re.fullmatch(r"[A-Za-z_][\w./-]*", bare) else str(self._actions.index(name))


def numbers_text(numbers: Sequence[int]) -> str:
    """Rising numbers as options take them: 3,7,9:12."""
    parts: list[str] = []
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            first, last = numbers[start], numbers[i - 1]
            parts.append(str(first) if first == last else f"{first}:{last + 1}")
            start = i
    return ",".join(parts)


def steps_text(steps: Steps, most: int) -> str:
    """ "episode 3: 10:20, 44; …", of so many episodes at most."""
    shown = list(steps.items())[:most]
    texts = [
        f"{episode}: {', '.join(f'{a}:{b}' if b > a + 1 else str(a) for a, b in ranges[:5])}"
        + (", …" if len(ranges) > 5 else "")
        for episode, ranges in shown
    ]
    return "; ".join(texts) + ("; …" if len(steps) > most else "")


def _clean(path: str) -> str:
    """A place for the repaired store that is not taken."""
    stem = path.rstrip("/").removesuffix(".zarr")
    number, place = 1, Path(f"{stem}-clean.zarr")
    while place.exists():
        number += 1
        place = Path(f"{stem}-clean-{number}.zarr")
    return str(place)
