"""The loop that owns the robot: at a fixed rate, from the first state to the standstill at the end.

A tick: take the policy's answer; where a step of the policy begins, take the next action; move the target on towards
it; let the guard make it safe; send it; measure; where a step ends, observe, and ask the policy if it is due. Ticks
have absolute deadlines. One that would come too late is skipped, and the arm goes on from a standstill after it, for
that is what a gap means to the motors.

However a run ends (its time, a stop, a fault, an exception), the arm first brakes within its limits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from vla.action_space import difference, interpolate
from vla.control.buffer import ActionBuffer
from vla.control.clock import Clock, WallClock
from vla.control.guard import Guard
from vla.control.inference import Inference, InferenceDied, Request
from vla.control.robot import Robot, RobotFault
from vla.control.servo_health import HealthMonitor, HealthReporting
from vla.control.stats import ControlStats, Tally
from vla.control.stop import EmergencyStop
from vla.errors import InputError
from vla.policies.history import FrameHistory
from vla.types import Observation

LOG = logging.getLogger(__name__)
TRIES = 3
"""Of a call to the robot in one tick, while its time lasts."""


@dataclass(frozen=True)
class LoopConfig:
    """`execution`, `execute` and `ttl` [s] as in ActionBuffer."""

    hz: float = 50.0
    """Ticks a second: a multiple of the policy's rate."""
    execution: str = "rtc"
    execute: int = 8
    ttl: float = 3.0
    heartbeat: float = 2.0
    """[s] that the policy may take to answer, after its first answer; then the run ends."""
    first: float = 60.0
    """[s] that it may take for its first answer, the arm holding meanwhile."""
    faults: int = 3
    """Ticks one after the other in which a transient fault outlasts the retries; then the run ends."""
    stall: float = 0.1
    """How far a joint may be from its command, as a fraction of its range. Grippers may: they hold things."""
    stall_seconds: float = 0.5
    """[s] for which it may be."""
    end: Literal["hold", "relax"] = "hold"
    """What follows the standstill at the end, whatever ended the run."""


@dataclass(frozen=True)
class Tick:
    """What happened in one tick. Times are the clock's, durations too [s]."""

    time: float
    scheduled: float
    state: Float[np.ndarray, "s"]
    """The last that was measured."""
    observation: Observation | None
    """What was seen in this tick, at the end of a step of the policy; the policy may have been asked with it."""
    desired: Float[np.ndarray, "a"] | None
    """What the policy wants, between its last action and its next; None to stand still."""
    sent: Float[np.ndarray, "a"] | None
    """The safe command; None where it did not reach the motors."""
    clamped: tuple[str, ...]
    """The limits that changed it."""
    source: Literal["chunk", "hold", "brake"]
    """brake: the standstill at the end."""
    observe: float | None
    infer: float | None
    """Of the answer that came in this tick, if one did."""
    command: float


class ControlLoop:
    """Runs `inference`'s policy on `robot`, which it connects itself, if told to `connect`. Leaves `inference` open.

    `watch` is called in every tick and must not block.
    """

    def __init__(
        self,
        robot: Robot,
        inference: Inference,
        config: LoopConfig,
        clock: Clock | None = None,
        *,
        stop: EmergencyStop,
        watch: Callable[[Tick], None] | None = None,
        connect: bool = True,
    ) -> None:
        self._connect = connect
        self._robot, self._inference, self._config = robot, inference, config
        self._clock, self._stop, self._watch = clock or WallClock(), stop, watch

    def run(self, instruction: str, seconds: float) -> ControlStats:
        """Until `seconds` are over or something ends it; the statistics say what.

        Raises InputError for a configuration that does not fit the robot, RobotFault where that does not connect, and
        whatever `watch` or the inference raise, but for InferenceDied: after the standstill.
        """
        steps_of(self._robot.embodiment.control_hz, self._config.hz)
        urgent = self._clock.priority() if isinstance(self._clock, WallClock) else nullcontext()
        with self._stop.signals():
            if reason := self._stop.poll():
                return Tally().stats(reason, 0.0, 0.0, {})
            with self._robot if self._connect else nullcontext(), urgent:
                run = _Run(self._robot, self._inference, self._config, self._clock, self._stop)
                try:
                    run.go(instruction, seconds, self._watch)
                except BaseException:
                    run.brake(None)
                    raise
                finally:
                    run.rest()
        return run.stats()


def steps_of(policy_hz: float, loop_hz: float) -> int:
    """Ticks in a step of the policy. Raises InputError where that is no whole number."""
    ratio = loop_hz / policy_hz
    if ratio < 1 or abs(ratio - round(ratio)) > 1e-6:
        raise InputError(f"hz must be a multiple of the policy's {policy_hz:g} a second, not {loop_hz:g}")
    return round(ratio)


