"""Training windows over an episode store, and the split by episode that keeps evaluation honest."""

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

PREFIX_SHARE = 0.2
"""The share of training windows whose first actions are given (training-time real-time chunking)."""


Episodes = Sequence[int] | Int[np.ndarray, "n"]
"""Their indices."""


class Windows:
    """Every `stride`-th step of the chosen episodes (default: all) as a training example.

    The example at step t of an episode holds the observation at t and the `horizon` actions from t on.
    Past the episode's end the last action is repeated and `mask` is False. `instruction` chooses among the
    instructions that fit a step (`prompts_at`). A chunk that goes on into the next sub-task is learned whole, as by
    openpi and LeRobot: it is what the demonstrator did. `longest_prefix` is how many of a chunk's first actions may be
    under way: each number of them is drawn alike often (training-time real-time chunking, Black et al. 2025, arXiv
    2512.05964, sec. 4). Where none is given, up to half of them are, in `PREFIX_SHARE` of the windows. With a `history` of
    so many steps before t, most first, it holds the images of those steps too, but none from before the episode.
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
        self._begins = np.where(self._episodes, ends[self._episodes - 1], 0)
        lengths = ends[self._episodes] - self._begins
        self._up_to = np.cumsum(-(-lengths // stride))
        """How many windows each chosen episode and those before it have: which one is a window's is looked up here."""

    def __len__(self) -> int:
        return int(self._up_to[-1]) if len(self._up_to) else 0

    def _placed(self, indices: Int[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """The episode of each window, and the frame that it starts at."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"windows {indices.min()} to {indices.max()} of {len(self)}")
        chosen = np.searchsorted(self._up_to, indices, side="right")
        first = np.where(chosen, self._up_to[chosen - 1], 0)
        return self._episodes[chosen], self._begins[chosen] + (indices - first) * self._stride

    def __getitem__(self, index: int) -> Example:
        stored = self._example(*self._at(index))
        return replace(stored, images=decoded(stored.images), past=tuple(map(decoded, stored.past)))

    def _at(self, index: int) -> tuple[int, int]:
        """The episode of a window, and the frame that it starts at."""
        index = range(len(self))[index]
        chosen = int(self._up_to.searchsorted(index, side="right"))
        first = int(self._up_to[chosen - 1]) if chosen else 0
        return int(self._episodes[chosen]), int(self._begins[chosen]) + (index - first) * self._stride

    def _example(self, episode: int, frame: int) -> Example:
        wanted = np.arange(frame, frame + self.horizon)
        inside = self.store.records.frames(episode)
        last = inside.stop - 1
        return Example(
            images=self._images(frame),
            past=tuple(self._images(frame - steps) if frame - steps >= inside.start else {} for steps in self._history),
            prompt=self._prompts(episode, frame)[0][0],
            target=self.store.action[np.minimum(wanted, last)],
            state=self.store.state[frame].copy(),
            mask=wanted <= last,
            points=None if self._points is None else self._points[frame].copy(),
            source="robot",
            embodiment=self.store.embodiment.name,
        )

    def _images(self, frame: int) -> StoredViews:
        return {camera: self.store.image(camera, frame) for camera in self.store.embodiment.cameras}

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """The window at `index` under one of the instructions that fit its step; in some, as in real-time chunking, the
        first actions are under way already.
        """
        episode, frame = self._at(index)
        groups = self._prompts(episode, frame)
        prompts = groups[int(rng.integers(len(groups)))] if len(groups) > 1 else groups[0]
        prompt = prompts[rng.integers(len(prompts))] if len(prompts) > 1 else prompts[0]
        return replace(self._example(episode, frame), prompt=prompt, prefix_length=self._prefix_length(rng))

    def _prefix_length(self, rng: np.random.Generator) -> int:
        """How many actions are."""
        if self._longest_prefix is not None:
            return int(rng.integers(self._longest_prefix + 1))
        under_way = self.horizon > 1 and rng.random() < PREFIX_SHARE
        return int(rng.integers(1, self.horizon // 2 + 1)) if under_way else 0

    def _prompts(self, episode: int, frame: int) -> Sequence[tuple[str, ...]]:
        record = self.store.records[episode]
        return prompts_at(record, frame - record.offset, self.instruction)

    def batch(self, indices: Int[np.ndarray, "n"]) -> WindowBatch:
        """Windows as arrays, images decoded straight into place by several threads: what a loader needs."""
        episodes, frames = self._placed(indices)
        wanted = frames[:, None] + np.arange(self.horizon)
        ends = self.store.records.ends
        last = ends[episodes, None] - 1
        begins = np.where(episodes, ends[episodes - 1], 0)
        earlier = [np.maximum(frames - steps, begins) for steps in self._history]
        return WindowBatch(
            images=self._decoded(frames),
            past=tuple(map(self._decoded, earlier)),
            past_mask=frames[:, None] - np.array(self._history, np.int64) >= begins[:, None],
            state=self.store.state[frames],
            action=self.store.action[np.minimum(wanted, last)],
            mask=wanted <= last,
        )

    def _decoded(self, frames: Int[np.ndarray, "n"]) -> dict[str, UInt8[np.ndarray, "n _h _w 3"]]:
        return {camera: self.store.frames(camera, frames) for camera in self.store.embodiment.cameras}


@dataclass(frozen=True)
class WindowBatch:
    """b windows: observations and the h actions from each on. `mask` is False past the episode's end, `past_mask` where
    a frame of the k in `past` would be from before its start (there the first one stands)."""

    images: Mapping[str, UInt8[np.ndarray, "b _h _w 3"]]
    state: Float[np.ndarray, "b s"]
    action: Float[np.ndarray, "b h a"]
    mask: Bool[np.ndarray, "b h"]
    past: tuple[Mapping[str, UInt8[np.ndarray, "b _h _w 3"]], ...]
    past_mask: Bool[np.ndarray, "b k"]


def split(episodes: int, held_out: float, seed: int = 0) -> tuple[Int[np.ndarray, "_t"], Int[np.ndarray, "_h"]]:
    """Indices of `episodes` split into (train, held out), about `held_out` of them in the second.

    Both sides get at least one episode where there are two. Episodes are ranked by a hash of seed and
    index, so appending to a store moves few of the episodes it already had.
    """
    if not 0 < held_out < 1:
        raise InputError(f"the held-out fraction must lie between 0 and 1, not {held_out}")
    count = min(max(1, round(episodes * held_out)), episodes - 1) if episodes > 1 else 0
    hashes = b"".join(hashlib.sha256(b"%d/%d" % (seed, i)).digest()[:8] for i in range(episodes))
    ranked = np.argsort(np.frombuffer(hashes, ">u8"), kind="stable")
    return np.sort(ranked[count:]), np.sort(ranked[:count])
