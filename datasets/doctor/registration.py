"""A camera that was moved between episodes, found by laying each episode's images over those of others.

Images are compared with images of other episodes in which the robot stands alike: the arm is then in the same place,
and what differs (objects, light, a table of another pattern) is as often here as there. Their mean is the template.
Episode and template are laid over each other at every shift by cross-correlation; the episode's spectrum is whitened
first (Knapp and Carter 1976: the phase transform), so that a pattern that repeats makes no peaks of its own. A shift is
judged by how much better it fits than no shift: where the image has little to hold on to, neither fits.
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
"""Episodes whose images are the templates, at most."""
FEWEST = 6
"""Episodes that are needed to tell which one is moved."""
ALIKE = 16
"""Images of other episodes in a template."""
REACH = 0.45
"""The largest shift, as a share of the image's sides."""
BLOCK = 0.03
"""The size of the blocks of shifts of which the best is kept, as a share of the longer side."""
SMOOTH, WIDE = 1.0, 4.0
"""Standard deviations of the two blurs [px of a small picture] whose difference is compared: edges and corners."""
LITTLE = 0.15
"""The share of a template's content that must remain in the image at a shift for it to count in full."""


@dataclass(frozen=True)
class Fit:
    """How well an episode fits its template at each block of shifts, down and right; also upside down."""

    upright: Float[np.ndarray, "r c"]
    turned: Float[np.ndarray, "r c"]


class Template:
    """References for one camera: images of some episodes and the state in each."""

    def __init__(self, data: Recording) -> None:
        moving = data.state_scale > 0
        self._all = data.state[:, moving] / data.state_scale[moving]
        self._images: list[Float[np.ndarray, "k h w"]] = []
        self._states: list[Float[np.ndarray, "k s"]] = []
        self._owners: list[int] = []
        self._correlation: Correlation | None = None

    def add(self, episode: int, pictures: UInt8[np.ndarray, "k h w 3"], rows: Int[np.ndarray, "k"]) -> None:
        """Makes the pictures of an episode, which show the robot at these rows of the recording, a reference."""
        as_many = np.arange(SHOTS) % len(rows)
        self._images.append(edges(pictures)[as_many].astype(np.float16))
        self._states.append(self._all[rows[as_many]])
        self._owners.append(episode)

    def fit(self, episode: int, pictures: UInt8[np.ndarray, "k h w 3"], rows: Int[np.ndarray, "k"]) -> Fit:
        """How well the pictures of an episode fit those of the other references; there must be some."""
        others = np.flatnonzero(np.array(self._owners) != episode)
        states = np.stack([self._states[i] for i in others])
        templates = []
        for state in self._all[rows]:
            distances = ((states - state) ** 2).sum(axis=2)
            nearest = distances.argmin(axis=1)
            closest = distances.min(axis=1).argsort()[:ALIKE]
            alike = np.stack([self._images[others[i]][nearest[i]] for i in closest]).astype(np.float32)
            mean, variance = alike.mean(axis=0), alike.var(axis=0)
            # What is not the same in all is as likely chance: weighted as a signal in noise (Wiener).
            templates.append(mean**3 / (mean**2 + variance / len(alike) + 1e-3))
        seen = edges(pictures)
        if self._correlation is None:
            self._correlation = Correlation(*seen.shape[1:])
        upright, turned = self._correlation([seen, seen[:, ::-1, ::-1]], np.stack(templates))
        return Fit(upright, turned)


