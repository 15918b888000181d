"""Writes episodes as a LeRobotDataset v3, with LeRobot's own API.

What a LeRobot dataset has no place for goes into features of our own (`vla.time`, `vla.points`, `vla.chunks`) where it
is numbers a step, and else into meta/vla.json; `lerobot_v3` reads both back.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from vla.datasets.formats.columns import instruction_and_spans
from vla.datasets.formats.lerobot_columns import Column, cells, columns_of
from vla.datasets.formats.lerobot_side import Side, SideEpisode
from vla.datasets.store_arrays import under
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode


class LeRobotWriter:
    """A dataset being written beside its place, `partial`, until `publish` moves it there.

    The `example`, or else the first episode, decides the features; an episode may lack some of its streams. LeRobot's
    files are unreadable until they are finished, so that a writer that was killed leaves nothing to go on from: its
    leftovers are removed.
    """

    def __init__(
        self,
        path: Path,
        embodiment: Embodiment,
        provenance: Mapping[str, Any],
        use_videos: bool | None = None,
        regular_time: bool = False,
        example: Episode | None = None,
    ) -> None:
        """Raises InputError when something is at `path`, or when LeRobot cannot have the embodiment's rate."""
        if path.exists():
            raise InputError(f"{path} exists: choose another folder, or remove it first")
        if embodiment.control_hz != round(embodiment.control_hz):
            raise InputError(f"LeRobot takes whole frames a second, not {embodiment.control_hz}")
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self.started_anew = self.partial.exists()
        if self.started_anew:
            shutil.rmtree(self.partial)
        self._embodiment = embodiment
        self._provenance = provenance
        self._use_videos = use_videos
        self._regular_time = regular_time
        self._columns: list[Column] = []
        self._example = example
        self._episodes: list[SideEpisode] = []
        self._dataset: Any = None

    def check(self, episode: Episode) -> None:
        """Raises InputError when the episode cannot be written: it does not fit the first one, or is not finite."""
        self._values(episode, self._columns or self._columns_of(episode))

    def append(self, episode: Episode) -> None:
        """Adds `episode`. Raises InputError before any of it is written when it cannot be (`check`)."""
        if self._dataset is None:
            self._begin(episode)
        example = self._example or episode
        values = self._values(episode, self._columns)
        tasks = tasks_of(episode)
        # In the order in which they appear: LeRobot itself numbers the tasks of an episode in no order.
        self._dataset.meta.save_episode_tasks(list(dict.fromkeys(tasks)))
        with quiet():
            for step, task in enumerate(tasks):
                self._dataset.add_frame({**{name: rows[step] for name, rows in values.items()}, "task": task})
            try:
                self._dataset.save_episode(parallel_encoding=False)
            except (ValueError, RuntimeError, OSError) as error:
                raise InputError(f"LeRobot cannot write it: {error}") from error
        self._episodes.append(SideEpisode.of(episode, sorted(streams_of(example).keys() - streams_of(episode).keys())))

    def finish(self, skipped: Sequence[Mapping[str, Any]] = ()) -> Path:
        """Closes the files, and says where they are: a whole dataset, not yet in its place.

        `skipped` are episodes that were left out, for the provenance.
        """
        if skipped:
            self._provenance = {**self._provenance, "skipped": list(skipped)}
        self._dataset.finalize()
        rows = {name: list(values.shape[1:]) for name, values in self._example.extras.items()} if self._example else {}
        Side(self._embodiment, self._provenance, self._episodes, rows).write(self.partial)
        shutil.rmtree(self.partial / "images", ignore_errors=True)
        return self.partial

    def publish(self) -> None:
        self.partial.rename(self.path)

    def discard(self) -> None:
        """Removes what was not published."""
        self._dataset = None
        shutil.rmtree(self.partial, ignore_errors=True)

    def _columns_of(self, episode: Episode) -> list[Column]:
        return columns_of(self._example or episode, self._provenance, self._use_videos, self._regular_time)

    def _values(self, episode: Episode, columns: Sequence[Column]) -> dict[str, Any]:
        """What LeRobot is given of each feature."""
        example = self._example or episode
        complete = _filled(episode, example)
        if more := streams_of(complete).keys() - streams_of(example).keys():
            raise InputError(f"it has {', '.join(sorted(more))}, which the first episode has not")
        return {column.feature: cells(column, complete) for column in columns}

    def _begin(self, episode: Episode) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        self._columns = self._columns_of(episode)
        self._example = self._example or episode
        features = {column.feature: dict(column.entry) for column in self._columns}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot create {self.path}: {error.strerror}") from error
        self._dataset = LeRobotDataset.create(
            f"vla/{self.path.name}",
            round(self._embodiment.control_hz),
            features,
            root=self.partial,
            robot_type=self._provenance.get("robot_type", self._embodiment.name),
            use_videos=any(feature["dtype"] == "video" for feature in features.values()),
            # Which decoder LeRobot would read with is no matter here, and trying the others is slow.
            video_backend="pyav",
        )


def streams_of(episode: Episode) -> dict[str, Shaped[np.ndarray, "t ..."]]:
    """What not every episode has, by its name in our store."""
    optional = {"points": episode.points, "chunks": episode.chunks}
    return {
        **{name: values for name, values in optional.items() if values is not None},
        **{f"depth/{camera}": maps for camera, maps in episode.depth.items()},
        **{f"extras/{name}": values for name, values in episode.extras.items()},
    }


def _filled(episode: Episode, example: Episode) -> Episode:
    """The episode with a stream of zeros, or of NaN, for each that the example has and it has not."""
    mine = streams_of(episode)
    blank = {
        name: np.full((len(episode), *values.shape[1:]), np.nan if values.dtype.kind == "f" else 0, values.dtype)
        for name, values in streams_of(example).items()
        if name not in mine
    }
    return replace(
        episode,
        points=blank.get("points", episode.points),
        chunks=blank.get("chunks", episode.chunks),
        depth={**episode.depth, **{name: blank[f"depth/{name}"] for name in under("depth", blank)}},
        extras={**episode.extras, **{name: blank[f"extras/{name}"] for name in under("extras", blank)}},
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the encoder, the container and Hugging Face's progress bars print for every episode, and without the
    priority over every other process that the AV1 encoder takes for good where it may (as root)."""
    import av
    import datasets

    os.environ.setdefault("SVT_LOG", "1")
    shown = datasets.is_progress_bar_enabled()
    scheduling = (os.sched_getscheduler(0), os.sched_getparam(0)) if sys.platform == "linux" else None
    av.logging.set_libav_level(av.logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if scheduling:
            os.sched_setscheduler(0, *scheduling)
        if shown:
            datasets.enable_progress_bars()


def tasks_of(episode: Episode) -> list[str]:
    """LeRobot's task of each step: the instruction, or the sub-tasks where they follow one another without a gap and
    the instruction says no more than they do (`instruction_and_spans`; or the first of them, as stores of before)."""
    spans = episode.spans
    ends = [0, *(span.stop for span in spans)]
    tiled = bool(spans) and [span.start for span in spans] == ends[:-1] and ends[-1] == len(episode)
    words = [span.instruction for span in spans]
    if not tiled or episode.instruction not in (words[0], instruction_and_spans(words)[0]):
        return [episode.instruction] * len(episode)
    return [span.instruction for span in spans for _ in range(span.start, span.stop)]
