"""Stores of one robot, from several recordings, become one: what was measured in them is not what the robot is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.lerobot_recordings import recording
from vla.commands import cli
from vla.control.adapt import adapt
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.vla import VLA
from vla.policies.load import policy_for
from vla.policies.vla import VlaPolicy
from vla.recording.zarr_recorder import ZarrRecorder
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.types import Episode, Observation

Make = Callable[..., Episode]


def merge(*arguments: object) -> int:
    return cli.main(["data", "merge", *map(str, arguments)])


def test_merged_points_stay_those_of_their_camera_and_thing(make_episode: Make, tmp_path: Path) -> None:
    """Stores without points, of one thing and of two, and of longer chunks: JPEG is copied as it is coded."""
    rng = np.random.default_rng(0)
    parts = {
        "none": make_episode(0),
        "one": make_episode(1, points=rng.random((5, 2, 2)), horizon=2),
        "two": make_episode(2, points=rng.random((5, 4, 2)), horizon=3),
    }
    for name, episode in parts.items():
        with EpisodeStore.create(tmp_path / f"{name}.zarr", episode.embodiment, "jpeg") as store:
            store.append(episode)
    assert merge(*(tmp_path / f"{name}.zarr" for name in parts), f"out={tmp_path / 'all.zarr'}") == 0
    merged = list(EpisodeStore.open(tmp_path / "all.zarr"))
    assert merged[0].points is None and merged[0].chunks is None
    one, two = parts["one"], parts["two"]
    assert one.points is not None and one.chunks is not None and merged[1].points is not None
    np.testing.assert_array_equal(merged[1].points[:, [0, 2]], one.points)
    assert (merged[1].points[:, [1, 3]] == -1).all()  # it names no second thing
    np.testing.assert_array_equal(np.asarray(merged[1].chunks)[:, :2], one.chunks)
    assert np.isnan(np.asarray(merged[1].chunks)[:, 2]).all()
    np.testing.assert_array_equal(np.asarray(merged[2].points), np.asarray(two.points))
    for name, episode in zip(parts, merged, strict=True):
        (stored,) = EpisodeStore.open(tmp_path / f"{name}.zarr")
        np.testing.assert_array_equal(stored.images["wrist"], episode.images["wrist"])
    # An episode that knows fewer things is recorded into a store of more, and not the other way round.
    with EpisodeStore.open(tmp_path / "all.zarr", "a") as store:
        store.append(one)
        np.testing.assert_array_equal(np.asarray(store[3].points), merged[1].points)
    with (
        EpisodeStore.open(tmp_path / "one.zarr", "a") as store,
        pytest.raises(InputError, match="do not fit into 2 points"),
    ):
        store.append(two)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two LeRobot recordings of one robot as stores: their actions reach to other extremes."""
    folder = tmp_path_factory.mktemp("days")
    paths = {}
    for seed, name in enumerate(("one", "two"), 1):
        paths[name] = str(folder / f"{name}.zarr")
        assert cli.main(["convert", str(recording(folder / name, seed)), paths[name]]) == 0
    return paths


def bodies(paths: dict[str, str]) -> list[Embodiment]:
    return [EpisodeStore.open(path).embodiment for path in paths.values()]


def bounds(robots: list[Embodiment]) -> tuple[list[float], list[float]]:
    low = np.min([robot.action_low for robot in robots], axis=0)
    return low.tolist(), np.max([robot.action_high for robot in robots], axis=0).tolist()


def options(data: Any, out: Path) -> dict[str, Any]:
    values: dict[str, Any] = {"vqa": {}, "backbone": "scratch", "mixture": {"robot": 1.0}, "horizon": 2, "turns": 1}
    plan = {"steps": 2, "batch_size": 4, "precision": "fp32"}
    return values | {"heldout_questions": 0, "data": data, "out": str(out), "plan": plan}


def test_recordings_of_other_extremes_merge_and_keep_the_range_of_both(days: dict[str, str], tmp_path: Path) -> None:
    one, two = bodies(days)
    assert one.action_low != two.action_low and one.action_high != two.action_high
    assert merge(*days.values(), f"out={tmp_path / 'all.zarr'}") == 0
    merged = EpisodeStore.open(tmp_path / "all.zarr")
    assert (list(merged.embodiment.action_low), list(merged.embodiment.action_high)) == bounds([one, two])
    np.testing.assert_array_equal(merged[4].action, EpisodeStore.open(days["two"])[1].action)


