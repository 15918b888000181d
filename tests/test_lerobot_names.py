"""Names of features: other tools' are known, LeRobot's come out, and what is not known is asked for once."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import lerobot_v3
from vla.datasets.formats.columns import MissingChoice
from vla.datasets.formats.compare import check_equal
from vla.datasets.formats.lerobot_features import map_features
from vla.types import Episode

FPS, STEPS, EPISODES = 10, 6, 3
VECTOR = {"dtype": "float32", "shape": [2], "names": None}
PICTURE = {"dtype": "image", "shape": [8, 8, 3], "names": ["height", "width", "channels"]}
ABSOLUTE = "actions=absolute"
"""The numbers are random, and say nothing of it."""
Features = Mapping[str, Mapping[str, Any]]


def write_v21(root: Path, features: Features, change: Callable[[str, int], np.ndarray] | None = None) -> Path:
    """A dataset of version 2.1 of numbers and PNG images, drawn by the episode's number unless `change` gives them."""
    info = {
        "codebase_version": "v2.1",
        "robot_type": "toy",
        "fps": FPS,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "features": {**features, "timestamp": {"dtype": "float32", "shape": [1]}},
    }
    for name in ("frame_index", "episode_index", "task_index"):
        info["features"][name] = {"dtype": "int64", "shape": [1]}
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "lift"}\n')
    rows = [{"episode_index": index, "tasks": ["lift"], "length": STEPS} for index in range(EPISODES)]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for index in range(EPISODES):
        rng = np.random.default_rng(index)
        columns: dict[str, Any] = {
            "timestamp": (np.arange(STEPS) / FPS).astype(np.float32),
            "frame_index": np.arange(STEPS),
            "episode_index": np.full(STEPS, index),
            "task_index": np.zeros(STEPS, np.int64),
        }
        for name, feature in features.items():
            shape = (STEPS, *feature["shape"])
            if feature["dtype"] == "image":
                columns[name] = [{"bytes": png(rng.integers(0, 256, feature["shape"], np.uint8))} for _ in range(STEPS)]
            else:
                columns[name] = rng.normal(size=shape).astype(feature["dtype"]).tolist()
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{index:06d}.parquet")
    return root


def png(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def run(*arguments: str | Path) -> int:
    return cli.main(["convert", *map(str, arguments)])


@pytest.mark.parametrize(
    ("names", "state", "action"),
    [
        (["observation.state", "action"], ["observation.state"], ["action"]),
        (["state", "actions"], ["state"], ["actions"]),
        (["observation.states.joint", "actions.joint"], ["observation.states.joint"], ["actions.joint"]),
        (["state.arm", "state.hand", "action"], ["state.arm", "state.hand"], ["action"]),
        (["state", "action.arm", "action.delta_arm"], ["state"], ["action.arm"]),
        (["state", "action.delta_arm", "action.delta_hand"], ["state"], ["action.delta_arm", "action.delta_hand"]),
    ],
)
def test_names_of_other_tools_are_known(names: Sequence[str], state: list[str], action: list[str]) -> None:
    mapped = map_features(dict.fromkeys(names, VECTOR), "x")
    assert (list(mapped.state), list(mapped.action)) == (state, action)
    left = set(names) - {*state, *action}
    assert set(mapped.extras) == left and all(name in " ".join(mapped.remarks) for name in left)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["joint_position", "gripper_position", "actions"], {"state": ["joint_position", "gripper_position"]}),
        (["observation.state", "target_joints"], {"action": ["target_joints"]}),
        (
            ["obs.arm", "obs.hand", "cmd.arm", "cmd.hand"],
            {"action": ["cmd.arm", "cmd.hand"], "state": ["obs.arm", "obs.hand"]},
        ),
        (["robot.one", "robot.two"], {"action": ["robot.two"], "state": ["robot.one"]}),
        (["pose", "command", "next.reward"], {"action": ["command"], "state": ["pose", "next.reward"]}),
    ],
)
def test_choice_that_the_user_has_is_said_once(names: Sequence[str], options: Mapping[str, Any]) -> None:
    with pytest.raises(MissingChoice) as found:
        map_features(dict.fromkeys(names, VECTOR), "x")
    expected = {kind: [name for name in chosen if name != "next.reward"] for kind, chosen in options.items()}
    assert found.value.options == expected
    map_features(dict.fromkeys(names, VECTOR), "x", **found.value.options)


