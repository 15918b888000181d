"""Detection of a camera that was moved between episodes, by registration of each episode's images to those of others.

Each image is compared with images of other episodes at similar robot states: the arm then has the same image position,
and other differences (objects, light, background) are averaged out. The mean of these images is the template. Episode
and template are compared at every shift by cross-correlation, with the spectrum of the episode whitened (the phase
transform, Knapp and Carter 1976), so that repetitive patterns cause no additional peaks. A shift is judged by its fit
relative to that without shift: images without texture fit neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import fft
from scipy.ndimage import gaussian_filter

from vla.datasets.doctor.frames import SHOTS, grey_levels
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import centers

REFERENCES = 60
"""Maximum number of episodes whose images form the templates."""
FEWEST = 6
"""Minimum number of episodes for detecting a moved camera."""
ALIKE = 16
"""Images of other episodes in a template."""
REACH = 0.45
"""Largest shift, as a share of the image's sides."""
BLOCK = 0.03
"""Size of the blocks of shifts, of which the best fit is retained, as a share of the longer side."""
SMOOTH, WIDE = 1.0, 4.0
"""Standard deviations of the two blurs [px of a thumbnail] whose difference shows edges and corners."""
LITTLE = 0.15
"""Minimum share of a template's content that must overlap with the image for an unreduced score."""


@dataclass(frozen=True)
class Fit:
    """The fit of an episode to its template at each block of shifts (down, right), upright and upside down."""

    upright: Float[np.ndarray, "r c"]
    turned: Float[np.ndarray, "r c"]


class Template:
    """Reference images of one camera from several episodes, with the robot state of each."""

    def __init__(self, data: Recording) -> None:
        moving = data.state_scale > 0
        self._all = data.state[:, moving] / data.state_scale[moving]
        self._images: list[Float[np.ndarray, "k h w"]] = []
        self._states: list[Float[np.ndarray, "k s"]] = []
        self._episodes: list[int] = []
        self._correlation: Correlation | None = None

    def add(self, episode: int, pictures: UInt8[np.ndarray, "k h w 3"], rows: Int[np.ndarray, "k"]) -> None:
        """Adds the pictures of an episode, at these rows of the recording, to the references."""
        repeated = np.arange(SHOTS) % len(rows)
        self._images.append(edges(pictures)[repeated].astype(np.float16))
        self._states.append(self._all[rows[repeated]])
        self._episodes.append(episode)

    def fit(self, episode: int, pictures: UInt8[np.ndarray, "k h w 3"], rows: Int[np.ndarray, "k"]) -> Fit:
        """The fit of an episode's pictures to the references from other episodes, of which there must be one."""
        others = np.flatnonzero(np.array(self._episodes) != episode)
        states = np.stack([self._states[i] for i in others])
        templates = []
        for state in self._all[rows]:
            distances = ((states - state) ** 2).sum(axis=2)
            nearest = distances.argmin(axis=1)
            closest = distances.min(axis=1).argsort()[:ALIKE]
            alike = np.stack([self._images[others[i]][nearest[i]] for i in closest]).astype(np.float32)
            mean, variance = alike.mean(axis=0), alike.var(axis=0)
            # Wiener filter: pixels that vary between the images have a low weight.
            templates.append(mean**3 / (mean**2 + variance / len(alike) + 1e-3))
        images = edges(pictures)
        if self._correlation is None:
            self._correlation = Correlation(*images.shape[1:])
        upright, turned = self._correlation([images, images[:, ::-1, ::-1]], np.stack(templates))
        return Fit(upright, turned)


