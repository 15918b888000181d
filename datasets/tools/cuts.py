"""Which steps of an episode `vla data filter` keeps, and what stands in them."""

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
    """`trim` [s] is what is left of idle beginnings and ends, `steps` names the steps of some episodes that are kept,
    and each step takes the action of `action_shift` steps later."""

    trim: float | None = None
    steps: Mapping[int, str | int] | None = None
    action_shift: int = 0

    def __post_init__(self) -> None:
        if self.trim is not None and self.trim < 0:
            raise InputError(f"trim={self.trim:g}: the seconds that are left of an idle end are 0 or more")

    @property
    def anything(self) -> bool:
        return self.trim is not None or bool(self.steps) or self.action_shift != 0

    def of(self, store: EpisodeStore, chosen: Sequence[int]) -> dict[int, Int[np.ndarray, "k"]]:
        """The steps that are kept of each of the chosen episodes.

        Raises InputError for a step or an episode that is not there, and where nothing would be left of one.
        """
        if unknown := [episode for episode in self.steps or {} if not 0 <= episode < len(store)]:
            raise InputError(f"steps={{{unknown[0]}: …}}: there are {len(store)} episodes, from 0 on")
        data = None if self.trim is None else Recording.of(store, range(len(store)))
        still = None if data is None else still_values(data)
        found = {}
        for episode in chosen:
            length = store.records[episode].length
            kept = np.ones(length, bool)
            if data is not None and still is not None and self.trim is not None:
                least = max(1, round(self.trim * data.hz))  # the last still step is the one from which it moves
                begin, end = idle_ends(still[data.bounds[episode] : data.bounds[episode + 1]])
                if begin < length:  # one without any motion is left to `drop`
                    kept[: max(0, begin - least)] = False
                    kept[length - max(0, end - least) :] = False
            if self.steps and episode in self.steps:
                named = np.zeros(length, bool)
                named[_steps_of(str(self.steps[episode]), episode, length)] = True
                kept &= named
            if self.action_shift:
                kept[length - max(0, self.action_shift) :] = False
                kept[: max(0, -self.action_shift)] = False
            if not kept.any():
                raise InputError(f"nothing would be left of episode {episode}, of {length} steps: leave it out (drop=)")
            found[episode] = np.flatnonzero(kept)
        return found

    def rows(
        self, store: EpisodeStore, episode: int, steps: Int[np.ndarray, "k"]
    ) -> dict[str, Shaped[np.ndarray, "t ..."]]:
        """What stands in the place of the episode's numbers: the shifted actions, and time without the cuts within."""
        record = store.records[episode]
        rows = {"time": closed_up(np.asarray(store.time[record.frames]), steps)}
        if self.action_shift:
            source = np.clip(np.arange(record.length) + self.action_shift, 0, record.length - 1)
            for name in ("action", *(["chunks"] if "chunks" in record.streams else [])):
                rows[name] = np.asarray(store.rows(name)[record.frames])[source]
        return rows


def closed_up(time: Float[np.ndarray, "t"], steps: Int[np.ndarray, "k"]) -> Float[np.ndarray, "t"]:
    """Times [s] in which a step that follows a cut comes as soon as the step that was cut off would have."""
    gone = np.zeros(len(time))
    for before, after in zip(steps[:-1].tolist(), steps[1:].tolist(), strict=True):
        if after > before + 1:
            gone[after:] += time[after] - time[before + 1]
    return time - gone


def _steps_of(text: str, episode: int, length: int) -> list[int]:
    try:
        return episodes_of(text, length, "steps")
    except InputError:
        raise InputError(
            f"steps={{{episode}: {text}}}: episode {episode} has the steps 0:{length}; write ranges without their end, "
            "'0:40,62:'"
        ) from None
