"""A clock, an arm and a policy for the tests of the control loop. What takes time moves the clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from vla.control.inference import Answer, InferenceDied, Request
from vla.embodiment import Embodiment
from vla.robots.limits import Limits
from vla.types import ActionChunk, Observation

NAMES = ("shoulder [rad]", "elbow [rad]", "gripper [rad]")
BODY = Embodiment("fake", ("front",), NAMES, NAMES, (-1.0, -2.0, 0.0), (1.0, 2.0, 1.5), 10.0)
LIMITS = Limits(velocity=(2.0, 3.0, 4.0), acceleration=(10.0, 12.0, 30.0))
HORIZON = 16
Policy = Callable[[Request], ActionChunk | None]


class VirtualClock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


@dataclass
class FakeRobot:
    """Its joints are at the last command. `script` is called with the name of each call before it takes effect."""

    clock: VirtualClock
    script: Callable[[str], None] = lambda call: None
    embodiment: Embodiment = BODY
    limits: Limits = LIMITS
    position: Float[np.ndarray, "a"] = field(default_factory=lambda: np.array([0.1, -0.2, 0.3]))
    corrupt: Callable[[Float[np.ndarray, "s"]], Float[np.ndarray, "_"]] = lambda state: state
    received: list[tuple[float, Float[np.ndarray, "a"]]] = field(default_factory=list)
    held: Float[np.ndarray, "a"] | None = None
    torque_disabled = connected = False
    first: float = 0.0

    def __enter__(self) -> FakeRobot:
        self.script("connect")
        self.connected = True
        return self

    def __exit__(self, *_: object) -> None:
        self.connected = False

    def _call(self, name: str, seconds: float) -> None:
        assert self.connected
        self.script(name)
        self.clock.time += seconds

    def state(self) -> tuple[Float[np.ndarray, "_"], float]:
        self._call("state", 0.001)
        self.first = self.first or self.clock.time
        return self.corrupt(self.position.copy()), self.clock.time

    def observe(self, instruction: str) -> Observation:
        time = self.clock.time
        self._call("observe", 0.003)
        image = np.zeros((2, 2, 3), np.uint8)
        return Observation({"front": image}, self.corrupt(self.position.copy()), instruction, time)

    def command(self, action: Float[np.ndarray, "a"]) -> None:
        at = self.clock.time
        self._call("command", 0.001)
        self.received.append((at, action.copy()))
        self.position = action.copy()

    def hold(self, last: Float[np.ndarray, "a"]) -> None:
        self._call("hold", 0.001)
        self.held = last.copy()

    def disable_torque(self) -> None:
        self._call("disable_torque", 0.001)
        self.torque_disabled = True


@dataclass
class VirtualInference:
    """Answers `delay()` [s] after a request."""

    clock: VirtualClock
    policy: Policy
    delay: Callable[[], float] = lambda: 0.05
    dead: bool = False
    requests: list[Request] = field(default_factory=list)
    history: tuple[float, ...] = ()
    _running: tuple[Request, float, float] | None = None

    def submit(self, request: Request) -> None:
        assert not self.busy
        self.requests.append(request)
        self._running = request, self.clock.time, self.clock.time + self.delay()

    def answer(self) -> Answer | None:
        if self.dead:
            raise InferenceDied("exit code -9")
        if self._running is None or self.clock.time < self._running[2]:
            return None
        (request, requested, answered), self._running = self._running, None
        return Answer(request, self.policy(request), requested, answered)

    @property
    def busy(self) -> bool:
        return self._running is not None

    def close(self) -> None: ...


def wave(step: Float[np.ndarray, "_"]) -> Float[np.ndarray, "_ 3"]:
    """Where a policy wants the arm at each step: well within the limits of speed."""
    return np.stack([0.5 * np.sin(step / 8), np.cos(step / 10), 0.5 + 0.4 * np.sin(step / 9)], axis=-1)


def follow_wave(request: Request) -> ActionChunk:
    """Goes on from `prefix`, as a policy that honours it."""
    actions = wave(np.arange(request.start, request.start + HORIZON, dtype=float))
    if request.prefix is not None:
        actions[: len(request.prefix.committed)] = request.prefix.committed
    return ActionChunk(actions, request.observation.time, 1 / BODY.control_hz)


def check_received(robot: FakeRobot, dt: float) -> None:
    """Every command is within the limits, told from when it came: a gap of a tick or more means a standstill."""
    low, high = np.array(robot.embodiment.action_low), np.array(robot.embodiment.action_high)
    fastest, change = np.array(robot.limits.velocity), np.array(robot.limits.acceleration) * dt
    velocity: Float[np.ndarray, "a"] = np.zeros(len(low))
    for (before, here), (after, there) in zip(robot.received, robot.received[1:], strict=False):
        assert after - before > dt / 2 - 1e-9, "two commands in a burst"
        now = (there - here) / dt
        assert np.isfinite(there).all() and (there >= low - 1e-9).all() and (there <= high + 1e-9).all()
        assert (np.abs(now) <= fastest + 1e-6).all()
        velocity = np.where(after - before > 1.5 * dt, 0.0, velocity)
        assert (np.abs(now - velocity) <= change + 1e-6).all(), (after, now, velocity)
        velocity = now
