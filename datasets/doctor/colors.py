"""Hints at swapped red and blue channels; colours are no proof, so a person must check the images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float

from vla.datasets.doctor.finding import Finding, FixImages
from vla.datasets.doctor.frames import CameraScan
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import center, core_spread

ENOUGH = 8
"""Minimum number of episodes for comparing the colours of episodes and cameras."""
OPPOSITE = -0.6
"""Correlation of the warmth of two cameras over the episodes, below which the channels of one may be swapped."""
VARIED = 0.02
"""Minimum standard deviation of the warmth for this comparison."""
BLUE = -0.12
"""Warmth below which a store is bluer than typical rooms: skin, wood, cardboard and lamps are warm; grey is 0."""
CLEAR = 5.0
"""Minimum distance of a store's warmth from grey, in robust standard deviations, for detecting the opposite."""


def check_colors(data: Recording, scans: Sequence[CameraScan]) -> list[Finding]:
    """Finds episodes with opposite colours, pairs of cameras with opposite colours, and improbably blue stores."""
    found = []
    warm = {scan.camera: warmth(scan.color) for scan in scans if scan.contrast.max() > 0}
    everything = tuple(data.numbers.tolist())
    for name, values in warm.items():
        usual, deviation = center(values), core_spread(values)
        if len(values) >= ENOUGH and abs(usual) > max(CLEAR * deviation, 0.03):
            odd = np.abs(values + usual) < np.abs(values - usual) / 3
            if odd.any():
                text = f"camera {name} has the opposite colours in {odd.sum()} episodes: are red and blue swapped?"
                episodes = tuple(data.numbers[odd].tolist())
                found.append(Finding("exchanged-colors", text, episodes, FixImages("bgr", name), "hint", name))
                continue
        if usual < BLUE:
            text = f"camera {name} is very blue in all episodes: are red and blue swapped?"
            found.append(Finding("exchanged-colors", text, everything, FixImages("bgr", name), "hint", name))
    for first, second in combinations(warm, 2):
        if len(data) < ENOUGH or min(warm[first].std(), warm[second].std()) < VARIED:
            continue
        if np.corrcoef(warm[first], warm[second])[0, 1] < OPPOSITE:
            cooler = min((first, second), key=lambda name: float(np.median(warm[name])))
            text = f"cameras {first} and {second} have opposite colours: are red and blue swapped in one?"
            found.append(Finding("exchanged-colors", text, everything, FixImages("bgr", cooler), "hint", cooler))
    return found


def warmth(color: Float[np.ndarray, "e 3"]) -> Float[np.ndarray, "e"]:
    """Red minus blue, as a share of the total brightness; swapping the channels changes its sign."""
    return (color[:, 0] - color[:, 2]) / np.maximum(color.sum(axis=1), 1.0)
