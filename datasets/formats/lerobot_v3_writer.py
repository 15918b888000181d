"""Writes episodes as a LeRobotDataset v3 with LeRobot's API.

Information that a LeRobot dataset cannot represent is written as additional features (`vla.time`, `vla.points`,
`vla.chunks`) if it has numbers per step, and otherwise to meta/vla.json. `lerobot_v3` reads both back.
"""

from __future__ import annotations

import logging
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
from vla.datasets.store_arrays import names_under
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode


class LeRobotWriter:
    """A dataset that is written to the temporary folder `partial` and moved to `path` by `publish`.

    The features are those of `example`, or of the first episode; other episodes may lack some of its streams. LeRobot's
    files are unreadable until they are finished, so that the leftovers of a killed writer cannot be resumed and are
    removed.
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
        """Raises InputError if `path` exists, or if LeRobot does not support the embodiment's rate."""
        if path.exists():
            raise InputError(f"{path} exists: choose another folder, or remove it first")
        if embodiment.control_hz != round(embodiment.control_hz):
            raise InputError(f"LeRobot supports only integer frame rates, not {embodiment.control_hz}")
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
        """Raises InputError if the episode cannot be written: it does not match the first one, or is not finite."""
        self._values(episode, self._columns or self._columns_of(episode))

    def append(self, episode: Episode) -> None:
        """Adds `episode`. Raises InputError, before anything is written, if it cannot be written (`check`)."""
        if self._dataset is None:
            self._begin(episode)
        example = self._example or episode
        values = self._values(episode, self._columns)
        tasks = tasks_of(episode)
        # In order of appearance: LeRobot itself would number the tasks of an episode in arbitrary order.
        self._dataset.meta.save_episode_tasks(list(dict.fromkeys(tasks)))
        with quiet(), _image_errors() as errors:
            for step, task in enumerate(tasks):
                self._dataset.add_frame({**{name: rows[step] for name, rows in values.items()}, "task": task})
            if errors:
                raise InputError(f"LeRobot cannot write it: {errors[0]}")
            try:
                self._dataset.save_episode(parallel_encoding=False)
            except (ValueError, RuntimeError, OSError) as error:
                raise InputError(f"LeRobot cannot write it: {error}") from error
        self._episodes.append(SideEpisode.of(episode, sorted(streams_of(example).keys() - streams_of(episode).keys())))

    def finish(self, skipped: Sequence[Mapping[str, Any]] = ()) -> Path:
        """Closes the files. Returns the folder of the complete, not yet published dataset.

        `skipped` are skipped episodes, for the provenance.
        """
        if skipped:
            self._provenance = {**self._provenance, "skipped": list(skipped)}
        self._dataset.finalize()
        rows = {name: list(values.shape[1:]) for name, values in self._example.extras.items()} if self._example else {}
        Side(self._embodiment, self._provenance, self._episodes, rows).write(self.partial)
        shutil.rmtree(self.partial / "images", ignore_errors=True)
        return self.partial

    def publish(self) -> None:
        """Moves the finished dataset to `path`."""
        self.partial.rename(self.path)

    def discard(self) -> None:
        """Removes unpublished files."""
        self._dataset = None
        shutil.rmtree(self.partial, ignore_errors=True)

    def _columns_of(self, episode: Episode) -> list[Column]:
        return columns_of(self._example or episode, self._provenance, self._use_videos, self._regular_time)

    def _values(self, episode: Episode, columns: Sequence[Column]) -> dict[str, Any]:
        """The values of each feature for LeRobot."""
        example = self._example or episode
        complete = _filled(episode, example)
        if more := streams_of(complete).keys() - streams_of(example).keys():
            raise InputError(f"it has {', '.join(sorted(more))}, which the first episode does not have")
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
            # No video is decoded during writing; without this option LeRobot slowly tries other decoders.
            video_backend="pyav",
        )


def streams_of(episode: Episode) -> dict[str, Shaped[np.ndarray, "t ..."]]:
    """The episode's optional arrays, by their names in a store."""
    optional = {"points": episode.points, "chunks": episode.chunks}
    return {
        **{name: values for name, values in optional.items() if values is not None},
        **{f"depth/{camera}": maps for camera, maps in episode.depth.items()},
        **{f"extras/{name}": values for name, values in episode.extras.items()},
    }


def _filled(episode: Episode, example: Episode) -> Episode:
    """The episode with zeros or NaN for each stream that it lacks and the example has."""
    present = streams_of(episode)
    blank = {
        name: np.full((len(episode), *values.shape[1:]), np.nan if values.dtype.kind == "f" else 0, values.dtype)
        for name, values in streams_of(example).items()
        if name not in present
    }
    return replace(
        episode,
        points=blank.get("points", episode.points),
        chunks=blank.get("chunks", episode.chunks),
        depth={**episode.depth, **{name: blank[f"depth/{name}"] for name in names_under("depth", blank)}},
        extras={**episode.extras, **{name: blank[f"extras/{name}"] for name in names_under("extras", blank)}},
    )


@contextmanager
def _image_errors() -> Iterator[list[str]]:
    """The messages of errors in writing images, which LeRobot only logs."""
    errors: list[str] = []

    def record(entry: logging.LogRecord) -> bool:
        errors.extend([entry.getMessage()] if entry.levelno >= logging.ERROR else [])
        return entry.levelno < logging.ERROR

    logger = logging.getLogger("lerobot.datasets.image_writer")
    logger.addFilter(record)
    try:
        yield errors
    finally:
        logger.removeFilter(record)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the output of the encoder, the container and Hugging Face's progress bars.

    It also restores the scheduling of the process: run as root, the AV1 encoder permanently raises its priority.
    """
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
    """LeRobot's task of each step: the instruction or the sub-tasks.

    Sub-tasks are used if they cover all steps without gaps, and the instruction is their concatenation
    (`instruction_and_spans`) or, as in stores of older versions, the first of them.
    """
    spans = episode.spans
    ends = [0, *(span.stop for span in spans)]
    tiled = bool(spans) and [span.start for span in spans] == ends[:-1] and ends[-1] == len(episode)
    words = [span.instruction for span in spans]
    if not tiled or episode.instruction not in (words[0], instruction_and_spans(words)[0]):
        return [episode.instruction] * len(episode)
    return [span.instruction for span in spans for _ in range(span.start, span.stop)]
