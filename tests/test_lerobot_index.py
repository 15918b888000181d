"""LeRobotDatasets whose index is out of date: what LeRobot itself reads is what is read, and one line says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import lerobot_v3
from vla.datasets.formats.lerobot_v3_writer import quiet
from vla.errors import InputError

FPS, LENGTHS = 10, (4, 6, 5)
STARTS = (0, 4, 10, 15)
INDEX, DATA = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"
FRONT = "observation.images.front"
Columns = dict[str, list[Any]]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"


def frames(episode: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(episode)
    y, x = np.mgrid[:48, :64]
    return [
        {
            "observation.state": rng.normal(size=2).astype(np.float32),
            "action": rng.normal(size=2).astype(np.float32),
            FRONT: ((x * 2 + y + 40 * episode + 9 * step)[..., None] % 256 * np.array([1.0, 0.5, 0.2])).astype(
                np.uint8
            ),
            "task": f"task {episode % 2}",
        }
        for step in range(LENGTHS[episode])
    ]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes with a camera, as LeRobot wrote them; not to be changed."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("lerobot") / "toy"
    numbers = {"dtype": "float32", "shape": (2,), "names": None}
    video = {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": numbers, "action": numbers, FRONT: video}
    dataset = LeRobotDataset.create("a/b", FPS, features, root, robot_type="toy", video_backend="pyav")
    with quiet():
        for episode in range(len(LENGTHS)):
            for frame in frames(episode):
                dataset.add_frame(frame)
            dataset.save_episode(parallel_encoding=False)
        dataset.finalize()
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "toy"))


def rewrite(path: Path, change: Callable[[Columns], Columns]) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.table(change({name: table[name].to_pylist() for name in table.column_names})), path)


def divide(root: Path, first: int) -> None:
    """Puts the episodes from `first` on into a second data file, and leaves the index as it is."""
    table = pq.read_table(root / DATA)
    later = pc.greater_equal(table["episode_index"], first)
    pq.write_table(table.filter(later), root / "data/chunk-000/file-001.parquet")
    pq.write_table(table.filter(pc.invert(later)), root / DATA)


def index_without(*names: str) -> Callable[[Path], None]:
    return lambda root: rewrite(root / INDEX, lambda columns: {n: v for n, v in columns.items() if n not in names})


def index_with(**changes: list[Any]) -> Callable[[Path], None]:
    return lambda root: rewrite(root / INDEX, lambda columns: columns | changes)


def check_as_lerobot(root: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs = LeRobotDataset("a/b", root, video_backend="pyav", return_uint8=True)
    source = lerobot_v3.open_source(root)
    items = [theirs[index] for index in range(len(theirs))]
    for index in range(len(source)):
        mine, episode = [item for item in items if item["episode_index"] == index], source[index]
        assert np.array_equal(episode.state, np.stack([item["observation.state"].numpy() for item in mine]))
        assert np.array_equal(episode.action, np.stack([item["action"].numpy() for item in mine]))
        assert [item["task"] for item in mine] == [episode.instruction] * len(episode)
        for step, item in enumerate(mine):
            assert np.array_equal(episode.images["front"][step], item[FRONT].numpy().transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (lambda root: None, 0),
        (lambda root: divide(root, 1), 2),
        (lambda root: divide(root, 2), 1),
        (index_with(dataset_from_index=[0, 4, 0], dataset_to_index=[4, 10, 5]), 1),
        (index_with(dataset_from_index=[0, 5, 11], dataset_to_index=[5, 11, 16]), 3),
        (index_with(length=[4, 5, 6]), 2),
        (index_without("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index", "length"), 0),
    ],
)
def test_rows_are_found_by_their_episode(root: Path, change: Callable[[Path], None], stale: int) -> None:
    change(root)
    remarks = lerobot_v3.open_source(root).provenance["remarks"]
    assert len(remarks) == bool(stale) and all(f"stale for {stale} of 3 episodes" in remark for remark in remarks)
    check_as_lerobot(root)


def test_conversion_says_that_the_index_is_stale(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    divide(root, 1)
    assert cli.main(["convert", str(root), str(root.parent / "x.zarr"), "episodes=1:", "actions=absolute"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "stale" in line] == [
        "  meta/episodes is stale for 2 of 2 episodes: rows were found by their episode_index "
        "(episode 1: rows 0 to 6 of data/chunk-000/file-001.parquet)"
    ]
    store = EpisodeStore.open(root.parent / "x.zarr")
    assert [record.length for record in store.records] == [6, 5]


@pytest.mark.parametrize(
    ("change", "episodes", "count"),
    [
        (index_with(length=[4, 5, 5]), "2:", 0),
        (index_with(length=[4, 5, 5]), "1:", 1),
        (index_with(length=[4, 5, 5]), ":2", 1),
        (index_with(**{f"videos/{FRONT}/from_timestamp": [0.0, 0.0, 1.0]}), "2:", 0),
        (index_with(**{f"videos/{FRONT}/from_timestamp": [0.0, 0.0, 1.0]}), "1:2", 1),
    ],
)
def test_only_selected_episodes_are_reported_as_stale(
    root: Path, change: Callable[[Path], None], episodes: str, count: int
) -> None:
    change(root)
    assert len(lerobot_v3.open_source(root, episodes=episodes).provenance["remarks"]) == count


def test_episodes_that_lerobot_deleted_are_gone(original: Path, tmp_path: Path) -> None:
    from lerobot.datasets.dataset_tools import delete_episodes
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    with quiet():
        delete_episodes(LeRobotDataset("a/b", original, video_backend="pyav"), [1], tmp_path / "left", "a/left")
    assert lerobot_v3.open_source(tmp_path / "left").provenance["remarks"] == []
    check_as_lerobot(tmp_path / "left")


@pytest.mark.parametrize("also_rows", [False, True])
def test_episodes_keep_their_numbers_where_one_was_taken_out(root: Path, also_rows: bool) -> None:
    rewrite(root / INDEX, lambda columns: {name: [values[0], values[2]] for name, values in columns.items()})
    if also_rows:
        table = pq.read_table(root / DATA)
        pq.write_table(table.filter(pc.not_equal(table["episode_index"], 1)), root / DATA)
    source = lerobot_v3.open_source(root)
    remarks = source.provenance["remarks"]
    assert len(remarks) != also_rows and all("does not list: episode_index 1" in remark for remark in remarks)
    assert [len(source[index]) for index in range(2)] == [4, 5]
    last = frames(2)
    assert np.array_equal(source[1].action, np.stack([frame["action"] for frame in last]))
    assert np.abs(source[1].images["front"].astype(int) - np.stack([frame[FRONT] for frame in last])).mean() < 4


def test_episode_that_was_recorded_again_is_its_last_entry(root: Path) -> None:
    def twice(columns: Columns) -> Columns:
        return {name: [*values, 99 if name == "dataset_from_index" else values[1]] for name, values in columns.items()}

    rewrite(root / INDEX, twice)
    source = lerobot_v3.open_source(root)
    assert (len(source), len(source[1])) == (3, 6) and "stale for 1 of 3" in source.provenance["remarks"][0]


@pytest.mark.parametrize(
    "places",
    [
        {"from_timestamp": [0.0, 0.0, 1.0]},
        {"from_timestamp": [0.0, 0.4, 9.0]},
        {"file_index": [0, 0, 1]},
        {"file_index": [None] * 3},
    ],
)
def test_frames_are_counted_where_the_index_cannot_be(root: Path, places: Columns) -> None:
    rewrite(root / INDEX, lambda columns: columns | {f"videos/{FRONT}/{name}": v for name, v in places.items()})
    source = lerobot_v3.open_source(root)
    (remark,) = source.provenance["remarks"]
    assert f"stale for the videos of {FRONT}" in remark and "by counting" in remark
    for index in range(3):
        expected = np.stack([frame[FRONT] for frame in frames(index)])
        assert np.abs(source[index].images["front"].astype(int) - expected).mean() < 4


def test_frames_that_cannot_be_counted_are_named(root: Path) -> None:
    """One more row than there are frames: which are whose is not known."""
    rewrite(root / INDEX, lambda columns: columns | {f"videos/{FRONT}/from_timestamp": [0.0, 0.4, 9.0]})
    table = pq.read_table(root / DATA)
    extra = table.slice(0, 1).set_column(
        table.column_names.index("frame_index"), "frame_index", pa.array([4], pa.int64())
    )
    pq.write_table(pa.concat_tables([table, extra]), root / DATA)
    source = lerobot_v3.open_source(root)
    with pytest.raises(InputError, match=r"episode 2 of .*file-000\.mp4 ends before 9\.000 s"):
        source[2]


# What is not there


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (POINTER, r"file-001\.parquet is a Git LFS pointer"),
        ("PAR1", r"file-001\.parquet cannot be read as Parquet"),
        ("", r"file-001\.parquet is empty"),
        (None, "no file in .*data has rows of episode_index 2"),
    ],
)
def test_episodes_of_a_damaged_file_are_faults(root: Path, content: str | None, named: str) -> None:
    divide(root, 2)
    rewrite(root / INDEX, lambda columns: columns | {"data/file_index": [0, 0, 1]})
    file = root / "data/chunk-000/file-001.parquet"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    source = lerobot_v3.open_source(root)
    assert list(source.faults()) == [2] and [len(source[index]) for index in range(2)] == [4, 6]
    with pytest.raises(InputError, match=named):
        raise InputError(source.faults()[2])
    with pytest.raises(InputError, match=named):
        source[2]


def test_rows_that_are_missing_or_double_are_named(root: Path) -> None:
    table = pq.read_table(root / DATA)
    pq.write_table(table.slice(0, 13), root / DATA)
    source = lerobot_v3.open_source(root)
    assert list(source.faults()) == [2]
    assert "has 3 rows of episode_index 2, meta/episodes states 5, and it has 13 in all" in source.faults()[2]
    pq.write_table(pa.concat_tables([table, table.slice(5, 1)]), root / DATA)
    with pytest.raises(InputError, match="frame_index 1 of episode_index 1 occurs twice"):
        lerobot_v3.open_source(root)[1]


def test_rows_out_of_order_are_put_in_order(root: Path) -> None:
    expected = lerobot_v3.open_source(root)[1].action
    table = pq.read_table(root / DATA)
    pq.write_table(table.take([0, 1, 2, 3, 9, 8, 7, 6, 5, 4, *range(10, 15)]), root / DATA)
    assert np.array_equal(lerobot_v3.open_source(root)[1].action, expected)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("fps", None, r"info\.json: 'fps' is None"),
        ("fps", -1, "'fps' is -1"),
        ("features", None, r"info\.json has no 'features': it has"),
        ("features", {"action": {"dtype": "float32"}}, "feature 'action' is .* it needs a dtype and a shape"),
        ("data_path", "data/{chunk}.parquet", r"'data_path' is .* cannot be filled in"),
        ("data_path", "../{chunk_index}.parquet", r"'data_path' is .* leads out of the dataset"),
    ],
)
def test_key_that_is_wrong_is_named(root: Path, key: str, value: Any, named: str) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=named):
        lerobot_v3.open_source(root)
