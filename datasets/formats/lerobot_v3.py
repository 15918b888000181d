"""LeRobotDataset v3: many episodes per Parquet file and per video file, in a folder or on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.datasets.episode_selection import choose
from vla.datasets.formats.lerobot_features import Features, map_features
from vla.datasets.formats.lerobot_info import NO_STEPS, data_files, non_negative_int, path_of, read_info, version_of
from vla.datasets.formats.lerobot_rows import RowFiles, Run
from vla.datasets.formats.lerobot_side import Side
from vla.datasets.formats.lerobot_source import LeRobotSource
from vla.datasets.formats.lerobot_videos import VideoSegment, is_moved, resolve_segments
from vla.datasets.source_files import reading_file
from vla.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

HUB_TIMEOUT = 10.0
"""Timeout for an answer of the hub [s]."""


def detect(path: Path) -> bool:
    """Whether `path` is a dataset of this version. Raises InputError if it is one of version 1."""
    version = version_of(path)
    if version.startswith("v1"):
        raise InputError(f"{path} is a LeRobotDataset {version}: LeRobot's convert_dataset_v1_to_v2.py makes it v2.0")
    return version.startswith("v3")


def open_source(
    path: Path,
    *,
    episodes: str | None = None,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    instruction: str | None = None,
) -> LeRobotSource:
    """Opens the dataset in the folder `path`, or of that name on the hub.

    Args:
        path: the folder, or USER/NAME on the hub.
        episodes: FIRST:END, the episodes that the remarks are about. None: all.
        state: the features to concatenate as the state.
        action: the features to concatenate as the action.
        cameras: the cameras to read. None: all.
        rename: new names of features and cameras, {old: new}. The other options use the new names.
        instruction: the instruction of all episodes. None: the tasks of the dataset.

    Raises:
        InputError: there is no dataset, its files are damaged, or a feature or camera does not exist.
    """
    root = path if path.exists() else _download(str(path))
    files = V3Files(root, episodes)
    side = Side.read(root, files.lengths)
    original = _original_features(side, files.info["features"])
    choices = (state or original.get("state"), action or original.get("action"), cameras)
    features = map_features(files.info["features"], str(root), *choices, rename)
    return LeRobotSource(files, features, side, instruction)


def _original_features(side: Side | None, features: Features) -> dict[str, Sequence[str]]:
    """The features that an earlier conversion from LeRobot concatenated, if they still exist."""
    origin = side.provenance if side else {}
    if origin.get("format") != "lerobot":
        return {}
    return {kind: origin[kind] for kind in ("state", "action") if set(origin[kind]) <= features.keys()}


class V3Files:
    """The files of a v3 dataset (`LeRobotFiles`). Raises InputError if its metadata are missing or damaged.

    The rows of an episode are found by `episode_index`, as LeRobot does, and not by the row numbers in meta/episodes.
    Remarks about single episodes are limited to `episodes`, FIRST:END.
    """

    def __init__(self, root: Path, episodes: str | None = None) -> None:
        self.root = root
        self.info: Mapping[str, Any] = read_info(root)
        self._episodes = _read_episodes(root)
        self._selected = choose(episodes or ":", len(self._episodes))
        self.tasks: Mapping[int, str] = _read_tasks(root)
        self._rows = RowFiles(data_files(root))
        numbers = [row["episode_index"] for row in self._episodes]
        self.lengths: Sequence[int] = [self._rows.count(number) for number in numbers]
        self._segments: dict[str, list[VideoSegment | None]] = {}
        self.remarks: Sequence[str] = [
            remark for remark in (self._stale_index(), self._stale_videos(), self._unlisted(numbers)) if remark
        ]

    def faults(self) -> dict[int, str]:
        """The reasons for unreadable episodes, as far as known without reading them."""
        faults = {index: self._fault(index) for index in range(len(self._episodes))}
        return {index: fault for index, fault in faults.items() if fault}

    def rows(self, index: int, columns: Sequence[str]) -> pa.Table:
        """The columns of episode `index`, one row per step."""
        if fault := self._fault(index):
            raise InputError(fault)
        return self._rows.rows(self._episodes[index]["episode_index"], columns)

    def video(self, index: int, feature: str) -> tuple[Path, float]:
        """The video file of episode `index`, and the time [s] of its first frame."""
        segment = self._segments[feature][index]
        if segment is None:
            raise InputError(f"{self.root / 'meta' / 'episodes'} does not name its video of {feature}")
        return segment.path, segment.start

    def details(self, index: int) -> dict[str, Any]:
        """No further information."""
        return {}

    def columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The columns of all readable files, in batches."""
        return self._rows.columns(columns)

    def _runs(self, index: int) -> Sequence[Run]:
        return self._rows.runs.get(self._episodes[index]["episode_index"], ())

    def _fault(self, index: int) -> str:
        """The reason why the episode's rows cannot be read; empty if none is known."""
        row, runs, length = self._episodes[index], self._runs(index), self.lengths[index]
        if damaged := [run.path for run in runs if run.path in self._rows.unreadable]:
            return self._rows.unreadable[damaged[0]]
        if not length:
            return NO_STEPS if row.get("length") == 0 else self._missing(index)
        stated, total, expected = self.info.get("total_frames"), self._rows.total, row.get("length", length)
        # If no rows are missing, only the stated length is out of date.
        if length == expected or (not self._rows.unreadable and (stated is None or stated <= total)):
            return ""
        return (
            f"{self.root / 'data'} has {length} rows of episode_index {row['episode_index']}, meta/episodes states "
            f"{expected}, and it has {total} in all, meta/info.json states {stated}: download it again"
        )

    def _missing(self, index: int) -> str:
        """The reason why the episode has no rows."""
        path = self._stated_path(index)
        if path in self._rows.unreadable:
            return self._rows.unreadable[path]
        reason = f"no file in {self.root / 'data'} has rows of episode_index {self._episodes[index]['episode_index']}"
        if path is not None and not path.exists():
            reason += f", and {path}, which meta/episodes names, is missing: download it again"
        return "; ".join([reason, *self._rows.unreadable.values()])

    def _stated_path(self, index: int) -> Path | None:
        """The episode's data file according to meta/episodes."""
        row = self._episodes[index]
        chunk, file = row.get("data/chunk_index"), row.get("data/file_index")
        if chunk is None or file is None:
            return None
        return path_of(self.root, self.info, "data_path", chunk_index=chunk, file_index=file)

    def _stale_index(self) -> str:
        """A remark if meta/episodes states other rows than the actual ones."""
        stale = [index for index in self._selected if self._is_stale(index)]
        if not stale:
            return ""
        run = self._runs(stale[0])[0]
        return (
            f"meta/episodes is stale for {len(stale)} of {len(self._selected)} episodes: rows were found by their "
            f"episode_index (episode {stale[0]}: rows {run.start} to {run.stop} of {run.path.relative_to(self.root)})"
        )

    def _is_stale(self, index: int) -> bool:
        row, runs = self._episodes[index], self._runs(index)
        if not runs:
            return False
        length = self.lengths[index]
        start, stop = row.get("dataset_from_index"), row.get("dataset_to_index")
        stated = self._stated_path(index)
        if stated not in (None, runs[0].path) or row.get("length", length) != length:
            return True
        # If files are missing, the rows before this episode cannot be counted.
        is_complete = self._rows.total == self.info.get("total_frames")
        position = self._rows.offsets[runs[0].path] + runs[0].start
        return is_complete and start is not None and (start != position or stop not in (None, start + length))

    def _stale_videos(self) -> str:
        """Finds the video segments of all episodes. Returns a remark if selected ones differ from meta/episodes."""
        reasons = {}
        for key, feature in self.info["features"].items():
            if feature["dtype"] != "video":
                continue
            stated = [self._stated_segment(row, key) for row in self._episodes]
            files = sorted((self.root / "videos" / key).rglob("*.mp4"))
            fps = float(self.info["fps"])
            segments, reason = resolve_segments(stated, self.lengths, fps, files)
            self._segments[key] = segments
            if reason and any(is_moved(stated[index], segments[index], fps) for index in self._selected):
                reasons[key] = reason
        return "".join(
            f"meta/episodes is stale for the videos of {', '.join(reasons)} ({reason}): "
            "frames were found by counting them"
            for reason in list(reasons.values())[:1]
        )

    def _stated_segment(self, row: Mapping[str, Any], key: str) -> VideoSegment | None:
        names = ("chunk_index", "file_index", "from_timestamp")
        chunk, file, start = (row.get(f"videos/{key}/{name}") for name in names)
        if chunk is None or file is None or start is None:
            return None
        path = path_of(self.root, self.info, "video_path", video_key=key, chunk_index=chunk, file_index=file)
        return VideoSegment(path, float(start))

    def _unlisted(self, numbers: Sequence[int]) -> str:
        """A remark if there are rows of episodes that meta/episodes does not list."""
        unlisted = sorted(self._rows.runs.keys() - set(numbers))
        if not unlisted:
            return ""
        shown = ", ".join(map(str, unlisted[:5])) + (", …" if len(unlisted) > 5 else "")
        return f"left out are {len(unlisted)} episodes that meta/episodes does not list: episode_index {shown}"


