"""Training windows over an episode store, and the split into training and held-out episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vla.common.stored_image import StoredViews, decoded
from vla.datasets.episodes import EpisodeStore
from vla.datasets.prompts import check_choice, prompts_at
from vla.errors import InputError
from vla.types import Example

PREFIX_PROBABILITY = 0.2
"""The share of training windows with an action prefix (training-time real-time chunking)."""


Episodes = Sequence[int] | Int[np.ndarray, "n"]
"""Indices of episodes."""


class Windows:
    """Every `stride`-th step of the selected episodes as a training example.

    The example at step t of an episode has the observation at t and the action chunk of `horizon` steps from t on.
    After the episode's end the last action is repeated and `mask` is False. A chunk that extends into the next
    sub-task is not cut, as in openpi and LeRobot.

    Args:
        store: the episode store.
        horizon: the number of actions in a chunk.
        stride: the number of steps between windows.
        episodes: indices of the episodes to use. None: all.
        instruction: the choice among the instructions that apply to a step (`prompts_at`).
        longest_prefix: the maximum length of the action prefix; lengths are drawn uniformly (training-time real-time
            chunking, Black et al. 2025, arXiv 2512.05964, sec. 4). None: up to half of the chunk, in
            `PREFIX_PROBABILITY` of the windows.
        history: offsets of earlier images, in steps before t, largest first. Steps before the episode's start have no
            images.
    """

    def __init__(
        self,
        store: EpisodeStore,
        horizon: int,
        stride: int = 1,
        episodes: Episodes | None = None,
        instruction: str = "both",
        longest_prefix: int | None = None,
        history: Sequence[int] = (),
    ) -> None:
        check_choice(instruction)
        if horizon < 1 or stride < 1:
            raise InputError(f"horizon and stride must be at least 1, not {horizon} and {stride}")
        self.store, self.horizon, self.instruction, self._stride = store, horizon, instruction, stride
        self._longest_prefix, self._history = longest_prefix, tuple(history)
        self._points = store.points
        ends = store.records.ends
        self._episodes = np.arange(len(ends)) if episodes is None else np.asarray(episodes, np.int64)
        self._starts = np.where(self._episodes, ends[self._episodes - 1], 0)
        lengths = ends[self._episodes] - self._starts
        self._cumulative = np.cumsum(-(-lengths // stride))
        """The cumulative number of windows of the selected episodes, to look up the episode of a window."""

    def __len__(self) -> int:
        return int(self._cumulative[-1]) if len(self._cumulative) else 0

    def _frames_of(self, indices: Int[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """The episode and the first frame of each window."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"windows {indices.min()} to {indices.max()} of {len(self)}")
        position = np.searchsorted(self._cumulative, indices, side="right")
        first = np.where(position, self._cumulative[position - 1], 0)
        return self._episodes[position], self._starts[position] + (indices - first) * self._stride

    def __getitem__(self, index: int) -> Example:
        stored = self._example(*self._frame_of(index))
        return replace(stored, images=decoded(stored.images), past=tuple(map(decoded, stored.past)))

    def _frame_of(self, index: int) -> tuple[int, int]:
        """The episode and the first frame of a window."""
        index = range(len(self))[index]
        position = int(self._cumulative.searchsorted(index, side="right"))
        first = int(self._cumulative[position - 1]) if position else 0
        return int(self._episodes[position]), int(self._starts[position]) + (index - first) * self._stride

    def _example(self, episode: int, frame: int) -> Example:
        chunk_frames = np.arange(frame, frame + self.horizon)
        episode_frames = self.store.records.frames(episode)
        last = episode_frames.stop - 1
        return Example(
            images=self._images(frame),
            past=tuple(
                self._images(frame - steps) if frame - steps >= episode_frames.start else {} for steps in self._history
            ),
            prompt=self._prompts(episode, frame)[0][0],
            target=self.store.action[np.minimum(chunk_frames, last)],
            state=self.store.state[frame].copy(),
            mask=chunk_frames <= last,
            points=None if self._points is None else self._points[frame].copy(),
            source="robot",
            embodiment=self.store.embodiment.name,
        )

    def _images(self, frame: int) -> StoredViews:
        return {camera: self.store.image(camera, frame) for camera in self.store.embodiment.cameras}

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """The window at `index` with a random applicable instruction and, in some draws, an action prefix."""
        episode, frame = self._frame_of(index)
        groups = self._prompts(episode, frame)
        prompts = groups[int(rng.integers(len(groups)))] if len(groups) > 1 else groups[0]
        prompt = prompts[rng.integers(len(prompts))] if len(prompts) > 1 else prompts[0]
        return replace(
            self._example(episode, frame),
            prompt=prompt,
            prefix_length=draw_prefix_length(rng, self.horizon, self._longest_prefix),
        )

    def _prompts(self, episode: int, frame: int) -> Sequence[tuple[str, ...]]:
        record = self.store.records[episode]
        return prompts_at(record, frame - record.offset, self.instruction)

    def batch(self, indices: Int[np.ndarray, "n"]) -> WindowBatch:
        """Windows as arrays, with the images decoded by several threads."""
        episodes, frames = self._frames_of(indices)
        chunk_frames = frames[:, None] + np.arange(self.horizon)
        ends = self.store.records.ends
        last = ends[episodes, None] - 1
        starts = np.where(episodes, ends[episodes - 1], 0)
        earlier = [np.maximum(frames - steps, starts) for steps in self._history]
        return WindowBatch(
            images=self._decoded(frames),
            past=tuple(map(self._decoded, earlier)),
            past_mask=frames[:, None] - np.array(self._history, np.int64) >= starts[:, None],
            state=self.store.state[frames],
            action=self.store.action[np.minimum(chunk_frames, last)],
            mask=chunk_frames <= last,
        )

    def _decoded(self, frames: Int[np.ndarray, "n"]) -> dict[str, UInt8[np.ndarray, "n _h _w 3"]]:
        return {camera: self.store.frames(camera, frames) for camera in self.store.embodiment.cameras}


