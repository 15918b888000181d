"""LeRobotDataset v2.1 (and v2.0): one Parquet file per episode, and one video file per episode and camera."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.common.plural import counted
from vla.datasets.episode_selection import choose
from vla.datasets.formats.lerobot_features import is_depth, map_features
from vla.datasets.formats.lerobot_info import (
    INFO,
    NO_STEPS,
    data_files,
    non_negative_int,
    path_of,
    read_info,
    required,
    version_of,
)
from vla.datasets.formats.lerobot_rows import check_columns
from vla.datasets.formats.lerobot_source import LeRobotSource
from vla.datasets.source_files import read_json_lines, reading_file
from vla.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def detect(path: Path) -> bool:
    """Whether `path` is a LeRobot dataset of version 2."""
    return version_of(path).startswith("v2")


def open_source(
    path: Path,
    *,
    episodes: str | None = None,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    instruction: str | None = None,
    skip: bool = False,
) -> LeRobotSource:
    """Opens the dataset in the folder `path`.

    Args:
        path: the folder.
        episodes: FIRST:END. None: all.
        state: the features to concatenate as the state.
        action: the features to concatenate as the action.
        cameras: the cameras to read. None: those with a video for each of `episodes`; the provenance lists the others
            under "left_out".
        rename: new names of features and cameras, {old: new}. The other options use the new names.
        instruction: the instruction of all episodes. None: the tasks of the dataset.
        skip: whether episodes without a video are skipped, instead of the camera, unless most have none.

    Raises:
        InputError: there is no such dataset, its files are damaged, or a feature or camera does not exist.
    """
    if not detect(path):
        raise InputError(f"{path} is not a LeRobot dataset of version 2: it has no such meta/info.json")
    files = V21Files(path, episodes)
    features, selected = files.info["features"], files.selected
    missing = {} if cameras is not None else files.missing_cameras(selected)
    left_out = {
        key: f"{len(without)} of {len(selected)} episodes have no video of it, {without[0]} the first"
        for key, without in missing.items()
        if not skip or 2 * len(without) > len(selected)
    }
    present = {key: feature for key, feature in features.items() if key not in left_out}
    mapped = map_features(present, str(path), state, action, cameras, rename)
    return LeRobotSource(files, replace(mapped, left_out={**mapped.left_out, **left_out}), instruction=instruction)


def _task(row: Mapping[str, Any], path: Path) -> str:
    """The text of a task; empty if it is null."""
    return "" if "task" in row and row["task"] is None else str(required(row, "task", path))


class V21Files:
    """The files of a v2.1 dataset (`LeRobotFiles`). Raises InputError if its metadata are missing or damaged.

    Remarks about single episodes are limited to `episodes`, FIRST:END.
    """

    def __init__(self, root: Path, episodes: str | None = None) -> None:
        self.root = root
        self.info: Mapping[str, Any] = read_info(root)
        self._chunks_size = max(1, non_negative_int({"chunks_size": 1000, **self.info}, "chunks_size", root / INFO))
        listed, tasks = root / "meta" / "episodes.jsonl", root / "meta" / "tasks.jsonl"
        rows = {non_negative_int(row, "episode_index", listed): row for row in read_json_lines(listed)}
        if not rows:
            raise InputError(f"{listed} lists no episodes")
        self._episodes = [rows[number] for number in sorted(rows)]
        self.lengths: Sequence[int] = [non_negative_int(row, "length", listed) for row in self._episodes]
        self.selected = choose(episodes or ":", len(self.lengths))
        self.tasks: Mapping[int, str] = {
            non_negative_int(row, "task_index", tasks): _task(row, tasks) for row in read_json_lines(tasks)
        }
        self._stale: dict[int, int] = {}
        """The actual number of rows of episodes for which meta/episodes.jsonl states another length."""
        self._faults = {index: NO_STEPS for index, length in enumerate(self.lengths) if not length}

    @property
    def remarks(self) -> Sequence[str]:
        """Remarks on the files read so far."""
        return [remark for remark in (self._stale_lengths(), self._unlisted()) if remark]

    def missing_cameras(self, episodes: range) -> dict[str, list[int]]:
        """The video features for which some of `episodes` have no file, with these episodes."""
        missing: dict[str, list[int]] = {}
        for key, feature in self.info["features"].items():
            if feature["dtype"] != "video" or is_depth(feature):
                continue
            files = {index: self.video(index, key)[0] for index in episodes}
            without = [index for index, file in files.items() if not file.is_file() or not file.stat().st_size]
            if without:
                missing[key] = without
        return missing

    def faults(self) -> dict[int, str]:
        """The reasons for unreadable episodes, as far as known without reading them."""
        return self._faults

    def rows(self, index: int, columns: Sequence[str]) -> pa.Table:
        """The columns of episode `index`, one row per step."""
        import pyarrow.parquet as pq

        path = self._path("data_path", index)
        with reading_file(path, "Parquet"):
            file = pq.ParquetFile(path)
            check_columns(file.schema_arrow.names, columns, path)
            table = file.read(columns=list(columns))
        if table.num_rows != self.lengths[index]:
            if table.num_rows < self.lengths[index] and not self._is_complete:
                raise InputError(
                    f"{path} has {table.num_rows} rows, meta/episodes.jsonl states {self.lengths[index]}: "
                    "download it again"
                )
            self._stale[index] = table.num_rows
        return table

    @cached_property
    def _is_complete(self) -> bool:
        """Whether all rows that meta/info.json states exist, so that only meta/episodes.jsonl is out of date."""
        import pyarrow.parquet as pq

        count = 0
        for path in data_files(self.root):
            with suppress(InputError), reading_file(path, "Parquet"):
                count += pq.read_metadata(path).num_rows
        stated = self.info.get("total_frames")
        return isinstance(stated, int) and count >= stated

    def _stale_lengths(self) -> str:
        """A remark if episodes have other lengths than listed."""
        stale = {index: rows for index, rows in self._stale.items() if index in self.selected}
        if not stale:
            return ""
        index, rows = min(stale.items())
        return (
            f"meta/episodes.jsonl is stale for {len(stale)} of {len(self.selected)} episodes: all rows of their "
            f"files are read (episode {index}: {rows}, not {self.lengths[index]})"
        )

    def _unlisted(self) -> str:
        """A remark if there are files of episodes that meta/episodes.jsonl does not list."""
        listed = {self._path("data_path", index) for index in range(len(self.lengths))}
        files = [path for path in data_files(self.root) if path not in listed]
        if not files:
            return ""
        return (
            f"left out is what meta/episodes.jsonl does not list: {counted(len(files), 'file')}, {files[0].name} first"
        )

    def video(self, index: int, feature: str) -> tuple[Path, float]:
        """The video file of episode `index`, and the time [s] of its first frame."""
        return self._path("video_path", index, video_key=feature), 0.0

    def details(self, index: int) -> dict[str, Any]:
        """Further fields of episode `index` in meta/episodes.jsonl."""
        standard = ("episode_index", "tasks", "length")
        return {key: value for key, value in self._episodes[index].items() if key not in standard}

    def columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The columns of all readable episodes. Unreadable episodes are added to the faults."""
        for index in range(len(self.lengths)):
            try:
                yield self.rows(index, columns)
            except InputError as error:
                self._faults.setdefault(index, str(error))

    def _path(self, template: str, index: int, **names: str) -> Path:
        number = int(self._episodes[index]["episode_index"])
        chunk = number // self._chunks_size
        return path_of(self.root, self.info, template, episode_chunk=chunk, episode_index=number, **names)
