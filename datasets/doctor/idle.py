"""Idle steps: at the beginning, at the end, and pauses in between."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from vla.common.plural import counted
from vla.datasets.doctor.finding import Cut, Drop, Finding, Trim
from vla.datasets.doctor.recording import Recording
from vla.datasets.doctor.robust import runs

STILL = 0.02
"""A component is still while it stays within this share of its range in the store."""
IDLE_SECONDS = 1.0
"""Minimum duration of a reported idle end: an operator reacts to the start signal within a second."""
KEPT_SECONDS = 0.3
"""Time that the proposed command keeps of an idle end."""
PAUSE_SECONDS = 1.8
"""Minimum duration of a reported pause."""


def check_idle(data: Recording) -> list[Finding]:
    """Finds idle beginnings and ends, pauses, and episodes without any motion.

    A policy that imitates idle steps learns to wait, and may never start (Zhao et al. 2023, ACT, and OpenVLA's
    preparation of LIBERO remove such steps).
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
        ("pause", pauses, Cut(), "pause in between for"),
    ):
        if steps:
            longest = max(stop - start for ranges in steps.values() for start, stop in ranges) / data.hz
            found.append(
                Finding(
                    check,
                    f"{counted(len(steps), 'episode')} {words} up to {longest:.1f} s without motion",
                    tuple(steps),
                    remedy,
                    level="hint" if check == "pause" else "fault",
                    steps=steps,
                    values={"longest_s": longest},
                )
            )
    if dead:
        text = f"in {counted(len(dead), 'episode')} nothing moves"
        found.append(Finding("no-motion", text, tuple(dead), Drop()))
    return found


def still_values(data: Recording) -> Float[np.ndarray, "n k"]:
    """The signals that are constant in idle steps: states, position actions, and magnitudes of other actions.

    They are scaled so that a change of up to 1 counts as still.
    """
    scale = np.where(data.state_scale > 0, data.state_scale, np.inf)
    columns = [data.state / scale]
    is_position = data.body.is_position_action
    scale = np.where(data.action_scale > 0, data.action_scale, np.inf)
    columns.append((data.action / scale)[:, is_position])
    # Deltas, velocities and forces are almost zero in idle steps, compared with their range.
    columns.append(np.abs((data.action / scale)[:, ~is_position]))
    return np.concatenate(columns, axis=1) / STILL


def idle_ends(values: Float[np.ndarray, "t k"]) -> tuple[int, int]:
    """The numbers of steps at the beginning and at the end in which every column stays within a range of 1.

    For an episode without motion they are (number of steps, 0).
    """
    begin, end = (_still_prefix(rows) for rows in (values, values[::-1]))
    return (len(values), 0) if begin == len(values) else (begin, end)


def idle_pauses(values: Float[np.ndarray, "t k"], least: int) -> list[tuple[int, int]]:
    """The ranges of steps in which every column stays within a range of 1 in each window of `least` steps."""
    if len(values) < least or least < 2:
        return []
    # scipy's filter with an even window starts size // 2 steps before the index.
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
