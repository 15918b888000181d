"""LeRobotDataset v3: many episodes a parquet file and a video file, in a folder or on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from vla.datasets.formats.lerobot_features import Features, map_features
from vla.datasets.formats.lerobot_side import Side
from vla.datasets.formats.lerobot_source import LeRobotSource
from vla.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ROWS = 65536
"""Rows read at once where all are gone through."""


def detect(path: Path) -> bool:
    """Whether `path` is a dataset of this version, or looks like one's name on the hub."""
    if path.exists():
        return version_of(path).startswith("v3")
    return HUB_NAME.fullmatch(str(path)) is not None and path.suffix == ""


def open_source(
    path: Path,
    *,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
) -> LeRobotSource:
    """The dataset in the folder `path`, or of that name on the hub; `state`, `action`: features to put side by side.

    Raises InputError when there is none, its files are damaged, or a chosen feature or camera is not there.
    """
    root = path if path.exists() else _download(str(path))
    files = V3Files(root)
    side = Side.read(root, files.lengths)
    parts = _parts_of(side, files.info["features"])
    features = map_features(
        files.info["features"], str(root), state or parts.get("state"), action or parts.get("action"), cameras
    )
    return LeRobotSource(files, features, side)


def _parts_of(side: Side | None, features: Features) -> dict[str, Sequence[str]]:
    """The features that were put side by side when the data came from LeRobot before, where they are still there."""
    origin = side.provenance if side else {}
    if origin.get("format") != "lerobot":
        return {}
    return {kind: origin[kind] for kind in ("state", "action") if set(origin[kind]) <= features.keys()}


def version_of(root: Path) -> str:
    """The version of the LeRobot dataset in `root`; empty where it is none."""
    try:
        return str(json.loads((root / "meta" / "info.json").read_text())["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class V3Files:
    """The files of a v3 dataset (`LeRobotFiles`). Raises InputError when its metadata are missing or damaged."""

    def __init__(self, root: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.root = root
        self._open: tuple[Path, pq.ParquetFile, Int[np.ndarray, "g"]] | None = None
        try:
            self.info: Mapping[str, Any] = json.loads((root / "meta" / "info.json").read_text())
            tables = [
                table.select([name for name in table.column_names if not name.startswith("stats/")])
                for table in map(pq.read_table, sorted((root / "meta" / "episodes").rglob("*.parquet")))
            ]
            self._episodes = pa.concat_tables(tables, promote_options="default").sort_by("episode_index").to_pylist()
            self.lengths: Sequence[int] = [int(row["length"]) for row in self._episodes]
            tasks = pq.read_table(root / "meta" / "tasks.parquet")
            text = next(name for name in tasks.column_names if name != "task_index")
            self.tasks: Mapping[int, str] = dict(
                zip(tasks["task_index"].to_pylist(), tasks[text].to_pylist(), strict=True)
            )
            self._files = self._rows_by_file()
        except (OSError, ValueError, KeyError, StopIteration) as error:
            raise InputError(
                f"{root} is no whole LeRobot dataset ({type(error).__name__}: {error}): was it finalized?"
            ) from error

    def _rows_by_file(self) -> dict[Path, int]:
        """The data files, each with the index of its first row in the dataset."""
        first: dict[Path, int] = {}
        for index, row in enumerate(self._episodes):
            if row["episode_index"] != index:
                raise InputError(f"{self.root}: episode {index} is missing from meta/episodes")
            path = self._data_path(index)
            first[path] = min(first.get(path, row["dataset_from_index"]), row["dataset_from_index"])
        return first

    def _data_path(self, index: int) -> Path:
        row = self._episodes[index]
        name = self.info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        return self.root / name

    def rows(self, index: int, columns: Sequence[str]) -> pa.Table:
        row, path = self._episodes[index], self._data_path(index)
        file, ends = self._parquet(path)
        start = row["dataset_from_index"] - self._files[path]
        stop = start + row["length"]
        first, last = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
        groups = list(range(int(first), min(int(last) + 1, len(ends))))
        skipped = int(ends[first - 1]) if first else 0
        table = file.read_row_groups(groups, columns=[*columns, "episode_index"]).slice(start - skipped, row["length"])
        if set(table["episode_index"].to_pylist()) != {index}:
            raise InputError(f"rows {start} to {stop} of {path} are not those of episode {index}")
        return table

    def video(self, index: int, feature: str) -> tuple[Path, float]:
        row = self._episodes[index]
        chunk, file, start = (
            row[f"videos/{feature}/{name}"] for name in ("chunk_index", "file_index", "from_timestamp")
        )
        name = self.info["video_path"].format(video_key=feature, chunk_index=chunk, file_index=file)
        return self.root / name, float(start)

    def details(self, index: int) -> dict[str, Any]:
        return {}

    def columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        import pyarrow as pa

        for path in self._files:
            for batch in self._parquet(path)[0].iter_batches(ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch])

    def _parquet(self, path: Path) -> tuple[pq.ParquetFile, Int[np.ndarray, "g"]]:
        """The file, kept open until another is asked for, and the row at which each of its row groups ends."""
        import pyarrow.parquet as pq

        if self._open is None or self._open[0] != path:
            file = pq.ParquetFile(path)
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._open = (path, file, np.cumsum(rows, dtype=np.int64))
        return self._open[1:]


def _download(name: str) -> Path:
    """The dataset of this name, from the hub or from where LeRobot has kept it."""
    if HUB_NAME.fullmatch(name) is None:
        raise InputError(f"there is no LeRobot dataset at {name}")
    from httpx import HTTPError
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.utils import CompatibilityError

    try:
        return Path(LeRobotDataset(name, video_backend="pyav").root)
    except CompatibilityError as error:
        raise InputError(
            f"{name} is in an older format: download its folder (hf download --repo-type dataset) and convert that"
        ) from error
    except (OSError, HTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name} is no folder, and could not be had from the hub: {reason}") from error
