"""What stands between a policy and the motors."""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Bool, Float

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.kinematics.action_space import difference, wrapped
from vla.robots.limits import Limits

HALVINGS = 5
"""Of the velocity at the workspace's edge: how closely the arm comes to it."""


class SafetyFilter:
    """Turns targets, whatever they are, into commands within position, velocity and acceleration limits.

    Every command can be followed by a stop within the limits too. With d the distance to a limit, dt the period and a
    the acceleration, a velocity of at most sqrt(2 a d) - a dt / 2 can: braking by a dt a tick then covers less than d,
    and keeps the bound at each tick on the way. The same rule towards the target keeps it from being overshot.

    A delta or a velocity is a speed and keeps the same bounds on velocity and acceleration; a force keeps its range.

    An arm that stands outside a limit may only move towards it, by the same rules; each such command counts as one that
    the limit changed.

    `command` proposes, and `sent` makes it what the next one is told from: what did not reach the motors never was.
    """

    def __init__(self, body: Embodiment, limits: Limits, period: float) -> None:
        limits.check(body)
        self._body, self._workspace, self._dt = body, limits.workspace, period
        self._fastest = np.array(limits.velocity, float)
        self._per_tick = np.array(limits.acceleration, float) * period
        self._accel = np.array(limits.acceleration, float)
        self._places: Bool[np.ndarray, "a"] = body.is_position_action
        modes = np.array(body.action_mode)
        self._rates = np.isin(modes, ("delta", "velocity"))
        # What a speed of 1 commands for a tick: a step is dealt out over the ticks of one step of the policy.
        self._of_speed = np.where(modes == "velocity", 1.0, period)
        share = np.where(modes == "delta", period * body.control_hz, 1.0)
        free = np.isfinite(body.action_period)
        self._low = np.where(free, -np.inf, np.array(body.action_low, float) * share)
        self._high = np.where(free, np.inf, np.array(body.action_high, float) * share)
        self.clamps: Counter[str] = Counter()
        """How many commands each limit changed: finite, position, velocity, acceleration, workspace."""

    def start(self, position: Float[np.ndarray, "a"]) -> None:
        """The arm stands still at `position`. Raises InputError where that is outside the workspace."""
        if self._workspace is not None and not self._workspace(position):
            raise InputError("the arm stands outside its workspace: move it there by hand, with torque off")
        self.position = np.where(self._places, position, 0.0)
        self.velocity = np.zeros_like(self.position)
        self._target = self.position
        self._next = self.position, self.velocity

    @property
    def at_rest(self) -> bool:
        return not self.velocity.any()

    @property
    def excess(self) -> Float[np.ndarray, "a"]:
        """How far each component's last command is outside its limits: above 0 over the upper one, below 0 under the
        lower one."""
        return np.where(self._places, self.position - _clip(self.position, self._low, self._high), 0.0)

    def command(self, target: Float[np.ndarray, "_"] | None) -> tuple[Float[np.ndarray, "a"], tuple[str, ...]]:
        """The command for this tick, and which limits changed it. None brakes and then holds.

        So does a target of a wrong width or that is not finite.
        """
        if target is None:
            return self._propose(self._braked(self.velocity)), ()
        if target.shape != self.position.shape or not np.isfinite(target).all():
            self.clamps["finite"] += 1
            return self._propose(self._braked(self.velocity)), ("finite",)
        inside = _clip(target, self._low, self._high)
        hit = ["position"] if (inside != target).any() or self.excess.any() else []
        velocity = self._towards(inside, hit)
        if self._workspace is not None and not self._stops_inside(velocity):
            velocity = self._up_to_the_edge(velocity)
            hit.append("workspace")
        self._target = inside
        self.clamps.update(hit)
        safe = self._propose(velocity)
        if not hit:  # what is passed on is so to the bit
            self._next = np.where(self._places, inside, 0.0), velocity
            return inside, ()
        return np.where(self._places | self._rates, safe, inside), tuple(hit)

    def sent(self) -> None:
        """The last command has reached the motors."""
        self.position, self.velocity = self._next

    def stood_still(self) -> None:
        """The arm has come to its last command: a tick has passed without one."""
        self.velocity = np.zeros_like(self.position)

    def _propose(self, velocity: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        position = wrapped(self._body, self.position + velocity * self._dt)
        self._next = np.where(self._places, position, 0.0), velocity
        return np.where(self._places, position, velocity * self._of_speed)

    def _braked(self, velocity: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """The velocity a tick later."""
        return np.sign(velocity) * np.maximum(np.abs(velocity) - self._per_tick, 0)

    def _towards(self, target: Float[np.ndarray, "a"], hit: list[str]) -> Float[np.ndarray, "a"]:
        """The velocity that comes nearest to the target at this tick; of a rate, to the speed wanted."""
        left = difference(self._body, target, self.position)
        wanted = np.where(self._places, left / self._dt, target / self._of_speed)
        # A moving target is met at its own speed.
        along = np.maximum(np.sign(left) * difference(self._body, target, self._target) / self._dt, 0)
        pace = np.minimum(along + self._closing(np.abs(left)), self._fastest)
        pace = np.where(self._places, pace, self._fastest)
        slowed = _clip(wanted, -pace, pace)
        eased = _clip(slowed, self.velocity - self._per_tick, self.velocity + self._per_tick)
        until = _clip(eased, -self._closing(self.position - self._low), self._closing(self._high - self.position))
        eased = np.where(self._places, until, eased)
        bound = self._places | self._rates
        changed = (np.abs(eased - wanted) > 1e-9) & bound
        at_most = np.abs(eased) >= self._fastest - 1e-9
        hit += ["velocity"] if (changed & at_most).any() else []
        hit += ["acceleration"] if (changed & ~at_most).any() else []
        return np.where(bound, eased, 0.0)

    def _closing(self, distance: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """The fastest velocity towards a place at `distance` that can still stop there; 0 beyond it."""
        left = np.maximum(distance, 0)
        in_one_tick = np.minimum(left / self._dt, self._per_tick)
        return np.maximum(in_one_tick, np.sqrt(2 * self._accel * left) - self._per_tick / 2)

    def _stops_inside(self, velocity: Float[np.ndarray, "a"]) -> bool:
        """Whether all commands are in the workspace from this one to the standstill, if the arm brakes after it."""
        assert self._workspace is not None
        position = self.position + velocity * self._dt
        while self._workspace(position):
            if not (velocity := self._braked(velocity)).any():
                return True
            position = position + velocity * self._dt
        return False

    def _up_to_the_edge(self, velocity: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        """The velocity nearest to this that stops inside; braking does, for the last command could be followed by it.

        What lies between these two keeps all other limits, as both do.
        """
        braked, share = self._braked(self.velocity), 0.0
        for step in 0.5 ** np.arange(1, HALVINGS + 1):
            if self._stops_inside(braked + (share + step) * (velocity - braked)):
                share += step
        return braked + share * (velocity - braked)


def _clip(
    values: Float[np.ndarray, "a"], low: Float[np.ndarray, "a"], high: Float[np.ndarray, "a"]
) -> Float[np.ndarray, "a"]:
    """`np.clip`, which takes several times as long on so few values."""
    return np.minimum(np.maximum(values, low), high)
