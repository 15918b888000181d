"""Slow motion of the arm to a pose: to the start region before the policy acts, and home after the run."""

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
"""Tolerance of a reached pose, as a fraction of each component's range."""
MARGIN = 0.05
"""Fraction of the training data's range by which a component may be outside it."""

Path = Callable[[Float[np.ndarray, "a"]], Float[np.ndarray, "a"] | None]
"""Maps a command to the next command on the path; None at the goal."""


def pose_action(
    body: Embodiment, state: Float[np.ndarray, "s"], goal: Float[np.ndarray, "s"]
) -> Float[np.ndarray, "a"]:
    """The command that moves each measured component to `goal`. Rotations keep their measured value."""
    target: Float[np.ndarray, "s"] = np.array(goal, float)
    for rotation in body.rotations:
        target[list(rotation.state)] = state[list(rotation.state)]
    return body.hold_action(target)


def outside_start(
    body: Embodiment, region: StartRegion, state: Float[np.ndarray, "s"]
) -> tuple[Float[np.ndarray, "a"], dict[str, float]]:
    """Compares a state with the start region.

    Returns:
        The nearest command within the region, and for each component outside it the signed distance to that command,
        in its unit.
    """
    goal = np.clip(pose_action(body, state, region.nearest(state)), body.action_low, body.action_high)
    offset = np.where(body.is_position_action, difference(body, goal, body.hold_action(state)), 0.0)
    tolerance = NEAR * (np.array(body.action_high) - np.array(body.action_low))
    return goal, {body.action[i]: float(offset[i]) for i in np.flatnonzero(np.abs(offset) > tolerance)}


def outside_training_data(body: Embodiment, state: Float[np.ndarray, "s"], trained: Range) -> list[str]:
    """A warning for each component of the state that is outside the range of the training data."""
    low, high = (np.array(end) for end in trained)
    excess = state - np.clip(state, low, high)
    outside = np.abs(excess) > MARGIN * np.maximum(high - low, 1e-9)
    return [
        f"{body.state[i]} is {state[i]:.3g}, outside the training data ({low[i]:.3g} to {high[i]:.3g})"
        for i in np.flatnonzero(outside)
    ]


def slow_path(body: Embodiment, limits: Limits, goal: Float[np.ndarray, "a"], share: float, period: float) -> Path:
    """A straight path of all components to `goal`.

    Args:
        body: The robot's embodiment.
        limits: The robot's limits.
        goal: The command at the end of the path.
        share: Fraction of the velocity limits to use.
        period: Duration of a step [s].
    """
    max_step = share * np.array(limits.velocity) * period

    def step(position: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"] | None:
        left = np.where(body.is_position_action, difference(body, goal, position), 0.0)
        steps = float(np.max(np.abs(left) / max_step))
        if steps < 1e-6:
            return None
        return np.where(body.is_position_action, interpolate(body, position, goal, min(1.0, 1 / steps)), 0.0)

    return step
