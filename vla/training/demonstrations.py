"""Stores of episodes to train on, and what a model must know of their robots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from vla.common.start_region import StartRegion, thumbnail
from vla.common.statistics import Statistics, check_finite
from vla.datasets.episodes import EpisodeStore
from vla.datasets.windows import Windows, split
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.action_targets import RELATIVE, ActionTargets, relative_components
from vla.models.normalization import QUANTILE, Normalizer, methods_of
from vla.models.robot_spec import RobotSpec
from vla.training.horizon import prefix_steps

HELD_OUT_EPISODES = 0.05


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """An episode store, its episodes parted into those to train on and those to evaluate on."""

    store: EpisodeStore
    train_episodes: Int[np.ndarray, "_t"]
    heldout_episodes: Int[np.ndarray, "_h"]

    @classmethod
    def open(cls, path: str) -> Demonstrations:
        store = EpisodeStore.open(path)
        if len(store) == 0:
            raise InputError(f"{store.path} has no episodes to train on: record some first (vla record)")
        if not store.declares_actions:
            raise InputError(
                f"{store.path} is of before stores said what their actions are (absolute, deltas, …): "
                f"vla data migrate {store.path} writes into it what its numbers show"
            )
        if any(record.info.get("frames") == "asked" for record in store.records.holding('"asked"')):
            raise InputError(f"{store.path} repeats images between decisions: evaluate with render=all to train on it")
        return cls(store, *split(len(store), HELD_OUT_EPISODES))

    def windows(
        self,
        horizon: int,
        instruction: str = "both",
        delay: float | str | None = None,
        history: Sequence[int] = (),
    ) -> Windows:
        """Those to train on, with prefixes for inference that takes up to `delay` [s] (`prefix_steps`)."""
        longest = prefix_steps(delay, self.store.embodiment.control_hz, horizon)
        return Windows(self.store, horizon, 1, self.train_episodes, instruction, longest, history)

    def heldout(self, horizon: int, instruction: str = "both", history: Sequence[int] = ()) -> Windows:
        return Windows(
            self.store, horizon, stride=3, episodes=self.heldout_episodes, instruction=instruction, history=history
        )

    @property
    def things(self) -> int:
        """Of how many things the episodes know where they are in each camera's image. Raises InputError when points
        are not as many of each camera."""
        count = 0 if self.store.points is None else self.store.points.shape[1]
        cameras = len(self.store.embodiment.cameras)
        if count and (not cameras or count % cameras):
            raise InputError(f"{self.store.path} has {count} points a step, not as many of each of {cameras} cameras")
        return count // cameras if count else 0

    def states(self) -> Iterator[Float[np.ndarray, "_n s"]]:
        """The states of each episode. Raises InputError that names a component which is not finite."""
        yield from (state for _, state in self._numbers())

    def targets(self, targets: ActionTargets, horizon: int) -> Iterator[Float[np.ndarray, "_n w"]]:
        """What is to be predicted of every action of every chunk of each episode, before normalisation.

        Raises InputError that names a component which is not finite.
        """
        for actions, state in self._numbers():
            wanted = np.arange(len(actions))[:, None] + np.arange(horizon)
            inside = wanted < len(actions)
            yield targets.encode(actions[np.minimum(wanted, len(actions) - 1)], state)[inside]

    def _numbers(self) -> Iterator[tuple[Float[np.ndarray, "_n a"], Float[np.ndarray, "_n s"]]]:
        body = self.store.embodiment
        for index in self.train_episodes:
            frames = self.store.records.frames(index)
            actions, state = self.store.action[frames], self.store.state[frames]
            for rows, kind in ((actions, "action"), (state, "state")):
                check_finite(rows, getattr(body, kind), f"{kind} of episode {index} of {self.store.path}")
            yield np.asarray(actions, np.float64), np.asarray(state, np.float64)

    def first_states(self) -> Iterator[Float[np.ndarray, "s"]]:
        """The state in which each episode begins."""
        for index in self.train_episodes:
            yield self.store.state[self.store.records.frames(index).start]

    def chunks(self, robot: RobotSpec, episodes: Int[np.ndarray, "n"]) -> Iterator[Float[np.ndarray, "_b _h _a"]]:
        """The normalised chunks of each episode as the model is asked for them: from every step on, counted from the
        state there, the last action repeated past the end."""
        for index in episodes:
            frames = self.store.records.frames(index)
            actions, state = self.store.action[frames], self.store.state[frames]
            wanted = np.minimum(np.arange(len(actions))[:, None] + np.arange(robot.horizon), len(actions) - 1)
            yield robot.action.normalize(robot.targets.encode(actions[wanted], state))


def robot_specs(
    demonstrations: Sequence[Demonstrations],
    horizon: int,
    predict: str | Mapping[str, str] = RELATIVE,
    normalization: str | Mapping[str, str] = QUANTILE,
    fewer_cameras: bool = False,
) -> list[RobotSpec]:
    """The robots, by name; each normalised by the statistics of all its demonstrations, as if they were one store.

    `predict` says which actions are predicted relative to the state (`vla.models.action_targets.relative_components`),
    `normalization` how ranges are taken (`vla.models.normalization`): for all components, or by their names.
    Points are of as many things as any of its stores knows. With `fewer_cameras` a robot has the cameras of all its
    stores, and may act with some of them. Raises InputError when two stores give one name to embodiments that differ,
    or for a component that no robot has.
    """
    by_name: dict[str, list[Demonstrations]] = {}
    for one in demonstrations:
        by_name.setdefault(one.store.embodiment.name, []).append(one)
    bodies = {name: group[0].store.embodiment for name, group in by_name.items()}
    for option, chosen in (("predict", predict), ("normalization", normalization)):
        known = {name for body in bodies.values() for name in (*body.state, *body.action)}
        if isinstance(chosen, Mapping) and (unknown := sorted(chosen.keys() - known)):
            raise InputError(f"{option}: no robot has a component {unknown[0]!r}: there are {', '.join(sorted(known))}")
    groups = [group for _, group in sorted(by_name.items())]
    return [_robot_spec(group, horizon, predict, normalization, fewer_cameras) for group in groups]


def _robot_spec(
    group: Sequence[Demonstrations],
    horizon: int,
    predict: str | Mapping[str, str],
    normalization: str | Mapping[str, str],
    fewer_cameras: bool,
) -> RobotSpec:
    body = _body([d.store.embodiment for d in group], fewer_cameras)
    own = (
        {name: choice for name, choice in predict.items() if name in body.action}
        if isinstance(predict, Mapping)
        else predict
    )
    targets = ActionTargets(body, relative_components(body, own))
    state = Statistics.over(lambda: (rows for d in group for rows in d.states()))
    action = Statistics.over(lambda: (rows for d in group for rows in d.targets(targets, horizon)))
    return RobotSpec(
        embodiment=body,
        horizon=horizon,
        state=Normalizer.fit(state, methods_of(body.state, normalization)),
        action=Normalizer.fit(action, methods_of(targets.names, normalization)),
        statistics_hash=hashlib.sha256(f"{state.hash()} {action.hash()}".encode()).hexdigest(),
        points=max(d.things for d in group) * len(body.cameras),
        relative=targets.relative,
        fewer_cameras=fewer_cameras,
        statistics={"state": state, "action": action},
        start=_start_region(group),
    )


def _start_region(group: Sequence[Demonstrations]) -> StartRegion:
    images = {
        camera: thumbnail(d.store.image(camera, d.store.records.frames(int(d.train_episodes[0])).start).decoded())
        for d in group
        for camera in d.store.embodiment.cameras
    }
    return StartRegion.of([state for d in group for state in d.first_states()], images)


def _body(bodies: Sequence[Embodiment], fewer_cameras: bool) -> Embodiment:
    """The robot of all these stores. Raises InputError where they differ, `fewer_cameras` but for cameras."""
    # Of the orders of the cameras the first by name, so that the order of the stores is no part of it.
    orders = sorted((body.cameras for body in bodies), key=lambda cameras: (-len(cameras), cameras))
    if not fewer_cameras and (lacking := [b for b in bodies if set(b.cameras) != set(orders[0])]):
        raise InputError(
            f"two stores of {bodies[0].name} differ in their cameras: {', '.join(orders[0])} and "
            f"{', '.join(lacking[0].cameras) or 'none'}; with plan.camera_dropout=0.1 they train together"
        )
    cameras = tuple(dict.fromkeys(camera for order in orders for camera in order))
    return replace(bodies[0], cameras=cameras).union(bodies, fewer_cameras)
