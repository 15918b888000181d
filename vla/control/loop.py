"""The control loop: it owns the robot and runs at a fixed rate from the first state until the arm has stopped.

A tick does the following: take the policy's answer; at the start of a policy step, take the next action; interpolate
the target towards it; pass the target through the safety filter; send the command; measure the state; at the end of a
policy step, observe and submit a request if one is due. Ticks have absolute deadlines. A tick that would start too
late is skipped as a missed deadline. The arm then continues from standstill, because the motors stop during the gap.

Whatever ends a run (its time, an emergency stop, a fault, an exception), the arm first brakes within its limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
from jaxtyping import Float

from vla.common.start_region import StartRegion
from vla.control.action_queue import ActionQueue
from vla.control.approach import Path, outside_start, outside_training_data, pose_action, slow_path
from vla.control.clock import Clock, WallClock
from vla.control.config import LoopConfig, steps_of
from vla.control.events import EventLog
from vla.control.inference import Inference, InferenceDied, Request
from vla.control.lag import LagMonitor
from vla.control.robot_calls import RobotCalls
from vla.control.safety_filter import SafetyFilter
from vla.control.stats import ControlStats, Tally
from vla.control.stop import EmergencyStop
from vla.control.tick import Source, Tick
from vla.errors import Outcome
from vla.kinematics.action_space import interpolate
from vla.policies.data_summary import DataSummary
from vla.policies.history import FrameHistory
from vla.robots.robot import Robot, RobotFault
from vla.robots.servo_health import HealthMonitor, HealthReporting
from vla.types import Observation


class ControlLoop:
    """Runs the policy of `inference`, which stays open, on `robot`.

    Args:
        watch: Called in every tick; must not block.
        connect: Whether `run` connects the robot; else the caller has connected it.
        data: Summary of the training data: start region and home pose.
        finished: Returns the reason once the task is completed, else None.
        events: The log to which events are added.
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
        data: DataSummary | None = None,
        finished: Callable[[], str | None] = lambda: None,
        events: EventLog | None = None,
    ) -> None:
        self._connect, self._data, self._finished = connect, data or DataSummary(), finished
        self._robot, self._inference, self._config = robot, inference, config
        self._clock, self._stop, self._watch = clock or WallClock(), stop, watch
        self._events = EventLog() if events is None else events

    def run(self, instruction: str, seconds: float) -> ControlStats:
        """Runs the policy for `seconds` [s], or until something ends the run; the statistics name the reason.

        Exceptions of `watch` and of the inference are raised after the arm has stopped; InferenceDied ends the run.

        Raises:
            InputError: for a configuration that does not fit the robot.
            RobotFault: if the robot does not connect.
        """
        steps_of(self._robot.embodiment.control_hz, self._config.hz)
        priority = self._clock.priority(self._events) if isinstance(self._clock, WallClock) else nullcontext()
        with self._stop.signals():
            if reason := self._stop.poll():
                return Tally().stats((reason, "stopped"), 0.0, 0.0, {}, self._events)
            with self._robot if self._connect else nullcontext(), priority:
                run = _Run(self._robot, self._inference, self._config, self._clock, self._events)
                try:
                    run.execute(lambda: self._poll(run), instruction, seconds, self._data, self._watch)
                except BaseException:
                    run.brake(None)
                    raise
                finally:
                    run.finish()
        return run.stats()

    def _poll(self, run: _Run) -> None:
        if reason := self._stop.poll():
            run.end(reason, "stopped")
        elif reason := self._finished():
            run.end(reason, "done")


