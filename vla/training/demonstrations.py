"""Episode stores to train on, and the robot specifications computed from them."""

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
from vla.training.episode_numbers import EpisodeNumbers, Episodes, Numbers
from vla.training.horizon import prefix_steps

HELD_OUT_EPISODES = 0.05


@dataclass(frozen=True, eq=False)
class Demonstrations(EpisodeNumbers):
    """An episode store, split into training and held-out episodes."""

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
                f"{store.path} does not declare its kind of actions (absolute, deltas, …): "
                f"vla data migrate {store.path} infers it from the data and writes it into the store"
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
        """Training windows, with action prefixes for an inference delay of up to `delay` [s] (`prefix_steps`)."""
        longest = prefix_steps(delay, self.store.embodiment.control_hz, horizon)
        return Windows(self.store, horizon, 1, self.train_episodes, instruction, longest, history)

    def heldout(self, horizon: int, instruction: str = "both", history: Sequence[int] = ()) -> Windows:
        return Windows(
            self.store, horizon, stride=3, episodes=self.heldout_episodes, instruction=instruction, history=history
        )

    @property
    def things(self) -> int:
        """The number of tracked objects, whose image points each camera has.

        Raises:
            InputError: the number of points is not a multiple of the number of cameras.
        """
        count = 0 if self.store.points is None else self.store.points.shape[1]
        cameras = len(self.store.embodiment.cameras)
        if count and (not cameras or count % cameras):
            raise InputError(
                f"{self.store.path} has {count} points per step, which is not a multiple of its {cameras} cameras"
            )
        return count // cameras if count else 0

    @property
    def embodiment(self) -> Embodiment:
        return self.store.embodiment

    def numbers(self, episodes: Episodes | None = None) -> Iterator[Numbers]:
        body = self.store.embodiment
        for index in self.train_episodes if episodes is None else episodes:
            frames = self.store.records.frames(index)
            actions, state = self.store.action[frames], self.store.state[frames]
            for rows, kind in ((actions, "action"), (state, "state")):
                check_finite(rows, getattr(body, kind), f"{kind} of episode {index} of {self.store.path}")
            yield np.asarray(actions, np.float64), np.asarray(state, np.float64)

    def first_states(self) -> Iterator[Float[np.ndarray, "s"]]:
        for index in self.train_episodes:
            yield self.store.state[self.store.records.frames(index).start]

    def thumbnails(self) -> dict[str, str]:
        first = self.store.records.frames(int(self.train_episodes[0])).start
        return {c: thumbnail(self.store.image(c, first).decoded()) for c in self.embodiment.cameras}


def robot_specs(
    demonstrations: Sequence[EpisodeNumbers],
    horizon: int,
    predict: str | Mapping[str, str] = RELATIVE,
    normalization: str | Mapping[str, str] = QUANTILE,
    fewer_cameras: bool = False,
) -> list[RobotSpec]:
    """Computes the specification of each robot from all its stores, sorted by name.

    Args:
        demonstrations: The stores.
        horizon: The horizon of an action chunk [steps].
        predict: Which actions are predicted relative to the state
            (`vla.models.action_targets.relative_components`), for all components or by component name.
        normalization: How ranges are computed (`vla.models.normalization`), likewise.
        fewer_cameras: Whether a robot has the cameras of all its stores, and may act with some of them.

    Raises:
        InputError: two stores have different embodiments of one name, or no robot has a named component.
    """
    by_name: dict[str, list[EpisodeNumbers]] = {}
    for source in demonstrations:
        by_name.setdefault(source.embodiment.name, []).append(source)
    bodies = {name: group[0].embodiment for name, group in by_name.items()}
    for option, value in (("predict", predict), ("normalization", normalization)):
        known = {name for body in bodies.values() for name in (*body.state, *body.action)}
        if isinstance(value, Mapping) and (unknown := sorted(value.keys() - known)):
            raise InputError(f"{option}: no robot has a component {unknown[0]!r}: there are {', '.join(sorted(known))}")
    groups = [group for _, group in sorted(by_name.items())]
    return [_robot_spec(group, horizon, predict, normalization, fewer_cameras) for group in groups]


def _robot_spec(
    group: Sequence[EpisodeNumbers],
    horizon: int,
    predict: str | Mapping[str, str],
    normalization: str | Mapping[str, str],
    fewer_cameras: bool,
) -> RobotSpec:
    body = _body([d.embodiment for d in group], fewer_cameras)
    own_predict = (
        {name: choice for name, choice in predict.items() if name in body.action}
        if isinstance(predict, Mapping)
        else predict
    )
    targets = ActionTargets(body, relative_components(body, own_predict))
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


def _start_region(group: Sequence[EpisodeNumbers]) -> StartRegion:
    images = {camera: image for d in group for camera, image in d.thumbnails().items()}
    return StartRegion.of([state for d in group for state in d.first_states()], images)


def _body(bodies: Sequence[Embodiment], fewer_cameras: bool) -> Embodiment:
    """The common embodiment. Raises InputError if they differ (with `fewer_cameras`: except in their cameras)."""
    # Sorted, so that the result does not depend on the order of the stores.
    orders = sorted((body.cameras for body in bodies), key=lambda cameras: (-len(cameras), cameras))
    if not fewer_cameras and (lacking := [b for b in bodies if set(b.cameras) != set(orders[0])]):
        raise InputError(
            f"two stores of {bodies[0].name} differ in their cameras: {', '.join(orders[0])} and "
            f"{', '.join(lacking[0].cameras) or 'none'}; with plan.camera_dropout=0.1 they train together"
        )
    cameras = tuple(dict.fromkeys(camera for order in orders for camera in order))
    return replace(bodies[0], cameras=cameras).union(bodies, fewer_cameras)
