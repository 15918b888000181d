"""Records episodes into an episode store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.recording.spilled_numbers import SpilledNumbers
from vla.types import Episode, Observation


@runtime_checkable
class Images(Protocol):
    """Receives the images of one episode, step by step. It copies images that the caller may modify."""

    @property
    def frames(self) -> Mapping[str, UInt8[np.ndarray, "t _h _w 3"]]:
        """The episode's images by camera, or placeholders of the same shape if they are stored elsewhere."""
        ...

    @property
    def scratch(self) -> Path | None:
        """A folder for what else is held of the episode, until `abort`; None: hold it in memory."""
        ...

    def add(self, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> None: ...

    def abort(self) -> None:
        """Drops images that are not stored yet."""
        ...


@runtime_checkable
class Sink(Protocol):
    """A destination of episodes of one embodiment: a store, or a proxy of one in another process."""

    embodiment: Embodiment

    def stream_images(self) -> Images:
        """A receiver for the images of a new episode."""
        ...

    def append(self, episode: Episode, images: Any) -> None:
        """Stores an episode; `images` is the result of `stream_images` for it."""
        ...


class ZarrRecorder:
    """Records episodes into `store`. `embodiment` is the store's by default.

    Images go to the store as they come; numbers to a file beside them, until the episode finishes.
    """

    def __init__(self, store: Sink, embodiment: Embodiment | None = None) -> None:
        self.store, self.embodiment = store, embodiment or store.embodiment
        self._unfinished: _Unfinished | None = None

    def start(self, instruction: str, **info: Any) -> None:
        """See `Recorder.start`."""
        self.abort()
        self._unfinished = _Unfinished(instruction, info, self.store.stream_images())

    def step(self, observation: Observation, action: Float[np.ndarray, "a"], **info: Any) -> None:
        """See `Recorder.step`. Drops the episode when it raises.

        Raises:
            InputError: for a missing camera, an image of another size than before, a state or action that does not fit
                the embodiment, and an action that is not finite.
            OSError: if the disk is full.
        """
        episode = self._current()
        try:
            _check(self.embodiment, observation, action)
            episode.images.add({camera: observation.images[camera] for camera in self.embodiment.cameras})
        except InputError as error:
            self.abort()
            raise InputError(f"step {len(episode.time)}: {error}") from None
        except BaseException:
            self.abort()
            raise
        # The caller may reuse its buffers.
        for name, held in (("chunk", episode.chunks), ("points", episode.points)):
            if info.get(name) is not None:
                held[len(episode.time)] = np.array(info[name])
        try:
            episode.state.extend(observation.state)
            episode.action.extend(action)
            episode.time.extend([observation.time])
        except OSError:
            self.abort()
            raise

    def finish(self, success: bool | None) -> None:
        """See `Recorder.finish`. Raises InputError and drops the episode if it is empty or does not fit the store."""
        episode = self._current()
        try:
            self.store.append(episode.finished(self.embodiment, success), episode.images)
        finally:
            self.abort()

    def abort(self) -> None:
        """See `Recorder.abort`."""
        if self._unfinished is not None:
            self._unfinished.images.abort()
        self._unfinished = None

    def _current(self) -> _Unfinished:
        if self._unfinished is None:
            raise InputError("the recorder has no current episode: call start first")
        return self._unfinished


@dataclass
class _Unfinished:
    instruction: str
    info: Mapping[str, Any]
    images: Images
    chunks: dict[int, np.ndarray] = field(default_factory=dict)
    """By step; also `points`."""
    points: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scratch = self.images.scratch
        self.state, self.action, self.time = (SpilledNumbers(scratch) for _ in range(3))

    def finished(self, embodiment: Embodiment, success: bool | None) -> Episode:
        if not self.time:
            raise InputError("an episode without steps cannot be stored")
        return Episode(
            images=self.images.frames,
            state=self.state.read().reshape(len(self.time), -1),
            action=self.action.read().reshape(len(self.time), -1),
            time=self.time.read(),
            instruction=self.instruction,
            embodiment=embodiment,
            success=success,
            info=self.info,
            points=_padded(self.points, len(self.time), 2),
            chunks=_padded(self.chunks, len(self.time), len(embodiment.action)),
        )


def _check(embodiment: Embodiment, observation: Observation, action: Float[np.ndarray, "a"]) -> None:
    embodiment.check_action(action)
    if np.shape(observation.state) != (len(embodiment.state),):
        raise InputError(f"state has shape {np.shape(observation.state)}, expected {(len(embodiment.state),)}")
    for camera in embodiment.cameras:
        if camera not in observation.images:
            raise InputError(f"no image of camera {camera!r}: the observation has {', '.join(observation.images)}")


def _padded(blocks: Mapping[int, np.ndarray], steps: int, width: int) -> Float[np.ndarray, "t h w"] | None:
    """A (h, width) block for each step; steps without one, and rows past a block's end, are NaN. None where all are."""
    height = max((len(block) for block in blocks.values()), default=0)
    if height == 0:
        return None
    padded = np.full((steps, height, width), np.nan)
    for step, block in blocks.items():
        padded[step, : len(block)] = block
    return padded
