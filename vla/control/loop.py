"""The loop that owns the robot: at a fixed rate, from the first state to the standstill at the end.

A tick: take the policy's answer; where a step of the policy begins, take the next action; move the target on towards
it; let the safety_filter make it safe; send it; measure; where a step ends, observe, and ask the policy if it is due. Ticks
have absolute deadlines. One that would come too late is skipped, and the arm goes on from a standstill after it, for
that is what a gap means to the motors.

However a run ends (its time, a stop, a fault, an exception), the arm first brakes within its limits.
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
from vla.control.approach import Path, outside, pose_action, slow_path, unseen
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
    """Runs `inference`'s policy on `robot`, which it connects itself, if told to `connect`. Leaves `inference` open.

    `watch` is called in every tick and must not block. `data` says where the arm is moved before the policy acts, and
    home. `finished` says when the run has reached its aim, by a reason. What happens is added to `events`.
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
        """Until `seconds` of the policy are over or something ends it; the statistics say what.

        Raises InputError for a configuration that does not fit the robot, RobotFault where that does not connect, and
        whatever `watch` or the inference raise, but for InferenceDied: after the standstill.
        """
        steps_of(self._robot.embodiment.control_hz, self._config.hz)
        urgent = self._clock.priority(self._events) if isinstance(self._clock, WallClock) else nullcontext()
        with self._stop.signals():
            if reason := self._stop.poll():
                return Tally().stats((reason, "stopped"), 0.0, 0.0, {}, self._events)
            with self._robot if self._connect else nullcontext(), urgent:
                run = _Run(self._robot, self._inference, self._config, self._clock, self._events)
                try:
                    run.go(lambda: self._poll(run), instruction, seconds, self._data, self._watch)
                except BaseException:
                    run.brake(None)
                    raise
                finally:
                    run.rest()
        return run.stats()

    def _poll(self, run: _Run) -> None:
        if reason := self._stop.poll():
            run.end(reason, "stopped")
        elif reason := self._finished():
            run.end(reason, "done")