def _read_episodes(root: Path) -> list[dict[str, Any]]:
    """The rows of meta/episodes without the statistics, in the order of `episode_index`."""
    import pyarrow.parquet as pq

    folder = root / "meta" / "episodes"
    files = sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))
    if not files:
        raise InputError(f"{folder} has no Parquet files: was the dataset finalized? Download it again")
    rows: dict[int, dict[str, Any]] = {}
    for path in files:
        with reading_file(path, "Parquet"):
            names = pq.read_schema(path).names
            table = pq.read_table(path, columns=[name for name in names if not name.startswith("stats/")])
            for row in table.to_pylist():
                # An episode that was recorded again has several rows; the last one is valid.
                rows[non_negative_int(row, "episode_index", path)] = row
    if not rows:
        raise InputError(f"{folder} lists no episodes")
    return [rows[number] for number in sorted(rows)]


def _read_tasks(root: Path) -> dict[int, str]:
    """The task of each task_index."""
    import pyarrow.parquet as pq

    path = root / "meta" / "tasks.parquet"
    with reading_file(path, "Parquet"):
        table = pq.read_table(path)
        names = [name for name in table.column_names if name != "task_index"]
        # LeRobot stores the text as the index of a data frame, whose name varies.
        text = "task" if "task" in names else next(iter(names), "task")
        for name in (text, "task_index"):
            if name not in table.column_names:
                raise InputError(f"{path} has no column {name!r}: it has {', '.join(table.column_names)}")
        texts = ["" if task is None else str(task) for task in table[text].to_pylist()]
        return dict(zip(table["task_index"].to_pylist(), texts, strict=True))


def _download(name: str) -> Path:
    """The dataset of this name, from LeRobot's cache or from the hub."""
    from vla.datasets.format_registry import HUB_NAME

    if HUB_NAME.fullmatch(name) is None:
        raise InputError(f"there is no LeRobot dataset at {name}")
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from lerobot.utils.constants import HF_LEROBOT_HOME

    try:
        if not (HF_LEROBOT_HOME / name).exists():
            # Checked first: LeRobot takes long to import, and retries for a minute.
            HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
        return _downloaded(name)
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).partition("\n")[0]
        raise InputError(f"{name} is not a local folder, and the hub does not provide it: {reason}") from error
    except (OfflineModeIsEnabled, OSError, HTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name} is not a local folder, and the hub could not be reached: {reason}") from error


def _downloaded(name: str) -> Path:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.utils import CompatibilityError

    try:
        return Path(LeRobotDataset(name, video_backend="pyav").root)
    except CompatibilityError as error:
        command = f"hf download {name} --repo-type dataset --local-dir {name.partition('/')[2]}"
        raise InputError(f"{name} is in an older format of LeRobot: `{command}`, and convert that folder") from error
