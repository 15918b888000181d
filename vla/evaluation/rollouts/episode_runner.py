"""Runs episodes in one environment, with a simulated inference delay.

An action chunk arrives ceil(delay / period) steps after its request; the actions executed meanwhile are determined by
`vla.control.action_queue`, as on a robot. Without a delay all execution modes except the ensemble are equal.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float

from vla.control.action_queue import ActionQueue
from vla.control.inference import Answer, Request
from vla.control.safety_filter import SafetyFilter
from vla.envs.so101 import to_observation
from vla.evaluation.rollouts.contacts import touched
from vla.evaluation.rollouts.trial import Result, Trial
from vla.kinematics.action_space import unwrapped
from vla.policies.history import FrameHistory, history_of
from vla.policies.policy import Policy
from vla.recording.recorder import Recorder
from vla.robots.limits import limits_of
from vla.types import ActionChunk, Observation


class EpisodeRunner:
    """An environment with its policy, action queue and recorder.

    If the environment does not render by itself, images are captured for predictions only; the recorder repeats the
    last images at other steps.

    Args:
        env: The environment.
        policy: The policy.
        recorder: Records the episodes.
        n_action_steps: The execution horizon.
        every_frame: Whether images are captured at every step; always so for a policy with past frames.
        safety_filter: Whether actions pass a `SafetyFilter`, if the environment has limits (`limits_of`).
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        policy: Policy,
        recorder: Recorder | None = None,
        n_action_steps: int = 8,
        every_frame: bool = False,
        safety_filter: bool = True,
    ) -> None:
        self.env, self.policy, self.recorder, self.n_action_steps = env, policy, recorder, n_action_steps
        inner = env.unwrapped
        self._capture = None if getattr(inner, "draws", True) else inner.capture  # type: ignore[attr-defined]
        self._history = FrameHistory.of(policy)
        self._every_frame = every_frame or bool(history_of(policy))
        body = policy.embodiment
        self._hz, self._low, self._high = body.control_hz, np.array(body.action_low), np.array(body.action_high)
        limits = limits_of(env) if safety_filter else None
        self._safety_filter = None if limits is None else SafetyFilter(body, limits, 1 / body.control_hz)

    observation: Observation
    trial: Trial

    def start(self, trial: Trial) -> None:
        """Resets the environment, the policy and the queue, and starts the recording."""
        self.trial = trial
        values, info = self.env.reset(seed=trial.seed, options=dict(trial.options))
        self.instruction: str = info["instruction"]
        # Tolerance for rounding errors in delay * rate.
        self._delay_steps = math.ceil(trial.delay * self._hz - 1e-6)
        body = self.policy.embodiment
        self._queue = ActionQueue(
            body, trial.execution, self.n_action_steps, max_observation_age_s=math.inf, delay=self._delay_steps
        )
        self._pending: tuple[int, Answer] | None = None
        self.length = self.invalid = 0
        self._hits = self._clamped = self._collisions = 0
        self._touching = touched(self.env)
        self._commands: list[Float[np.ndarray, "a"]] = []
        self._history.reset()
        self._observe(values, fresh=True)
        self._hold = np.asarray(body.hold_action(self.observation.state), np.float64)
        if self._safety_filter is not None:
            self._safety_filter.start(self._hold)
        self.policy.reset()
        if self.recorder is not None:
            repeats = {"frames": "asked"} if self._capture is not None and not self._every_frame else {}
            default = trial.execution == "naive" and not trial.delay
            timing = {} if default else {"delay": trial.delay, "execution": trial.execution}
            self.recorder.start(self.instruction, seed=trial.seed, group=trial.group, **timing, **repeats)

    def abort(self) -> None:
        """Discards the recording of the current episode."""
        if self.recorder is not None:
            self.recorder.abort()

    def _observe(self, values: dict[str, Any], *, fresh: bool) -> None:
        if self._capture is not None:
            values = values | {"images": self._capture() if fresh else self.observation.images}
        self.observation = to_observation(values, self._now)
        self._policy_input = self._history.with_past_frames(self.observation)

    @property
    def _now(self) -> float:
        return self.length / self._hz

    @property
    def wants_chunk(self) -> bool:
        """Whether an action chunk is to be requested before the next step."""
        return self._queue.due(self._now)

    def request(self) -> Request:
        """The request for the policy; pass its action chunk to `take` before the next step."""
        self._request = self._queue.request(self._policy_input, self._hold, self._now)
        return self._request

    def take(self, chunk: ActionChunk | None) -> None:
        """Takes the chunk of the last request, which arrives after the delay; None is an invalid prediction."""
        self.invalid += chunk is None
        self._pending = self.length + self._delay_steps, Answer(self._request, chunk, self._now, self._now)

    def _arrive(self) -> None:
        if self._pending is not None and self.length >= self._pending[0]:
            (_, answer), self._pending = self._pending, None
            if answer.chunk is not None:  # raises for an invalid action, which the queue would hold
                self.policy.embodiment.check_action(answer.chunk.actions)
            self._queue.take(answer, self._now)

    def step(self) -> Result | None:
        """Executes one action (a hold action without a valid chunk); returns the result if the episode ended."""
        self._arrive()
        prediction = {} if self.recorder is None else self._prediction()
        requested = self._queue.advance(self._now)
        action = self._filtered(requested)
        if self.recorder is not None:
            self.recorder.step(self.observation, action, **prediction)
        values, _, terminated, truncated, info = self.env.step(action)
        # To hold still, positions are repeated, and deltas, velocities and forces are zero.
        self._hold, self.length = np.where(self.policy.embodiment.is_position_action, action, 0.0), self.length + 1
        self._measure(action if requested is None else requested, action)
        done = terminated or truncated
        self._arrive()
        self._observe(values, fresh=not done and (self._every_frame or self.wants_chunk))
        return self._finish(info) if done else None

    def _prediction(self) -> dict[str, Any]:
        """The recorded fields of the current action chunk."""
        if (chunk := self._queue.latest(self._now)) is None:
            return {}
        rest = self._queue.rest(self._now)
        # Padded to the length of the chunk, since an episode store has arrays of fixed shape.
        rows = np.pad(rest, ((0, len(chunk.actions) - len(rest)), (0, 0)), constant_values=np.nan)
        return {"chunk": rows, "points": chunk.points}

    def _filtered(self, requested: Float[np.ndarray, "a"] | None) -> Float[np.ndarray, "a"]:
        if self._safety_filter is None:
            return self._hold if requested is None else requested
        safe, hit = self._safety_filter.command(requested)
        self._safety_filter.sent()
        self._clamped += bool(hit)
        return safe

    def _measure(self, requested: Float[np.ndarray, "a"], sent: Float[np.ndarray, "a"]) -> None:
        self._commands.append(np.array(sent, np.float64))
        self._hits += bool((requested <= self._low).any() or (requested >= self._high).any())
        now = touched(self.env)
        self._collisions += len(now - self._touching)
        self._touching = now

    def _finish(self, info: dict[str, Any]) -> Result:
        if self.recorder is not None:
            self.recorder.finish(bool(info["success"]))
        commands = unwrapped(self.policy.embodiment, np.stack(self._commands))
        jerk = np.diff(commands, n=3, axis=0) * self._hz**3
        return Result(
            seed=self.trial.seed,
            group=self.trial.group,
            instruction=self.instruction,
            success=bool(info["success"]),
            wrong_object=bool(info["wrong_object"]),
            length=self.length,
            invalid=self.invalid,
            seconds=self.length / self._hz,
            jerk=float(np.sqrt(np.mean(jerk**2))) if len(jerk) else 0.0,
            collisions=self._collisions,
            limit_hits=self._hits,
            clamped=self._clamped,
            delay=self.trial.delay,
            execution=self.trial.execution,
        )
