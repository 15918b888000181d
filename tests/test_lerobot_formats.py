"""LeRobot datasets: what is read is what LeRobot itself reads, and what is written comes back as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla.datasets.episode_source import EpisodeSource
from vla.datasets.formats import lerobot_v3
from vla.datasets.formats.compare import check_equal
from vla.datasets.formats.lerobot_features import map_features
from vla.datasets.formats.lerobot_source import LeRobotSource
from vla.datasets.formats.lerobot_v3_writer import LeRobotWriter, quiet, tasks_of
from vla.errors import InputError
from vla.types import Episode, Span

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "internvla_sim_pick_place"
FPS = 10
STEPS = 6
AXES = ["height", "width", "channels"]
FEATURES: dict[str, dict[str, Any]] = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["lift.pos", "turn.pos"]},
    "action": {"dtype": "float32", "shape": (3,), "names": {"motors": ["lift.pos", "turn.pos", "grip.pos"]}},
    "observation.images.front": {"dtype": "video", "shape": (48, 64, 3), "names": AXES},
    "observation.images.wrist": {"dtype": "image", "shape": (16, 24, 3), "names": AXES},
    "observation.images.wrist_depth": {
        "dtype": "image",
        "shape": (8, 12, 1),
        "names": AXES,
        "info": {"is_depth_map": True},
    },
    "observation.environment_state": {"dtype": "float64", "shape": (4,), "names": None},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    "grid": {"dtype": "uint16", "shape": (2, 3), "names": None},
    "note": {"dtype": "string", "shape": (1,), "names": None},
}


def smooth(steps: int, height: int, width: int, phase: int = 0) -> np.ndarray:
    """Images that a video codec keeps well, each unlike its neighbours."""
    y, x = np.mgrid[:height, :width]
    rows = [(x * 2 + y + 12 * (t + phase))[..., None] % 256 * np.array([1.0, 0.5, 0.25]) for t in range(steps)]
    return np.stack(rows).astype(np.uint8)


def frames_of(episode: int, schema: Mapping[str, Any] = FEATURES) -> list[dict[str, Any]]:
    """What LeRobot is given: two tasks in episode 1, success in episode 1 only."""
    rng = np.random.default_rng(episode)
    front, wrist = smooth(STEPS, 48, 64, 5 * episode), rng.integers(0, 256, (STEPS, 16, 24, 3), np.uint8)
    every = [
        {
            "observation.state": rng.normal(size=2).astype(np.float32),
            "action": rng.normal(size=3).astype(np.float32),
            "observation.images.front": front[step],
            "observation.images.wrist": wrist[step],
            "observation.images.wrist_depth": rng.integers(0, 65536, (8, 12, 1)).astype(np.uint16),
            "observation.environment_state": rng.normal(size=4),
            "next.reward": np.array([step / 7], np.float32),
            "next.success": np.array([episode == 1 and step == STEPS - 1]),
            "grid": rng.integers(0, 9, (2, 3)).astype(np.uint16),
            "note": f"step {step}",
            "task": "lift the ring" if episode == 0 or step < 4 else "let it go",
        }
        for step in range(STEPS)
    ]
    return [{key: value for key, value in frame.items() if key in (*schema, "task")} for frame in every]


def write_with_lerobot(root: Path, schema: Mapping[str, Any] = FEATURES, episodes: int = 3) -> Path:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset.create("a/b", FPS, dict(schema), root, robot_type="toy_arm", video_backend="pyav")
    with quiet():
        for episode in range(episodes):
            for frame in frames_of(episode, schema):
                dataset.add_frame(frame)
            dataset.save_episode(parallel_encoding=False)
        dataset.finalize()
    return root


@pytest.fixture(scope="module")
def lerobot_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that LeRobot wrote; not to be changed."""
    return write_with_lerobot(tmp_path_factory.mktemp("lerobot") / "toy")


@pytest.fixture(scope="module")
def source(lerobot_root: Path) -> LeRobotSource:
    return lerobot_v3.open_source(lerobot_root)