@dataclass(frozen=True)
class WindowBatch:
    """A batch of b windows: observations and the following h actions.

    `mask` is False after the episode's end. `past_mask` is False where one of the k frames in `past` would be before
    the episode's start; the first frame is used instead.
    """

    images: Mapping[str, UInt8[np.ndarray, "b _h _w 3"]]
    state: Float[np.ndarray, "b s"]
    action: Float[np.ndarray, "b h a"]
    mask: Bool[np.ndarray, "b h"]
    past: tuple[Mapping[str, UInt8[np.ndarray, "b _h _w 3"]], ...]
    past_mask: Bool[np.ndarray, "b k"]


def draw_prefix_length(rng: np.random.Generator, horizon: int, longest: int | None) -> int:
    """Draws the length of the action prefix of a training row; see `Windows` for `longest`."""
    if longest is not None:
        return int(rng.integers(longest + 1))
    has_prefix = horizon > 1 and rng.random() < PREFIX_PROBABILITY
    return int(rng.integers(1, horizon // 2 + 1)) if has_prefix else 0


def split(episodes: int, held_out: float, seed: int = 0) -> tuple[Int[np.ndarray, "_t"], Int[np.ndarray, "_h"]]:
    """The indices of `episodes` split into (train, held out). The share of the second is about `held_out`.

    If there are two episodes or more, each side gets at least one. Episodes are ranked by a hash of seed and index, so
    that few episodes change sides when a store grows.
    """
    if not 0 < held_out < 1:
        raise InputError(f"the held-out fraction must lie between 0 and 1, not {held_out}")
    count = min(max(1, round(episodes * held_out)), episodes - 1) if episodes > 1 else 0
    hashes = b"".join(hashlib.sha256(b"%d/%d" % (seed, i)).digest()[:8] for i in range(episodes))
    ranked = np.argsort(np.frombuffer(hashes, ">u8"), kind="stable")
    return np.sort(ranked[count:]), np.sort(ranked[:count])
