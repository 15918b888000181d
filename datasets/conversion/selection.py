"""The selected episodes of a source to convert, with their embodiment, provenance and unreadable episodes."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.common.plural import counted
from vla.datasets.source_files import SKIP_ADVICE
from vla.errors import InputError

if TYPE_CHECKING:
    from vla.datasets.episode_source import EpisodeSource
    from vla.embodiment import Embodiment
    from vla.types import Episode

STANDARD = {"state": ["observation.state"], "action": ["action"]}
"""LeRobot's standard features, which the report omits."""
SHOWN = 100
"""Maximum number of skipped episodes in the report."""


@dataclass(frozen=True)
class Request:
    """What to convert: a source, its format (a key of `format_registry.FORMATS`), its options, and the episodes.

    `skip` leaves out episodes that cannot be read or stored. All values are plain, so that they can be sent to other
    processes.
    """

    src: str
    format: str
    options: Mapping[str, Any]
    episodes: str | None = None
    skip: bool = False
    actions: Mapping[str, Any] = field(default_factory=dict)
    """The user's options for the actions (`vla.datasets.action_inference.infer_actions`)."""
    unreadable: Mapping[str, str] | None = None
    """The result of an earlier check of the source's files (`ChecksFiles`). None: they are checked."""


class Selection:
    """The requested episodes of a source, in its order. `indices` are their indices in the source."""

    def __init__(self, request: Request, embodiment: Embodiment | None = None) -> None:
        """Opens the source.

        Args:
            request: what to convert.
            embodiment: the embodiment with action modes that another process inferred. None: infer them.

        Raises:
            InputError: the source cannot be opened, or has no such option or episode; or an episode is known to be
                unreadable and is not to be skipped.
        """
        from vla.datasets.action_inference import report_stated
        from vla.datasets.episode_selection import choose
        from vla.datasets.episode_source import ChecksFiles, NamesFaults
        from vla.datasets.format_registry import open_format
        from vla.datasets.formats.corrected_images import correct_images
        from vla.datasets.formats.stated_actions import StatedActions, state_actions

        self.src = request.src
        self.opened: EpisodeSource = open_format(request.format, request.src, _reader_options(request))
        checked = self.opened.unreadable if isinstance(self.opened, ChecksFiles) else None
        self.request = replace(request, unreadable=checked)
        self.indices = choose(request.episodes or ":", len(self.opened))
        faults = self.opened.faults() if isinstance(self.opened, NamesFaults) else {}
        self.faults = {index - self.indices.start: why for index, why in faults.items() if index in self.indices}
        self._check_faults()
        try:
            inferred = None if embodiment is None else StatedActions(self.opened, embodiment, ())
            stated = inferred or state_actions(self.opened, self.indices, request.actions)
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
                "episodes": [self.indices.start, self.indices.stop],
            },
        }

    def subset(self, start: int, stop: int) -> Selection:
        """The episodes at the positions `start` to before `stop`."""
        subset = copy(self)
        subset.indices = self.indices[start:stop]
        subset.faults = {at - start: why for at, why in self.faults.items() if start <= at < stop}
        episodes = [subset.indices.start, subset.indices.stop]
        subset.provenance = {**self.provenance, "conversion": {**self.provenance["conversion"], "episodes": episodes}}
        return subset

    def _check_faults(self) -> None:
        """Raises InputError if an episode is unreadable and is not to be skipped, or if all are."""
        if not self.faults or (self.request.skip and len(self.faults) < len(self.indices)):
            return
        first = min(self.faults)
        if self.request.skip:
            raise nothing_readable(self, self.faults[first])
        more = f" (and {counted(len(self.faults) - 1, 'other')})" if len(self.faults) > 1 else ""
        raise InputError(f"{self.name(first)} cannot be read{more}: {self.faults[first]}; {self.advice}")

    @property
    def advice(self) -> str:
        """Advice for the error about an unreadable episode."""
        return SKIP_ADVICE

    def report(self) -> None:
        """Prints the interpretation of the data and what is left out."""
        body = self.embodiment
        print(
            f"{self.src}: {len(self)} of {counted(len(self.source), 'episode')} of {body.name} "
            f"({self.request.format}), {len(body.state)} state and {len(body.action)} action components at "
            f"{body.control_hz:g} Hz, cameras {', '.join(body.cameras) or 'none'}"
        )
        for kind, standard in STANDARD.items():
            features = list(self.provenance.get(kind, ()))
            if features not in ([], standard) and kind not in self.request.options:
                concatenated = ", concatenated" if len(features) > 1 else ""
                print(f"  {kind} is {', '.join(features)}{concatenated}; {kind}=[...] overrides this")
        reasons: dict[str, list[str]] = {}
        for name, why in self.provenance.get("left_out", {}).items():
            reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            print(f"  left out ({why}): {', '.join(names)}")
        for remark in (*self.evidence, *self.remarks):
            print(f"  {remark}")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Episode:
        """The episode at a position. Raises InputError that names the episode if it cannot be read."""
        if position in self.faults:
            raise InputError(f"{self.name(position)} cannot be read: {self.faults[position]}")
        try:
            return self.source[self.indices[position]]
        except InputError as error:
            if re.search(rf"\bepisode {self.indices[position]}\b", str(error)):
                raise
            raise InputError(f"{self.name(position)} cannot be read: {error}") from error
        except Exception as error:  # third-party libraries raise almost any exception on damaged files
            raise InputError(f"{self.name(position)} cannot be read ({type(error).__name__}: {error})") from error

    def name(self, position: int) -> str:
        """The episode's name for messages."""
        return f"episode {self.indices[position]} of {self.src}"

    def reason(self, position: int, error: InputError) -> str:
        """The reason for skipping an episode, to store with the data: without the episode's name and local paths."""
        text = str(error).removeprefix(self.name(position)).removeprefix(" cannot be read").removeprefix(": ")
        return text.replace(str(Path(self.src)), Path(self.src).name)