def write(root: Path, episodes: Iterable[Episode], provenance: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """Episodes as a LeRobot dataset of ours."""
    episodes = list(episodes)
    writer = LeRobotWriter(root, episodes[0].embodiment, provenance or {}, **options)
    for episode in episodes:
        writer.append(episode)
    writer.finish()
    writer.publish()
    return root


def rewrite(root: Path, source: EpisodeSource) -> Path:
    episodes = [source[index] for index in range(len(source))]
    return write(root, episodes, source.provenance, regular_time=source.provenance["regular_time"])


# Reading


def test_reads_what_lerobot_was_given(source: LeRobotSource) -> None:
    assert len(source) == 3
    for index in range(3):
        given, episode = frames_of(index), source[index]
        for field, feature in (("state", "observation.state"), ("action", "action")):
            assert np.array_equal(getattr(episode, field), np.stack([frame[feature] for frame in given]))
        assert np.array_equal(episode.images["wrist"], np.stack([f["observation.images.wrist"] for f in given]))
        assert np.array_equal(
            episode.depth["wrist"], np.stack([f["observation.images.wrist_depth"][..., 0] for f in given])
        )
        for name in ("observation.environment_state", "next.reward", "next.success", "grid"):
            expected = np.stack([frame[name] for frame in given])
            assert episode.extras[name].dtype == expected.dtype
            assert np.array_equal(episode.extras[name], expected.squeeze(1) if expected.shape[1:] == (1,) else expected)
        assert episode.info == {"steps": {"note": [frame["note"] for frame in given]}}
        assert np.array_equal(episode.time, (np.arange(STEPS) / FPS).astype(np.float32))
        assert episode.success == (index == 1)
    assert (source[0].instruction, source[0].spans) == ("lift the ring", ())
    assert source[1].spans == (Span(0, 4, "lift the ring"), Span(4, STEPS, "let it go"))


def test_embodiment_is_that_of_the_schema_and_the_data(source: LeRobotSource) -> None:
    robot, actions = source.embodiment, np.concatenate([source[index].action for index in range(3)])
    assert (robot.name, robot.control_hz, robot.cameras) == ("toy_arm", 10.0, ("front", "wrist"))
    assert robot.state == ("lift.pos", "turn.pos")
    assert robot.action == ("lift.pos", "turn.pos", "grip.pos")
    assert robot.action_low == tuple(actions.min(axis=0)) and robot.action_high == tuple(actions.max(axis=0))


def test_videos_are_read_as_lerobot_reads_them(lerobot_root: Path, source: LeRobotSource) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs = LeRobotDataset("a/b", lerobot_root, video_backend="pyav", return_uint8=True)
    for index in (2, 0, 1):
        items = [theirs[index * STEPS + step] for step in range(STEPS)]
        expected = np.stack([item["observation.images.front"].numpy().transpose(1, 2, 0) for item in items])
        assert np.array_equal(source[index].images["front"], expected)
        assert [item["task"] for item in items] == tasks_of(source[index])
        assert np.abs(expected.astype(int) - smooth(STEPS, 48, 64, 5 * index)).mean() < 4


def test_depth_videos_are_read_as_lerobot_reads_them(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    maps = {"dtype": "video", "shape": (48, 64, 1), "names": AXES, "info": {"is_depth_map": True}}
    features = {"action": FEATURES["action"], "observation.images.front": FEATURES["observation.images.front"]}
    dataset = LeRobotDataset.create(
        "a/b", FPS, {**features, "observation.images.front_depth": maps}, tmp_path / "x", video_backend="pyav"
    )
    depth = (smooth(STEPS, 48, 64)[..., :1].astype(np.uint16) + 5) * 30
    with quiet():
        for step, frame in enumerate(frames_of(0, features)):
            dataset.add_frame({**frame, "observation.images.front_depth": depth[step]})
        dataset.save_episode(parallel_encoding=False)
        dataset.finalize()
    theirs = LeRobotDataset("a/b", tmp_path / "x", video_backend="pyav")
    source = lerobot_v3.open_source(tmp_path / "x")
    ours = source[0].depth["front"]
    read = np.stack([theirs[step]["observation.images.front_depth"][0].numpy() for step in range(STEPS)])
    # LeRobot itself rounds a half millimetre in two ways, with torch and with numpy.
    assert np.abs(ours - read).max() <= 1
    assert np.abs(ours.astype(int) - depth[..., 0]).max() < 10  # [mm]
    again = lerobot_v3.open_source(rewrite(tmp_path / "again", source))
    check_equal(source[0], again[0])


def test_chosen_features_are_put_side_by_side(lerobot_root: Path) -> None:
    keys = ["observation.environment_state", "next.reward"]
    source = lerobot_v3.open_source(lerobot_root, state=keys, cameras=["wrist"])
    episode = source[1]
    assert source.embodiment.state == (*(f"environment_state[{i}]" for i in range(4)), "next.reward")
    assert episode.state.shape == (STEPS, 5) and list(episode.images) == ["wrist"]
    assert "observation.state" in episode.extras and keys[0] not in episode.extras
    assert "observation.images.front" in source.provenance["left_out"]


@pytest.mark.parametrize(
    ("options", "named"),
    [({"state": ["pose"]}, "'pose' for the state"), ({"cameras": ["top"]}, "'top': it has front, wrist")],
)
def test_what_is_chosen_must_be_there(lerobot_root: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        lerobot_v3.open_source(lerobot_root, **options)


def test_parts_of_state_and_action_are_joined_and_names_stay_apart() -> None:
    number = {"dtype": "float32", "names": None}
    features = {
        "state.joints": {**number, "shape": [2]},
        "state.grip": {**number, "shape": [1]},
        "action.joints": {**number, "shape": [2]},
        "image": {"dtype": "image", "shape": [4, 4, 3], "names": AXES},
        "blob": {"dtype": "binary", "shape": [1]},
    }
    mapped = map_features(features, "x")
    assert mapped.state == ("state.joints", "state.grip") and mapped.action == ("action.joints",)
    assert mapped.cameras == {"image": "image"} and list(mapped.left_out) == ["blob"]
    with pytest.raises(InputError, match="no feature of numbers for the action"):
        map_features({"state.joints": features["state.joints"]}, "x")


def test_dataset_without_state_and_cameras_has_empty_ones(tmp_path: Path) -> None:
    root = write_with_lerobot(tmp_path / "bare", {"action": FEATURES["action"]}, episodes=1)
    source = lerobot_v3.open_source(root)
    assert source[0].state.shape == (STEPS, 0) and source[0].images == {}
    check_equal(source[0], lerobot_v3.open_source(rewrite(tmp_path / "again", source))[0])


# Writing


def test_lerobot_to_lerobot_keeps_schema_and_values(lerobot_root: Path, source: LeRobotSource, tmp_path: Path) -> None:
    again = lerobot_v3.open_source(rewrite(tmp_path / "again", source))
    for index in range(3):
        assert check_equal(source[index], again[index]) < 2.0
        assert np.array_equal(source[index].images["wrist"], again[index].images["wrist"])
    before, after = (json.loads((root / "meta/info.json").read_text()) for root in (lerobot_root, tmp_path / "again"))
    for info in (before, after):
        for feature in info["features"].values():
            feature["info"] = {key: value for key, value in feature.get("info", {}).items() if key != "depth_unit"}
    assert before["features"] == after["features"]
    assert [before[key] for key in ("fps", "robot_type", "total_frames")] == [
        after[key] for key in ("fps", "robot_type", "total_frames")
    ]


def own_episodes(make_episode: Callable[..., Episode]) -> list[Episode]:
    """Episodes with all that LeRobot has no place for, some of it in some of them only."""
    rng = np.random.default_rng(3)
    points = rng.random((5, 4, 2))
    points[0, 1] = np.nan
    force = rng.normal(size=(5, 2)).astype(np.float32)
    force[2, 0] = np.nan
    full = make_episode(
        seed=1,
        horizon=4,
        images={"front": smooth(5, 32, 48), "wrist": smooth(5, 32, 48, 9)},
        points=points,
        time=7.0 + np.cumsum(rng.random(5)),
        paraphrases=("raise the ring", "up with it"),
        spans=(Span(0, 3, "reach"), Span(2, 5, "raise")),
        depth={"wrist": rng.integers(0, 65536, (5, 4, 5)).astype(np.uint16)},
        extras={"force": force, "next.done": rng.random(5) > 0.5, "clock": np.arange(5)[:, None]},
    )
    assert full.chunks is not None
    full.chunks[3] = np.nan
    bare = replace(full, points=None, chunks=None, depth={}, extras={"clock": full.extras["clock"]})
    return [full, replace(bare, success=False, instruction="drop it", spans=(), info={})]


@pytest.mark.parametrize("use_videos", [False, None])
def test_own_episodes_come_back(make_episode: Callable[..., Episode], tmp_path: Path, use_videos: bool | None) -> None:
    episodes = own_episodes(make_episode)
    source = lerobot_v3.open_source(write(tmp_path / "own", episodes, {"format": "sim"}, use_videos=use_videos))
    errors = [check_equal(episode, source[index]) for index, episode in enumerate(episodes)]
    assert source.provenance["origin"] == {"format": "sim"}
    assert (max(errors) == 0) == (use_videos is False)
    again = lerobot_v3.open_source(rewrite(tmp_path / "again", source))
    assert all(check_equal(source[index], again[index]) == 0 for index in range(2)) or use_videos is None


def test_episode_of_one_step_comes_back(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    extras = {"force": np.ones((1, 2, 3)), "next.done": np.ones(1, bool)}
    single = make_episode(steps=1, horizon=2, points=np.full((1, 4, 2), 0.5), extras=extras)
    more = replace(make_episode(seed=1), extras={})
    source = lerobot_v3.open_source(write(tmp_path / "own", [single, more, single], use_videos=False))
    assert [check_equal(episode, source[index]) for index, episode in enumerate((single, more, single))] == [0, 0, 0]


def test_own_episodes_are_readable_by_lerobot(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    episodes = own_episodes(make_episode)
    item = LeRobotDataset("a/b", write(tmp_path / "own", episodes, use_videos=False), video_backend="pyav")[7]
    assert item["task"] == "drop it"
    assert np.array_equal(item["observation.state"], episodes[1].state[2].astype(np.float32))
    assert np.float32(episodes[1].time[2]) == item["vla.time"]


def test_uneven_timestamps_of_lerobot_are_kept(source: LeRobotSource, tmp_path: Path) -> None:
    late = replace(source[0], time=source[0].time + 0.013)
    read = lerobot_v3.open_source(write(tmp_path / "late", [late], source.provenance, regular_time=False))
    check_equal(late, read[0])
    assert not read.provenance["regular_time"]


def test_sub_tasks_are_tasks_where_they_fill_the_episode(make_episode: Callable[..., Episode]) -> None:
    episode = make_episode(instruction="a", spans=(Span(0, 2, "a"), Span(2, 5, "b")))
    assert tasks_of(episode) == ["a", "a", "b", "b", "b"]
    for spans in ((Span(0, 2, "a"), Span(3, 5, "b")), (Span(0, 3, "a"), Span(2, 5, "b")), (Span(0, 5, "b"),)):
        assert tasks_of(replace(episode, spans=spans)) == ["a"] * 5


def test_images_too_small_for_video_are_refused(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    writer = LeRobotWriter(tmp_path / "x", make_episode().embodiment, {})
    with pytest.raises(InputError, match="front are 10x8: .*use_videos=false"):
        writer.append(make_episode())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"extras": {"force": np.full(5, np.inf)}}, "force has values that are not finite"),
        ({"extras": {"force": np.zeros(5), "torque": np.zeros(5)}}, "torque, which the first episode does not have"),
    ],
)
def test_episode_that_does_not_fit_is_refused(
    make_episode: Callable[..., Episode], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    writer = LeRobotWriter(tmp_path / "x", make_episode().embodiment, {}, use_videos=False)
    good = make_episode(extras={"force": np.zeros(5)})
    writer.append(good)
    with pytest.raises(InputError, match=named):
        writer.append(replace(good, **change))
    writer.append(good)
    assert len(lerobot_v3.open_source(writer.finish())) == 2
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_rates_are_whole(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        LeRobotWriter(tmp_path, make_episode().embodiment, {})
    with pytest.raises(InputError, match=r"integer frame rates, not 12\.5"):
        LeRobotWriter(tmp_path / "x", replace(make_episode().embodiment, control_hz=12.5), {})


# Damage


def copy_of(root: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(root, to))


def test_unfinished_dataset_is_told(lerobot_root: Path, tmp_path: Path) -> None:
    root = copy_of(lerobot_root, tmp_path / "x")
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"meta/episodes/chunk-000/file-000\.parquet .* never finished"):
        lerobot_v3.open_source(root)


def test_damaged_video_names_episode_and_file(lerobot_root: Path, tmp_path: Path) -> None:
    root = copy_of(lerobot_root, tmp_path / "x")
    next(root.rglob("*.mp4")).write_bytes(b"")
    with pytest.raises(InputError, match=r"episode 1 of .*file-000\.mp4"):
        lerobot_v3.open_source(root)[1]


def test_side_file_of_other_episodes_is_refused(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    root = write(tmp_path / "own", [make_episode()], use_videos=False)
    side = root / "meta/vla.json"
    side.write_text(side.read_text().replace('"length": 5', '"length": 6'))
    with pytest.raises(InputError, match="of other episodes"):
        lerobot_v3.open_source(root)
    side.write_text("{")
    with pytest.raises(InputError, match=r"vla\.json is broken JSON at line 1"):
        lerobot_v3.open_source(root)
    side.unlink()
    assert lerobot_v3.open_source(root)[0].success is None