class Correlation:
    """Cross-correlation of images of one size with templates, at all shifts up to `REACH`."""

    def __init__(self, height: int, width: int) -> None:
        self._shape = fft.next_fast_len(2 * height - 1, real=True), fft.next_fast_len(2 * width - 1, real=True)
        self._inside = self._forward(np.ones((height, width), np.float32))
        self.block = max(1, round(BLOCK * max(height, width)))
        self._rows, self._columns = (self._blocks(size) for size in (height, width))

    def __call__(
        self, views: Sequence[Float[np.ndarray, "k h w"]], templates: Float[np.ndarray, "k h w"]
    ) -> list[Float[np.ndarray, "r c"]]:
        """How well each of the views fits, at the best shift of each block."""
        target = np.conj(self._forward(templates))
        power = (templates**2).sum(axis=0)
        remains = self._back(self._inside * np.conj(self._forward(power)))
        norm = np.sqrt(np.maximum(remains, LITTLE * power.sum()) + 1e-12)
        found = []
        for images in views:
            spectrum = self._forward(images)
            spectrum /= np.sqrt((np.abs(spectrum) ** 2).mean(axis=0)) + 1e-6
            scores = self._back((spectrum * target).sum(axis=0)) / norm
            blocks = scores[np.ix_(self._rows.ravel(), self._columns.ravel())]
            found.append(blocks.reshape(*self._rows.shape, *self._columns.shape).max(axis=(1, 3)))
        return found

    def _blocks(self, size: int) -> Int[np.ndarray, "n b"]:
        """Indices of the shifts in each block, the middle one around no shift."""
        count = int(REACH * size) // self.block
        shifts = (np.arange(-count, count + 1)[:, None] * self.block) + np.arange(self.block) - self.block // 2
        return shifts

    def _forward(self, values: Float[np.ndarray, "*k h w"]) -> np.ndarray:
        return fft.rfft2(values, self._shape)

    def _back(self, values: np.ndarray) -> np.ndarray:
        return fft.irfft2(values, self._shape)


def edges(pictures: UInt8[np.ndarray, "k h w 3"]) -> Float[np.ndarray, "k h w"]:
    """Bright and dark details, all about as strong, whatever the light."""
    grey = grey_levels(pictures)
    details = gaussian_filter(grey, (0, SMOOTH, SMOOTH)) - gaussian_filter(grey, (0, WIDE, WIDE))
    return np.tanh(details / (1.5 * details.std(axis=(1, 2), keepdims=True) + 1))


def reference_episodes(count: int) -> range:
    """The first ones: where a camera was moved at some time, these are mostly of one place. As many as may be: the more
    there are, the more alike the robot stands in those that are compared."""
    return range(min(count, REFERENCES))


@dataclass(frozen=True)
class Shift:
    """How far each episode's camera is from where it usually is: down and right, as shares of the longer side.

    `better` is how many times better this shift fits than the best within what is usual, `clearer` by how many
    standard deviations of the fit over all shifts.
    """

    down: Float[np.ndarray, "e"]
    right: Float[np.ndarray, "e"]
    better: Float[np.ndarray, "e"]
    clearer: Float[np.ndarray, "e"]
    usual: float
    """The radius of what is usual."""


def shifts_of(fits: Float[np.ndarray, "e r c"], least: float) -> Shift:
    """The shift of each episode from that of most; `least` is the smallest radius of what is usual.

    What is usual is as wide as the shifts of most episodes are spread: cameras that are jittered from episode to
    episode on purpose are not moved.
    """
    rows, columns = fits.shape[1:]
    down, right = (np.arange(n) - n // 2 for n in (rows, columns))
    best = fits.reshape(len(fits), -1).argmax(axis=1)
    peak_down, peak_right = down[best // columns] * BLOCK, right[best % columns] * BLOCK
    middle = centers(np.stack([peak_down, peak_right], axis=1))
    away = np.hypot(peak_down - middle[0], peak_right - middle[1])
    usual = max(least, 3 * float(np.median(away)))
    distance = np.hypot(down[:, None] * BLOCK - middle[0], right[None] * BLOCK - middle[1])
    near = fits[:, distance <= usual].max(axis=1)
    beyond = np.where(distance > usual, fits, -np.inf).reshape(len(fits), -1)
    at = beyond.argmax(axis=1)
    far = beyond.max(axis=1)
    noise = np.std(fits, axis=(1, 2))
    return Shift(
        down=down[at // columns] * BLOCK - middle[0],
        right=right[at % columns] * BLOCK - middle[1],
        better=far / np.maximum(near, 1e-6),
        clearer=(far - near) / np.maximum(noise, 1e-12),
        usual=usual,
    )