def nothing_readable(selection: Selection, first: str) -> InputError:
    """The error if every episode would be skipped. `first` is the reason for the first one."""
    return InputError(
        f"none of {counted(len(selection), 'episode')} of {selection.src} can be read, the first: {first}"
    )


def print_skipped(skipped: Sequence[Mapping[str, Any]]) -> None:
    """Prints the skipped episodes with their reasons."""
    if skipped:
        print(f"  skipped {counted(len(skipped), 'episode')}:")
    for entry in skipped[:SHOWN]:
        print(f"    episode {entry['episode']}: {entry['reason']}")
    if len(skipped) > SHOWN:
        print(f"    and {len(skipped) - SHOWN} more, listed in the provenance of the data")


def full_command(src: str, dst: str, options: Mapping[str, Any]) -> str:
    """The shell command that converts with these options."""
    from vla.datasets.formats.columns import option_text

    values = [shlex.quote(f"{name}={option_text(value)}") for name, value in options.items()]
    return " ".join(["vla convert", shlex.quote(src), shlex.quote(dst), *values])


def _reader_options(request: Request) -> dict[str, Any]:
    """The options for the format's reader. Raises InputError for an option that it does not have."""
    from vla.datasets.format_registry import FORMATS
    from vla.datasets.formats import corrected_images

    parameters = inspect.signature(import_module(FORMATS[request.format]).open_source).parameters
    options = {key: value for key, value in request.options.items() if key not in corrected_images.OPTIONS}
    for key in options:
        if key not in parameters:
            raise InputError(f"{key} is no option for {request.format} sources: leave it out")
    more = {
        "episodes": request.episodes,
        "skip": request.skip,
        "layout": request.format,
        "unreadable": request.unreadable,
    }
    return {**options, **{key: value for key, value in more.items() if key in parameters}}
