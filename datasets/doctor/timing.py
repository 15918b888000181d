"""Faults of timestamps: gaps, times that do not increase, and a wrong control rate."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from vla.common.plural import counted
from vla.datasets.doctor.finding import Advice, Drop, Finding
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import spread

LATE = 1.5
"""Minimum length of a late step [periods]."""
JITTER = 5.0
"""Minimum length of a late step beyond one period, in robust standard deviations of the steps."""
DRIFT = 0.05
"""Largest relative deviation of the median rate from the declared rate."""


def check_timing(data: Recording) -> list[Finding]:
    """Finds missing frames (gaps in the timestamps), times that do not increase, and a wrong declared rate."""
    steps = np.diff(data.time)
    if not data.inside.any():
        return []
    found = []
    period = float(np.median(steps[data.inside]))
    if period <= 0:
        text = "the timestamps do not increase: they are not times"
        return [Finding("timestamps", text, tuple(data.numbers.tolist()), Advice("record the time of each capture"))]
    if abs(1 / period - data.hz) > DRIFT * data.hz:
        found.append(
            Finding(
                "rate",
                f"the rate of the steps is {1 / period:.4g} Hz, the declared control rate is {data.hz:g} Hz",
                tuple(data.numbers.tolist()),
                Advice(f"convert again with fps={1 / period:.4g}, or record at the declared rate"),
                values={"hz": 1 / period, "declared_hz": data.hz},
            )
        )
    backward = np.flatnonzero(data.inside & (steps <= 0))
    if len(backward):
        ranges = data.by_episode(backward + 1)
        text = f"time does not increase at {len(backward)} steps of {counted(len(ranges), 'episode')}"
        found.append(Finding("timestamps", text, tuple(ranges), Drop(), steps=ranges))
    lost = lost_frames(steps, data.inside, period)
    late = np.flatnonzero(lost)
    if len(late):
        ranges = data.by_episode(late, length=2)
        missing = int(lost.sum())
        found.append(
            Finding(
                "dropped-frames",
                f"{missing} frames are missing in {counted(len(ranges), 'episode')} "
                f"({share(missing, len(data.time))}): gaps in the timestamps of up to {steps[late].max():.3g} s",
                tuple(ranges),
                Drop(),
                steps=ranges,
                values={"missing": missing, "longest_s": float(steps[late].max())},
            )
        )
    return found


def lost_frames(steps: Float[np.ndarray, "m"], inside: np.ndarray, period: float) -> Int[np.ndarray, "m"]:
    """The number of missing frames in each time step; a late frame followed by a short step is not missing."""
    limit = max(LATE * period, period + JITTER * spread(steps[inside]))
    following = np.append(np.where(inside[1:], steps[1:], period), period)[: len(steps)]
    both = steps + np.minimum(following, period)
    return np.where(inside & (steps > limit) & (both > limit + period), np.round(both / period).astype(int) - 2, 0)


def share(count: int, total: int) -> str:
    """A share as text: "0.5 %"."""
    return f"{100 * count / max(total, 1):.2g} %"
