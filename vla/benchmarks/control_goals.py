"""What the motors of an emulated arm were told, and how evenly, by the log of its bus (`Bus.log`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vla.errors import InputError
from vla.robots.feetech_emulator.servo import TICK

WINDOW = 0.1
"""Over which velocity and acceleration are taken [s]: over one write an encoder step would be the largest of them."""
LATE = 1.5
"""Periods between two writes from which on one is missed."""


def read_goals(file: Path) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n j"]]:
    """When goals were written [s], and all servos' goals after each [rad], from when each servo had one."""
    times, goals, told = [], [], dict[str, float]()
    for line in file.read_text().splitlines():
        packet = json.loads(line)
        told |= {servo: steps * TICK for servo, steps in packet["goals"].items()}
        times.append(packet["t"])
        goals.append([told[servo] for servo in sorted(told)])
    full = [i for i, goal in enumerate(goals) if len(goal) == len(told)]
    return np.array([times[i] for i in full]), np.array([goals[i] for i in full]).reshape(len(full), -1)


def measure(
    time: Float[np.ndarray, "n"], goals: Float[np.ndarray, "n j"], hz: float, start: float, end: float
) -> dict[str, float]:
    """Figures of the writes from `start` to `end` [s after the first]; `hz` is how many a second there should be.

    A period is missed when no write came in it; a goal is repeated that equals the one before. Velocity and
    acceleration are those of a motor that takes a period to reach each goal, over WINDOW. Raises InputError where there
    are too few writes for that.
    """
    kept = (time >= time[:1] + start) & (time <= time[:1] + end)
    time, goals = time[kept], goals[kept]
    if len(time) < 3 or time[-1] - time[0] < 3 * WINDOW:
        raise InputError(f"{len(time)} writes of goals are too few to measure: give more seconds")
    intervals, steps = np.diff(time), np.abs(np.diff(goals, axis=0))
    periods = intervals * hz
    # In the period after a write the motor goes from the goal before to this one; then it stands.
    moments = np.stack([time[1:-1], np.minimum(time[1:-1] + 1 / hz, time[2:])], axis=1).ravel()
    ends = np.stack([goals[:-2], goals[1:-1]], axis=1).reshape(len(moments), -1)
    ticks, window = np.arange(time[1], time[-1], 1 / hz), round(WINDOW * hz)
    place = np.stack([np.interp(ticks, moments, end) for end in ends.T], axis=1)
    velocity = (place[window:] - place[:-window]) / WINDOW
    acceleration = (velocity[window:] - velocity[:-window]) / WINDOW
    return {
        "writes/s": len(intervals) / float(intervals.sum()),
        "p50 ms": 1e3 * float(np.median(intervals)),
        "p99 ms": 1e3 * float(np.percentile(intervals, 99)),
        "max ms": 1e3 * float(intervals.max()),
        "jitter p99 ms": 1e3 * float(np.percentile(np.abs(intervals - 1 / hz), 99)),
        "missed %": 100 * float(np.sum(np.rint(periods[periods > LATE]) - 1) / periods.sum()),
        "repeated %": 100 * float(np.mean(np.all(steps == 0, axis=1))),
        "jump rad": float(steps.max()),
        "rad/s": float(np.abs(velocity).max()),
        "rad/s2": float(np.abs(acceleration).max()),
    }
