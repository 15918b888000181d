"""The steps of an episode that `vla data filter` keeps, and their new values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from vla.datasets.doctor.idle import idle_ends, still_values
from vla.datasets.doctor.recording import Recording
from vla.datasets.episode_selection import episodes_of
from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError


@dataclass(frozen=True)
class Cuts:
    """Cuts of episodes.

    Attributes:
        trim: Time to keep of idle beginnings and ends [s]; None: all of it.
        steps: Steps to keep, by episode: "10:80".
        action_shift: Each step takes the action of this many steps later.
    """

    trim: float | None = None
    steps: Mapping[int, str | int] | None = None
    action_shift: int = 0

    def __post_init__(self) -> None:
        if self.trim is not None and self.trim < 0:
            raise InputError(f"trim={self.trim:g}: the seconds that are left of an idle end are 0 or more")

    @property
    def active(self) -> bool:
        """Whether anything is cut or shifted."""
        return self.trim is not None or bool(self.steps) or self.action_shift != 0

    def of(self, store: EpisodeStore, episodes: Sequence[int]) -> dict[int, Int[np.ndarray, "k"]]:
        """The indices of the remaining steps of each episode.

        Raises:
            InputError: A step or an episode does not exist, or no step of an episode would be left.
        """
        if unknown := [episode for episode in self.steps or {} if not 0 <= episode < len(store)]:
            raise InputError(f"steps={{{unknown[0]}: …}}: there are {len(store)} episodes, from 0 on")
        data = None if self.trim is None else Recording.of(store, range(len(store)))
        still = None if data is None else still_values(data)
        remaining = {}
        for episode in episodes:
            length = store.records[episode].length
            mask = np.ones(length, bool)
            if data is not None and still is not None and self.trim is not None:
                margin = max(1, round(self.trim * data.hz))  # motion starts from the last idle step
                begin, end = idle_ends(still[data.bounds[episode] : data.bounds[episode + 1]])
                if begin < length:  # an episode without any motion is unchanged
                    mask[: max(0, begin - margin)] = False
                    mask[length - max(0, end - margin) :] = False
            if self.steps and episode in self.steps:
                selected = np.zeros(length, bool)
                selected[_steps_of(str(self.steps[episode]), episode, length)] = True
                mask &= selected
            if self.action_shift:
                mask[length - max(0, self.action_shift) :] = False
                mask[: max(0, -self.action_shift)] = False
            if not mask.any():
                raise InputError(f"nothing would be left of episode {episode}, of {length} steps: leave it out (drop=)")
            remaining[episode] = np.flatnonzero(mask)
        return remaining

    def rows(
        self, store: EpisodeStore, episode: int, steps: Int[np.ndarray, "k"]
    ) -> dict[str, Shaped[np.ndarray, "t ..."]]:
        """The new values of the episode: shifted actions, and times without the gaps of inner cuts."""
        record = store.records[episode]
        rows = {"time": closed_up(np.asarray(store.time[record.frames]), steps)}
        if self.action_shift:
            source = np.clip(np.arange(record.length) + self.action_shift, 0, record.length - 1)
            for name in ("action", *(["chunks"] if "chunks" in record.streams else [])):
                rows[name] = np.asarray(store.rows(name)[record.frames])[source]
        return rows


def closed_up(time: Float[np.ndarray, "t"], steps: Int[np.ndarray, "k"]) -> Float[np.ndarray, "t"]:
    """Times [s] without the gaps of cuts: the step after a cut gets the time of the first removed step."""
    removed = np.zeros(len(time))
    for before, after in zip(steps[:-1].tolist(), steps[1:].tolist(), strict=True):
        if after > before + 1:
            removed[after:] += time[after] - time[before + 1]
    return time - removed


def _steps_of(text: str, episode: int, length: int) -> list[int]:
    try:
        return episodes_of(text, length, "steps")
    except InputError:
        raise InputError(
            f"steps={{{episode}: {text}}}: episode {episode} has the steps 0:{length}; write ranges without their end, "
            "'0:40,62:'"
        ) from None
