"""Recordings of a made-up arm for tests of `vla data doctor`: smooth motions that the state follows a step later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vla.datasets.doctor.recording import Recording
from vla.embodiment import Embodiment

HZ = 10.0
JOINTS = ("pan", "lift", "flex", "roll")


def arm(unit: str = "rad", **fields: Any) -> Embodiment:
    names = tuple(f"{joint} [{unit}]" if unit else joint for joint in JOINTS)
    values: dict[str, Any] = {"action_low": (-9.0,) * 4, "action_high": (9.0,) * 4, "control_hz": HZ}
    return Embodiment(**{"name": "arm", "cameras": (), "state": names, "action": names, **values, **fields})


def smooth(rng: np.random.Generator, steps: int, hz: float) -> np.ndarray:
    """A motion (steps, 4) of a radian or so, of a few tenths of a hertz, that never rests."""
    t = np.arange(steps)[:, None] / hz
    rate, phase = rng.uniform(0.15, 0.5, (3, 4)), rng.uniform(0, 2 * np.pi, (3, 4))
    return sum(np.sin(2 * np.pi * rate[i] * t + phase[i]) for i in range(3)) * rng.uniform(0.3, 0.5, 4)


def record(
    seed: int = 0, episodes: int = 30, body: Embodiment | None = None, noise: float = 0.01, lag: int = 1
) -> Recording:
    """Episodes of 40 to 70 steps: the state is the action `lag` steps before, beside the `noise` of the controller.

    Deltas and velocities command the same motion by its changes.
    """
    rng = np.random.default_rng(seed)
    body = body or arm()
    states, actions, times, lengths = [], [], [], []
    for _ in range(episodes):
        steps = int(rng.integers(40, 70))
        path = smooth(rng, steps + lag + 1, body.control_hz)
        state = path[:steps] + rng.normal(0, noise, (steps, 4))
        mode = body.action_mode[0]
        if mode == "absolute":
            action = path[lag : steps + lag]
        else:
            # The change from this state to the next is what this step commands, `lag` being the steps beyond that.
            action = np.diff(path, axis=0)[lag - 1 : steps + lag - 1] * (body.control_hz if mode == "velocity" else 1)
        states.append(state)
        actions.append(action)
        times.append(np.arange(steps) / body.control_hz)
        lengths.append(steps)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return Recording.of_arrays(body, *map(np.concatenate, (states, actions, times)), bounds)


def changed(data: Recording, episodes: list[int], change: Any) -> Recording:
    """The recording with `change(state, action, time)` of some episodes; the lengths may differ."""
    parts = []
    for episode, part in enumerate(data.slices()):
        arrays = data.state[part].copy(), data.action[part].copy(), data.time[part].copy()
        parts.append(change(*arrays) if episode in episodes else arrays)
    bounds = np.concatenate([[0], np.cumsum([len(time) for *_, time in parts])])
    state, action, time = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Recording.of_arrays(data.body, state, action, time, bounds)


def scaled(data: Recording, factor: float) -> Recording:
    """The same motion in another unit that is none: names without one are taken as they are."""
    return replace(data, state=data.state * factor, action=data.action * factor)
