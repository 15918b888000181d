"""LeRobot datasets of version 2.1, and the frames of their videos."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla.datasets.formats import lerobot_v3, lerobot_v21
from vla.datasets.formats.compare import check_equal
from vla.datasets.formats.lerobot_v3_writer import LeRobotWriter
from vla.datasets.formats.video_frames import VideoReader
from vla.errors import InputError

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "internvla_sim_pick_place"
FPS = 10
STEPS = 6
AXES = ["height", "width", "channels"]


def stripes(steps: int, phase: int = 0) -> np.ndarray:
    """Images that a video codec keeps well, each unlike its neighbours."""
    y, x = np.mgrid[:48, :64]
    rows = [(x * 2 + y + 12 * (t + phase))[..., None] % 256 * np.array([1.0, 0.5, 0.25]) for t in range(steps)]
    return np.stack(rows).astype(np.uint8)


def write_v21(root: Path, cameras: Mapping[str, Iterable[int]]) -> Path:
    """Three episodes as version 2.1 has them; `cameras` maps each to the episodes that have a video of it."""
    import av
    import pyarrow as pa
    import pyarrow.parquet as pq

    features: dict[str, Any] = {
        "state.joints": {"dtype": "float64", "shape": [2]},
        "action.joints": {"dtype": "float64", "shape": [2]},
        "action.grip": {"dtype": "float64", "shape": [1]},
        "annotation": {"dtype": "binary", "shape": [1]},
        **{f"video.{name}": {"dtype": "video", "shape": [48, 64, 3], "names": AXES} for name in cameras},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        "frame_index": {"dtype": "int64", "shape": [1], "names": None},
        "task_index": {"dtype": "int64", "shape": [1], "names": None},
    }
    info = {
        "codebase_version": "v2.1",
        "robot_type": "toy_arm",
        "fps": FPS,
        "chunks_size": 2,
        "features": features,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "lift the ring"}\n')
    lines = [{"episode_index": i, "tasks": ["lift the ring"], "length": STEPS, "scene": {"id": i}} for i in range(3)]
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for index in range(3):
        rng = np.random.default_rng(index)
        table = {
            "state.joints": rng.normal(size=(STEPS, 2)).tolist(),
            "action.joints": rng.normal(size=(STEPS, 2)).tolist(),
            "action.grip": rng.normal(size=(STEPS, 1)).tolist(),
            "annotation": [b"\x80"] * STEPS,
            "timestamp": (np.arange(STEPS) / FPS).astype(np.float32),
            "frame_index": np.arange(STEPS),
            "task_index": np.zeros(STEPS, np.int64),
        }
        data = root / info["data_path"].format(episode_chunk=index // 2, episode_index=index)
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), data)
        for name, having in cameras.items():
            key = f"video.{name}"
            video = root / info["video_path"].format(episode_chunk=index // 2, episode_index=index, video_key=key)
            video.parent.mkdir(parents=True, exist_ok=True)
            if index not in having:
                video.touch()
                continue
            with av.open(str(video), "w") as container:
                stream = container.add_stream("mpeg4", rate=FPS, width=64, height=48, pix_fmt="yuv420p")
                stream.options = {"qscale": "1"}
                for image in stripes(STEPS, 5 * index):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                container.mux(stream.encode())
    return root


@pytest.mark.parametrize(("unit", "count"), [("ms", 1e3), ("ns", 1e9)])
def test_timestamps_in_another_unit_are_read_as_seconds(tmp_path: Path, unit: str, count: float) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = write_v21(tmp_path / "toy", {"ego": range(3)})
    expected = [lerobot_v21.open_source(root)[index] for index in range(3)]
    for path in root.rglob("episode_*.parquet"):
        table = pq.read_table(path)
        times = np.rint(np.arange(STEPS) / FPS * count).astype(np.int64)
        column = table.schema.get_field_index("timestamp")
        pq.write_table(table.set_column(column, "timestamp", pa.array(times)), path)
    source = lerobot_v21.open_source(root)
    for index in range(3):
        np.testing.assert_allclose(source[index].time, np.arange(STEPS) / FPS, atol=1e-3)
        np.testing.assert_array_equal(source[index].images["ego"], expected[index].images["ego"])
    assert f"the timestamps of 3 episodes are in {unit}" in source.provenance["remarks"]


@pytest.fixture(scope="module")
def v21_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v21(tmp_path_factory.mktemp("v21") / "toy", {"ego": range(3), "side": [2]})


def test_version_21_is_read(v21_root: Path) -> None:
    source = lerobot_v21.open_source(v21_root)
    assert lerobot_v21.detect(v21_root) and not lerobot_v3.detect(v21_root)
    assert source.embodiment.cameras == ("ego",)
    assert source.embodiment.action == ("joints[0]", "joints[1]", "grip")
    for index in range(3):
        rng, episode = np.random.default_rng(index), source[index]
        assert np.array_equal(episode.state, rng.normal(size=(STEPS, 2)))
        assert np.array_equal(episode.action, np.hstack([rng.normal(size=(STEPS, n)) for n in (2, 1)]))
        assert np.abs(episode.images["ego"].astype(int) - stripes(STEPS, 5 * index)).mean() < 8
        assert (episode.instruction, episode.info) == ("lift the ring", {"scene": {"id": index}})
    assert source.provenance["left_out"]["video.side"] == "2 of 3 episodes have no video of it, 0 the first"


@pytest.mark.parametrize(("episodes", "stated"), [(None, "1 of 3"), ("1:", "1 of 2"), ("2:", "")])
def test_only_selected_episodes_are_reported_as_stale(tmp_path: Path, episodes: str | None, stated: str) -> None:
    root = write_v21(tmp_path / "toy", {"ego": range(3)})
    listed = root / "meta/episodes.jsonl"
    rows = [json.loads(line) | {"length": STEPS - (i == 1)} for i, line in enumerate(listed.read_text().splitlines())]
    listed.write_text("\n".join(map(json.dumps, rows)))
    source = lerobot_v21.open_source(root, episodes=episodes)
    assert len(source.embodiment.action_low) == 3  # reads all rows
    remarks = source.provenance["remarks"]
    assert [f"meta/episodes.jsonl is stale for {stated} episodes" in remark for remark in remarks] == [True] * bool(
        stated
    )


def test_cameras_are_those_of_the_chosen_episodes(v21_root: Path) -> None:
    assert lerobot_v21.open_source(v21_root, episodes="2:3").embodiment.cameras == ("ego", "side")
    asked = lerobot_v21.open_source(v21_root, cameras=["side"])
    assert asked[2].images.keys() == {"side"}
    with pytest.raises(InputError, match=r"episode 1 of .*episode_000001\.mp4 is empty"):
        asked[1]


def test_version_21_becomes_version_3(v21_root: Path, tmp_path: Path) -> None:
    source = lerobot_v21.open_source(v21_root, action=["action.joints"])
    writer = LeRobotWriter(tmp_path / "v3", source.embodiment, source.provenance, regular_time=True)
    for index in range(3):
        writer.append(source[index])
    again = lerobot_v3.open_source(writer.finish())
    for index in range(3):
        assert check_equal(source[index], again[index]) < 4
    names = again.provenance["features"].keys()
    assert {"observation.state", "action", "observation.images.ego"} <= names and "vla.time" not in names


def test_what_is_no_version_21_is_told(v21_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a LeRobot dataset of version 2"):
        lerobot_v21.open_source(tmp_path)
    root = Path(shutil.copytree(v21_root, tmp_path / "x"))
    (root / "meta/tasks.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"meta/tasks\.jsonl is broken JSON at line 1"):
        lerobot_v21.open_source(root)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real dataset is not at hand")
def test_real_dataset_of_version_21() -> None:
    source = lerobot_v21.open_source(REAL, state=["state.joints"], action=["action.joints", "action.gripper_close"])
    assert [len(source), source.embodiment.cameras, source.embodiment.control_hz] == [4, ("ego_view",), 30.0]
    episode = source[2]
    assert episode.images["ego_view"].shape == (398, 480, 640, 3)
    assert episode.instruction == "Move the potato to the top of the cooking utensils."
    # The joints follow their targets.
    assert np.abs(episode.state[1:] - episode.action[:-1, :7]).mean() < 0.05
    assert set(np.unique(episode.action[:, 7])) == {-1.0, 1.0}


# Videos


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A video of 150 frames with a key frame every 12, and its frames."""
    import av

    path = tmp_path_factory.mktemp("video") / "x.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS, width=64, height=48, pix_fmt="yuv420p")
        stream.gop_size = 12
        for image in stripes(150):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path, VideoReader(path).read(np.arange(150) / FPS, 0.4 / FPS)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.tuples(st.integers(0, 149), st.integers(1, 30)), min_size=1, max_size=6))
def test_frames_are_the_same_in_any_order(video: tuple[Path, np.ndarray], parts: list[tuple[int, int]]) -> None:
    path, frames = video
    reader = VideoReader(path)
    for start, length in parts:
        chosen = np.arange(start, min(start + length, len(frames)))
        assert np.array_equal(reader.read(chosen / FPS, 0.4 / FPS), frames[chosen])
    reader.close()


def test_frame_that_is_not_there_is_told(video: tuple[Path, np.ndarray]) -> None:
    reader = VideoReader(video[0])
    with pytest.raises(InputError, match=r"no frame at 0\.250 s"):
        reader.read(np.array([0.25]), 0.01)
    with pytest.raises(InputError, match="ends before"):
        reader.read(np.array([15.5]), 0.05)
