"""Steps in which nothing moves: at the beginning, at the end, and in between."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from vla.datasets.doctor.finding import Cut, Drop, Finding, Trim
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import runs

STILL = 0.02
"""A component is still while it stays within this share of what it spans in the store."""
IDLE_SECONDS = 1.0
"""An idle end this long is reported: within a second an operator has reacted to the start signal."""
KEPT_SECONDS = 0.3
"""What the command that is proposed leaves of an idle end."""
PAUSE_SECONDS = 1.8
"""A pause this long is reported."""


def check_idle(data: Recording) -> list[Finding]:
    """Idle beginnings and ends of `IDLE_SECONDS`, pauses of `PAUSE_SECONDS`, and episodes without any motion.

    A policy that imitates idle steps learns to wait, and may never begin (Zhao et al. 2023, ACT, and OpenVLA's
    preparation of LIBERO leave such steps out).
    """
    values, least = still_values(data), round(IDLE_SECONDS * data.hz)
    begins, ends, pauses, dead = {}, {}, {}, []
    for number, part in zip(data.numbers.tolist(), data.slices(), strict=True):
        rows = values[part]
        begin, end = idle_ends(rows)
        if begin == len(rows):
            dead.append(number)
            continue
        if begin >= least:
            begins[number] = ((0, begin),)
        if end >= least:
            ends[number] = ((len(rows) - end, len(rows)),)
        inner = idle_pauses(rows[begin : len(rows) - end], round(PAUSE_SECONDS * data.hz))
        if inner:
            pauses[number] = tuple((begin + start, begin + stop) for start, stop in inner)
    found = []
    for check, steps, remedy, words in (
        ("idle-start", begins, Trim(KEPT_SECONDS), "begin with"),
        ("idle-end", ends, Trim(KEPT_SECONDS), "end with"),
        ("pause", pauses, Cut(), "stand still in between for"),
    ):
        if steps:
            longest = max(stop - start for ranges in steps.values() for start, stop in ranges) / data.hz
            found.append(
                Finding(
                    check,
                    f"{len(steps)} episodes {words} up to {longest:.1f} s without motion",
                    tuple(steps),
                    remedy,
                    level="hint" if check == "pause" else "fault",
                    steps=steps,
                    values={"longest_s": longest},
                )
            )
    if dead:
        text = f"in {len(dead)} episodes nothing moves"
        found.append(Finding("no-motion", text, tuple(dead), Drop()))
    return found


def still_values(data: Recording) -> Float[np.ndarray, "n k"]:
    """What has to stay where it is for a step to be idle, in units of what is still: state and action as positions,
    other actions as what they add up to."""
    scale = np.where(data.state_scale > 0, data.state_scale, np.inf)
    parts = [data.state / scale]
    is_position = data.body.is_position_action
    scale = np.where(data.action_scale > 0, data.action_scale, np.inf)
    parts.append((data.action / scale)[:, is_position])
    # Deltas, velocities and forces of an idle step are next to nothing; a span of theirs is mostly motion.
    parts.append(np.abs((data.action / scale)[:, ~is_position]))
    return np.concatenate(parts, axis=1) / STILL


def idle_ends(values: Float[np.ndarray, "t k"]) -> tuple[int, int]:
    """How many steps at the beginning, and at the end, no column leaves a range of 1; all where none ever does."""
    begin, end = (_still_prefix(rows) for rows in (values, values[::-1]))
    return (len(values), 0) if begin == len(values) else (begin, end)


def idle_pauses(values: Float[np.ndarray, "t k"], least: int) -> list[tuple[int, int]]:
    """The ranges of at least `least` steps in which no column leaves a range of 1 within `least` steps."""
    if len(values) < least or least < 2:
        return []
    # Of an even window, scipy's filter begins size // 2 steps before its place.
    top = maximum_filter1d(values, least, axis=0, mode="nearest")
    bottom = minimum_filter1d(values, least, axis=0, mode="nearest")
    still = (top - bottom <= 1).all(axis=1)[least // 2 : len(values) - (least - 1) // 2]
    mask: Bool[np.ndarray, "t"] = np.zeros(len(values), bool)
    for start, stop in runs(still).tolist():
        mask[start : stop + least - 1] = True
    return [(start, stop) for start, stop in runs(mask).tolist()]


def _still_prefix(values: Float[np.ndarray, "t k"]) -> int:
    width = np.maximum.accumulate(values, axis=0) - np.minimum.accumulate(values, axis=0)
    moved = (width > 1).any(axis=1)
    return int(moved.argmax()) if moved.any() else len(values)
