from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import hdf5
from vla.errors import InputError

ENVIRONMENT = {"env_name": "PickPlaceCan", "type": 1, "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}}


def pixels(seed: int, steps: int, height: int = 8, width: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (steps, height, width, 3), np.uint8)


def demonstration(seed: int, steps: int, images: bool = True) -> dict[str, np.ndarray]:
    """The datasets of a robomimic demonstration."""
    rng = np.random.default_rng(seed)
    obs: dict[str, np.ndarray] = {
        "obs/object": rng.normal(size=(steps, 14)),
        "obs/robot0_eef_pos": rng.normal(size=(steps, 3)),
        "obs/robot0_eef_quat": rng.normal(size=(steps, 4)),
        "obs/robot0_gripper_qpos": rng.normal(size=(steps, 2)),
        "obs/robot0_joint_pos": rng.normal(size=(steps, 7)),
    }
    if images:
        obs["obs/agentview_image"] = pixels(seed, steps)
        obs["obs/agentview_depth"] = np.full((steps, 4, 5, 1), 1.2345, np.float32)
        obs["obs/robot0_eye_in_hand_image"] = pixels(seed + 1, steps)
    rewards = np.zeros(steps)
    rewards[-1] = seed % 2
    return {
        **obs,
        **{name.replace("obs/", "next_obs/"): values for name, values in obs.items()},
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "dones": np.arange(steps) == steps - 1,
        "rewards": rewards,
        "states": rng.normal(size=(steps, 71)),
    }


def write_robomimic(path: Path, demonstrations: dict[str, dict[str, np.ndarray]], **attributes: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, datasets in demonstrations.items():
            for key, values in datasets.items():
                file.create_dataset(f"data/{name}/{key}", data=values, compression="gzip")
        for name, value in ({"env_args": ENVIRONMENT} | attributes).items():
            if value is not None:
                file["data"].attrs[name] = json.dumps(value)
        names = np.array([name.encode() for name in demonstrations])
        file.create_dataset("mask/train", data=names[:-1])
        file.create_dataset("mask/valid", data=names[-1:])
    return path


def write_aloha(folder: Path, episodes: int = 3, compress: str = "") -> dict[str, np.ndarray]:
    """ALOHA's files; gives the images of the last one."""
    folder.mkdir()
    images: dict[str, np.ndarray] = {}
    for index in range(episodes):
        steps, rng = 4 + index, np.random.default_rng(index)
        with h5py.File(folder / f"episode_{index}.hdf5", "w") as file:
            file.attrs["sim"], file.attrs["compress"] = True, bool(compress)
            for name in ("observations/qpos", "observations/qvel", "observations/effort", "action"):
                file.create_dataset(name, data=rng.normal(size=(steps, 14)))
            for camera in ("cam_high", "cam_left_wrist"):
                images[camera] = pixels(index, steps, 16, 24)
                data = jpeg_rows(images[camera]) if compress else images[camera]
                if compress == "strings":
                    data = np.array([row.tobytes() for row in data])
                file.create_dataset(f"observations/images/{camera}", data=data)
            if compress:
                file.create_dataset("compress_len", data=np.zeros((2, steps)))
    return images


def jpeg_rows(frames: np.ndarray) -> np.ndarray:
    """A row of JPEG bytes a frame, filled with zeros to the longest."""
    coded = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=95, subsampling=0)
        coded.append(buffer.getvalue())
    longest = max(map(len, coded)) + 7
    return np.stack([np.frombuffer(data.ljust(longest, b"\0"), np.uint8) for data in coded])


def test_robomimic(tmp_path: Path) -> None:
    demonstrations = {f"demo_{i}": demonstration(i, 3 + i) for i in (10, 2, 1)}
    path = write_robomimic(tmp_path / "image.hdf5", demonstrations)
    assert hdf5.detect(path)
    source = hdf5.open_source(path)
    robot = source.embodiment
    assert (robot.name, robot.control_hz) == ("panda", 20.0)
    assert robot.cameras == ("agentview_image", "robot0_eye_in_hand_image")
    assert robot.state[:4] == ("robot0_eef_pos[0]", "robot0_eef_pos[1]", "robot0_eef_pos[2]", "robot0_eef_quat[0]")
    every_action = np.concatenate([datasets["actions"] for datasets in demonstrations.values()])
    assert robot.action_low == tuple(every_action.min(0).tolist())
    assert robot.action_high == tuple(every_action.max(0).tolist())
    assert len(source) == 3
    for index, name in enumerate(("demo_1", "demo_2", "demo_10")):
        expected, episode = demonstrations[name], source[index]
        np.testing.assert_array_equal(episode.action, expected["actions"])
        state = [expected[f"obs/robot0_{key}"] for key in ("eef_pos", "eef_quat", "gripper_qpos")]
        np.testing.assert_array_equal(episode.state, np.concatenate(state, axis=1))
        np.testing.assert_array_equal(episode.images["agentview_image"], expected["obs/agentview_image"])
        assert (episode.depth["agentview_image"] == 1234).all()
        assert episode.depth["agentview_image"].shape[1:] == (4, 5)
        assert episode.extras.keys() == {"dones", "object", "rewards", "robot0_joint_pos", "states"}
        np.testing.assert_array_equal(episode.extras["object"], expected["obs/object"])
        assert episode.extras["dones"].dtype == bool
        assert episode.instruction == "pick place can"
        assert episode.info["masks"] == (["valid"] if name == "demo_1" else ["train"])
    with h5py.File(path, "a") as file:
        file["data/demo_10"].attrs["ep_meta"] = json.dumps({"lang": "put the can into the bin"})
    assert source[2].instruction == "put the can into the bin"
    # The second and the third were given no reward, the first was.
    assert [source[i].success for i in range(3)] == [True, False, False]
    assert json.loads(json.dumps(source.provenance)) == source.provenance


def test_robomimic_without_images_or_known_keys(tmp_path: Path) -> None:
    data = {"obs/flat": np.ones((3, 2)), "obs/angle": np.zeros((3, 1)), "actions": np.ones((3, 1))}
    path = write_robomimic(tmp_path / "low_dim.hdf5", {"demo_0": data, "demo_1": data}, env_args=None)
    with pytest.raises(InputError, match=r"low_dim.hdf5 does not state .* give fps"):
        hdf5.open_source(path)
    source = hdf5.open_source(path, fps=10.0, instruction="go")
    assert source.embodiment.cameras == ()
    assert source.embodiment.state == ("angle[0]", "flat[0]", "flat[1]")
    assert (source[0].images, source[0].instruction, source[0].success) == ({}, "go", None)


def test_the_state_can_be_chosen(tmp_path: Path) -> None:
    written = demonstration(0, 4)
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": written})
    source = hdf5.open_source(path, state=["robot0_joint_pos", "states"])
    np.testing.assert_array_equal(source[0].state, np.hstack([written["obs/robot0_joint_pos"], written["states"]]))
    np.testing.assert_array_equal(source[0].extras["robot0_eef_pos"], written["obs/robot0_eef_pos"])
    with pytest.raises(InputError, match="has no 'agentview_image' for the state: it has .*robot0_joint_pos"):
        hdf5.open_source(path, state=["agentview_image"])


def test_libero_is_turned_upright_and_has_its_words(tmp_path: Path) -> None:
    folder = tmp_path / "libero_goal"
    folder.mkdir()
    stored = {}
    for seed, (task, words) in enumerate({"open_drawer": "open the drawer", "push_plate": "push the plate"}.items()):
        rng = np.random.default_rng(seed)
        stored[words] = {
            "obs/agentview_rgb": pixels(seed, 3),
            "obs/eye_in_hand_rgb": pixels(seed + 5, 3),
            "obs/ee_pos": rng.normal(size=(3, 3)),
            "obs/ee_ori": rng.normal(size=(3, 3)),
            "obs/ee_states": rng.normal(size=(3, 6)),
            "obs/gripper_states": rng.normal(size=(3, 2)),
            "obs/joint_states": rng.normal(size=(3, 7)),
            "actions": rng.uniform(-1, 1, (3, 7)),
            "rewards": np.array([0, 0, 1], np.uint8),
        }
        problem = {"problem_name": "tabletop", "language_instruction": words}
        write_robomimic(folder / f"{task}_demo.hdf5", {"demo_0": stored[words]}, problem_info=problem)
    assert hdf5.detect(folder)
    source = hdf5.open_source(folder)
    assert [episode.instruction for episode in (source[0], source[1])] == list(stored)
    for index, expected in enumerate(stored.values()):
        episode = source[index]
        for camera in ("agentview_rgb", "eye_in_hand_rgb"):
            np.testing.assert_array_equal(episode.images[camera], expected[f"obs/{camera}"][:, ::-1])
        state = [expected[f"obs/{key}"] for key in ("ee_pos", "ee_ori", "gripper_states")]
        np.testing.assert_array_equal(episode.state, np.concatenate(state, axis=1))
        assert episode.extras.keys() == {"ee_states", "joint_states", "rewards"}
    assert source.provenance["format"] == "libero"


@pytest.mark.parametrize("compress", ["", "rows", "strings"])
def test_aloha(tmp_path: Path, compress: str) -> None:
    folder = tmp_path / "sim_transfer_cube"
    images = write_aloha(folder, 11, compress)
    source = hdf5.open_source(folder, instruction="hand the cube over")
    robot = source.embodiment
    assert (robot.name, robot.control_hz, len(robot.action)) == ("aloha", 50.0, 14)
    assert robot.cameras == ("cam_high", "cam_left_wrist")
    assert robot.state[:2] == ("qpos[0]", "qpos[1]")
    # Targets of the same joints: an action can be told from the present state.
    assert robot.state == robot.action
    assert len(source) == 11
    # The tenth file comes last, not after the first.
    episode = source[10]
    with h5py.File(folder / "episode_10.hdf5") as file:
        np.testing.assert_array_equal(episode.action, file["action"][()])
        np.testing.assert_array_equal(episode.state, file["observations/qpos"][()])
        np.testing.assert_array_equal(episode.extras["qvel"], file["observations/qvel"][()])
    assert episode.extras.keys() == {"qvel", "effort"}
    for camera, expected in images.items():
        error = np.abs(episode.images[camera].astype(int) - expected)
        assert error.mean() < (8 if compress else 1e-9)
    assert list(source.provenance["left_out"]) == (["compress_len"] if compress else [])


def test_the_episodes_enter_a_store_but_for_one_that_is_not_finite(tmp_path: Path) -> None:
    demonstrations = {f"demo_{i}": demonstration(i, 4) for i in range(3)}
    demonstrations["demo_2"]["actions"][1, 3] = np.nan
    source = hdf5.open_source(write_robomimic(tmp_path / "a.hdf5", demonstrations))
    assert np.isfinite(source.embodiment.action_low).all()
    with EpisodeStore.create(tmp_path / "store", source.embodiment) as store:
        for index in range(2):
            store.append(source[index])
        with pytest.raises(InputError, match=r"action.*action\[3\]"):
            store.append(source[2])
    stored = EpisodeStore.open(tmp_path / "store")
    for index in range(2):
        np.testing.assert_array_equal(stored[index].state, source[index].state)
        np.testing.assert_array_equal(stored[index].extras["object"], source[index].extras["object"])
        np.testing.assert_array_equal(stored[index].depth["agentview_image"], source[index].depth["agentview_image"])
        for camera in source.embodiment.cameras:
            np.testing.assert_array_equal(stored[index].images[camera], source[index].images[camera])


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", {f"demo_{i}": demonstration(i, 4) for i in range(2)})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"a\.hdf5 cannot be read as HDF5, it is cut short"):
        hdf5.open_source(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": None}, "demo_1 has no dataset 'actions'"),
        ({"obs/object": None}, "demo_1 has no dataset 'obs/object', which the first episode has"),
        ({"obs/robot0_eef_pos": np.zeros((3, 3))}, "'obs/robot0_eef_pos' has 3 rows for 5 actions"),
        ({"obs/agentview_image": pixels(0, 5, 9)}, r"'obs/agentview_image' has shape \(5, 9, 10, 3\)"),
    ],
)
def test_an_episode_unlike_the_first_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    second = {name: values for name, values in (demonstration(1, 5) | change).items() if values is not None}
    path = write_robomimic(tmp_path / "a.hdf5", {"demo_0": demonstration(0, 4), "demo_1": second})
    with pytest.raises(InputError, match=message):
        hdf5.open_source(path)


def test_what_is_no_demonstration_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("weights", data=np.zeros(3))
    with pytest.raises(InputError, match="holds weights: robomimic and LIBERO files have a group 'data'"):
        hdf5.open_source(tmp_path / "a.hdf5")
    (tmp_path / "b.hdf5").write_text("no HDF5")
    (tmp_path / "empty").mkdir()
    for name in ("b.hdf5", "empty", "missing"):
        assert not hdf5.detect(tmp_path / name)
        with pytest.raises(InputError):
            hdf5.open_source(tmp_path / name)
    write_aloha(tmp_path / "mixed", 1)
    write_robomimic(tmp_path / "mixed/robomimic.hdf5", {"demo_0": demonstration(0, 4)})
    with pytest.raises(InputError, match="is a robomimic file among aloha files"):
        hdf5.open_source(tmp_path / "mixed")
