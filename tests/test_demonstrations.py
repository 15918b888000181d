"""What a model learns of its robots from stores: statistics of all their rows, whichever store they are in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_store

from vla.errors import InputError
from vla.models.action_targets import ActionTargets
from vla.training.demonstrations import Demonstrations, robot_specs
from vla.types import Episode

MakeEpisode = Callable[..., Episode]


def opened(path: Path, episodes: list[Episode]) -> Demonstrations:
    write_store(path, episodes)
    return Demonstrations.open(str(path))


def test_every_action_of_every_chunk_counts_from_where_the_chunk_starts(
    make_episode: MakeEpisode, tmp_path: Path
) -> None:
    one = opened(tmp_path / "a", [make_episode(seed, steps=4 + seed) for seed in range(3)])
    targets = ActionTargets(one.store.embodiment, (True, True, False))
    expected = [
        episode.action[t + k] - np.append(episode.state[t], 0.0)
        for episode in (one.store[i] for i in one.train_episodes)
        for t in range(len(episode))
        for k in range(3)
        if t + k < len(episode)
    ]
    np.testing.assert_array_equal(np.concatenate(list(one.targets(targets, 3))), expected)
    states = [one.store[i].state for i in one.train_episodes]
    np.testing.assert_array_equal(np.concatenate(list(one.states())), np.concatenate(states))


def test_stores_of_one_robot_are_normalised_as_one(make_episode: MakeEpisode, tmp_path: Path) -> None:
    near = [make_episode(seed, steps=30) for seed in range(4)]
    far = [replace(make_episode(seed, steps=9), state=make_episode(seed, steps=9).state + 20) for seed in range(4, 7)]
    slim = [replace(e, embodiment=replace(e.embodiment, name="a slim one")) for e in near]
    parts = [opened(tmp_path / str(i), episodes) for i, episodes in enumerate((near, far, slim))]
    other, merged = robot_specs(parts, 4)
    assert (other.name, merged.name) == ("a slim one", "toy")
    rows = np.concatenate([rows for part in parts[:2] for rows in part.states()])
    np.testing.assert_allclose([merged.state.low, merged.state.high], np.quantile(rows, [0.01, 0.99], axis=0))
    (alone,) = robot_specs(parts[:1], 4)
    assert (other.state, other.action) == (alone.state, alone.action)
    assert merged.statistics_hash != alone.statistics_hash
    # Neither the order of the stores nor that of their episodes is part of it, nor that of their cameras.
    assert robot_specs([parts[1], parts[2], parts[0]], 4) == [other, merged]
    turned = [replace(e, embodiment=replace(e.embodiment, cameras=("wrist", "front"))) for e in near]
    parts[0] = opened(tmp_path / "turned", turned)
    assert robot_specs(parts, 4) == robot_specs([parts[1], parts[2], parts[0]], 4) == [other, merged]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"control_hz": 20.0}, "toy does not match toy: control_hz: 10.0, of the other 20.0"),
        (
            {"action_mode": ("absolute", "absolute", "delta")},
            r"action_mode: grip \[rad\] is absolute, of the other delta",
        ),
    ],
)
def test_one_name_for_two_robots_is_refused(
    make_episode: MakeEpisode, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    episodes = [make_episode(seed) for seed in range(3)]
    changed = [replace(e, embodiment=replace(e.embodiment, **fields)) for e in episodes]
    with pytest.raises(InputError, match=message):
        robot_specs([opened(tmp_path / "a", episodes), opened(tmp_path / "b", changed)], 4)


def test_a_robot_has_points_of_as_many_things_as_any_of_its_stores(make_episode: MakeEpisode, tmp_path: Path) -> None:
    parts = [
        opened(
            tmp_path / str(i),
            [make_episode(seed, points=None if n == 0 else np.full((5, n, 2), 0.5)) for seed in range(3)],
        )
        for i, n in enumerate((0, 2, 4, 3))
    ]
    chosen = (parts[:1], parts[:2], parts[:3], parts[1::-1])
    assert [robot_specs(each, 4)[0].points for each in chosen] == [0, 2, 4, 2]
    with pytest.raises(InputError, match="3 points per step, which is not a multiple of its 2 cameras"):
        robot_specs(parts, 4)
