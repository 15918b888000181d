"""HDF5 files of LIBERO, robomimic and ALOHA as their users and relatives really write them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import hdf5
from vla.errors import InputError

STEPS = 4
RAMP = np.tile(np.arange(8, dtype=np.uint8)[:, None, None] * 30, (STEPS, 1, 8, 3))
"""Images whose rows tell which way is up."""


def write(path: Path, datasets: Mapping[str, Any], **attributes: Any) -> Path:
    """Datasets by their paths; attributes of the group data, or of the file where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        file.get("data", file).attrs.update(attributes)
    return path


def numbers(width: int, steps: int = STEPS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, width]).normal(size=(steps, width))


def regenerated(prefix: str = "data/demo_0/") -> dict[str, Any]:
    """What OpenVLA's regenerate_libero_dataset.py writes of an episode: no attributes at all."""
    pose = numbers(6)
    return {
        prefix + "actions": numbers(7),
        prefix + "states": numbers(30),
        prefix + "robot_states": numbers(9),
        prefix + "rewards": np.array([0, 0, 0, 1], np.uint8),
        prefix + "dones": np.array([0, 0, 0, 1], np.uint8),
        prefix + "obs/agentview_rgb": RAMP,
        prefix + "obs/eye_in_hand_rgb": RAMP,
        prefix + "obs/ee_pos": pose[:, :3],
        prefix + "obs/ee_ori": pose[:, 3:],
        prefix + "obs/ee_states": pose,
        prefix + "obs/gripper_states": numbers(2),
        prefix + "obs/joint_states": numbers(7),
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pick_up_the_bowl_demo", "pick up the bowl"),
        ("KITCHEN_SCENE3_turn_on_the_stove_demo", "turn on the stove"),
        ("LIVING_ROOM_SCENE10_put_the_mug_down_demo", "put the mug down"),
        ("open_the_drawer", "open the drawer"),
    ],
)
@pytest.mark.parametrize("layout", ["libero", "hdf5"])
def test_libero_written_anew_without_attributes(tmp_path: Path, layout: str, name: str, words: str) -> None:
    written = regenerated()
    source = hdf5.open_source(write(tmp_path / f"{name}.hdf5", written), layout=layout)
    episode = source[0]
    assert (episode.instruction, episode.success, source.embodiment.control_hz) == (words, True, 20.0)
    for camera in ("agentview_rgb", "eye_in_hand_rgb"):
        np.testing.assert_array_equal(episode.images[camera], RAMP[:, ::-1])
    parts = [written[f"data/demo_0/obs/{key}"] for key in ("ee_states", "gripper_states")]
    np.testing.assert_array_equal(episode.state, np.concatenate(parts, axis=1))
    remarks = "\n".join(source.provenance["remarks"])
    assert f"the instruction is the name of the file, {words!r}" in remarks
    assert ("format=robomimic" in remarks) is (layout == "hdf5")
    assert source.provenance["format"] == "libero"
    # LIBERO's controller takes steps, whatever the state is called.
    assert source.embodiment.action_mode == ("delta",) * 6 + ("absolute",)


@pytest.mark.parametrize(
    ("controller", "delta"),
    [
        ({"type": "OSC_POSE", "control_delta": True}, True),
        ({"type": "OSC_POSE", "control_delta": False}, False),
        ({"type": "JOINT_POSITION"}, False),
        ({"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE", "input_type": "delta"}}}, True),
        ({"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE", "input_type": "absolute"}}}, False),
    ],
)
def test_a_controller_states_what_the_actions_are(tmp_path: Path, controller: dict[str, Any], delta: bool) -> None:
    args = {"env_name": "Lift", "env_kwargs": {"controller_configs": controller, "control_freq": 20}}
    data = {"data/demo_0/actions": numbers(7), "data/demo_0/obs/robot0_eef_pos": numbers(3)}
    source = hdf5.open_source(write(tmp_path / "a.hdf5", data, env_args=json.dumps(args)))
    body = source.embodiment
    assert body.action_mode == (("delta",) * 6 + ("absolute",) if delta else ("absolute",) * 7)
    assert body.grippers == (("action[6]",) if delta else ())
    assert bool(source.provenance["actions_stated"]) is delta


