"""Records episodes into an episode store."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode, Observation


@runtime_checkable
class Images(Protocol):
    """Receives the images of one episode, step by step. It copies images that the caller may modify."""

    @property
    def frames(self) -> Mapping[str, UInt8[np.ndarray, "t _h _w 3"]]:
        """The episode's images by camera, or placeholders of the same shape if they are stored elsewhere."""
        ...

    def add(self, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> None:
        """Adds the images of one step, by camera."""

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

    Images are written immediately; numbers are held in memory until the episode finishes.
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
        episode.state.extend(observation.state)
        episode.action.extend(action)
        episode.time.append(observation.time)
        chunk = info.get("chunk")
        episode.chunks.append(None if chunk is None else np.array(chunk))
        points = info.get("points")
        episode.points.append(None if points is None else np.array(points))

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
    # Flat arrays: small arrays would take three times the memory, 80 MB for an hour of steps.
    state: array[float] = field(default_factory=lambda: array("d"))
    action: array[float] = field(default_factory=lambda: array("d"))
    time: array[float] = field(default_factory=lambda: array("d"))
    chunks: list[np.ndarray | None] = field(default_factory=list)
    points: list[np.ndarray | None] = field(default_factory=list)

    def finished(self, embodiment: Embodiment, success: bool | None) -> Episode:
        if not self.time:
            raise InputError("an episode without steps cannot be stored")
        return Episode(
            images=self.images.frames,
            state=np.array(self.state).reshape(len(self.time), -1),
            action=np.array(self.action).reshape(len(self.time), -1),
            time=np.array(self.time),
            instruction=self.instruction,
            embodiment=embodiment,
            success=success,
            info=self.info,
            points=_padded(self.points, 2),
            chunks=_padded(self.chunks, len(embodiment.action)),
        )


def _check(embodiment: Embodiment, observation: Observation, action: Float[np.ndarray, "a"]) -> None:
    embodiment.check_action(action)
    if np.shape(observation.state) != (len(embodiment.state),):
        raise InputError(f"state has shape {np.shape(observation.state)}, expected {(len(embodiment.state),)}")
    for camera in embodiment.cameras:
        if camera not in observation.images:
            raise InputError(f"no image of camera {camera!r}: the observation has {', '.join(observation.images)}")


def _padded(blocks: Sequence[np.ndarray | None], width: int) -> Float[np.ndarray, "t h w"] | None:
    """Stacks one (h, width) block per step. Missing blocks and rows are NaN; None if all are missing."""
    height = max((len(block) for block in blocks if block is not None), default=0)
    if height == 0:
        return None
    padded = np.full((len(blocks), height, width), np.nan)
    for target, block in zip(padded, blocks, strict=True):
        if block is not None:
            target[: len(block)] = block
    return padded
