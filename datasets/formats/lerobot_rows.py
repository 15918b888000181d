"""Finds the rows of each episode of a LeRobotDataset v3 by the column `episode_index`.

meta/episodes also states them, but is out of date in datasets that were edited, merged or written by early releases.
LeRobot itself does not use it to find rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from vla.datasets.source_files import reading_file
from vla.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS = 65536
"""Rows per batch when all rows are read."""


@dataclass(frozen=True)
class Run:
    """The rows `start` to before `stop` of a file, which belong to one episode."""

    path: Path
    start: int
    stop: int


class RowFiles:
    """The data files of a dataset. `unreadable` has the reasons for files that cannot be read."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.unreadable: dict[Path, str] = {}
        self.runs: dict[int, list[Run]] = {}
        """The runs of each episode_index, in the order of the files."""
        self.offsets: dict[Path, int] = {}
        """The number of rows in all files before each file."""
        self._open: tuple[Path, pq.ParquetFile, Int[np.ndarray, "g"]] | None = None
        self.total = 0
        for path in files:
            try:
                self._find(path)
            except InputError as error:
                self.unreadable[path] = str(error)

    def count(self, episode: int) -> int:
        """The number of rows with this episode_index."""
        return sum(run.stop - run.start for run in self.runs.get(episode, ()))

    def rows(self, episode: int, columns: Sequence[str]) -> pa.Table:
        """The columns of an episode in the order of its frames.

        Raises InputError that names the file if it cannot be read, or if a frame index occurs twice.
        """
        import pyarrow as pa

        requested = list(dict.fromkeys([*columns, "frame_index"]))
        table = pa.concat_tables(
            [self._read(run, requested) for run in self.runs[episode]], promote_options="permissive"
        )
        if "frame_index" not in table.column_names:
            return table
        frames = np.asarray(table["frame_index"])
        if (np.diff(frames) > 0).all():
            return table
        order = np.argsort(frames, kind="stable")
        if (np.diff(frames[order]) == 0).any():
            double = frames[order][:-1][np.diff(frames[order]) == 0][0]
            files = ", ".join(dict.fromkeys(str(run.path) for run in self.runs[episode]))
            raise InputError(f"{files}: frame_index {double} of episode_index {episode} occurs twice")
        return table.take(order)

    def columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The columns of all readable files, in batches. Files that turn out to be unreadable are recorded."""
        import pyarrow as pa

        for path in self.files:
            if path in self.unreadable:
                continue
            try:
                with reading_file(path, "Parquet"):
                    file, _ = self._parquet(path)
                    check_columns(file.schema_arrow.names, columns, path)
                    for batch in file.iter_batches(ROWS, columns=list(columns)):
                        yield pa.Table.from_batches([batch])
            except InputError as error:
                self.unreadable[path] = str(error)

    def _find(self, path: Path) -> None:
        with reading_file(path, "Parquet"):
            file, _ = self._parquet(path)
            check_columns(file.schema_arrow.names, ["episode_index"], path)
            numbers = np.asarray(file.read(["episode_index"])["episode_index"], np.int64)
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
            self.runs.setdefault(int(numbers[start]), []).append(Run(path, start, stop))
        self.offsets[path] = self.total
        self.total += len(numbers)

    def _read(self, run: Run, columns: Sequence[str]) -> pa.Table:
        with reading_file(run.path, "Parquet"):
            file, ends = self._parquet(run.path)
            first, last = np.searchsorted(ends, run.start, "right"), np.searchsorted(ends, run.stop, "left")
            groups = list(range(int(first), min(int(last) + 1, len(ends))))
            skipped = int(ends[first - 1]) if first else 0
            present = [name for name in columns if name != "frame_index" or name in file.schema_arrow.names]
            check_columns(file.schema_arrow.names, present, run.path)
            table = file.read_row_groups(groups, columns=present)
        return table.slice(run.start - skipped, run.stop - run.start)

    def _parquet(self, path: Path) -> tuple[pq.ParquetFile, Int[np.ndarray, "g"]]:
        """The file and the end row of each of its row groups. The file stays open until another one is read."""
        import pyarrow.parquet as pq

        if self._open is None or self._open[0] != path:
            file = pq.ParquetFile(path)
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            self._open = (path, file, np.cumsum(rows, dtype=np.int64))
        return self._open[1:]


def check_columns(names: Sequence[str], requested: Sequence[str], path: Path) -> None:
    """Raises InputError that names a missing column of the file at `path`: Arrow itself would silently omit it."""
    if missing := [name for name in requested if name not in names]:
        raise InputError(f"{path} has no column {missing[0]!r}: it has {', '.join(names)}")
