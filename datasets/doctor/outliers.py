"""Episodes unlike the others: in length, in where they go, or not unlike another at all."""

from __future__ import annotations

import numpy as np

from vla.datasets.doctor.finding import Drop, Finding
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import far_out

ENOUGH = 10
"""Episodes from which on one can be told from the others."""
MOST = 0.05
"""Where more than this share is unlike the others, the others are no norm: as in a store of two tasks."""
BEYOND = 3.0
"""A value this many times the range of 90 % of all values beyond it is far out."""
TIMES = 4.0
"""How many times longer or shorter than the median an episode must be, at least: tries that fail are part of data."""


def check_outliers(data: Recording) -> list[Finding]:
    found = _twice(data)
    if len(data) < ENOUGH:
        return found
    logs = np.log(data.lengths)
    away = logs - np.median(logs)
    odd_lengths = far_out(logs) & (np.abs(away) > np.log(TIMES))
    for odd, words in ((odd_lengths & (away < 0), "shorter"), (odd_lengths & (away > 0), "longer")):
        if 0 < odd.sum() <= MOST * len(data):
            seconds = float(np.median(data.lengths[odd])) / data.hz
            text = (
                f"{odd.sum()} episodes are far {words} than the others: {seconds:.3g} s, "
                f"the median is {np.median(data.lengths) / data.hz:.3g} s"
            )
            episodes = tuple(data.numbers[odd].tolist())
            found.append(Finding("outlier-length", text, episodes, Drop(), values={"seconds": seconds}))
    for kind, values, names in (("state", data.state, data.body.state), ("action", data.action, data.body.action)):
        low, high = np.quantile(values, [0.05, 0.95], axis=0)
        margin = BEYOND * (high - low)
        # Where nearly all values are one, a gripper that seldom closes would be far out.
        wide = margin > 0.03 * np.ptp(values, axis=0)
        far = ((values < low - margin) | (values > high + margin)) & wide
        for i in np.flatnonzero(far.any(axis=0)).tolist():
            places = data.by_episode(np.flatnonzero(far[:, i]))
            if len(places) > MOST * len(data):
                continue
            text = f"{kind} {names[i]} goes far beyond the others in {len(places)} episodes"
            found.append(Finding("outlier-values", text, tuple(places), Drop(), subject=names[i], steps=places))
    return found


def _twice(data: Recording) -> list[Finding]:
    """Episodes whose states and actions are those of one before, to the bit."""
    first: dict[bytes, int] = {}
    again: dict[int, int] = {}
    for number, part in zip(data.numbers.tolist(), data.slices(), strict=True):
        key = data.state[part].tobytes() + data.action[part].tobytes()
        if part.stop - part.start > 2 and key in first:
            again[number] = first[key]
        first.setdefault(key, number)
    if not again:
        return []
    pairs = ", ".join(f"{a} of {b}" for a, b in list(again.items())[:5])
    text = f"{len(again)} episodes are copies of others: {pairs}"
    return [Finding("duplicate", text, tuple(again), Drop())]
