"""Differences, interpolation and means of actions: angles go the shorter way round, rotations turn about one axis.

Components that are neither are plain numbers, and cost no more than that.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment, Rotation


def difference(
    body: Embodiment, goal: Float[np.ndarray, "*t a"], start: Float[np.ndarray, "*t a"]
) -> Float[np.ndarray, "*t a"]:
    """`goal - start`, in angles that wrap by no more than half a turn."""
    apart = goal - start
    turn = body.action_period
    if np.isinf(turn).all():
        return apart
    wraps = np.isfinite(turn)
    safe = np.where(wraps, turn, 1.0)
    return np.where(wraps, apart - safe * np.round(apart / safe), apart)


def interpolate(
    body: Embodiment, start: Float[np.ndarray, "a"], goal: Float[np.ndarray, "a"], share: float
) -> Float[np.ndarray, "a"]:
    """What lies `share` of the way from `start` to `goal`: the goal itself at 1."""
    if share == 1:
        return goal
    between = wrapped(body, start + share * difference(body, goal, start))
    for rotation in _absolute(body):
        at = list(rotation.action)
        there = _mean(rotation, np.stack([start[at], goal[at]]), np.array([1 - share, share]))
        between[at] = there
    return between


def average(
    body: Embodiment, actions: Float[np.ndarray, "n a"], weights: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "a"]:
    """The weighted mean. Rotations have that of their matrices (chordal, Hartley et al. 2013, sec. 5.3)."""
    if np.isinf(body.action_period).all():
        mean = np.average(actions, axis=0, weights=weights)
    else:
        apart = np.average(
            difference(body, actions, np.broadcast_to(actions[0], actions.shape)), axis=0, weights=weights
        )
        mean = wrapped(body, actions[0] + apart)
    for rotation in _absolute(body):
        at = list(rotation.action)
        mean[at] = _mean(rotation, actions[:, at], weights)
    return mean


def unwrapped(body: Embodiment, actions: Float[np.ndarray, "t a"]) -> Float[np.ndarray, "t a"]:
    """The same path without jumps of whole turns, to be differentiated."""
    if len(actions) == 0 or np.isinf(body.action_period).all():
        return actions
    steps = difference(body, actions[1:], actions[:-1])
    return np.concatenate([actions[:1], actions[:1] + np.cumsum(steps, axis=0)])


def wrapped(body: Embodiment, actions: Float[np.ndarray, "*t a"]) -> Float[np.ndarray, "*t a"]:
    """Angles that wrap within one turn: about zero, or from zero on where the robot's are never negative."""
    turn = body.action_period
    wraps = np.isfinite(turn)
    if not wraps.any():
        return actions
    safe = np.where(wraps, turn, 1.0)
    start = np.where(np.array(body.action_low) >= 0, 0.0, -safe / 2)
    inside = (actions >= start) & (actions <= start + safe)
    return np.where(wraps & ~inside, actions - safe * np.floor((actions - start) / safe), actions)


def _absolute(body: Embodiment) -> list[Rotation]:
    return [rotation for rotation in body.rotations if body.is_position_action[rotation.action[0]]]


def _mean(
    rotation: Rotation, values: Float[np.ndarray, "n k"], weights: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "k"]:
    from scipy.spatial.transform import Rotation as Spatial
    from scipy.spatial.transform import Slerp

    from vla.common.rotations import decode, encode

    rotations = decode(values, rotation.representation)
    if len(values) == 2:
        mean = Slerp([0.0, 1.0], rotations)([weights[1] / weights.sum()])
    else:
        mean = Spatial.concatenate([rotations.mean(weights)])
    out: Float[np.ndarray, "k"] = encode(mean, rotation.representation)[0]
    # q and -q are one rotation: keep to the side of the first.
    if rotation.representation.startswith("quaternion") and out @ values[0] < 0:
        out = -out
    return out
