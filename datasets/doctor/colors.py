"""Hints that red and blue are exchanged: colours cannot prove it, so a person has to look."""

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
"""Episodes from which on colours of episodes and cameras are compared."""
OPPOSITE = -0.6
"""The correlation of how red two cameras are, over the episodes, below which one of them may be exchanged."""
VARIED = 0.02
"""How much the warmth must vary for that, as a standard deviation."""
BLUE = -0.12
"""The warmth of a store that is bluer than rooms are: skin, wood, cardboard and lamps are warm, and grey is 0."""
CLEAR = 5.0
"""Robust standard deviations that the colour of a store must be from grey for its opposite to be told from it."""


def check_colors(data: Recording, scans: Sequence[CameraScan]) -> list[Finding]:
    """Episodes of the opposite colour, cameras of opposite colours, and a store that is improbably blue."""
    found = []
    warm = {scan.camera: warmth(scan.color) for scan in scans if scan.contrast.max() > 0}
    everything = tuple(data.numbers.tolist())
    for name, values in warm.items():
        usual, deviation = center(values), core_spread(values)
        if len(values) >= ENOUGH and abs(usual) > max(CLEAR * deviation, 0.03):
            odd = np.abs(values + usual) < np.abs(values - usual) / 3
            if odd.any():
                text = f"camera {name} has the opposite colours in {odd.sum()} episodes: are red and blue exchanged?"
                episodes = tuple(data.numbers[odd].tolist())
                found.append(Finding("exchanged-colors", text, episodes, FixImages("bgr", name), "hint", name))
                continue
        if usual < BLUE:
            text = f"camera {name} is very blue in all episodes: are red and blue exchanged?"
            found.append(Finding("exchanged-colors", text, everything, FixImages("bgr", name), "hint", name))
    for first, second in combinations(warm, 2):
        if len(data) < ENOUGH or min(warm[first].std(), warm[second].std()) < VARIED:
            continue
        if np.corrcoef(warm[first], warm[second])[0, 1] < OPPOSITE:
            cooler = min((first, second), key=lambda name: float(np.median(warm[name])))
            text = f"cameras {first} and {second} see opposite colours: are red and blue exchanged in one?"
            found.append(Finding("exchanged-colors", text, everything, FixImages("bgr", cooler), "hint", cooler))
    return found


def warmth(color: Float[np.ndarray, "e 3"]) -> Float[np.ndarray, "e"]:
    """Red less blue, as a share of all light; its sign is the other way round when the two are exchanged."""
    return (color[:, 0] - color[:, 2]) / np.maximum(color.sum(axis=1), 1.0)
