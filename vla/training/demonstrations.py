"""Stores of episodes to train on, and what a model must know of their robots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vla.datasets.episodes import EpisodeStore
from vla.datasets.statistics import Statistics, check_finite
from vla.datasets.windows import Windows, split
from vla.errors import InputError
from vla.normalize import QuantileNormalizer
from vla.robot_spec import RobotSpec

HELD_OUT_EPISODES = 0.05


@dataclass(frozen=True)
class Demonstrations:
    """An episode store, its episodes parted into those to train on and those to evaluate on."""

    store: EpisodeStore
    train_episodes: tuple[int, ...]
    heldout_episodes: tuple[int, ...]

    @classmethod
    def open(cls, path: str) -> Demonstrations:
        store = EpisodeStore.open(path)
        if len(store) == 0:
            raise InputError(f"{store.path} has no episodes to train on: record some first (vla record)")
        if any(record.info.get("frames") == "asked" for record in store.records):
            raise InputError(f"{store.path} repeats images between decisions: evaluate with frames=all to train on it")
        return cls(store, *split(len(store), HELD_OUT_EPISODES))

    def windows(self, horizon: int) -> Windows:
        return Windows(self.store, horizon, episodes=self.train_episodes)

    def heldout(self, horizon: int) -> Windows:
        return Windows(self.store, horizon, stride=3, episodes=self.heldout_episodes)

    @property
    def points(self) -> int:
        return 0 if self.store.points is None else self.store.points.shape[1]

    def rows(self, horizon: int | None = None) -> Iterator[Float[np.ndarray, "_n c"]]:
        """The states of each episode; with a `horizon` every action of every chunk, as its distance from the state at
        the chunk's start. Raises InputError that names a component which is not finite."""
        kind = "state" if horizon is None else "action"
        for index in self.train_episodes:
            frames = self.store.records[index].frames
            rows, state = getattr(self.store, kind)[frames], self.store.state[frames]
            check_finite(rows, getattr(self.store.embodiment, kind), f"{kind} of episode {index} of {self.store.path}")
            if horizon is not None:
                wanted = np.arange(len(rows))[:, None] + np.arange(horizon)
                inside = wanted < len(rows)
                chunks = rows[np.minimum(wanted, len(rows) - 1)] - self.store.embodiment.anchor(state)[:, None]
                rows = chunks[inside]
            yield rows

    def chunks(self, robot: RobotSpec, episodes: Sequence[int]) -> Iterator[Float[np.ndarray, "_b _h _a"]]:
        """The normalised chunks of each episode as the model is asked for them: from every step on, counted from the
        state there, the last action repeated past the end."""
        for index in episodes:
            frames = self.store.records[index].frames
            actions, state = self.store.action[frames], self.store.state[frames]
            wanted = np.minimum(np.arange(len(actions))[:, None] + np.arange(robot.horizon), len(actions) - 1)
            yield robot.action.normalize(actions[wanted] - robot.embodiment.anchor(state)[:, None])


def robot_specs(demonstrations: Sequence[Demonstrations], horizon: int) -> list[RobotSpec]:
    """The robots, by name; each normalised by the statistics of all its demonstrations, as if they were one store.

    Raises InputError when two stores give one name to embodiments that differ, or say different numbers of points.
    """
    by_name: dict[str, list[Demonstrations]] = {}
    for one in demonstrations:
        by_name.setdefault(one.store.embodiment.name, []).append(one)
    return [_robot_spec(group, horizon) for _, group in sorted(by_name.items())]


def _robot_spec(group: Sequence[Demonstrations], horizon: int) -> RobotSpec:
    embodiment, points = group[0].store.embodiment, {d.points for d in group} - {0}
    for other in group[1:]:
        embodiment.check(other.store.embodiment)
    if len(points) > 1:
        raise InputError(f"the stores of {embodiment.name} have {sorted(points)} points a step: they must agree")
    state = Statistics.over(lambda: (rows for d in group for rows in d.rows()))
    action = Statistics.over(lambda: (rows for d in group for rows in d.rows(horizon)))
    return RobotSpec(
        embodiment=embodiment,
        horizon=horizon,
        state=QuantileNormalizer(tuple(state.q01.tolist()), tuple(state.q99.tolist())),
        action=QuantileNormalizer(tuple(action.q01.tolist()), tuple(action.q99.tolist())),
        statistics_hash=hashlib.sha256(f"{state.hash()} {action.hash()}".encode()).hexdigest(),
        points=max(points, default=0),
    )