@pytest.mark.parametrize(
    ("left", "state"),
    [
        (("ee_states", "gripper_states", "joint_states"), "ee_states"),
        (("gripper_states", "joint_states"), "joint_states"),
        (("ee_pos", "ee_states"), "ee_states"),
    ],
)
def test_a_libero_file_with_fewer_states(tmp_path: Path, left: tuple[str, ...], state: str) -> None:
    states = ("ee_pos", "ee_ori", "ee_states", "gripper_states", "joint_states")
    data = {k: v for k, v in regenerated().items() if k.split("/")[-1] not in states or k.split("/")[-1] in left}
    body = hdf5.open_source(write(tmp_path / "open_it_demo.hdf5", data)).embodiment
    grip = ("gripper_states[0]", "gripper_states[1]") if "gripper_states" in left else ()
    width = 7 if state == "joint_states" else 6
    assert body.state == (*(f"{state}[{i}]" for i in range(width)), *grip)


def test_libero_with_the_names_of_robosuite(tmp_path: Path) -> None:
    names = {"robot0_eef_pos": numbers(3), "robot0_eef_quat": numbers(4), "robot0_gripper_qpos": numbers(2)}
    data = {f"data/demo_0/obs/{name}": values for name, values in {**names, "agentview_image": RAMP}.items()}
    path = write(tmp_path / "open_it_demo.hdf5", data | {"data/demo_0/actions": numbers(7)})
    source = hdf5.open_source(path, layout="libero")
    assert source[0].state.shape == (STEPS, 9) and source[0].instruction == "open it"
    np.testing.assert_array_equal(source[0].images["agentview_image"], RAMP[:, ::-1])


def test_the_layout_that_was_named_is_obeyed(tmp_path: Path) -> None:
    path = write(tmp_path / "a_demo.hdf5", regenerated())
    source = hdf5.open_source(path, layout="robomimic", fps=20.0)
    np.testing.assert_array_equal(source[0].images["agentview_rgb"], RAMP)
    assert source[0].instruction == "" and source.provenance["format"] == "robomimic"
    with pytest.raises(InputError, match="no observations/qpos"):
        hdf5.open_source(path, layout="aloha")
    upright = write(tmp_path / "b_demo.hdf5", regenerated(), macros_image_convention="opencv")
    np.testing.assert_array_equal(hdf5.open_source(upright)[0].images["agentview_rgb"], RAMP)


def test_the_command_says_what_was_inferred(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "libero/pick_up_the_bowl_demo.hdf5", regenerated())
    source, store = str(tmp_path / "libero"), tmp_path / "out.zarr"
    assert cli.main(["convert", source, str(store)]) == 0
    said = capsys.readouterr().out
    assert "detected as LIBERO by obs/agentview_rgb and obs/ee_states, its images are flipped" in said
    assert cli.main(["convert", source, str(tmp_path / "named.zarr"), "format=libero", "fps=20"]) == 0
    assert "taken for" not in capsys.readouterr().out
    # What was remarked on the reading is no property of the data.
    assert cli.main(["convert", str(store), str(tmp_path / "again.zarr")]) == 0
    assert "steps a second" not in capsys.readouterr().out
    first = EpisodeStore.open(tmp_path / "named.zarr")[0]
    assert first.instruction == "pick up the bowl" and first.images["agentview_rgb"][0, 0, 0, 0] == 210


def aloha(prefix: str = "", action: str = "action", **more: Any) -> dict[str, Any]:
    observed = {"observations/qpos": numbers(14), "observations/images/cam_high": RAMP, action: numbers(14, seed=1)}
    return {prefix + name: values for name, values in (observed | more).items()}


def test_many_episodes_of_aloha_in_one_file(tmp_path: Path) -> None:
    for folder in ("", "data/"):
        episodes = {k: v for i in range(11) for k, v in aloha(f"{folder}episode_{i}/", "actions").items()}
        source = hdf5.open_source(write(tmp_path / "all.hdf5", episodes, fps=30))
        assert len(source) == 11 and source.embodiment.control_hz == 30
        assert source[10].info["demonstration"] == f"{folder}episode_10"
        assert source.provenance["format"] == "aloha"
        np.testing.assert_array_equal(source[3].action, numbers(14, seed=1))


