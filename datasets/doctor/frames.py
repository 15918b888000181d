"""One pass over a camera's images: statistics of each frame for the detectors, and thumbnails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from vla.datasets.doctor.recording import Recording
from vla.datasets.episodes import EpisodeStore

SIDE = 96
"""Longer side of the thumbnails [px]."""
SHOTS = 12
"""Thumbnails per episode, evenly distributed."""
BLOCK = 64
"""Frames in memory at a time."""
DARK = 8.0
"""Added to grey levels before computing ratios, so that noise in dark images is not a change of exposure."""


@dataclass(frozen=True)
class CameraScan:
    """Statistics of a camera's images over all n steps of a `Recording`; m is n - 1.

    Differences between episodes are 0 or False. Grey levels are from 0 to 255, sampled on a grid of pixels.
    """

    camera: str
    same: Bool[np.ndarray, "m"]
    """Whether the next frame equals this one."""
    change: Float[np.ndarray, "m"]
    """Mean absolute difference to the next frame [grey levels]."""
    gain: Float[np.ndarray, "m"]
    """Logarithm of the brightness ratio of the next frame to this one, median over the pixels."""
    level: Float[np.ndarray, "n"]
    """Mean brightness [grey levels]."""
    contrast: Float[np.ndarray, "n"]
    """Range from the 1 % to the 99 % quantile of the pixels [grey levels]."""
    color: Float[np.ndarray, "e 3"]
    """Mean red, green and blue of each episode."""


def scan_camera(
    store: EpisodeStore, data: Recording, camera: str, advance: Callable[[], object], shots: Shots | None = None
) -> CameraScan:
    """Computes the statistics of a camera, decoding every frame once.

    Args:
        store: The store.
        data: The episodes.
        camera: Name of the camera.
        advance: Called after each episode.
        shots: Called with the thumbnails of each episode.
    """
    count = len(data.time)
    same, change, gain = np.zeros(count, bool), np.zeros(count), np.zeros(count)
    level, contrast, color = np.zeros(count), np.zeros(count), np.zeros((len(data), 3))
    for episode, part in enumerate(data.slices()):
        offset = store.records.frames(int(data.numbers[episode])).start
        wanted = shot_steps(part.stop - part.start)
        pictures: list[UInt8[np.ndarray, "h w 3"]] = []
        before = None
        for start in range(0, part.stop - part.start, BLOCK):
            stop = min(start + BLOCK, part.stop - part.start)
            frames = store.frames(camera, np.arange(offset + start, offset + stop))
            rows = slice(part.start + start, part.start + stop)
            stride = max(1, max(frames.shape[1:3]) // SIDE)
            grid = frames[:, stride // 2 :: stride, stride // 2 :: stride]
            grey = grey_levels(grid)
            level[rows] = grey.mean(axis=(1, 2))
            contrast[rows] = np.subtract(*np.quantile(grey.reshape(len(grey), -1), [0.99, 0.01], axis=1))
            color[episode] += grid.mean(axis=(1, 2)).sum(axis=0) / (part.stop - part.start)
            if before is not None:
                grid, grey = np.concatenate([before[0], grid]), np.concatenate([before[1], grey])
            if len(grey) > 1:
                pairs = slice(rows.stop - len(grey), rows.stop - 1)
                same[pairs] = (grid[1:] == grid[:-1]).all(axis=(1, 2, 3))
                change[pairs] = np.abs(grey[1:] - grey[:-1]).mean(axis=(1, 2))
                logs = np.log(grey + DARK)
                gain[pairs] = np.median((logs[1:] - logs[:-1]).reshape(len(grey) - 1, -1), axis=1)
            before = grid[-1:], grey[-1:]
            pictures += [small(frames[step - start]) for step in wanted.tolist() if start <= step < stop]
        if shots is not None:
            shots(episode, np.stack(pictures), wanted + part.start)
        advance()
    m = max(count - 1, 0)
    return CameraScan(camera, same[:m], change[:m], gain[:m], level, contrast, color)


Shots = Callable[[int, "UInt8[np.ndarray, 'k h w 3']", "np.ndarray"], object]
"""Called with the index of an episode in the recording, its thumbnails, and their steps in the recording."""


def grey_levels(images: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "t h w"]:
    """The mean of the three channels, added one by one because numpy is slow for sums over a short axis."""
    red, green, blue = (images[..., i].astype(np.float32) for i in range(3))
    return (red + green + blue) / np.float32(3)


def shot_steps(length: int) -> np.ndarray:
    """Up to `SHOTS` evenly distributed steps of an episode of this length."""
    return np.unique(np.linspace(0, length - 1, min(SHOTS, length)).round().astype(int))


def small(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "a b 3"]:
    """A thumbnail whose longer side is `SIDE`, by averaging pixels."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image if size == (width, height) else np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def read_shots(store: EpisodeStore, data: Recording, camera: str, episode: int) -> tuple[np.ndarray, np.ndarray]:
    """The thumbnails of an episode, and their steps in the recording."""
    steps = shot_steps(int(data.lengths[episode]))
    offset = store.records.frames(int(data.numbers[episode])).start
    return np.stack([small(frame) for frame in store.frames(camera, offset + steps)]), steps + data.bounds[episode]
