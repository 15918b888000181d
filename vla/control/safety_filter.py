"""The safety filter between a policy and the motors."""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Bool, Float

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.kinematics.action_space import difference, wrapped
from vla.robots.limits import Limits

BISECTION_STEPS = 5
"""Bisection steps for the velocity at the edge of the workspace; more steps let the arm come closer to it."""


class SafetyFilter:
    """Converts arbitrary targets into commands within the position, velocity and acceleration limits.

    After every command the arm can still stop within the limits. With d the distance to a limit, dt the period and a
    the acceleration, this holds for a velocity of at most sqrt(2 a d) - a dt / 2: braking by a dt per tick then covers
    less than d, and keeps the bound in every tick. The same rule towards the target prevents overshoot.

    Deltas and velocities are speeds with the same bounds on velocity and acceleration. Forces only keep their range.

    An arm outside a limit may only move towards it, by the same rules; each such command counts as changed by the
    limit.

    `command` computes a command, and `sent` confirms that it reached the motors. An unconfirmed command is discarded.

    Args:
        body: The robot's embodiment.
        limits: The limits of the robot.
        period: Duration of a tick [s].

    Raises:
        InputError: for limits that do not fit the embodiment.
    """

    def __init__(self, body: Embodiment, limits: Limits, period: float) -> None:
        limits.check(body)
        self._body, self._workspace, self._dt = body, limits.workspace, period
        self._max_velocity = np.array(limits.velocity, float)
        self._max_change = np.array(limits.acceleration, float) * period
        self._max_acceleration = np.array(limits.acceleration, float)
        self._positions: Bool[np.ndarray, "a"] = body.is_position_action
        modes = np.array(body.action_mode)
        self._speeds = np.isin(modes, ("delta", "velocity"))
        # Command per unit of speed: a velocity is sent as it is, a delta as the distance covered in a tick.
        self._per_speed = np.where(modes == "velocity", 1.0, period)
        share = np.where(modes == "delta", period * body.control_hz, 1.0)
        periodic = np.isfinite(body.action_period)
        self._low = np.where(periodic, -np.inf, np.array(body.action_low, float) * share)
        self._high = np.where(periodic, np.inf, np.array(body.action_high, float) * share)
        self.clamps: Counter[str] = Counter()
        """Number of commands changed by each limit: finite, position, velocity, acceleration, workspace."""

    def start(self, position: Float[np.ndarray, "a"]) -> None:
        """Starts with the arm at rest at `position`.

        Raises:
            InputError: for a position outside the workspace.
        """
        if self._workspace is not None and not self._workspace(position):
            raise InputError("the arm is outside its workspace: move it inside by hand, with torque off")
        self.position = np.where(self._positions, position, 0.0)
        self.velocity = np.zeros_like(self.position)
        self._target = self.position
        self._next = self.position, self.velocity

    @property
    def at_rest(self) -> bool:
        """Whether the commanded velocity is zero."""
        return not self.velocity.any()

    @property
    def excess(self) -> Float[np.ndarray, "a"]:
        """Distance of each component's last command outside its limits; negative below the lower limit."""
        return np.where(self._positions, self.position - _clip(self.position, self._low, self._high), 0.0)

    def command(self, target: Float[np.ndarray, "_"] | None) -> tuple[Float[np.ndarray, "a"], tuple[str, ...]]:
        """Computes the command of this tick.

        Args:
            target: The desired action. None brakes and then holds, and so does a target with a wrong length or a value
                that is not finite.

        Returns:
            The command, and the limits that changed it.
        """
        if target is None:
            return self._propose(self._braked(self.velocity)), ()
        if target.shape != self.position.shape or not np.isfinite(target).all():
            self.clamps["finite"] += 1
            return self._propose(self._braked(self.velocity)), ("finite",)
        inside = _clip(target, self._low, self._high)
        hit = ["position"] if (inside != target).any() or self.excess.any() else []
        velocity = self._limited_velocity(inside, hit)
        if self._workspace is not None and not self._stops_inside(velocity):
            velocity = self._limit_to_workspace(velocity)
            hit.append("workspace")
        self._target = inside
        self.clamps.update(hit)
        safe = self._propose(velocity)
        if not hit:  # an unchanged target is passed on bit-exactly
            self._next = np.where(self._positions, inside, 0.0), velocity
            return inside, ()
        return np.where(self._positions | self._speeds, safe, inside), tuple(hit)

    def sent(self) -> None:
        """Confirms that the last command reached the motors."""
        self.position, self.velocity = self._next

    def reset_velocity(self) -> None:
        """Sets the velocity to zero after a tick without a command: the arm has reached its last command."""
        self.velocity = np.zeros_like(self.position)

    def _propose(self, velocity: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        position = wrapped(self._body, self.position + velocity * self._dt)
        self._next = np.where(self._positions, position, 0.0), velocity
        return np.where(self._positions, position, velocity * self._per_speed)

    def _braked(self, velocity: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """The velocity after one tick of braking."""
        return np.sign(velocity) * np.maximum(np.abs(velocity) - self._max_change, 0)

    def _limited_velocity(self, target: Float[np.ndarray, "a"], hit: list[str]) -> Float[np.ndarray, "a"]:
        """The allowed velocity nearest to the target; for speed actions nearest to the desired speed."""
        error = difference(self._body, target, self.position)
        desired = np.where(self._positions, error / self._dt, target / self._per_speed)
        # A moving target may be approached with its own velocity in addition.
        target_velocity = np.maximum(np.sign(error) * difference(self._body, target, self._target) / self._dt, 0)
        bound = np.minimum(target_velocity + self._stoppable(np.abs(error)), self._max_velocity)
        bound = np.where(self._positions, bound, self._max_velocity)
        slowed = _clip(desired, -bound, bound)
        velocity = _clip(slowed, self.velocity - self._max_change, self.velocity + self._max_change)
        within = _clip(
            velocity, -self._stoppable(self.position - self._low), self._stoppable(self._high - self.position)
        )
        velocity = np.where(self._positions, within, velocity)
        limited = self._positions | self._speeds
        changed = (np.abs(velocity - desired) > 1e-9) & limited
        at_max_velocity = np.abs(velocity) >= self._max_velocity - 1e-9
        hit += ["velocity"] if (changed & at_max_velocity).any() else []
        hit += ["acceleration"] if (changed & ~at_max_velocity).any() else []
        return np.where(limited, velocity, 0.0)

    def _stoppable(self, distance: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """The largest velocity from which the arm can stop within `distance`; 0 for a negative distance."""
        left = np.maximum(distance, 0)
        in_one_tick = np.minimum(left / self._dt, self._max_change)
        return np.maximum(in_one_tick, np.sqrt(2 * self._max_acceleration * left) - self._max_change / 2)

    def _stops_inside(self, velocity: Float[np.ndarray, "a"]) -> bool:
        """Whether the arm stays in the workspace until it stops, if it brakes after this tick."""
        assert self._workspace is not None
        position = self.position + velocity * self._dt
        while self._workspace(position):
            if not (velocity := self._braked(velocity)).any():
                return True
            position = position + velocity * self._dt
        return False

    def _limit_to_workspace(self, velocity: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """The velocity nearest to `velocity` that stops inside the workspace, by bisection towards full braking.

        Full braking stops inside. Velocities between the two keep all other limits, because both do.
        """
        braked, share = self._braked(self.velocity), 0.0
        for step in 0.5 ** np.arange(1, BISECTION_STEPS + 1):
            if self._stops_inside(braked + (share + step) * (velocity - braked)):
                share += step
        return braked + share * (velocity - braked)


def _clip(
    values: Float[np.ndarray, "a"], low: Float[np.ndarray, "a"], high: Float[np.ndarray, "a"]
) -> Float[np.ndarray, "a"]:
    """Like `np.clip`, which takes several times as long on few values."""
    return np.minimum(np.maximum(values, low), high)
