"""How fast an arm may move, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.errors import InputError

Workspace = Callable[[Float[np.ndarray, "a"]], bool]
"""Whether an arm at these joint targets is where it may be."""


@dataclass(frozen=True)
class Limits:
    """Beside the embodiment's own `action_low` and `action_high`, per component of the action.

    `velocity` is in the component's unit a second, `acceleration` in its unit a second squared. Components that
    are no positions (`Embodiment.is_position_action`) are not bound by them.
    """

    velocity: Sequence[float]
    acceleration: Sequence[float]
    workspace: Workspace | None = None

    def check(self, body: Embodiment) -> None:
        """Raises InputError when a limit is missing or not above zero."""
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
    """Those of the simulated servos, the same for every joint; None where the environment tells of none (`servo`)."""
    inner: Any = env.unwrapped
    if (servo := getattr(inner, "servo", None)) is None:
        return None
    velocity, acceleration = ((value,) * len(inner.embodiment.action) for value in servo)
    return Limits(velocity, acceleration)


def gripper_box(box: Mapping[str, Sequence[float]] | None) -> Workspace | None:
    """A workspace in which the fingertips of a SO-101 are between the corners `low` and `high` [m].

    In the frame of the arm's base (`vla.envs.arm`), by the model's forward kinematics; of two arms, each in its own.
    Raises InputError for corners that are none.
    """
    if box is None:
        return None
    try:
        low, high = (np.array(list(box[end]), float) for end in ("low", "high"))
        sound = len(box) == 2 and low.shape == high.shape == (3,) and bool((low < high).all())
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError("workspace: low and high must be three numbers each [m in the base's frame], low below high")
    from vla.envs.arm import JOINTS, arm_spec
    from vla.envs.ik import ArmIK

    arm = ArmIK(arm_spec().compile())

    def inside(joints: Float[np.ndarray, "a"]) -> bool:
        tips = np.stack([arm.tip(each) for each in joints.reshape(-1, len(JOINTS))])
        return bool(((low <= tips) & (tips <= high)).all())

    return inside