@pytest.mark.parametrize("moving", [True, False])
def test_a_base_is_part_of_the_action_where_it_moves(tmp_path: Path, moving: bool) -> None:
    base = np.full((STEPS, 2), 0.3 if moving else 0.0)
    for i, values in enumerate((base * 0, base)):
        write(tmp_path / f"episode_{i}.hdf5", aloha(base_action=values))
    source = hdf5.open_source(tmp_path)
    assert source[1].action.shape[1] == (16 if moving else 14)
    assert source.embodiment.action[14:] == (("base_action[0]", "base_action[1]") if moving else ())
    assert source.embodiment.action_mode[14:] == (("velocity", "velocity") if moving else ())
    assert ("base_action" in source[1].extras) is not moving
    assert hdf5.open_source(tmp_path, action=["action"])[1].action.shape[1] == 14


def coded(values: np.ndarray, kind: str) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def test_depth_and_images_as_rows_of_bytes(tmp_path: Path) -> None:
    depth = np.arange(64, dtype=np.uint16).reshape(8, 8) * 100
    path = tmp_path / "episode_0.hdf5"
    write(path, aloha(**{"observations/images_depth/cam_high": np.stack([depth] * STEPS), "compress_len": [[9.0] * 4]}))
    episode = hdf5.open_source(path)[0]
    np.testing.assert_array_equal(episode.depth["cam_high"][2], depth)
    assert list(episode.images) == ["cam_high"] and not episode.extras
    with h5py.File(path, "a") as file:
        for group, values in (("images", RAMP[0]), ("images_depth", depth)):
            del file[f"observations/{group}/cam_high"]
            rows = file.create_dataset(f"observations/{group}/cam_high", (STEPS,), h5py.vlen_dtype(np.uint8))
            rows[:] = [coded(values, "PNG")] * STEPS
    episode = hdf5.open_source(path)[0]
    np.testing.assert_array_equal(episode.images["cam_high"], RAMP)
    np.testing.assert_array_equal(episode.depth["cam_high"][2], depth)


@pytest.mark.parametrize("key", ["language_instruction", "instruction", "language_raw"])
def test_an_instruction_in_a_dataset_or_an_attribute(tmp_path: Path, key: str) -> None:
    for i, text in enumerate((b"fold the towel", np.array([b"fold the towel"]))):
        source = hdf5.open_source(write(tmp_path / f"{i}.hdf5", aloha(**{key: text})))
        assert source[0].instruction == "fold the towel"
        assert not [remark for remark in source.provenance["remarks"] if "instruction" in remark]
    assert hdf5.open_source(write(tmp_path / "c.hdf5", aloha(), **{key: "fold it"}))[0].instruction == "fold it"


def test_isaac_lab(tmp_path: Path) -> None:
    """Its rate is in sim_args, its success an attribute, and no reward is stored."""
    data: dict[str, Any] = {}
    for i in range(2):
        data |= {f"data/demo_{i}/actions": numbers(7), f"data/demo_{i}/obs/eef_pos": numbers(3)}
        data |= {f"data/demo_{i}/obs/table_cam": RAMP, f"data/demo_{i}/initial_state/pose": np.zeros((1, 7))}
    args = {"env_name": "Isaac-Stack-Cube-v0", "type": 2, "sim_args": {"dt": 0.01, "decimation": 5}}
    path = write(tmp_path / "dataset.hdf5", data, env_args=json.dumps(args))
    with h5py.File(path, "a") as file:
        for i in range(2):
            file[f"data/demo_{i}"].attrs["success"] = bool(i)
    source = hdf5.open_source(path)
    assert source.embodiment.control_hz == pytest.approx(20)
    assert [source[i].success for i in range(2)] == [False, True]
    assert source.embodiment.cameras == ("table_cam",)


def test_maniskill_has_an_observation_after_the_last_action(tmp_path: Path) -> None:
    seen = np.concatenate([RAMP, RAMP[:1]])
    path = write(
        tmp_path / "trajectory.rgb.pd_joint_delta_pos.h5",
        {
            "traj_0/actions": numbers(8),
            "traj_0/obs/agent/qpos": numbers(9, STEPS + 1),
            "traj_0/obs/sensor_data/base_camera/rgb": seen,
            "traj_0/env_states/actors/cube": numbers(13, STEPS + 1),
            "traj_0/success": np.array([False, False, True, True]),
        },
        fps=20,
    )
    source = hdf5.open_source(path)
    assert source[0].state.shape == (STEPS, 9) and source.embodiment.cameras == ("sensor_data.base_camera.rgb",)
    np.testing.assert_array_equal(source[0].state, numbers(9, STEPS + 1)[:STEPS])
    assert "no action follows it" in str(source.provenance["remarks"])


