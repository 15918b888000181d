"""States, actions and times of a store's episodes as concatenated arrays, with continuous angles and rotations."""

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
    """Concatenated episodes.

    Attributes:
        body: The embodiment.
        state: States of all steps.
        action: Actions of all steps.
        time: Times of all steps [s].
        bounds: Episode i has the steps from `bounds[i]` (inclusive) to `bounds[i + 1]` (exclusive).
        numbers: Indices of the episodes in the store.
    """

    body: Embodiment
    state: Float[np.ndarray, "n s"]
    action: Float[np.ndarray, "n a"]
    time: Float[np.ndarray, "n"]
    bounds: Int[np.ndarray, "e1"]
    numbers: Int[np.ndarray, "e"]

    @classmethod
    def of(cls, store: EpisodeStore, episodes: Sequence[int]) -> Recording:
        """Reads episodes of a store, without their images."""
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
        """Unwraps angles, and chooses the continuous one of the two equivalent values of each rotation."""
        starts = bounds[:-1]
        state, action = state.copy(), action.copy()
        for rotation in body.rotations:
            if rotation.state:
                indices = list(rotation.state)
                state[:, indices] = _continuous(state[:, indices], rotation.state_representation, starts)
            if body.is_position_action[rotation.action[0]] and not rotation.turn:
                indices = list(rotation.action)
                action[:, indices] = _continuous(action[:, indices], rotation.representation, starts)
        for i, measured in enumerate(body.measured_by):
            turn = float(body.action_period[i])
            if measured is not None and np.isfinite(turn) and unit(body.action[i]) == unit(body.state[measured]):
                state[:, measured] = _unwrapped(state[:, measured], turn, starts)
                delta = action[:, i] - state[:, measured]
                action[:, i] = state[:, measured] + delta - turn * np.round(delta / turn)
        numbers = np.arange(len(starts)) if numbers is None else numbers
        return cls(body, state, action, time, bounds, numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def hz(self) -> float:
        """The control rate [Hz]."""
        return self.body.control_hz

    @cached_property
    def lengths(self) -> Int[np.ndarray, "e"]:
        """The number of steps of each episode."""
        return np.diff(self.bounds)

    @cached_property
    def inside(self) -> Bool[np.ndarray, "m"]:
        """Whether a step and the next belong to the same episode; one value fewer than there are steps."""
        mask = np.ones(max(len(self.time) - 1, 0), bool)
        mask[self.bounds[1:-1] - 1] = False
        return mask

    @cached_property
    def state_scale(self) -> Float[np.ndarray, "s"]:
        """The range of each state component (`travel`)."""
        return travel(self.state, self.body.state)

    @cached_property
    def action_scale(self) -> Float[np.ndarray, "a"]:
        """The range of each action component (`travel`)."""
        return travel(self.action, self.body.action)

    @cached_property
    def pose(self) -> Float[np.ndarray, "n p"]:
        """The state in units of the component ranges, without constant components and grippers.

        Grippers are hardly visible in images.
        """
        grippers = {at for i, at in enumerate(self.body.measured_by) if at is not None and self.body.is_gripper[i]}
        columns = [i for i in np.flatnonzero(self.state_scale > 0).tolist() if i not in grippers]
        return self.state[:, columns] / self.state_scale[columns]

    @cached_property
    def speed(self) -> Float[np.ndarray, "m"]:
        """The largest change of a pose component in each step; 0 between episodes."""
        return np.abs(np.diff(self.pose, axis=0)).max(axis=1, initial=0.0) * self.inside

    def slices(self) -> Iterator[slice]:
        """The steps of each episode."""
        return (slice(*pair) for pair in pairwise(self.bounds.tolist()))

    def locate(self, step: int) -> tuple[int, int]:
        """The episode of a step, as an index into `numbers`, and the step within the episode."""
        episode = int(np.searchsorted(self.bounds, step, side="right")) - 1
        return episode, step - int(self.bounds[episode])

    def by_episode(self, steps: Int[np.ndarray, "k"], length: int = 1) -> dict[int, tuple[tuple[int, int], ...]]:
        """The step ranges of `length` from each of `steps`, relative to the episode, by episode number in the store."""
        by_number: dict[int, list[tuple[int, int]]] = {}
        for step in steps.tolist():
            episode, start = self.locate(step)
            by_number.setdefault(int(self.numbers[episode]), []).append((start, start + length))
        return {number: tuple(ranges) for number, ranges in by_number.items()}


def span(values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "c"]:
    """The range of 90 % of each column, or the full range if those are equal, as for a gripper that rarely moves."""
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    return np.where(high > low, high - low, np.ptp(values, axis=0))


def travel(values: Float[np.ndarray, "n c"], names: Sequence[str]) -> Float[np.ndarray, "c"]:
    """The span of each column, but at least a tenth of the largest span with the same unit.

    The minimum prevents the noise of a joint at rest from being taken for its range.
    """
    spans = span(values)
    units = np.array([unit(name) for name in names])
    largest = np.array([spans[units == column_unit].max() for column_unit in units])
    return np.maximum(spans, 0.1 * largest)


def unit(name: str) -> str:
    """The unit in brackets at the end of a component's name, "" if there is none."""
    return name[name.rfind("[") + 1 : -1] if name.endswith("]") else ""


def _unwrapped(values: Float[np.ndarray, "n"], turn: float, starts: Int[np.ndarray, "e"]) -> Float[np.ndarray, "n"]:
    jumps = np.diff(values, prepend=values[:1])
    turns = np.cumsum(np.round(jumps / turn))
    # The first step of each episode is unchanged.
    since = turns - turns[starts].repeat(np.diff([*starts, len(values)]))
    return values - turn * since


def _continuous(
    values: Float[np.ndarray, "n k"], representation: str, starts: Int[np.ndarray, "e"]
) -> Float[np.ndarray, "n k"]:
    """Chooses the one of the two equivalent values of each rotation that is closer to the previous step.

    Equivalent are q and -q, and the axis-angle vectors of the two directions of rotation.
    """
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
    same_distance = np.linalg.norm(values[1:] - values[:-1], axis=1)
    other_distance = np.linalg.norm(others[1:] - values[:-1], axis=1)
    flips = np.concatenate([[0], np.cumsum(other_distance < same_distance)])
    since = flips - flips[starts].repeat(np.diff([*starts, len(values)]))
    return np.where((since % 2)[:, None] == 1, others, values)
