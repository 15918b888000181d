"""Differences, interpolation and means of actions, with the shorter arc for angles and slerp for rotations.

Other components are treated as plain numbers, without additional cost.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment, Rotation


def difference(
    body: Embodiment, goal: Float[np.ndarray, "*t a"], start: Float[np.ndarray, "*t a"]
) -> Float[np.ndarray, "*t a"]:
    """`goal - start`; for angles that wrap, the difference of at most half a turn."""
    delta = goal - start
    turn = body.action_period
    if np.isinf(turn).all():
        return delta
    wraps = np.isfinite(turn)
    safe = np.where(wraps, turn, 1.0)
    return np.where(wraps, delta - safe * np.round(delta / safe), delta)


def interpolate(
    body: Embodiment, start: Float[np.ndarray, "a"], goal: Float[np.ndarray, "a"], share: float
) -> Float[np.ndarray, "a"]:
    """Interpolates from `start` (share 0) to `goal` (share 1)."""
    if share == 1:
        return goal
    result = wrapped(body, start + share * difference(body, goal, start))
    for rotation in _absolute(body):
        indices = list(rotation.action)
        result[indices] = _mean(rotation, np.stack([start[indices], goal[indices]]), np.array([1 - share, share]))
    return result


def average(
    body: Embodiment, actions: Float[np.ndarray, "n a"], weights: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "a"]:
    """The weighted mean; for rotations the chordal mean (Hartley et al. 2013, sec. 5.3)."""
    if np.isinf(body.action_period).all():
        mean = np.average(actions, axis=0, weights=weights)
    else:
        delta = np.average(
            difference(body, actions, np.broadcast_to(actions[0], actions.shape)), axis=0, weights=weights
        )
        mean = wrapped(body, actions[0] + delta)
    for rotation in _absolute(body):
        indices = list(rotation.action)
        mean[indices] = _mean(rotation, actions[:, indices], weights)
    return mean


def unwrapped(body: Embodiment, actions: Float[np.ndarray, "t a"]) -> Float[np.ndarray, "t a"]:
    """The same trajectory without jumps by full turns, suitable for differentiation."""
    if len(actions) == 0 or np.isinf(body.action_period).all():
        return actions
    steps = difference(body, actions[1:], actions[:-1])
    return np.concatenate([actions[:1], actions[:1] + np.cumsum(steps, axis=0)])


def wrapped(body: Embodiment, actions: Float[np.ndarray, "*t a"]) -> Float[np.ndarray, "*t a"]:
    """The actions with wrapping angles in [-turn / 2, turn / 2], or [0, turn] if the lower limit is not negative."""
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
    # q and -q are the same rotation: use the sign of the first.
    if rotation.representation.startswith("quaternion") and out @ values[0] < 0:
        out = -out
    return out