def test_recordings_train_together_into_a_policy_of_the_robot(days: dict[str, str], tmp_path: Path) -> None:
    assert train(RunOptions(**options(days, tmp_path / "run"))).finished
    model = VLA.load(tmp_path / "run/best")
    (robot,) = model.processor.robots
    assert (list(robot.embodiment.action_low), list(robot.embodiment.action_high)) == bounds(bodies(days))
    # The robot that was recorded goes by its own name and has limits of its own: within the data's range, and beyond.
    for limit in (0.01, 100.0):
        body = replace(robot.embodiment, name="arm", action_low=(-limit,) * 2, action_high=(limit,) * 2)
        policy = VlaPolicy(model, body)
        assert policy.embodiment == body
        far = replace(robot, embodiment=replace(robot.embodiment, action_low=(-1e9,) * 2, action_high=(1e9,) * 2))
        state = np.full(2, 50.0)
        chunk = policy.predict(Observation({}, state, "pick up", 0.0))
        (said, *_), _ = model.generate_actions(model.processor.robot_prompt([Observation({}, state, "pick up", 0.0)]))
        assert chunk is not None and said is not None
        np.testing.assert_array_equal(chunk.actions, np.clip(far.denormalize_actions(said, state), -limit, limit))
    with pytest.raises(InputError, match="control_hz: 10.0, of the other 30.0"):
        VlaPolicy(model, replace(body, control_hz=30.0)).embodiment.check(replace(body, control_hz=30.0))


def test_a_store_takes_the_range_of_what_is_recorded_into_it(make_episode: Make, tmp_path: Path) -> None:
    """Of a robot whose cameras are in another order, and whose points therefore are."""
    first = make_episode(0, points=np.full((5, 2, 2), 0.5))
    with EpisodeStore.create(tmp_path / "store", first.embodiment) as store:
        store.append(first)
        body = replace(first.embodiment, cameras=("wrist", "front"), action_high=(2.0, 0.5, 1.0))
        recorder = ZarrRecorder(store, body)
        recorder.start("lift the ring")
        images = {name: frames[0] for name, frames in first.images.items()}
        points = np.array([[0.1, 0.2], [0.3, 0.4]])
        recorder.step(Observation(images, first.state[0], "lift the ring", 0.0), first.action[0], points=points)
        recorder.finish(success=True)
        with pytest.raises(InputError, match="control_hz"):
            store.append(replace(first, embodiment=replace(body, control_hz=1.0)))
    again = EpisodeStore.open(tmp_path / "store")
    assert (again.embodiment.cameras, again.embodiment.action_high) == (("front", "wrist"), (2.0, 1.0, 1.0))
    np.testing.assert_array_equal(np.asarray(again[1].points)[0], points[::-1])
    np.testing.assert_array_equal(again[1].images["wrist"][0], images["wrist"])


def test_a_policy_drives_a_robot_whose_cameras_are_in_another_order(make_model: Callable[..., VLA]) -> None:
    model = make_model(points=2)
    (robot,) = model.processor.robots
    turned = replace(robot.embodiment, cameras=robot.embodiment.cameras[::-1])
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in turned.cameras}
    observation = Observation(images, np.zeros(2), "lift the ring", 0.0)
    here, there = (VlaPolicy(model, body).predict(observation) for body in (robot.embodiment, turned))
    assert here is not None and there is not None and here.points is not None and there.points is not None
    np.testing.assert_array_equal(here.actions, there.actions)
    np.testing.assert_array_equal(here.points, there.points[::-1])
    assert not np.array_equal(here.points, there.points)


def test_a_policy_of_lerobots_recordings_drives_the_arm_that_they_are_of(tmp_path: Path) -> None:
    """lerobot-record knows degrees and percent, under names of its own."""
    from vla.robots.lerobot_adapter.robot import so101, so101_units

    options_of_arm = {"id": "so101", "calibration_dir": None, "cameras": None, "control_hz": 10, "velocity": 2.0}
    arm = so101(port="none", acceleration=15.0, relax_on_exit=False, units="lerobot", **options_of_arm)
    names, _, _ = so101_units()
    path = str(tmp_path / "store.zarr")
    assert cli.main(["convert", str(recording(tmp_path / "set", robot="so101_follower", names=names)), path]) == 0
    assert train(RunOptions(**options(path, tmp_path / "run"))).finished
    policy = adapt(policy_for(str(tmp_path / "run"), arm.embodiment), arm.embodiment, arm.limits.velocity, {})
    assert policy.embodiment == arm.embodiment
    in_radians = replace(arm.embodiment, action=tuple(f"{name} [rad]" for name in names), action_state=(), grippers=())
    with pytest.raises(InputError, match=r"shoulder_pan.pos, of the other shoulder_pan.pos \[rad\]"):
        adapt(policy_for(str(tmp_path / "run"), in_radians), in_radians, arm.limits.velocity, {})