def test_command_of_the_message_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = {"joint position": VECTOR, "target": VECTOR, "front": PICTURE}
    source = write_v21(tmp_path / "my data", features)
    assert run(source, tmp_path / "x.zarr", "cameras=[front]", "episodes=0:2", ABSOLUTE) == 2
    command = shlex.split(capsys.readouterr().err.rpartition("for example: ")[2])
    assert cli.main(command[1:]) == 0
    assert len(EpisodeStore.open(tmp_path / "x.zarr")) == 2


def split_names(tmp_path: Path) -> Path:
    features = {
        "action.joints": VECTOR,
        "action.delta_joints": VECTOR,
        "action.grip": {"dtype": "float64", "shape": [1]},
        "state.joints": VECTOR,
        "state.grip": {"dtype": "int8", "shape": [1]},
        "video.ego": PICTURE,
    }
    return write_v21(tmp_path / "split", features)


@pytest.mark.parametrize(
    ("options", "camera", "dtypes"),
    [
        ([], "ego", ("float32", "float64")),
        (["action=[action.joints]", "state=[state.joints]", "rename={ego: front}"], "front", ("float32", "float32")),
        (["rename={action.joints: action, video.ego: observation.images.top}"], "top", ("float32", "float32")),
    ],
)
def test_lerobots_policies_find_what_was_split(
    tmp_path: Path, options: list[str], camera: str, dtypes: tuple[str, str]
) -> None:
    from lerobot.configs.types import FeatureType
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.utils.feature_utils import dataset_to_policy_features

    store, out = tmp_path / "store.zarr", tmp_path / "out"
    assert run(split_names(tmp_path), store, *options, ABSOLUTE) == 0
    assert run(store, out) == 0
    dataset = LeRobotDataset("a/b", out, video_backend="pyav")
    found = {key: feature.type for key, feature in dataset_to_policy_features(dataset.meta.features).items()}
    assert found == {
        "observation.state": FeatureType.STATE,
        "action": FeatureType.ACTION,
        f"observation.images.{camera}": FeatureType.VISUAL,
    }
    kept = EpisodeStore.open(store)
    item = dataset[STEPS + 2]
    assert np.array_equal(item["action"], kept[1].action[2].astype(np.float32))
    assert np.array_equal(item["observation.state"], kept[1].state[2].astype(np.float32))
    assert tuple(dataset.meta.features[key]["dtype"] for key in ("observation.state", "action")) == dtypes
    again = lerobot_v3.open_source(out)
    assert all(check_equal(kept[index], again[index]) == 0 for index in range(EPISODES))
    assert "action.delta_joints" in again[0].extras


def test_dataset_of_lerobots_names_comes_back_as_it_was(tmp_path: Path) -> None:
    names = {"observation.state": VECTOR, "action": VECTOR, "action.plan": VECTOR, "observation.image": PICTURE}
    source = write_v21(tmp_path / "a", names)
    assert run(source, tmp_path / "b.zarr", ABSOLUTE) == run(tmp_path / "b.zarr", tmp_path / "c") == 0
    features = json.loads((tmp_path / "c/meta/info.json").read_text())["features"]
    assert {key: features[key]["dtype"] for key in names} == {key: one["dtype"] for key, one in names.items()}


def test_new_name_must_be_of_something_and_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = split_names(tmp_path)
    for rename, told in (("{side: front}", "has no feature 'side'"), ("{state.grip: state.joints}", "would be called")):
        assert run(source, tmp_path / "x.zarr", f"rename={rename}") == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "x.zarr").exists()


def test_extra_of_a_name_that_lerobot_has_is_kept_apart(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    extras = {"observation.state": np.arange(5.0), "action.plan": np.array([0, np.nan, 2, 3, 4])}
    episode = make_episode(extras=extras)
    with EpisodeStore.create(tmp_path / "a.zarr", episode.embodiment) as store:
        store.append(episode)
    assert run(tmp_path / "a.zarr", tmp_path / "b", "use_videos=false") == 0
    assert check_equal(episode, lerobot_v3.open_source(tmp_path / "b")[0]) == 0
