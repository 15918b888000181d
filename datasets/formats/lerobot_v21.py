"""LeRobotDataset v2.1 (and v2.0): a parquet file an episode, and a video file an episode and camera."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.datasets.formats.lerobot_features import is_depth, map_features
from vla.datasets.formats.lerobot_source import LeRobotSource
from vla.datasets.formats.lerobot_v3 import version_of
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
) -> LeRobotSource:
    """The dataset in the folder `path`; `state`, `action`: features to put side by side.

    Unless they are chosen, `cameras` are those that each of `episodes` (FIRST:END, default all) has a video of; the
    others are told in the provenance, under "left_out". Raises InputError when there is no such dataset, its files are
    damaged, or a chosen feature or camera is not there.
    """
    from vla.recording.view import choose

    if not detect(path):
        raise InputError(f"{path} is not a LeRobot dataset of version 2: it has no such meta/info.json")
    files = V21Files(path)
    features = files.info["features"]
    chosen = choose(episodes or ":", len(files.lengths))
    absent = {} if cameras is not None else files.missing_cameras(chosen)
    present = {key: feature for key, feature in features.items() if key not in absent}
    mapped = map_features(present, str(path), state, action, cameras)
    return LeRobotSource(files, replace(mapped, left_out={**mapped.left_out, **absent}))


class V21Files:
    """The files of a v2.1 dataset (`LeRobotFiles`). Raises InputError when its metadata are missing or damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self.info: Mapping[str, Any] = json.loads((root / "meta" / "info.json").read_text())
            episodes = sorted(_lines(root / "meta" / "episodes.jsonl"), key=lambda row: row["episode_index"])
            self._episodes = episodes
            self.lengths: Sequence[int] = [int(row["length"]) for row in episodes]
            self.tasks: Mapping[int, str] = {
                row["task_index"]: row["task"] for row in _lines(root / "meta" / "tasks.jsonl")
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{root} is no whole LeRobot dataset ({type(error).__name__}: {error}): download it again"
            ) from error

    def missing_cameras(self, episodes: range) -> dict[str, str]:
        """The video features that some of `episodes` have no file of, each with what is missing."""
        missing: dict[str, str] = {}
        for key, feature in self.info["features"].items():
            if feature["dtype"] != "video" or is_depth(feature):
                continue
            files = {index: self.video(index, key)[0] for index in episodes}
            without = [index for index, file in files.items() if not file.is_file() or not file.stat().st_size]
            if without:
                missing[key] = f"{len(without)} of {len(files)} episodes have no video of it, {without[0]} the first"
        return missing

    def rows(self, index: int, columns: Sequence[str]) -> pa.Table:
        import pyarrow.parquet as pq

        return pq.read_table(self._path("data_path", index), columns=list(columns))

    def video(self, index: int, feature: str) -> tuple[Path, float]:
        return self._path("video_path", index, video_key=feature), 0.0

    def details(self, index: int) -> dict[str, Any]:
        known = ("episode_index", "tasks", "length")
        return {key: value for key, value in self._episodes[index].items() if key not in known}

    def columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        return (self.rows(index, columns) for index in range(len(self.lengths)))

    def _path(self, template: str, index: int, **names: str) -> Path:
        number = int(self._episodes[index]["episode_index"])
        chunk = number // int(self.info["chunks_size"])
        return self.root / self.info[template].format(episode_chunk=chunk, episode_index=number, **names)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
