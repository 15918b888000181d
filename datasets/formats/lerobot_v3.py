"""LeRobotDataset v3: many episodes a parquet file and a video file, in a folder or on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.datasets.formats.lerobot_features import Features, map_features
from vla.datasets.formats.lerobot_info import NO_STEPS, data_files, path_of, read_info, version_of, whole_number
from vla.datasets.formats.lerobot_rows import RowFiles, Run
from vla.datasets.formats.lerobot_side import Side
from vla.datasets.formats.lerobot_source import LeRobotSource
from vla.datasets.formats.lerobot_videos import Place, checked_places
from vla.datasets.source_files import reading_file
from vla.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

HUB_TIMEOUT = 10.0
"""Seconds in which the hub must answer."""


def detect(path: Path) -> bool:
    """Whether `path` is a dataset of this version. Raises InputError where it is one of version 1."""
    version = version_of(path)
    if version.startswith("v1"):
        raise InputError(f"{path} is a LeRobotDataset {version}: LeRobot's convert_dataset_v1_to_v2.py makes it v2.0")
    return version.startswith("v3")


def open_source(
    path: Path,
    *,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    instruction: str | None = None,
) -> LeRobotSource:
    """The dataset in the folder `path`, or of that name on the hub.

    `state` and `action` are features to put side by side, and `rename` gives features and cameras other names, by
    which they are chosen. Raises InputError when there is no dataset, its files are damaged, or a chosen feature or
    camera is not there.
    """
    root = path if path.exists() else _download(str(path))
    files = V3Files(root)
    side = Side.read(root, files.lengths)
    parts = _parts_of(side, files.info["features"])
    chosen = (state or parts.get("state"), action or parts.get("action"), cameras)
    features = map_features(files.info["features"], str(root), *chosen, rename)
    return LeRobotSource(files, features, side, instruction)


def _parts_of(side: Side | None, features: Features) -> dict[str, Sequence[str]]:
    """The features that were put side by side when the data came from LeRobot before, where they are still there."""
    origin = side.provenance if side else {}
    if origin.get("format") != "lerobot":
        return {}
    return {kind: origin[kind] for kind in ("state", "action") if set(origin[kind]) <= features.keys()}


class V3Files:
    """The files of a v3 dataset (`LeRobotFiles`). Raises InputError when its metadata are missing or damaged.

    An episode's rows are found by `episode_index`, as LeRobot does, and not where meta/episodes says.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.info: Mapping[str, Any] = read_info(root)
        self._episodes = _read_episodes(root)
        self.tasks: Mapping[int, str] = _read_tasks(root)
        self._rows = RowFiles(data_files(root))
        numbers = [row["episode_index"] for row in self._episodes]
        self.lengths: Sequence[int] = [self._rows.count(number) for number in numbers]
        self._places: dict[str, list[Place | None]] = {}
        self.remarks: Sequence[str] = [
            remark for remark in (self._stale_index(), self._stale_videos(), self._unlisted(numbers)) if remark
        ]

    def faults(self) -> dict[int, str]:
        """Why episodes cannot be read, as far as that is known without reading them."""
        found = {index: self._fault(index) for index in range(len(self._episodes))}
        return {index: fault for index, fault in found.items() if fault}

    def rows(self, index: int, columns: Sequence[str]) -> pa.Table:
        if fault := self._fault(index):
            raise InputError(fault)
        return self._rows.rows(self._episodes[index]["episode_index"], columns)

    def video(self, index: int, feature: str) -> tuple[Path, float]:
        place = self._places[feature][index]
        if place is None:
            raise InputError(f"{self.root / 'meta' / 'episodes'} does not say which video of {feature} it is in")
        return place.path, place.start

    def details(self, index: int) -> dict[str, Any]:
        return {}

    def columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        return self._rows.columns(columns)

    def _runs(self, index: int) -> Sequence[Run]:
        return self._rows.runs.get(self._episodes[index]["episode_index"], ())

    def _fault(self, index: int) -> str:
        """Why the episode's rows cannot be read; empty where that is not known."""
        row, runs, length = self._episodes[index], self._runs(index), self.lengths[index]
        if damaged := [run.path for run in runs if run.path in self._rows.unreadable]:
            return self._rows.unreadable[damaged[0]]
        if not length:
            return NO_STEPS if row.get("length") == 0 else self._missing(index)
        stated, total, expected = self.info.get("total_frames"), self._rows.total, row.get("length", length)
        # Where no rows are missing, it is the length that is out of date.
        if length == expected or (not self._rows.unreadable and (stated is None or stated <= total)):
            return ""
        return (
            f"{self.root / 'data'} has {length} rows of episode_index {row['episode_index']}, meta/episodes says "
            f"{expected}, and it has {total} in all, meta/info.json says {stated}: download it again"
        )

    def _missing(self, index: int) -> str:
        """Why no row of the episode was found."""
        path = self._stated_path(index)
        if path in self._rows.unreadable:
            return self._rows.unreadable[path]
        reason = f"no file in {self.root / 'data'} has rows of episode_index {self._episodes[index]['episode_index']}"
        if path is not None and not path.exists():
            reason += f", and {path}, which meta/episodes names, is missing: download it again"
        return "; ".join([reason, *self._rows.unreadable.values()])

    def _stated_path(self, index: int) -> Path | None:
        """The data file that meta/episodes names."""
        row = self._episodes[index]
        chunk, file = row.get("data/chunk_index"), row.get("data/file_index")
        if chunk is None or file is None:
            return None
        return path_of(self.root, self.info, "data_path", chunk_index=chunk, file_index=file)

    def _stale_index(self) -> str:
        """One line where meta/episodes names other rows than those that are the episodes'."""
        stale = [index for index in range(len(self._episodes)) if self._is_stale(index)]
        if not stale:
            return ""
        run = self._runs(stale[0])[0]
        return (
            f"meta/episodes is stale for {len(stale)} of {len(self._episodes)} episodes: rows were found by their "
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
        # Where files are missing, the rows before this one cannot be counted.
        whole = self._rows.total == self.info.get("total_frames")
        here = self._rows.offsets[runs[0].path] + runs[0].start
        return whole and start is not None and (start != here or stop not in (None, start + length))

    def _stale_videos(self) -> str:
        """Finds the frames of every episode; one line where they are not where meta/episodes says."""
        reasons = {}
        for key, feature in self.info["features"].items():
            if feature["dtype"] != "video":
                continue
            stated = [self._stated_place(row, key) for row in self._episodes]
            files = sorted((self.root / "videos" / key).rglob("*.mp4"))
            found, reason = checked_places(stated, self.lengths, float(self.info["fps"]), files)
            self._places[key] = found
            if reason:
                reasons[key] = reason
        return "".join(
            f"meta/episodes is stale for the videos of {', '.join(reasons)} ({reason}): "
            "frames were found by counting them"
            for reason in list(reasons.values())[:1]
        )

    def _stated_place(self, row: Mapping[str, Any], key: str) -> Place | None:
        names = ("chunk_index", "file_index", "from_timestamp")
        chunk, file, start = (row.get(f"videos/{key}/{name}") for name in names)
        if chunk is None or file is None or start is None:
            return None
        path = path_of(self.root, self.info, "video_path", video_key=key, chunk_index=chunk, file_index=file)
        return Place(path, float(start))

    def _unlisted(self, numbers: Sequence[int]) -> str:
        """One line where there are rows of episodes that meta/episodes does not list."""
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
                # An episode that was recorded again has a row for each time; the last one counts.
                rows[whole_number(row, "episode_index", path)] = row
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
        # LeRobot keeps the text as the index of a data frame, under one name or another.
        text = "task" if "task" in names else next(iter(names), "task")
        for name in (text, "task_index"):
            if name not in table.column_names:
                raise InputError(f"{path} has no column {name!r}: it has {', '.join(table.column_names)}")
        texts = ["" if task is None else str(task) for task in table[text].to_pylist()]
        return dict(zip(table["task_index"].to_pylist(), texts, strict=True))


def _download(name: str) -> Path:
    """The dataset of this name, from the hub or from where LeRobot has kept it."""
    from vla.datasets.format_registry import HUB_NAME

    if HUB_NAME.fullmatch(name) is None:
        raise InputError(f"there is no LeRobot dataset at {name}")
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from lerobot.utils.constants import HF_LEROBOT_HOME

    try:
        if not (HF_LEROBOT_HOME / name).exists():
            # Before LeRobot is imported, and tries again for a minute.
            HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
        return _downloaded(name)
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).partition("\n")[0]
        raise InputError(f"{name} is no folder here, and the hub has none for you: {reason}") from error
    except (OfflineModeIsEnabled, OSError, HTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name} is no folder here, and the hub could not be reached: {reason}") from error


def _downloaded(name: str) -> Path:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.utils import CompatibilityError

    try:
        return Path(LeRobotDataset(name, video_backend="pyav").root)
    except CompatibilityError as error:
        command = f"hf download {name} --repo-type dataset --local-dir {name.partition('/')[2]}"
        raise InputError(f"{name} is in an older format of LeRobot: `{command}`, and convert that folder") from error
