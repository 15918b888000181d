"""Outlier episodes by length or values, and duplicate episodes."""

from __future__ import annotations

import numpy as np

from vla.common.plural import counted
from vla.datasets.doctor.finding import Drop, Finding
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import far_out

ENOUGH = 10
"""Minimum number of episodes for finding outliers."""
MOST = 0.05
"""Maximum share of outliers: a larger share indicates, for example, a store of two tasks."""
FAR = 3.0
"""Minimum distance of outlier values from the range of 90 % of all values, in multiples of that range."""
TIMES = 4.0
"""Minimum ratio of an outlier's length to the median, or of the median to it: failed attempts are valid data."""


def check_outliers(data: Recording) -> list[Finding]:
    """Finds duplicate episodes, and outliers by length and by values."""
    found = _duplicates(data)
    if len(data) < ENOUGH:
        return found
    logs = np.log(data.lengths)
    away = logs - np.median(logs)
    odd_lengths = far_out(logs) & (np.abs(away) > np.log(TIMES))
    for odd, comparison in ((odd_lengths & (away < 0), "shorter"), (odd_lengths & (away > 0), "longer")):
        if 0 < odd.sum() <= MOST * len(data):
            seconds = float(np.median(data.lengths[odd])) / data.hz
            text = (
                f"{odd.sum()} episodes are far {comparison} than the others: {seconds:.3g} s, "
                f"the median is {np.median(data.lengths) / data.hz:.3g} s"
            )
            episodes = tuple(data.numbers[odd].tolist())
            found.append(Finding("outlier-length", text, episodes, Drop(), values={"seconds": seconds}))
    for kind, values, names in (("state", data.state, data.body.state), ("action", data.action, data.body.action)):
        low, high = np.quantile(values, [0.05, 0.95], axis=0)
        margin = FAR * (high - low)
        # If almost all values are equal, a gripper that rarely closes is not an outlier.
        wide = margin > 0.03 * np.ptp(values, axis=0)
        far = ((values < low - margin) | (values > high + margin)) & wide
        for i in np.flatnonzero(far.any(axis=0)).tolist():
            steps = data.by_episode(np.flatnonzero(far[:, i]))
            if len(steps) > MOST * len(data):
                continue
            text = f"{kind} {names[i]} is far outside the usual range in {counted(len(steps), 'episode')}"
            found.append(Finding("outlier-values", text, tuple(steps), Drop(), subject=names[i], steps=steps))
    return found


def _duplicates(data: Recording) -> list[Finding]:
    """Episodes whose states and actions are bit-identical to those of an earlier one."""
    first: dict[bytes, int] = {}
    duplicates: dict[int, int] = {}
    for number, rows in zip(data.numbers.tolist(), data.slices(), strict=True):
        key = data.state[rows].tobytes() + data.action[rows].tobytes()
        if rows.stop - rows.start > 2 and key in first:
            duplicates[number] = first[key]
        first.setdefault(key, number)
    if not duplicates:
        return []
    pairs = ", ".join(f"{a} of {b}" for a, b in list(duplicates.items())[:5])
    text = f"{counted(len(duplicates), 'episode')} are copies of others: {pairs}"
    return [Finding("duplicate", text, tuple(duplicates), Drop())]
