"""`vla data derive`: tool poses beside joints, held against MuJoCo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
from ee_stores import in_degrees, moving, so101_body, store_of
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vla.commands import cli
from vla.common.rotations import decode
from vla.datasets.episodes import EpisodeStore
from vla.embodiment import Embodiment
from vla.envs.robot_models import load_robot_model
from vla.errors import InputError

TOOL = ["model=so101", "tool=gripperframe"]


def derive(*arguments: str) -> int:
    return cli.main(["data", "derive", *arguments, "actions=ee"])


def places(
    joints: Float[np.ndarray, "t j"], model: str = "so101", site: str = "gripperframe"
) -> tuple[Float[np.ndarray, "t 3"], Rotation]:
    """Where MuJoCo has a site with these joints [rad] of the whole arm."""
    compiled = load_robot_model(model)
    data = mujoco.MjData(compiled)
    positions, matrices = [], []
    for row in joints:
        data.qpos[: len(row)] = row
        mujoco.mj_kinematics(compiled, data)
        positions.append(data.site(site).xpos.copy())
        matrices.append(data.site(site).xmat.reshape(3, 3).copy())
    return np.array(positions), Rotation.from_matrix(matrices)


def close(one: Rotation, other: Rotation) -> bool:
    return bool(((one.inv() * other).magnitude() < 1e-7).all())


@pytest.mark.parametrize("rotation", ["6d", "axis_angle", "quaternion", "quaternion_xyzw", "euler_xyz_deg"])
def test_poses_are_those_of_the_joints(tmp_path: Path, rotation: str) -> None:
    source = store_of(tmp_path / "a.zarr", moving(0), moving(1))
    assert derive(source, f"out={tmp_path / 'b.zarr'}", *TOOL, f"rotation={rotation}") == 0
    with EpisodeStore.open(source) as old, EpisodeStore.open(tmp_path / "b.zarr") as new:
        body = new.embodiment
        (turned,) = body.rotations
        assert body.action[:3] == ("tool_x [m]", "tool_y [m]", "tool_z [m]") and body.action[-1] == "gripper [rad]"
        assert body.state[:6] == old.embodiment.state
        for before, after in zip(old, new, strict=True):
            np.testing.assert_array_equal(after.state[:, :6], before.state)
            np.testing.assert_array_equal(after.action[:, -1], before.action[:, -1])
            for kind, at, where in (("state", 6, turned.state), ("action", 0, turned.action)):
                positions, rotations = places(getattr(before, kind))
                values = getattr(after, kind)
                np.testing.assert_allclose(values[:, at : at + 3], positions, atol=1e-12)
                assert close(decode(values[:, list(where)], turned.representation), rotations)


def test_what_the_actions_mean_is_written_down(tmp_path: Path) -> None:
    source = store_of(tmp_path / "a.zarr", moving(0))
    assert derive(source, f"out={tmp_path / 'b.zarr'}", *TOOL) == 0
    with EpisodeStore.open(tmp_path / "b.zarr") as store:
        body = store.embodiment
        low, high = store.action[:].min(axis=0), store.action[:].max(axis=0)
        assert store.provenance["derived"] == {"actions": "ee", "model": "so101", "tool": ["gripperframe"]}
    assert body.is_position_action.all() and body.action_state == body.action
    assert body.rotations[0].representation == "rotation_6d" and body.name == so101_body().name
    assert body.kinematics is not None and body.kinematics.tools[0].frame == "gripperframe"
    assert [joint.component for joint in body.kinematics.joints] == list(so101_body().action[:5])
    np.testing.assert_allclose(body.action_low[:9], low[:9])
    np.testing.assert_allclose(body.action_high[:9], high[:9])
    assert body.action_high[-1] == so101_body().action_high[-1]
    assert Embodiment.from_dict(json.loads(json.dumps(body.to_dict()))) == body


def test_images_stay_as_they_are_coded(tmp_path: Path) -> None:
    source = store_of(tmp_path / "a.zarr", moving(0), moving(1), codec="jpeg")
    assert derive(source, f"out={tmp_path / 'b.zarr'}", *TOOL) == 0
    with EpisodeStore.open(source) as old, EpisodeStore.open(tmp_path / "b.zarr") as new:
        assert new.codec == "jpeg"
        frames = np.arange(old.total_frames)
        for camera in old.embodiment.cameras:
            theirs, ours = (store._arrays.frames(f"images/{camera}").stored(frames) for store in (old, new))
            assert list(ours) == list(theirs)
        assert [record.info for record in new.records] == [record.info for record in old.records]
    assert cli.main(["data", "check", str(tmp_path / "b.zarr")]) == 0


def test_degrees_give_the_same_poses_as_radians(tmp_path: Path) -> None:
    episode = moving(2)
    stores = {
        "rad": (episode, []),
        "deg": (in_degrees(episode), []),
        "lerobot": (in_degrees(episode, "{}.pos"), ["units=deg"]),
        "named": (
            in_degrees(episode, "motor_{}"),
            [
                f"joints={{{', '.join(f'{j}: {{component: motor_{j}, scale: {np.pi / 180}}}' for j in joints())}}}",
            ],
        ),
    }
    found = {}
    for name, (recorded, options) in stores.items():
        source = store_of(tmp_path / f"{name}.zarr", recorded)
        assert derive(source, f"out={tmp_path / name}-ee.zarr", *TOOL, *options) == 0
        with EpisodeStore.open(tmp_path / f"{name}-ee.zarr") as store:
            found[name] = store.action[:]
    for actions in found.values():
        np.testing.assert_allclose(actions, found["rad"], atol=1e-12)


def joints() -> list[str]:
    return [name.removesuffix(" [rad]") for name in so101_body().action[:5]]


def test_two_arms_have_a_pose_each(tmp_path: Path) -> None:
    episode = moving(3, body=so101_body("bimanual-lift"))
    source = store_of(tmp_path / "a.zarr", episode)
    options = ["model=so101_pair", "tool=[left_gripperframe, right_gripperframe]", "keep_joints=false"]
    assert derive(source, f"out={tmp_path / 'b.zarr'}", *options) == 0
    with EpisodeStore.open(tmp_path / "b.zarr") as store:
        assert len(store.embodiment.rotations) == 2
        assert store.embodiment.action[-2:] == ("left_gripper [rad]", "right_gripper [rad]")
        assert store.embodiment.state[:2] == ("left_gripper [rad]", "right_gripper [rad]")
        for first, side in ((0, "left"), (9, "right")):
            assert store.embodiment.action[first] == f"{side}_gripperframe_x [m]"
            positions, _ = places(episode.action, "so101_pair", f"{side}_gripperframe")
            np.testing.assert_allclose(store.action[:][:, first : first + 3], positions, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["model=so101", "tool=tip"], "gripperframe"),
        (["model=nothing.xml", "tool=tip"], "no such file"),
        ([*TOOL, "rotation=matrix"], "rotation_6d"),
        ([*TOOL, "joints={shoulder_pan: 'gripper [rad]'}"], "shoulder_lift"),
        ([*TOOL, "units=furlong"], "units"),
        (["model=so101_pair", "tool=left_gripperframe"], "left_shoulder_pan"),
        (["model=so101", "tool=[gripperframe, gripperframe]"], "different"),
        (["model=so101"], "tool"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = store_of(tmp_path / "a.zarr", moving(0))
    assert derive(source, f"out={tmp_path / 'b.zarr'}", *options) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_joints_without_a_unit_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    from vla.datasets.tools.derive import derive as make

    normalised = in_degrees(moving(0), "{}.pos")
    source = store_of(tmp_path / "a.zarr", normalised)
    asked = {"out": str(tmp_path / "b.zarr"), "actions": "ee", "model": "so101", "tool": "gripperframe"}
    with pytest.raises(InputError, match="shoulder_pan.pos has no unit: set units=rad or units=deg"):
        make(source, **asked)
    steps = replace(so101_body(), action_mode=("delta",) * 6)
    with pytest.raises(InputError, match=r"shoulder_pan \[rad\] has the action mode delta"):
        make(store_of(tmp_path / "c.zarr", replace(moving(0), embodiment=steps)), **asked)
    with pytest.raises(InputError, match="actions=joints"):
        make(source, **asked | {"actions": "joints"})
    with EpisodeStore.create(tmp_path / "empty.zarr", so101_body()):
        pass
    with pytest.raises(InputError, match="no episodes"):
        make(str(tmp_path / "empty.zarr"), **asked)
    older = Path(store_of(tmp_path / "older.zarr", moving(0))) / "zarr.json"
    head = json.loads(older.read_text())
    del head["attributes"]["embodiment"]["action_mode"]
    older.write_text(json.dumps(head))
    with pytest.raises(InputError, match="vla data migrate"):
        make(str(older.parent), **asked)
    assert not (tmp_path / "b.zarr").exists()


def test_a_derived_store_is_not_derived_again(tmp_path: Path) -> None:
    source = store_of(tmp_path / "a.zarr", moving(0))
    assert derive(source, f"out={tmp_path / 'b.zarr'}", *TOOL) == 0
    assert derive(str(tmp_path / "b.zarr"), f"out={tmp_path / 'c.zarr'}", *TOOL) == 2
    assert derive(source, f"out={tmp_path / 'b.zarr'}", *TOOL) == 2  # it exists
