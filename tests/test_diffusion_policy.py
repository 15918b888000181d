from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from imagecodecs.numcodecs import Jpeg2k, register_codecs
from numcodecs import Blosc

from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import diffusion_policy
from vla.errors import InputError

ENDS = (3, 5, 9)


def push_t() -> dict[str, np.ndarray]:
    """The arrays of the Push-T replay buffer, in small."""
    rng = np.random.default_rng(0)
    return {
        "action": rng.uniform(0, 512, (9, 2)).astype(np.float32),
        "state": rng.uniform(0, 512, (9, 5)).astype(np.float32),
        "img": rng.integers(0, 256, (9, 6, 8, 3)).astype(np.float32),
        "keypoint": rng.uniform(0, 512, (9, 9, 2)).astype(np.float32),
        "n_contacts": rng.integers(0, 4, (9, 1)).astype(np.float32),
    }


def write(path: Path, data: dict[str, np.ndarray], ends: tuple[int, ...] = ENDS, **codec: Any) -> Path:
    root = zarr.create_group(path, zarr_format=2)
    for name, values in data.items():
        chunks = (1, *values.shape[1:]) if values.ndim == 4 else (4, *values.shape[1:])
        compressor = codec.get(name, Blosc("zstd"))
        array = root.create_array(
            f"data/{name}", shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=compressor
        )
        array[:] = values
    root.create_array("meta/episode_ends", data=np.array(ends, np.int64))
    return path


def test_every_array_of_push_t_comes_back(tmp_path: Path) -> None:
    data = push_t()
    path = write(tmp_path / "pusht_cchi.zarr", data)
    assert diffusion_policy.detect(path)
    source = diffusion_policy.open_source(path, fps=10.0, instruction="push the T")
    robot = source.embodiment
    assert (robot.name, robot.cameras, robot.control_hz) == ("pusht_cchi", ("img",), 10.0)
    assert robot.state == tuple(f"state[{i}]" for i in range(5))
    assert robot.action_low == tuple(data["action"].min(0).tolist())
    assert robot.action_high == tuple(data["action"].max(0).tolist())
    assert len(source) == 3
    for index, (start, end) in enumerate(zip((0, *ENDS), ENDS, strict=False)):
        episode = source[index]
        np.testing.assert_array_equal(episode.images["img"], data["img"][start:end])
        np.testing.assert_array_equal(episode.state, data["state"][start:end])
        np.testing.assert_array_equal(episode.action, data["action"][start:end])
        np.testing.assert_allclose(episode.time, np.arange(end - start) / 10)
        assert episode.extras.keys() == {"keypoint", "n_contacts"}
        np.testing.assert_array_equal(episode.extras["keypoint"], data["keypoint"][start:end])
        assert episode.instruction == "push the T"


def test_a_zipped_buffer_reads_as_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "a.zarr", push_t())
    zipped = tmp_path / "a.zarr.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    assert diffusion_policy.detect(zipped)
    one, other = (diffusion_policy.open_source(path, fps=10.0) for path in (folder, zipped))
    assert one.embodiment == other.embodiment
    for index in range(3):
        np.testing.assert_array_equal(one[index].images["img"], other[index].images["img"])
        np.testing.assert_array_equal(one[index].action, other[index].action)


def test_robot_arrays_make_the_state_and_time_stamps_the_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (9, 16, 16, 3), np.uint8)
    stamps = 100 + np.arange(9) * 0.1
    register_codecs(verbose=False)
    path = write(
        tmp_path / "real.zarr",
        {
            "action": rng.normal(size=(9, 6)),
            "robot_eef_pose": rng.normal(size=(9, 6)),
            "robot_eef_pose_vel": rng.normal(size=(9, 6)),
            "robot_gripper": rng.normal(size=(9, 1)),
            "camera_0": pixels,
            "camera_0_depth": np.full((9, 4, 4), 0.5, np.float32),
            "timestamp": stamps,
        },
        camera_0=Jpeg2k(level=0, reversible=True),
    )
    source = diffusion_policy.open_source(path)
    assert source.embodiment.control_hz == pytest.approx(10.0)
    assert source.embodiment.state == (*(f"robot_eef_pose[{i}]" for i in range(6)), "robot_gripper[0]")
    episode = source[1]
    np.testing.assert_array_equal(episode.images["camera_0"], pixels[3:5])
    np.testing.assert_array_equal(episode.time, stamps[3:5])
    assert episode.depth["camera_0"].shape == (2, 4, 4)
    assert (episode.depth["camera_0"] == 500).all()
    assert episode.extras.keys() == {"robot_eef_pose_vel"}