def test_what_has_no_observations_yet_names_the_script_that_makes_them(tmp_path: Path) -> None:
    path = write(tmp_path / "demo.hdf5", {"data/demo_1/states": numbers(30), "data/demo_1/actions": numbers(7)})
    with pytest.raises(InputError, match=r"no observations.*dataset_states_to_obs\.py.*create_dataset\.py"):
        hdf5.open_source(path, fps=20.0)


def test_other_names_are_chosen(tmp_path: Path) -> None:
    """RoboMIND: the leader's joints and the follower's."""
    path = write(
        tmp_path / "trajectory.hdf5",
        {
            "master/joint_position": numbers(8, seed=1),
            "puppet/joint_position": numbers(8),
            "observations/rgb_images/camera_top": RAMP,
            "observations/rgb_images/camera_left": RAMP,
        },
    )
    with pytest.raises(InputError, match=r"choose action=\[\.\.\.\] and state=\[\.\.\.\] from .*puppet/joint_position"):
        hdf5.open_source(path)
    source = hdf5.open_source(
        path, state=["puppet.joint_position"], action=["master.joint_position"], cameras=["camera_top"], fps=30.0
    )
    np.testing.assert_array_equal(source[0].action, numbers(8, seed=1))
    np.testing.assert_array_equal(source[0].state, numbers(8))
    assert source.embodiment.cameras == ("camera_top",)
    assert source.provenance["left_out"] == {"observations/rgb_images/camera_left": "not among the chosen cameras"}


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.hdf5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    for place in (tmp_path / "a.hdf5", tmp_path):
        assert cli.main(["convert", str(place), str(tmp_path / "out.zarr")]) == 2
        assert "a.hdf5 is a Git LFS pointer" in capsys.readouterr().err
    assert not (tmp_path / "out.zarr").exists()


def test_unreadable_files_and_episodes_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "aloha"
    for i in range(5):
        write(folder / f"episode_{i}.hdf5", aloha())
    for i, content in ((0, b"version https://git-lfs.github.com/spec/v1\n"), (3, b"no HDF5")):
        (folder / f"episode_{i}.hdf5").write_bytes(content)
    with h5py.File(folder / "episode_2.hdf5", "a") as file:
        del file["observations/qpos"]
    words = ["convert", str(folder), str(tmp_path / "out.zarr"), "format=aloha"]
    assert cli.main(words) == 2 and not (tmp_path / "out.zarr").exists()
    assert "skip=true leaves such episodes out" in capsys.readouterr().err
    assert cli.main([*words, "skip=true"]) == 0
    said = capsys.readouterr().out
    assert "skipped 3 episodes" in said and "Git LFS pointer" in said and "observations/qpos" in said
    with EpisodeStore.open(tmp_path / "out.zarr") as store:
        assert [store[i].info["file"] for i in range(len(store))] == ["episode_1.hdf5", "episode_4.hdf5"]
    for i in (1, 4):
        (folder / f"episode_{i}.hdf5").write_bytes(b"")
    with pytest.raises(InputError, match="no episode of .* can be read"):
        hdf5.open_source(folder, skip=True)


def test_the_actions_of_aloha_are_its_leaders_unless_the_numbers_say_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = write(tmp_path / "noise.hdf5", aloha())
    assert cli.main(["convert", str(noise), str(tmp_path / "noise.zarr")]) == 0
    assert "joint positions of ALOHA's leaders, as the data do not show it" in capsys.readouterr().out
    qpos = np.cumsum(numbers(14, 200), axis=0)
    steps = np.diff(qpos, axis=0, append=qpos[-1:])
    frames = {"observations/images/cam_high": np.repeat(RAMP, 50, axis=0)}
    moved = write(tmp_path / "moved.hdf5", {"observations/qpos": qpos, "action": steps, **frames})
    assert cli.main(["convert", str(moved), str(tmp_path / "moved.zarr")]) == 0
    with EpisodeStore.open(tmp_path / "moved.zarr") as store:
        assert set(store.embodiment.action_mode) == {"delta"}
        assert store.embodiment.grippers == ("qpos[6]", "qpos[13]")
    with EpisodeStore.open(tmp_path / "noise.zarr") as store:
        assert set(store.embodiment.action_mode) == {"absolute"} and store.embodiment.action == store.embodiment.state
