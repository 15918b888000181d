"""Velocity, acceleration and workspace limits of an arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.errors import InputError

if TYPE_CHECKING:
    import gymnasium

Workspace = Callable[[Float[np.ndarray, "a"]], bool]
"""Whether an arm at these joint targets is inside its workspace."""


@dataclass(frozen=True)
class Limits:
    """Limits per action component, in addition to `action_low` and `action_high` of the embodiment.

    Attributes:
        velocity: Velocity limits, in the component's unit per second.
        acceleration: Acceleration limits, in the component's unit per second squared.
        workspace: Returns whether joint targets are allowed. None: all are.
    """

    velocity: Sequence[float]
    acceleration: Sequence[float]
    workspace: Workspace | None = None

    def check(self, body: Embodiment) -> None:
        """Checks the limits against an embodiment.

        Raises:
            InputError: for a limit that is missing or not above zero.
        """
        for name in ("velocity", "acceleration"):
            values = getattr(self, name)
            if len(values) != len(body.action):
                raise InputError(
                    f"limits: {name} has {len(values)} values for {len(body.action)} actions: {body.action}"
                )
            for component, value in zip(body.action, values, strict=True):
                if not 0 < value < float("inf"):
                    raise InputError(f"limits: {name} of {component} must be above 0, not {value}")


def limits_of(env: gymnasium.Env[Any, Any]) -> Limits | None:
    """The limits of the simulated servos, equal for all joints; None if the environment has no attribute `servo`."""
    inner: Any = env.unwrapped
    if (servo := getattr(inner, "servo", None)) is None:
        return None
    velocity, acceleration = ((value,) * len(inner.embodiment.action) for value in servo)
    return Limits(velocity, acceleration)


def gripper_box(box: Mapping[str, Sequence[float]] | None) -> Workspace | None:
    """A box workspace for the fingertips of a SO-101, checked by forward kinematics.

    Args:
        box: The corners `low` and `high` [m] in the frame of the arm's base (`vla.envs.arm`). Of two arms, each is
            checked in the frame of its own base. None: no workspace.

    Raises:
        InputError: for invalid corners.
    """
    if box is None:
        return None
    try:
        low, high = (np.array(list(box[end]), float) for end in ("low", "high"))
        valid = len(box) == 2 and low.shape == high.shape == (3,) and bool((low < high).all())
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError("workspace: low and high must be three numbers each [m in the base's frame], low below high")
    from vla.envs.arm import JOINTS, arm_spec
    from vla.envs.ik import ArmIK

    arm = ArmIK(arm_spec().compile())

    def inside(joints: Float[np.ndarray, "a"]) -> bool:
        tips = np.stack([arm.tip(arm_joints) for arm_joints in joints.reshape(-1, len(JOINTS))])
        return bool(((low <= tips) & (tips <= high)).all())

    return inside