class _Run:
    """One run. `reason` is set as soon as it is to end; from then on the arm only brakes."""

    def __init__(self, robot: Robot, inference: Inference, config: LoopConfig, clock: Clock, events: EventLog) -> None:
        body = robot.embodiment
        self._robot, self._inference, self._config, self._clock, self._events = robot, inference, config, clock, events
        self._body, self._dt, self._per_step = body, 1 / config.hz, steps_of(body.control_hz, config.hz)
        self._buffer = ActionQueue(body, config.execution, config.n_action_steps, config.max_observation_age_s)
        self._history = FrameHistory(inference.history, 1 / body.control_hz)
        self._safety_filter = SafetyFilter(body, robot.limits, self._dt)
        self._lag = LagMonitor(body, config.stall, config.stall_seconds, self._dt)
        warn = partial(self._note, warning=True)
        self._health = HealthMonitor(robot, warn) if isinstance(robot, HealthReporting) else None
        self._positions = body.is_position_action
        # A step is dealt out over the ticks; a velocity and a force are in force in each.
        self._dealt = np.where(np.array(body.action_mode) == "delta", self._per_step, 1)
        self._tally = Tally()
        self.reason: str | None = None
        self._outcome: Outcome = "error"
        self._started = self._answered = False
        self._index = self._failed = self._invalid = 0
        self._phase = self._per_step - 1  # the first tick holds, and asks
        self._calls = RobotCalls(clock, config.camera_timeout, self._note, self.end)
        self._request: tuple[Request, float] | None = None
        self._goal: Float[np.ndarray, "a"] | None = None
        self._way: Path | None = None
        self._began = self._acting = clock.now()

    def go(
        self,
        poll: Callable[[], None],
        instruction: str,
        seconds: float,
        data: DataSummary,
        watch: Callable[[Tick], None] | None,
    ) -> None:
        self._poll, self._instruction, self._seconds, self._watch = poll, instruction, seconds, watch
        if (
            first := self._calls.attempt(self._robot.state, self._clock.now() + self._config.inference_timeout_s)
        ) is None:
            self.end(f"robot: {self._calls.fault}", "robot")
        elif self._take_state(first[0]):
            self._safety_filter.start(self._body.hold_action(self._state))
            self._due = self._path = self._safety_filter.position
            self._began, self._started = self._clock.now(), True
            for name, past in zip(self._body.action, self._safety_filter.excess, strict=True):
                if past:
                    self._note(f"{name} stands {abs(past):.3g} beyond its limit: it is moved back", warning=True)
            if data.start is not None:
                self._move_to_start(data.start)
            if data.state is not None:
                for what in unseen(self._body, self._state, data.state):
                    self._note(what, warning=True)
            self._acting = self._clock.now()
            while self.reason is None:
                self._tick()
        else:
            self.end("robot: the first state is not finite, or of a wrong width", "robot")
        self.brake(watch)
        if self._config.end == "home" and data.start is not None and self._outcome == "done":
            self._go_home(data.start)

    def brake(self, watch: Callable[[Tick], None] | None) -> None:
        self.end("error", "error")
        self._watch = watch
        # A command that does not reach the motors stops them too: then there is nothing to brake.
        while self._started and not self._safety_filter.at_rest:
            self._tick()

    def rest(self) -> None:
        """What follows the standstill."""
        self._ended = self._clock.now()
        if self._config.end == "disable_torque":
            self._robot.relax()
        elif self._started:
            self._calls.attempt(
                lambda: self._robot.hold(self._safety_filter.position), self._ended + self._config.inference_timeout_s
            )

    def stats(self) -> ControlStats:
        end, self._tally.faults = (self.reason or "error", self._outcome), self._calls.faults
        seconds = self._ended - self._began
        return self._tally.stats(end, seconds, self._buffer.stale_fraction, self._safety_filter.clamps, self._events)

    def end(self, reason: str, outcome: Outcome) -> None:
        """The first reason counts."""
        if self.reason is None:
            self.reason, self._outcome = reason, outcome
            self._note(f"ended: {reason}")

    def _note(self, what: str, *, warning: bool = False) -> None:
        self._events.add(self._clock.now() - self._began, what, warning=warning)

    def _move_to_start(self, start: StartRegion) -> None:
        goal, away = outside(self._body, start, self._state)
        if not away:
            return
        moves = self._config.move_to_start
        far = ", ".join(f"{name} by {offset:+.3g}" for name, offset in away.items())
        what = "moving slowly to the start pose" if moves else "the arm is away from the start pose"
        self._note(f"{what}: {far}", warning=True)
        if moves:
            self._move(goal)

    def _go_home(self, start: StartRegion) -> None:
        """The run has ended as planned; a stop or a fault on the way is its end after all."""
        planned, self.reason = (self.reason or "", self._outcome), None
        home = pose_action(self._body, self._state, np.array(start.median))
        self._move(np.clip(home, self._body.action_low, self._body.action_high))
        if self.reason is None:
            self.reason, self._outcome = planned
        self.brake(self._watch)

    def _move(self, goal: Float[np.ndarray, "a"]) -> None:
        """Moves the arm slowly to a pose, until it is there or the run is to end."""
        self._way = slow_path(self._body, self._robot.limits, goal, self._config.slow, self._dt)
        while self.reason is None and self._way is not None:
            self._tick()
        self._way, self._path, self._goal = None, self._safety_filter.position, None

    def _tick(self) -> None:
        now, scheduled = self._await()
        deadline, self._calls.fault = scheduled + self._dt, None
        infer = self._answer(now)
        source: Source = "brake"
        desired = None
        if self.reason is None:
            source, desired = self._desired(now)
        safe, clamped = self._safety_filter.command(desired)
        for limit in clamped:
            self._note(f"clamped: {limit}")
        arrived, took = self._send(safe, deadline)
        self._index += 1
        self._tally.ticks += 1
        self._tally.holds += source == "hold"
        self._tally.jitter.append(now - scheduled)
        observation, observe = self._sense(deadline)
        self._failed = self._failed + 1 if self._calls.fault else 0
        if self._failed > self._config.faults:
            self.end(f"robot: {self._calls.fault}", "robot")
        if (
            self._health is not None
            and self.reason is None
            and (ill := self._health.check(self._clock.now(), deadline))
        ):
            self.end(ill, "robot")
        if self._watch is not None:
            self._watch(
                Tick(
                    time=now,
                    scheduled=scheduled,
                    state=self._state,
                    observation=observation,
                    desired=desired,
                    sent=safe if arrived else None,
                    clamped=clamped,
                    source=source,
                    observe=observe,
                    infer=infer,
                    command=took,
                    left=self._buffer.left(now),
                    temperatures=self._health.temperatures if self._health is not None else {},
                )
            )

    def _desired(self, now: float) -> tuple[Source, Float[np.ndarray, "a"] | None]:
        if self._way is not None:
            if (target := self._way(self._safety_filter.position)) is not None:
                return "approach", target
            if self._safety_filter.at_rest:
                self._way = None
            return "approach", None
        if (target := self._advance(now)) is not None:
            return "chunk", target
        if self._answered:
            self._note("held: no action")
        return (
            "hold",
            self._safety_filter.position - self._safety_filter.excess if self._safety_filter.excess.any() else None,
        )

    def _await(self) -> tuple[float, float]:
        """Now, and when the tick was to begin. Those that would begin more than half their time late are skipped."""
        scheduled = self._began + self._index * self._dt
        self._clock.sleep_until(scheduled)
        if (late := math.ceil((self._clock.now() - scheduled) / self._dt - 0.5)) > 0:
            self._tally.missed += late
            self._note(f"missed deadlines: {late}")
            self._index += late
            self._safety_filter.stood_still()
            scheduled = self._began + self._index * self._dt
            self._clock.sleep_until(scheduled)
        return self._clock.now(), scheduled

    def _overdue(self, now: float) -> None:
        if now - self._acting >= self._seconds - self._dt / 2 and self._way is None:
            self.end("done", "done")
        patience = self._config.inference_timeout_s if self._answered else self._config.first_inference_timeout_s
        if self._request is not None and now - self._request[1] > patience:
            self.end(f"the policy has not answered for {patience:g} s", "policy")

    def _answer(self, now: float) -> float | None:
        """Whether the run is to end now, and else the answer; how long the policy took for it, if there is one."""
        if self.reason is None:
            self._poll()
            self._overdue(now)
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
            return None  # of an earlier run
        self._request, self._answered = None, True
        refused = self._buffer.take(answer, now)
        self._tally.chunks += not refused
        self._tally.invalid += bool(refused)
        self._tally.infer.append(answer.answered - answer.asked)
        self._invalid = self._invalid + 1 if refused else 0
        if refused:
            self._note(f"invalid answer: {refused}", warning=self._config.invalid is not None)
        if self._config.invalid is not None and self._invalid >= self._config.invalid:
            self.end(f"{self._invalid} invalid answers, one after the other: {refused}", "policy")
        return self._tally.infer[-1]

    def _sense(self, deadline: float) -> tuple[Observation | None, float | None]:
        """After the command, so that this is on time: at a step's end all that is seen, else the state."""
        if self.reason is not None:
            return None, None
        now = self._clock.now()
        if self._phase or self._way is not None:
            measured = self._calls.attempt(self._robot.state, deadline)
            if measured is not None and self._take_state(measured[0]):
                self._check_lag(now)
            return None, None
        observation = self._calls.attempt(lambda: self._robot.observe(self._instruction), deadline)
        if observation is None or not self._take_state(observation.state):
            return None, None
        self._calls.seen()
        self._check_lag(now)
        took = self._clock.now() - now
        self._tally.observe.append(took)
        self._tally.cameras.add(observation, self._clock.now())
        seen = self._history.with_past_frames(observation)
        if self._inference.busy or not self._buffer.due(now):
            return observation, took
        request = self._buffer.request(seen, self._safety_filter.position, now)
        self._request = request, now
        try:
            self._inference.ask(request)
        except InferenceDied as error:
            self.end(f"the inference died: {error}", "policy")
        return observation, took

    def _check_lag(self, now: float) -> None:
        """Against the command before the last: the arm has had a tick to follow it, however long a tick is."""
        if names := self._lag.stalled(self._state, self._due, now):
            self.end(f"stalled: {', '.join(names)}", "robot")

    def _take_state(self, state: Float[np.ndarray, "_"]) -> bool:
        """Whether it can be one; what cannot counts as a fault that may pass."""
        if np.shape(state) == (len(self._body.state),) and np.isfinite(state).all():
            self._state = np.asarray(state)
            return True
        self._calls.note(RobotFault("the state is not finite, or of a wrong width", transient=True))
        return False

    def _advance(self, now: float) -> Float[np.ndarray, "a"] | None:
        """The target of this tick, on the straight line to the policy's next action; a step is dealt out evenly."""
        if self._phase == 0:
            if self._goal is None:
                self._path = self._safety_filter.position
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

        begun, self._due = self._clock.now(), self._safety_filter.position
        arrived = self._calls.attempt(send, deadline) is not None
        took = self._clock.now() - begun
        if arrived:
            self._safety_filter.sent()
            self._tally.command.append(took)
        else:
            self._safety_filter.stood_still()
        return arrived, took
