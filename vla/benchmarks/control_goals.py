"""Timing and smoothness of motor commands, from the bus log of an emulated arm (`Bus.log`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vla.errors import InputError
from vla.robots.feetech_emulator.servo import TICK

WINDOW = 0.1
"""The window of velocity and acceleration [s]; over a single write, encoder steps would dominate."""
LATE = 1.5
"""The interval between two writes that counts as missed [periods]."""


def read_goals(file: Path) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n j"]]:
    """The times of goal writes [s], and the goals of all servos after each [rad], once all servos have one."""
    times, goals, goal_of = [], [], dict[str, float]()
    for line in file.read_text().splitlines():
        packet = json.loads(line)
        goal_of |= {servo: steps * TICK for servo, steps in packet["goals"].items()}
        times.append(packet["t"])
        goals.append([goal_of[servo] for servo in sorted(goal_of)])
    full = [i for i, goal in enumerate(goals) if len(goal) == len(goal_of)]
    return np.array([times[i] for i in full]), np.array([goals[i] for i in full]).reshape(len(full), -1)


def measure(
    time: Float[np.ndarray, "n"], goals: Float[np.ndarray, "n j"], hz: float, start: float, end: float
) -> dict[str, float]:
    """Computes the figures of the writes.

    A period without a write is missed; a goal that equals the previous one is repeated. Velocity and acceleration, over
    WINDOW, are those of a motor that reaches each goal in one period.

    Args:
        time: The times of the writes [s].
        goals: The goals of all servos [rad].
        hz: The nominal rate of writes [Hz].
        start: The start of the measurement [s after the first write].
        end: The end of the measurement [s after the first write].

    Raises:
        InputError: there are too few writes.
    """
    selected = (time >= time[:1] + start) & (time <= time[:1] + end)
    time, goals = time[selected], goals[selected]
    if len(time) < 3 or time[-1] - time[0] < 3 * WINDOW:
        raise InputError(f"{len(time)} writes of goals are too few to measure: set more seconds")
    intervals, steps = np.diff(time), np.abs(np.diff(goals, axis=0))
    periods = intervals * hz
    # In the period after a write, the motor moves from the previous goal to this one; then it stops.
    moments = np.stack([time[1:-1], np.minimum(time[1:-1] + 1 / hz, time[2:])], axis=1).ravel()
    ends = np.stack([goals[:-2], goals[1:-1]], axis=1).reshape(len(moments), -1)
    ticks, window = np.arange(time[1], time[-1], 1 / hz), round(WINDOW * hz)
    position = np.stack([np.interp(ticks, moments, end) for end in ends.T], axis=1)
    velocity = (position[window:] - position[:-window]) / WINDOW
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
