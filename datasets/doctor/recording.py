"""The numbers of a store's episodes as the detectors read them: one array each, angles and rotations without jumps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment


@dataclass(frozen=True)
class Recording:
    """Episodes one behind the other: those of `numbers`, each from `bounds[i]` to before `bounds[i + 1]`."""

    body: Embodiment
    state: Float[np.ndarray, "n s"]
    action: Float[np.ndarray, "n a"]
    time: Float[np.ndarray, "n"]
    bounds: Int[np.ndarray, "e1"]
    numbers: Int[np.ndarray, "e"]

    @classmethod
    def of(cls, store: EpisodeStore, episodes: Sequence[int]) -> Recording:
        """Reads no image."""
        numbers = np.asarray(episodes, np.int64)
        ends = store.records.ends
        lengths = np.diff(ends, prepend=0)[numbers]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.arange(bounds[-1]) + np.repeat(ends[numbers] - bounds[1:], lengths)
        state, action, time = (np.asarray(store.rows(name)[rows]) for name in ("state", "action", "time"))
        return cls.of_arrays(store.embodiment, state, action, time, bounds, numbers)

    @classmethod
    def of_arrays(
        cls,
        body: Embodiment,
        state: Float[np.ndarray, "n s"],
        action: Float[np.ndarray, "n a"],
        time: Float[np.ndarray, "n"],
        bounds: Int[np.ndarray, "e1"],
        numbers: Int[np.ndarray, "e"] | None = None,
    ) -> Recording:
        """Angles that wrap go on beyond their turn, and rotations keep to the nearer of their two numbers."""
        starts = bounds[:-1]
        state, action = state.copy(), action.copy()
        for rotation in body.rotations:
            if rotation.state:
                at = list(rotation.state)
                state[:, at] = _continuous(state[:, at], rotation.state_representation, starts)
            if body.is_position_action[rotation.action[0]] and not rotation.turn:
                at = list(rotation.action)
                action[:, at] = _continuous(action[:, at], rotation.representation, starts)
        for i, measured in enumerate(body.measured_by):
            turn = float(body.action_period[i])
            if measured is not None and np.isfinite(turn) and unit(body.action[i]) == unit(body.state[measured]):
                state[:, measured] = _unwrapped(state[:, measured], turn, starts)
                apart = action[:, i] - state[:, measured]
                action[:, i] = state[:, measured] + apart - turn * np.round(apart / turn)
        numbers = np.arange(len(starts)) if numbers is None else numbers
        return cls(body, state, action, time, bounds, numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def hz(self) -> float:
        return self.body.control_hz

    @cached_property
    def lengths(self) -> Int[np.ndarray, "e"]:
        return np.diff(self.bounds)

    @cached_property
    def inside(self) -> Bool[np.ndarray, "m"]:
        """Whether a step and the next are of one episode; one fewer than there are steps."""
        mask = np.ones(max(len(self.time) - 1, 0), bool)
        mask[self.bounds[1:-1] - 1] = False
        return mask

    @cached_property
    def state_scale(self) -> Float[np.ndarray, "s"]:
        """How far each component of the state goes (`travel`)."""
        return travel(self.state, self.body.state)

    @cached_property
    def action_scale(self) -> Float[np.ndarray, "a"]:
        return travel(self.action, self.body.action)

    @cached_property
    def pose(self) -> Float[np.ndarray, "n p"]:
        """The state in units of what each component spans, without what is constant, and without grippers, which an
        image shows little of."""
        grippers = {at for i, at in enumerate(self.body.measured_by) if at is not None and self.body.is_gripper[i]}
        shown = [i for i in np.flatnonzero(self.state_scale > 0).tolist() if i not in grippers]
        return self.state[:, shown] / self.state_scale[shown]

    @cached_property
    def speed(self) -> Float[np.ndarray, "m"]:
        """The largest change of a component of the pose during each step; 0 across episodes."""
        return np.abs(np.diff(self.pose, axis=0)).max(axis=1, initial=0.0) * self.inside

    def slices(self) -> Iterator[slice]:
        """The steps of each episode."""
        return (slice(*pair) for pair in pairwise(self.bounds.tolist()))

    def place(self, step: int) -> tuple[int, int]:
        """The episode of a step, counted here, and the step within it."""
        episode = int(np.searchsorted(self.bounds, step, side="right")) - 1
        return episode, step - int(self.bounds[episode])

    def by_episode(self, steps: Int[np.ndarray, "k"], length: int = 1) -> dict[int, tuple[tuple[int, int], ...]]:
        """Ranges of `length` steps from each of `steps`, by number in the store and counted within the episode."""
        found: dict[int, list[tuple[int, int]]] = {}
        for step in steps.tolist():
            episode, at = self.place(step)
            found.setdefault(int(self.numbers[episode]), []).append((at, at + length))
        return {number: tuple(ranges) for number, ranges in found.items()}


def span(values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "c"]:
    """What 90 % of each column span; all of it where these are equal, as of a gripper that seldom moves."""
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    return np.where(high > low, high - low, np.ptp(values, axis=0))


def travel(values: Float[np.ndarray, "n c"], names: Sequence[str]) -> Float[np.ndarray, "c"]:
    """The span of each column, at least a tenth of the largest of its unit: a joint that only trembles is not measured
    by its trembling."""
    spans = span(values)
    units = np.array([unit(name) for name in names])
    largest = np.array([spans[units == each].max() for each in units])
    return np.maximum(spans, 0.1 * largest)


def unit(name: str) -> str:
    """What stands in brackets at the end of a component's name, "" where nothing does."""
    return name[name.rfind("[") + 1 : -1] if name.endswith("]") else ""


def _unwrapped(values: Float[np.ndarray, "n"], turn: float, starts: Int[np.ndarray, "e"]) -> Float[np.ndarray, "n"]:
    jumps = np.diff(values, prepend=values[:1])
    turns = np.cumsum(np.round(jumps / turn))
    # Each episode begins in the turn that was recorded.
    since = turns - turns[starts].repeat(np.diff([*starts, len(values)]))
    return values - turn * since


def _continuous(
    values: Float[np.ndarray, "n k"], representation: str, starts: Int[np.ndarray, "e"]
) -> Float[np.ndarray, "n k"]:
    """q and -q are one rotation, and so are an axis-angle vector and the one the other way round: keeps to the one
    that is nearer to the step before."""
    if representation.startswith("euler"):
        turn = 360.0 if representation.endswith("_deg") else 2 * np.pi
        return np.stack([_unwrapped(column, turn, starts) for column in values.T], axis=1)
    if representation.startswith("quaternion"):
        others = -values
    elif representation == "axis_angle":
        angle = np.linalg.norm(values, axis=1, keepdims=True)
        others = values * (1 - 2 * np.pi / np.where(angle > 0, angle, np.inf))
    else:
        return values
    stays = np.linalg.norm(values[1:] - values[:-1], axis=1)
    goes = np.linalg.norm(others[1:] - values[:-1], axis=1)
    flips = np.concatenate([[0], np.cumsum(goes < stays)])
    since = flips - flips[starts].repeat(np.diff([*starts, len(values)]))
    return np.where((since % 2)[:, None] == 1, others, values)