def test_cameras_can_be_chosen(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = push_t() | {f"camera_{i}": rng.integers(0, 256, (9, 8, 6 + i, 3), np.uint8) for i in range(2)}
    data["camera_1_depth"] = np.ones((9, 4, 4), np.float32)
    path = write(tmp_path / "a.zarr", data)
    source = diffusion_policy.open_source(path, fps=10.0, cameras=["camera_0"])
    episode = source[0]
    assert source.embodiment.cameras == ("camera_0",) and episode.images["camera_0"].shape == (3, 8, 6, 3)
    assert not episode.depth and not {"img", "camera_1", "camera_1_depth"} & episode.extras.keys()
    assert set(source.provenance["left_out"]) == {"img", "camera_1", "camera_1_depth"}
    with pytest.raises(InputError, match="has no 'top' for the cameras: it has"):
        diffusion_policy.open_source(path, fps=10.0, cameras=["top"])


def test_the_state_can_be_chosen(tmp_path: Path) -> None:
    data = push_t() | {"agent_pos": np.ones((9, 2))}
    source = diffusion_policy.open_source(write(tmp_path / "a.zarr", data), fps=10.0, state=["agent_pos"])
    assert source.embodiment.state == ("agent_pos[0]", "agent_pos[1]")
    np.testing.assert_array_equal(source[0].extras["state"], data["state"][:3])
    with pytest.raises(InputError, match="has no 'img' for the state: it has"):
        diffusion_policy.open_source(tmp_path / "a.zarr", fps=10.0, state=["img"])


def test_images_of_floats_up_to_one_are_scaled(tmp_path: Path) -> None:
    data = push_t()
    pixels = data["img"].copy()
    data["img"] = pixels / 255
    source = diffusion_policy.open_source(write(tmp_path / "a.zarr", data), fps=10.0)
    np.testing.assert_array_equal(source[2].images["img"], pixels[5:])


def test_the_episodes_enter_a_store(tmp_path: Path) -> None:
    source = diffusion_policy.open_source(write(tmp_path / "a.zarr", push_t()), fps=10.0, instruction="push")
    with EpisodeStore.create(tmp_path / "store", source.embodiment) as store:
        for index in range(len(source)):
            store.append(source[index])
    stored = EpisodeStore.open(tmp_path / "store")
    np.testing.assert_array_equal(stored[1].action, source[1].action)
    np.testing.assert_array_equal(stored[1].images["img"], source[1].images["img"])


def test_a_value_that_is_not_finite_is_left_for_the_store_to_name(tmp_path: Path) -> None:
    data = push_t()
    data["action"][4, 1] = np.nan
    source = diffusion_policy.open_source(write(tmp_path / "a.zarr", data), fps=10.0)
    assert np.isfinite(source.embodiment.action_high).all()
    with EpisodeStore.create(tmp_path / "store", source.embodiment) as store:
        store.append(source[0])
        with pytest.raises(InputError, match=r"action.*action\[1\]"):
            store.append(source[1])


@pytest.mark.parametrize(
    ("change", "ends", "message"),
    [
        ({"action": None}, ENDS, r"nothing that is known to be the action: .*'action=\[n_contacts,state\]'"),
        ({}, (3, 2, 9), "meta/episode_ends must rise"),
        ({}, (), "meta/episode_ends must rise"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], ends: tuple[int, ...], message: str) -> None:
    data = {name: values for name, values in (push_t() | change).items() if values is not None}
    path = write(tmp_path / "a.zarr", data, ends)
    with pytest.raises(InputError, match=message):
        diffusion_policy.open_source(path, fps=10.0)


def test_rows_that_lack_are_faults_of_their_episodes(tmp_path: Path) -> None:
    data = push_t() | {"state": np.ones((8, 5)), "late": np.ones((11, 1))}
    source = diffusion_policy.open_source(write(tmp_path / "a.zarr", data), fps=10.0)
    (index, fault), *others = source.faults().items()
    assert (index, others) == (2, []) and "data/state has 8 rows, episode 2 ends at 9" in fault
    assert source.provenance["remarks"][1:] == ["data/late: 2 rows after the last episode are left out"]


def test_chunks_that_are_no_data_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", push_t())
    (path / "data/img/0.0.0.0").unlink()
    (path / "data/img/4.0.0.0").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    source = diffusion_policy.open_source(path, fps=10.0)
    assert source.provenance["remarks"][1:] == ["data/img: 1 of 9 chunks are missing, and are read as 0"]
    assert not source[0].images["img"][0].any()
    with pytest.raises(InputError, match=r"data/img/4\.0\.0\.0 is a Git LFS pointer"):
        source[1]


def test_metadata_with_a_byte_order_mark_are_read_and_broken_ones_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", push_t())
    for file in path.rglob(".z*"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(diffusion_policy.open_source(path, fps=10.0)) == 3
    (path / "data/state/.zarray").write_text('{"a":\n1,}')
    with pytest.raises(InputError, match=r"data/state/\.zarray is broken JSON at line 2"):
        diffusion_policy.open_source(path, fps=10.0)


def test_a_buffer_without_a_rate_or_with_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", push_t())
    with pytest.raises(InputError, match="give fps"):
        diffusion_policy.open_source(path)
    source = diffusion_policy.open_source(path, fps=10.0)
    (path / "data/state/1.0").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match=r"data/state/1\.0 has 20 bytes and not 0"):
        source[2]


def test_only_replay_buffers_are_detected(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "other.zarr", zarr_format=2)
    (tmp_path / "text.zip").write_text("no archive")
    assert not diffusion_policy.detect(tmp_path / "other.zarr")
    assert not diffusion_policy.detect(tmp_path / "text.zip")
    assert not diffusion_policy.detect(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot be read as a replay buffer"):
        diffusion_policy.open_source(tmp_path / "other.zarr")


@pytest.mark.parametrize("name", ["data/img/4.0.0.0", "data/action/1.0", "meta/episode_ends/0"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_a_chunk_that_is_cut_short_is_named(tmp_path: Path, name: str, share: float) -> None:
    """Blosc itself reads on in whatever lies behind it."""
    path = write(tmp_path / "a.zarr", push_t())
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=rf"{name} has \d+ bytes and not ({len(content)}|16), it is cut short"):
        if source := diffusion_policy.open_source(path, fps=10.0):
            source[1]


def test_git_lfs_pointers_are_named_wherever_they_stand(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    path = write(tmp_path / "a.zarr", push_t())
    (path / "meta/episode_ends/0").write_text(pointer)
    with pytest.raises(InputError, match="episode_ends/0 is a Git LFS pointer"):
        diffusion_policy.open_source(path, fps=10.0)
    (tmp_path / "b.zarr.zip").write_text(pointer)
    with pytest.raises(InputError, match=r"b\.zarr\.zip is a Git LFS pointer"):
        diffusion_policy.open_source(tmp_path / "b.zarr.zip", fps=10.0)


def stamped(path: Path, stamps: Any) -> Path:
    return write(path, {**push_t(), "timestamp": np.asarray(stamps)})


def test_the_rate_is_that_of_the_time_stamps_that_are_there(tmp_path: Path) -> None:
    path = stamped(tmp_path / "a.zarr", np.full(9, np.nan))
    with pytest.raises(InputError, match="does not state its number of steps"):
        diffusion_policy.open_source(path)
    path = stamped(tmp_path / "b.zarr", [0, 0.05, np.nan, 0.0, 0.05, 0.0, 0.05, 0.1, 0.15])
    assert diffusion_policy.open_source(path).embodiment.control_hz == 20.0


@pytest.mark.parametrize(("unit", "count"), [("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
@pytest.mark.parametrize("fps", [None, 20.0])
def test_time_stamps_are_read_in_their_unit(tmp_path: Path, unit: str, count: float, fps: float | None) -> None:
    times = np.concatenate([1.7e9 + np.arange(n) / 20 for n in np.diff((0, *ENDS))])
    rows = times if unit == "s" else np.round(times * count).astype(np.int64)
    source = diffusion_policy.open_source(stamped(tmp_path / "a.zarr", rows), fps=fps)
    assert source.embodiment.control_hz == 20.0
    np.testing.assert_allclose(source[2].time, times[5:], atol=1e-6)
    assert [remark for remark in source.provenance["remarks"] if "timestamp" in remark] == (
        [] if unit == "s" else [f"timestamp is in {unit}"]
    )


def test_time_stamps_that_are_no_times_are_steps_at_the_rate(tmp_path: Path) -> None:
    """Seconds since 1970 are 128 apart in float32."""
    times = np.concatenate([1.7e9 + np.arange(n) / 20 for n in np.diff((0, *ENDS))]).astype(np.float32)
    source = diffusion_policy.open_source(stamped(tmp_path / "a.zarr", times), fps=20.0)
    np.testing.assert_allclose(source[2].time, np.arange(4) / 20)
    assert (
        "the timestamps of 3 episodes are unusable: their steps are spaced evenly at 20 Hz"
        in (source.provenance["remarks"])
    )
