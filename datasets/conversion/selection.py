"""Some episodes of a source, what is read as what, and which of them cannot be read."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.common.plural import counted
from vla.errors import InputError

if TYPE_CHECKING:
    from vla.datasets.episode_source import EpisodeSource
    from vla.embodiment import Embodiment
    from vla.types import Episode

STANDARD = {"state": ["observation.state"], "action": ["action"]}
"""What LeRobot calls them: not worth a line."""
SHOWN = 100
"""Skipped episodes that are listed."""


@dataclass(frozen=True)
class Request:
    """What to read: a source, its format (a key of `registry.FORMATS`), the options of that format, and the episodes.

    `skip` leaves out episodes that cannot be read, or not be stored. All are plain values, so that other processes
    can be given them.
    """

    src: str
    format: str
    options: Mapping[str, Any]
    episodes: str | None = None
    skip: bool = False
    actions: Mapping[str, Any] = field(default_factory=dict)
    """What the user says of the actions (`vla.datasets.action_inference.infer_actions`)."""


class Selection:
    """The requested episodes of a source, in its order. Positions count them from 0."""

    def __init__(self, request: Request, embodiment: Embodiment | None = None) -> None:
        """Opens the source. `embodiment` is what another process has found that its actions are; None: to be found.

        Raises InputError when the source cannot be opened, takes no such option, or has no such episode; and unless
        unreadable episodes are to be skipped, when it is known of one of the episodes that it cannot be read.
        """
        from vla.datasets.action_inference import report_stated
        from vla.datasets.episode_selection import choose
        from vla.datasets.episode_source import NamesFaults
        from vla.datasets.format_registry import open_format
        from vla.datasets.formats.corrected_images import correct_images
        from vla.datasets.formats.stated_actions import StatedActions, state_actions

        self.request = request
        self.src = request.src
        self.opened: EpisodeSource = open_format(request.format, request.src, _taken(request))
        self.chosen = choose(request.episodes or ":", len(self.opened))
        found = self.opened.faults() if isinstance(self.opened, NamesFaults) else {}
        self.faults = {index - self.chosen.start: why for index, why in found.items() if index in self.chosen}
        self._check_faults()
        try:
            known = None if embodiment is None else StatedActions(self.opened, embodiment, ())
            stated = known or state_actions(self.opened, self.chosen, request.actions)
        except InputError as error:
            raise InputError(f"{request.src}: {error}") from error
        by = f"as stated: {stated.provenance['actions_stated']}"
        self.evidence = stated.evidence if isinstance(stated, StatedActions) else report_stated(stated.embodiment, by)
        self.source = correct_images(stated, request.options)
        self.embodiment, provenance = self.source.embodiment, self.source.provenance
        self.remarks: Sequence[str] = provenance.get("remarks", ())
        self.provenance = {
            **{key: value for key, value in provenance.items() if key not in ("conversion", "remarks")},
            "conversion": {
                "source": Path(request.src).name,
                "format": request.format,
                "options": json.loads(json.dumps({**request.options, **request.actions}, default=list)),
                "episodes": [self.chosen.start, self.chosen.stop],
            },
        }

    def part(self, start: int, stop: int) -> Selection:
        """The episodes from position `start` to before `stop`, which it counts from 0."""
        part = copy(self)
        part.chosen = self.chosen[start:stop]
        part.faults = {at - start: why for at, why in self.faults.items() if start <= at < stop}
        episodes = [part.chosen.start, part.chosen.stop]
        part.provenance = {**self.provenance, "conversion": {**self.provenance["conversion"], "episodes": episodes}}
        return part

    def _check_faults(self) -> None:
        """Raises InputError when an episode cannot be read and is not to be skipped, or none can be."""
        if not self.faults or (self.request.skip and len(self.faults) < len(self.chosen)):
            return
        first = min(self.faults)
        if self.request.skip:
            raise nothing_readable(self, self.faults[first])
        more = f" (and {counted(len(self.faults) - 1, 'other')})" if len(self.faults) > 1 else ""
        raise InputError(f"{self.name(first)} cannot be read{more}: {self.faults[first]}; {self.advice}")

    @property
    def advice(self) -> str:
        """What to do about an episode that cannot be read."""
        return "skip=true leaves such episodes out"

    def report(self) -> None:
        """Prints what is read as what, and what is left out."""
        body = self.embodiment
        print(
            f"{self.src}: {len(self)} of {counted(len(self.source), 'episode')} of {body.name} "
            f"({self.request.format}), {len(body.state)} state and {len(body.action)} action components at "
            f"{body.control_hz:g} Hz, cameras {', '.join(body.cameras) or 'none'}"
        )
        for kind, standard in STANDARD.items():
            parts = list(self.provenance.get(kind, ()))
            if parts not in ([], standard) and kind not in self.request.options:
                side_by_side = " side by side" if len(parts) > 1 else ""
                print(f"  {kind} is {', '.join(parts)}{side_by_side}; {kind}=[...] chooses")
        reasons: dict[str, list[str]] = {}
        for name, why in self.provenance.get("left_out", {}).items():
            reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            print(f"  left out ({why}): {', '.join(names)}")
        for remark in (*self.evidence, *self.remarks):
            print(f"  {remark}")

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> Episode:
        """Raises InputError that names the episode in the source where it cannot be read."""
        if position in self.faults:
            raise InputError(f"{self.name(position)} cannot be read: {self.faults[position]}")
        try:
            return self.source[self.chosen[position]]
        except InputError as error:
            if "episode" in str(error):
                raise
            raise InputError(f"{self.name(position)} cannot be read: {error}") from error
        except Exception as error:  # the libraries behind raise nearly anything over damaged files
            raise InputError(f"{self.name(position)} cannot be read ({type(error).__name__}: {error})") from error

    def name(self, position: int) -> str:
        return f"episode {self.chosen[position]} of {self.src}"

    def reason(self, position: int, error: InputError) -> str:
        """Why an episode is skipped, to be kept with the data: without the episode's name and this machine's paths."""
        text = str(error).removeprefix(self.name(position)).removeprefix(" cannot be read").removeprefix(": ")
        return text.replace(str(Path(self.src)), Path(self.src).name)


def nothing_readable(selection: Selection, first: str) -> InputError:
    """The error where every episode would be skipped; `first` says why the first one is."""
    return InputError(
        f"none of {counted(len(selection), 'episode')} of {selection.src} can be read, the first: {first}"
    )


def print_skipped(skipped: Sequence[Mapping[str, Any]]) -> None:
    """Lists the episodes that were left out, each with its reason."""
    if skipped:
        print(f"  skipped {counted(len(skipped), 'episode')}:")
    for entry in skipped[:SHOWN]:
        print(f"    episode {entry['episode']}: {entry['reason']}")
    if len(skipped) > SHOWN:
        print(f"    and {len(skipped) - SHOWN} more, which the provenance of the data lists")


def whole_command(src: str, dst: str, options: Mapping[str, Any]) -> str:
    """The command that converts with these options, to be pasted into a shell."""
    from vla.datasets.formats.columns import option_text

    values = [shlex.quote(f"{name}={option_text(value)}") for name, value in options.items()]
    return " ".join(["vla convert", shlex.quote(src), shlex.quote(dst), *values])


def _taken(request: Request) -> dict[str, Any]:
    """The options for the format's reader. Raises InputError for one that it does not take."""
    from vla.datasets.format_registry import FORMATS
    from vla.datasets.formats import corrected_images

    parameters = inspect.signature(import_module(FORMATS[request.format]).open_source).parameters
    options = {key: value for key, value in request.options.items() if key not in corrected_images.OPTIONS}
    for key in options:
        if key not in parameters:
            raise InputError(f"{key} is no option for {request.format} sources: leave it out")
    more = {"episodes": request.episodes, "skip": request.skip, "layout": request.format}
    return {**options, **{key: value for key, value in more.items() if key in parameters}}
