"""Timestamps: gaps, steps back, and another rate than the declared one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from vla.datasets.doctor.finding import Advice, Drop, Finding
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import spread

LATE = 1.5
"""From this many periods on a step is late."""
JITTER = 5.0
"""... and from this many robust standard deviations of the steps, where the clock is uneven."""
DRIFT = 0.05
"""The share by which the median rate may differ from the declared one."""


def check_timing(data: Recording) -> list[Finding]:
    """Missing frames that show as gaps in the timestamps, time that does not grow, and a rate that is not the
    declared one."""
    steps = np.diff(data.time)
    if not data.inside.any():
        return []
    found = []
    period = float(np.median(steps[data.inside]))
    if period <= 0:
        text = "the timestamps do not grow: they are no times"
        return [Finding("timestamps", text, tuple(data.numbers.tolist()), Advice("record the time of each capture"))]
    if abs(1 / period - data.hz) > DRIFT * data.hz:
        found.append(
            Finding(
                "rate",
                f"steps come at {1 / period:.4g} Hz, the declared control rate is {data.hz:g} Hz",
                tuple(data.numbers.tolist()),
                Advice(f"convert again with fps={1 / period:.4g}, or record at the declared rate"),
                values={"hz": 1 / period, "declared_hz": data.hz},
            )
        )
    back = np.flatnonzero(data.inside & (steps <= 0))
    if len(back):
        places = data.by_episode(back + 1)
        text = f"time does not grow at {len(back)} steps of {len(places)} episodes"
        found.append(Finding("timestamps", text, tuple(places), Drop(), steps=places))
    lost = lost_frames(steps, data.inside, period)
    late = np.flatnonzero(lost)
    if len(late):
        places = data.by_episode(late, length=2)
        missing = int(lost.sum())
        found.append(
            Finding(
                "dropped-frames",
                f"{missing} frames are missing in {len(places)} episodes ({share(missing, len(data.time))}): "
                f"gaps in the timestamps of up to {steps[late].max():.3g} s",
                tuple(places),
                Drop(),
                steps=places,
                values={"missing": missing, "longest_s": float(steps[late].max())},
            )
        )
    return found


def lost_frames(steps: Float[np.ndarray, "m"], inside: np.ndarray, period: float) -> Int[np.ndarray, "m"]:
    """How many frames are missing in each step of time; a late frame that the next one makes up for is not missing."""
    limit = max(LATE * period, period + JITTER * spread(steps[inside]))
    following = np.append(np.where(inside[1:], steps[1:], period), period)[: len(steps)]
    both = steps + np.minimum(following, period)
    return np.where(inside & (steps > limit) & (both > limit + period), np.round(both / period).astype(int) - 2, 0)


def share(count: int, total: int) -> str:
    """ "0.5 %" """
    return f"{100 * count / max(total, 1):.2g} %"
