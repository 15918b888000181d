"""Slow motion of the arm to a pose: before the policy acts, and home."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from vla.common.start_region import StartRegion
from vla.embodiment import Embodiment
from vla.kinematics.action_space import difference, interpolate
from vla.policies.data_summary import Range
from vla.robots.limits import Limits

NEAR = 0.01
"""The share of a component's range within which the arm counts as being there."""
MARGIN = 0.05
"""The share of the data's range by which a component may be outside it."""

Path = Callable[[Float[np.ndarray, "a"]], Float[np.ndarray, "a"] | None]
"""The next command after one; None at the goal."""


def pose_action(
    body: Embodiment, state: Float[np.ndarray, "s"], goal: Float[np.ndarray, "s"]
) -> Float[np.ndarray, "a"]:
    """The command that brings each measured component to `goal`; rotations, which `goal` has by component, stay."""
    target: Float[np.ndarray, "s"] = np.array(goal, float)
    for rotation in body.rotations:
        target[list(rotation.state)] = state[list(rotation.state)]
    return body.hold_action(target)


def outside(
    body: Embodiment, region: StartRegion, state: Float[np.ndarray, "s"]
) -> tuple[Float[np.ndarray, "a"], dict[str, float]]:
    """The nearest command within the region, and how far each component outside it has to go, in its unit."""
    goal = np.clip(pose_action(body, state, region.nearest(state)), body.action_low, body.action_high)
    away = np.where(body.is_position_action, difference(body, goal, body.hold_action(state)), 0.0)
    near = NEAR * (np.array(body.action_high) - np.array(body.action_low))
    return goal, {body.action[i]: float(away[i]) for i in np.flatnonzero(np.abs(away) > near)}


def unseen(body: Embodiment, state: Float[np.ndarray, "s"], seen: Range) -> list[str]:
    """What to say of each component of the state that is outside the training data."""
    low, high = (np.array(end) for end in seen)
    beyond = state - np.clip(state, low, high)
    far = np.abs(beyond) > MARGIN * np.maximum(high - low, 1e-9)
    return [
        f"{body.state[i]} is {state[i]:.3g}, outside the training data ({low[i]:.3g} to {high[i]:.3g})"
        for i in np.flatnonzero(far)
    ]


def slow_path(body: Embodiment, limits: Limits, goal: Float[np.ndarray, "a"], share: float, period: float) -> Path:
    """All components on a straight line to `goal`, at most at `share` of its velocity limit; `period` [s] a step."""
    most = share * np.array(limits.velocity) * period

    def step(position: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"] | None:
        left = np.where(body.is_position_action, difference(body, goal, position), 0.0)
        steps = float(np.max(np.abs(left) / most))
        if steps < 1e-6:
            return None
        return np.where(body.is_position_action, interpolate(body, position, goal, min(1.0, 1 / steps)), 0.0)

    return step