class Correlation:
    """Cross-correlation of images of one size with templates, at all shifts up to `REACH`."""

    def __init__(self, height: int, width: int) -> None:
        self._shape = fft.next_fast_len(2 * height - 1, real=True), fft.next_fast_len(2 * width - 1, real=True)
        self._mask = self._forward(np.ones((height, width), np.float32))
        self.block = max(1, round(BLOCK * max(height, width)))
        self._rows, self._columns = (self._blocks(size) for size in (height, width))

    def __call__(
        self, views: Sequence[Float[np.ndarray, "k h w"]], templates: Float[np.ndarray, "k h w"]
    ) -> list[Float[np.ndarray, "r c"]]:
        """The score of each view at the best shift of each block."""
        target = np.conj(self._forward(templates))
        power = (templates**2).sum(axis=0)
        overlap = self._inverse(self._mask * np.conj(self._forward(power)))
        norm = np.sqrt(np.maximum(overlap, LITTLE * power.sum()) + 1e-12)
        found = []
        for images in views:
            spectrum = self._forward(images)
            spectrum /= np.sqrt((np.abs(spectrum) ** 2).mean(axis=0)) + 1e-6
            scores = self._inverse((spectrum * target).sum(axis=0)) / norm
            blocks = scores[np.ix_(self._rows.ravel(), self._columns.ravel())]
            found.append(blocks.reshape(*self._rows.shape, *self._columns.shape).max(axis=(1, 3)))
        return found

    def _blocks(self, size: int) -> Int[np.ndarray, "n b"]:
        """Indices of the shifts in each block; the middle block is centred at no shift."""
        count = int(REACH * size) // self.block
        shifts = (np.arange(-count, count + 1)[:, None] * self.block) + np.arange(self.block) - self.block // 2
        return shifts

    def _forward(self, values: Float[np.ndarray, "*k h w"]) -> np.ndarray:
        return fft.rfft2(values, self._shape)

    def _inverse(self, values: np.ndarray) -> np.ndarray:
        return fft.irfft2(values, self._shape)


def edges(pictures: UInt8[np.ndarray, "k h w 3"]) -> Float[np.ndarray, "k h w"]:
    """Edges and corners with normalised contrast, independent of the light."""
    grey = grey_levels(pictures)
    details = gaussian_filter(grey, (0, SMOOTH, SMOOTH)) - gaussian_filter(grey, (0, WIDE, WIDE))
    return np.tanh(details / (1.5 * details.std(axis=(1, 2), keepdims=True) + 1))


def reference_episodes(count: int) -> range:
    """The first episodes, up to `REFERENCES`.

    If a camera was moved at some time, most of these have the same camera pose. More references allow templates with
    more similar robot states.
    """
    return range(min(count, REFERENCES))


@dataclass(frozen=True)
class Shift:
    """The best unusual shift of each episode's camera from its usual pose.

    Attributes:
        down: Shift downwards, as a share of the longer side.
        right: Shift to the right, as a share of the longer side.
        better: Ratio of its score to the best score within the usual radius.
        clearer: Difference of these scores, in standard deviations of the scores over all shifts.
        usual: Radius of usual shifts.
    """

    down: Float[np.ndarray, "e"]
    right: Float[np.ndarray, "e"]
    better: Float[np.ndarray, "e"]
    clearer: Float[np.ndarray, "e"]
    usual: float


def shifts_of(fits: Float[np.ndarray, "e r c"], least: float) -> Shift:
    """The shift of each episode relative to most episodes.

    The usual radius adapts to the spread of the shifts, so that intentional jitter between episodes is not reported.

    Args:
        fits: Scores of each episode at each block of shifts.
        least: Minimum of the usual radius.
    """
    rows, columns = fits.shape[1:]
    down, right = (np.arange(n) - n // 2 for n in (rows, columns))
    best = fits.reshape(len(fits), -1).argmax(axis=1)
    peak_down, peak_right = down[best // columns] * BLOCK, right[best % columns] * BLOCK
    origin = centers(np.stack([peak_down, peak_right], axis=1))
    peak_distance = np.hypot(peak_down - origin[0], peak_right - origin[1])
    usual = max(least, 3 * float(np.median(peak_distance)))
    distance = np.hypot(down[:, None] * BLOCK - origin[0], right[None] * BLOCK - origin[1])
    near = fits[:, distance <= usual].max(axis=1)
    unusual = np.where(distance > usual, fits, -np.inf).reshape(len(fits), -1)
    index = unusual.argmax(axis=1)
    far = unusual.max(axis=1)
    noise = np.std(fits, axis=(1, 2))
    return Shift(
        down=down[index // columns] * BLOCK - origin[0],
        right=right[index % columns] * BLOCK - origin[1],
        better=far / np.maximum(near, 1e-6),
        clearer=(far - near) / np.maximum(noise, 1e-12),
        usual=usual,
    )