class _Run:
    """One run. `reason` is set as soon as it is to end; from then on the arm only brakes."""

    def __init__(
        self, robot: Robot, inference: Inference, config: LoopConfig, clock: Clock, stop: EmergencyStop
    ) -> None:
        body = robot.embodiment
        self._robot, self._inference, self._config, self._clock, self._stop = robot, inference, config, clock, stop
        self._body, self._dt, self._per_step = body, 1 / config.hz, steps_of(body.control_hz, config.hz)
        self._buffer = ActionBuffer(body, config.execution, config.execute, config.ttl)
        self._history = FrameHistory(inference.history, 1 / body.control_hz)
        self._guard = Guard(body, robot.limits, self._dt)
        self._health = HealthMonitor(robot) if isinstance(robot, HealthReporting) else None
        measured = np.array([at is not None for at in body.measured_by])
        reach = config.stall * (np.array(body.action_high) - np.array(body.action_low))
        self._slack = np.where(body.is_position_action & measured & ~body.is_gripper, reach, np.inf)
        self._positions = body.is_position_action
        # A step is dealt out over the ticks; a velocity and a force are in force in each.
        self._dealt = np.where(np.array(body.action_mode) == "delta", self._per_step, 1)
        self._lagging_since: Float[np.ndarray, "a"] = np.full(len(body.action), np.inf)
        self._tally = Tally()
        self.reason: str | None = None
        self._started = self._answered = False
        self._index = self._failed = 0
        self._phase = self._per_step - 1  # the first tick holds, and asks
        self._fault: RobotFault | None = None
        self._request: tuple[Request, float] | None = None
        self._goal: Float[np.ndarray, "a"] | None = None
        self._began = clock.now()

    def go(self, instruction: str, seconds: float, watch: Callable[[Tick], None] | None) -> None:
        self._instruction, self._seconds = instruction, seconds
        if (first := self._try(self._robot.state, self._clock.now() + self._config.heartbeat)) is None:
            self._end(f"robot: {self._fault}")
        elif self._take_state(first[0]):
            self._guard.start(self._body.hold_action(self._state))
            self._due = self._path = self._guard.position
            self._began, self._started = self._clock.now(), True
            for name, past in zip(self._body.action, self._guard.excess, strict=True):
                if past:
                    LOG.warning("%s stands %.3g beyond its limit: it is moved back", name, abs(past))
            while self.reason is None:
                self._tick(watch)
        else:
            self._end("robot: the first state is not finite, or of a wrong width")
        self.brake(watch)

    def brake(self, watch: Callable[[Tick], None] | None) -> None:
        self._end("error")
        # A command that does not reach the motors stops them too: then there is nothing to brake.
        while self._started and not self._guard.at_rest:
            self._tick(watch)

    def rest(self) -> None:
        """What follows the standstill."""
        self._ended = self._clock.now()
        if self._config.end == "relax":
            self._robot.relax()
        elif self._started:
            self._try(lambda: self._robot.hold(self._guard.position), self._ended + self._config.heartbeat)

    def stats(self) -> ControlStats:
        seconds = self._ended - self._began
        return self._tally.stats(self.reason or "error", seconds, self._buffer.stale_fraction, self._guard.clamps)

    def _end(self, reason: str) -> None:
        self.reason = self.reason or reason

    def _tick(self, watch: Callable[[Tick], None] | None) -> None:
        now, scheduled = self._await()
        deadline, self._fault = scheduled + self._dt, None
        infer = self._answer(now)
        source: Literal["chunk", "hold", "brake"] = "brake"
        desired = None
        if self.reason is None:
            desired = self._advance(now)
            source = "hold" if desired is None else "chunk"
            if desired is None and self._guard.excess.any():
                desired = self._guard.position - self._guard.excess
        safe, clamped = self._guard.command(desired)
        arrived, took = self._send(safe, deadline)
        self._index += 1
        self._tally.ticks += 1
        self._tally.holds += source == "hold"
        self._tally.jitter.append(now - scheduled)
        observation, observe = self._sense(deadline)
        self._failed = self._failed + 1 if self._fault else 0
        if self._failed > self._config.faults:
            self._end(f"robot: {self._fault}")
        if self._health is not None and self.reason is None:
            self.reason = self._health.check(self._clock.now(), deadline)
        if watch is not None:
            sent = safe if arrived else None
            watch(Tick(now, scheduled, self._state, observation, desired, sent, clamped, source, observe, infer, took))

    def _await(self) -> tuple[float, float]:
        """Now, and when the tick was to begin. Those that would begin more than half their time late are skipped."""
        scheduled = self._began + self._index * self._dt
        self._clock.sleep_until(scheduled)
        if (late := math.ceil((self._clock.now() - scheduled) / self._dt - 0.5)) > 0:
            self._tally.missed += late
            self._index += late
            self._guard.stood_still()
            scheduled = self._began + self._index * self._dt
            self._clock.sleep_until(scheduled)
        return self._clock.now(), scheduled

    def _overdue(self, now: float) -> str | None:
        if now - self._began >= self._seconds - self._dt / 2:
            return "done"
        patience = self._config.heartbeat if self._answered else self._config.first
        if self._request is not None and now - self._request[1] > patience:
            return f"the policy has not answered for {patience:g} s"
        return None

    def _answer(self, now: float) -> float | None:
        """Whether the run is to end now, and else the answer; how long the policy took for it, if there is one."""
        if self.reason is None and (reason := self._stop.poll() or self._overdue(now)):
            self._end(reason)
        if self.reason is not None:
            return None
        try:
            answer = self._inference.answer()
        except InferenceDied as error:
            self._end(f"the inference died: {error}")
            return None
        if answer is None or self._request is None:
            return None
        if answer.request.observation.time != self._request[0].observation.time:
            return None  # of an earlier run
        self._request, self._answered = None, True
        refused = self._buffer.take(answer, now)
        self._tally.chunks += not refused
        self._tally.invalid += bool(refused)
        self._tally.infer.append(answer.answered - answer.asked)
        return self._tally.infer[-1]

    def _sense(self, deadline: float) -> tuple[Observation | None, float | None]:
        """After the command, so that this is on time: at a step's end all that is seen, else the state."""
        if self.reason is not None:
            return None, None
        now = self._clock.now()
        if self._phase:
            measured = self._try(self._robot.state, deadline)
            if measured is not None and self._take_state(measured[0]):
                self._check_lag(now)
            return None, None
        observation = self._try(lambda: self._robot.observe(self._instruction), deadline)
        if observation is None or not self._take_state(observation.state):
            return None, None
        self._check_lag(now)
        took = self._clock.now() - now
        self._tally.observe.append(took)
        seen = self._history.see(observation)
        if self._inference.busy or not self._buffer.due(now):
            return observation, took
        request = self._buffer.request(seen, self._guard.position, now)
        self._request = request, now
        try:
            self._inference.ask(request)
        except InferenceDied as error:
            self._end(f"the inference died: {error}")
        return observation, took

    def _check_lag(self, now: float) -> None:
        """Ends the run where a joint has been too far from its command for too long.

        Its command is the one before the last: the arm has had a tick to follow it, however long a tick is.
        """
        lag = np.abs(difference(self._body, self._body.hold_action(self._state), self._due))
        self._lagging_since = np.where(lag > self._slack, np.minimum(self._lagging_since, now), np.inf)
        if (stalled := now - self._lagging_since > self._config.stall_seconds - self._dt / 2).any():
            names = [name for name, is_stalled in zip(self._body.action, stalled, strict=True) if is_stalled]
            self._end(f"stalled: {', '.join(names)}")

    def _take_state(self, state: Float[np.ndarray, "_"]) -> bool:
        """Whether it can be one; what cannot counts as a fault that may pass."""
        if np.shape(state) == (len(self._body.state),) and np.isfinite(state).all():
            self._state = np.asarray(state)
            return True
        self._tally.faults += 1
        self._fault = RobotFault("the state is not finite, or of a wrong width", transient=True)
        return False

    def _advance(self, now: float) -> Float[np.ndarray, "a"] | None:
        """The target of this tick, on the straight line to the policy's next action; a step is dealt out evenly."""
        if self._phase == 0:
            if self._goal is None:
                self._path = self._guard.position
            self._goal = self._buffer.advance(now)
        left = self._per_step - self._phase
        self._phase = (self._phase + 1) % self._per_step
        if self._goal is None:
            return None
        self._path = interpolate(self._body, self._path, self._goal, 1 / left)
        return np.where(self._positions, self._path, self._goal / self._dealt)

    def _send(self, safe: Float[np.ndarray, "a"], deadline: float) -> tuple[bool, float]:
        """Whether it reached the motors, and how long that took."""

        def send() -> bool:
            self._robot.command(safe)
            return True

        begun, self._due = self._clock.now(), self._guard.position
        arrived = self._try(send, deadline) is not None
        took = self._clock.now() - begun
        if arrived:
            self._guard.sent()
            self._tally.command.append(took)
        else:
            self._guard.stood_still()
        return arrived, took

    def _try[T](self, call: Callable[[], T], deadline: float) -> T | None:
        """What it returns, tried again while there is time; None where it failed. What will not pass ends the run."""
        for _ in range(TRIES):
            try:
                return call()
            except RobotFault as fault:
                self._tally.faults += 1
                self._fault = fault
            if not self._fault.transient:
                self._end(f"robot: {self._fault}")
            if not self._fault.transient or self._clock.now() >= deadline:
                break
        return None