class _Run:
    """One run. Once `reason` is set, the arm only brakes."""

    def __init__(self, robot: Robot, inference: Inference, config: LoopConfig, clock: Clock, events: EventLog) -> None:
        body = robot.embodiment
        self._robot, self._inference, self._config, self._clock, self._events = robot, inference, config, clock, events
        self._body, self._dt, self._per_step = body, 1 / config.hz, steps_of(body.control_hz, config.hz)
        self._queue = ActionQueue(body, config.execution, config.n_action_steps, config.max_observation_age_s)
        self._history = FrameHistory(inference.history, 1 / body.control_hz)
        self._safety_filter = SafetyFilter(body, robot.limits, self._dt)
        self._lag = LagMonitor(body, config.stall, config.stall_seconds, self._dt)
        warn = partial(self._note, warning=True)
        self._health = HealthMonitor(robot, warn) if isinstance(robot, HealthReporting) else None
        self._positions = body.is_position_action
        # A delta is divided over the ticks of a step; a velocity or a force applies in every tick.
        self._divisor = np.where(np.array(body.action_mode) == "delta", self._per_step, 1)
        self._tally = Tally()
        self.reason: str | None = None
        self._outcome: Outcome = "error"
        self._started = self._answered = False
        self._index = self._failed = self._invalid = 0
        self._phase = self._per_step - 1  # the first tick holds and submits a request
        self._calls = RobotCalls(clock, config.camera_timeout, self._note, self.end)
        self._request: tuple[Request, float] | None = None
        self._goal: Float[np.ndarray, "a"] | None = None
        self._approach: Path | None = None
        self._began = self._acting_since = clock.now()

    def execute(
        self,
        poll: Callable[[], None],
        instruction: str,
        seconds: float,
        data: DataSummary,
        watch: Callable[[Tick], None] | None,
    ) -> None:
        self._poll, self._instruction, self._seconds, self._watch = poll, instruction, seconds, watch
        deadline = self._clock.now() + self._config.inference_timeout_s
        if (first := self._calls.attempt(self._robot.state, deadline)) is None:
            self.end(f"robot: {self._calls.fault}", "robot")
        elif self._take_state(first[0]):
            self._safety_filter.start(self._body.hold_action(self._state))
            self._previous_command = self._path = self._safety_filter.position
            self._began, self._started = self._clock.now(), True
            for name, excess in zip(self._body.action, self._safety_filter.excess, strict=True):
                if excess:
                    self._note(f"{name} is {abs(excess):.3g} outside its limit: it is moved back", warning=True)
            if data.start is not None:
                self._move_to_start(data.start)
            if data.state is not None:
                for warning in outside_training_data(self._body, self._state, data.state):
                    self._note(warning, warning=True)
            self._acting_since = self._clock.now()
            while self.reason is None:
                self._tick()
        else:
            self.end("robot: the first state is not finite, or has a wrong length", "robot")
        self.brake(watch)
        if self._config.end == "home" and data.start is not None and self._outcome == "done":
            self._go_home(data.start)

    def brake(self, watch: Callable[[Tick], None] | None) -> None:
        """Ticks until the arm has stopped."""
        self.end("error", "error")
        self._watch = watch
        # A command that does not reach the motors also stops the arm: then it is at rest already.
        while self._started and not self._safety_filter.at_rest:
            self._tick()

    def finish(self) -> None:
        """Holds the arm, or disables its torque, after it has stopped."""
        self._ended = self._clock.now()
        if self._config.end == "disable_torque":
            self._robot.disable_torque()
        elif self._started:
            self._calls.attempt(
                lambda: self._robot.hold(self._safety_filter.position), self._ended + self._config.inference_timeout_s
            )

    def stats(self) -> ControlStats:
        end, self._tally.faults = (self.reason or "error", self._outcome), self._calls.faults
        seconds = self._ended - self._began
        return self._tally.stats(end, seconds, self._queue.stale_fraction, self._safety_filter.clamps, self._events)

    def end(self, reason: str, outcome: Outcome) -> None:
        """Ends the run. Only the first reason is recorded."""
        if self.reason is None:
            self.reason, self._outcome = reason, outcome
            self._note(f"ended: {reason}")

    def _note(self, event: str, *, warning: bool = False) -> None:
        self._events.add(self._clock.now() - self._began, event, warning=warning)

    def _move_to_start(self, start: StartRegion) -> None:
        goal, offsets = outside_start(self._body, start, self._state)
        if not offsets:
            return
        moves = self._config.move_to_start
        listed = ", ".join(f"{name} by {offset:+.3g}" for name, offset in offsets.items())
        event = "moving slowly to the start pose" if moves else "the arm is away from the start pose"
        self._note(f"{event}: {listed}", warning=True)
        if moves:
            self._move(goal)

    def _go_home(self, start: StartRegion) -> None:
        """Moves home after a planned end. A stop or a fault during the motion replaces the reason."""
        planned, self.reason = (self.reason or "", self._outcome), None
        home = pose_action(self._body, self._state, np.array(start.median))
        self._move(np.clip(home, self._body.action_low, self._body.action_high))
        if self.reason is None:
            self.reason, self._outcome = planned
        self.brake(self._watch)

    def _move(self, goal: Float[np.ndarray, "a"]) -> None:
        """Moves the arm slowly to a pose, until it is reached or the run ends."""
        self._approach = slow_path(self._body, self._robot.limits, goal, self._config.slow, self._dt)
        while self.reason is None and self._approach is not None:
            self._tick()
        self._approach, self._path, self._goal = None, self._safety_filter.position, None

    def _tick(self) -> None:
        now, scheduled = self._wait_for_tick()
        deadline, self._calls.fault = scheduled + self._dt, None
        infer = self._answer(now)
        source: Source = "brake"
        desired = None
        if self.reason is None:
            source, desired = self._desired(now)
        safe, clamped = self._safety_filter.command(desired)
        for limit in clamped:
            self._note(f"clamped: {limit}")
        reached_motors, duration = self._send(safe, deadline)
        self._index += 1
        self._tally.ticks += 1
        self._tally.holds += source == "hold"
        self._tally.jitter.append(now - scheduled)
        observation, observe = self._sense(deadline)
        self._failed = self._failed + 1 if self._calls.fault else 0
        if self._failed > self._config.faults:
            self.end(f"robot: {self._calls.fault}", "robot")
        health = self._health if self.reason is None else None
        if health is not None and (failure := health.check(self._clock.now(), deadline)):
            self.end(failure, "robot")
        if self._watch is not None:
            self._watch(
                Tick(
                    time=now,
                    scheduled=scheduled,
                    state=self._state,
                    observation=observation,
                    desired=desired,
                    sent=safe if reached_motors else None,
                    clamped=clamped,
                    source=source,
                    observe=observe,
                    infer=infer,
                    command=duration,
                    left=self._queue.left(now),
                    temperatures=self._health.temperatures if self._health is not None else {},
                )
            )

    def _desired(self, now: float) -> tuple[Source, Float[np.ndarray, "a"] | None]:
        if self._approach is not None:
            if (target := self._approach(self._safety_filter.position)) is not None:
                return "approach", target
            if self._safety_filter.at_rest:
                self._approach = None
            return "approach", None
        if (target := self._advance(now)) is not None:
            return "chunk", target
        if self._answered:
            self._note("held: no action")
        position, excess = self._safety_filter.position, self._safety_filter.excess
        return "hold", position - excess if excess.any() else None

    def _wait_for_tick(self) -> tuple[float, float]:
        """Waits for the next tick; skips ticks over half a tick late. Returns the time and the scheduled time."""
        scheduled = self._began + self._index * self._dt
        self._clock.sleep_until(scheduled)
        if (late := math.ceil((self._clock.now() - scheduled) / self._dt - 0.5)) > 0:
            self._tally.missed += late
            self._note(f"missed deadlines: {late}")
            self._index += late
            self._safety_filter.reset_velocity()
            scheduled = self._began + self._index * self._dt
            self._clock.sleep_until(scheduled)
        return self._clock.now(), scheduled

    def _check_timeouts(self, now: float) -> None:
        if now - self._acting_since >= self._seconds - self._dt / 2 and self._approach is None:
            self.end("done", "done")
        timeout = self._config.inference_timeout_s if self._answered else self._config.first_inference_timeout_s
        if self._request is not None and now - self._request[1] > timeout:
            self.end(f"the policy has not answered for {timeout:g} s", "policy")

    def _answer(self, now: float) -> float | None:
        """Ends the run if required, else takes the policy's answer. Returns the inference delay of a new answer [s]."""
        if self.reason is None:
            self._poll()
            self._check_timeouts(now)
        if self.reason is not None:
            return None
        try:
            answer = self._inference.answer()
        except InferenceDied as error:
            self.end(f"the inference died: {error}", "policy")
            return None
        if answer is None or self._request is None:
            return None
        if answer.request.observation.time != self._request[0].observation.time:
            return None  # answer from an earlier run
        self._request, self._answered = None, True
        refused = self._queue.take(answer, now)
        self._tally.chunks += not refused
        self._tally.invalid += bool(refused)
        self._tally.infer.append(answer.answered - answer.requested)
        self._invalid = self._invalid + 1 if refused else 0
        if refused:
            self._note(f"invalid answer: {refused}", warning=self._config.invalid is not None)
        if self._config.invalid is not None and self._invalid >= self._config.invalid:
            self.end(f"{self._invalid} consecutive invalid answers: {refused}", "policy")
        return self._tally.infer[-1]

    def _sense(self, deadline: float) -> tuple[Observation | None, float | None]:
        """Reads the state, and at the end of a step the full observation. Runs after the command to not delay it."""
        if self.reason is not None:
            return None, None
        now = self._clock.now()
        if self._phase or self._approach is not None:
            measured = self._calls.attempt(self._robot.state, deadline)
            if measured is not None and self._take_state(measured[0]):
                self._check_lag(now)
            return None, None
        observation = self._calls.attempt(lambda: self._robot.observe(self._instruction), deadline)
        if observation is None or not self._take_state(observation.state):
            return None, None
        self._calls.cameras_ok()
        self._check_lag(now)
        duration = self._clock.now() - now
        self._tally.observe.append(duration)
        self._tally.cameras.add(observation, self._clock.now())
        with_history = self._history.with_past_frames(observation)
        if self._inference.busy or not self._queue.due(now):
            return observation, duration
        request = self._queue.request(with_history, self._safety_filter.position, now)
        self._request = request, now
        try:
            self._inference.submit(request)
        except InferenceDied as error:
            self.end(f"the inference died: {error}", "policy")
        return observation, duration

    def _check_lag(self, now: float) -> None:
        """Ends the run for a stalled joint. The arm has had one tick to follow the command before the last."""
        if names := self._lag.stalled(self._state, self._previous_command, now):
            self.end(f"stalled: {', '.join(names)}", "robot")

    def _take_state(self, state: Float[np.ndarray, "_"]) -> bool:
        """Stores a valid state. An invalid one counts as a transient fault, and False is returned."""
        if np.shape(state) == (len(self._body.state),) and np.isfinite(state).all():
            self._state = np.asarray(state)
            return True
        self._calls.note(RobotFault("the state is not finite, or has a wrong length", transient=True))
        return False

    def _advance(self, now: float) -> Float[np.ndarray, "a"] | None:
        """The target of this tick: linear interpolation to the policy's next action over the ticks of a step."""
        if self._phase == 0:
            if self._goal is None:
                self._path = self._safety_filter.position
            self._goal = self._queue.advance(now)
        left = self._per_step - self._phase
        self._phase = (self._phase + 1) % self._per_step
        if self._goal is None:
            return None
        self._path = interpolate(self._body, self._path, self._goal, 1 / left)
        return np.where(self._positions, self._path, self._goal / self._divisor)

    def _send(self, safe: Float[np.ndarray, "a"], deadline: float) -> tuple[bool, float]:
        """Sends a command; returns whether it reached the motors, and the duration [s]."""

        def send() -> bool:
            self._robot.command(safe)
            return True

        started, self._previous_command = self._clock.now(), self._safety_filter.position
        reached_motors = self._calls.attempt(send, deadline) is not None
        duration = self._clock.now() - started
        if reached_motors:
            self._safety_filter.sent()
            self._tally.command.append(duration)
        else:
            self._safety_filter.reset_velocity()
        return reached_motors, duration
