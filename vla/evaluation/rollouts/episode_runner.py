"""One environment under a policy that may take its time.

Simulated time goes on for the ceil(delay / period) steps that the policy thinks; what is carried out meanwhile is up to
`vla.control.action_queue`, as on a robot. Without a delay all executions but the ensemble are one.
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
    """One environment with its policy, the actions to come and its recorder.

    An environment that does not draw by itself is asked to `capture` its images when the policy is asked, or at every
    step with `every_frame` and for a policy that is shown past frames; at other steps the recorder gets those of the
    last capture. With `safety_filter` an environment that has limits (`limits_of`) gets what `SafetyFilter` makes of the actions, as a
    robot does.
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
        self.trial = trial
        values, info = self.env.reset(seed=trial.seed, options=dict(trial.options))
        self.instruction: str = info["instruction"]
        # Slack against a delay of three periods that is a hair more than that.
        self._late = math.ceil(trial.delay * self._hz - 1e-6)
        body = self.policy.embodiment
        self._buffer = ActionQueue(
            body, trial.execution, self.n_action_steps, max_observation_age_s=math.inf, delay=self._late
        )
        self._coming: tuple[int, Answer] | None = None
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
            plain = trial.execution == "naive" and not trial.delay
            late = {} if plain else {"delay": trial.delay, "execution": trial.execution}
            self.recorder.start(self.instruction, seed=trial.seed, group=trial.group, **late, **repeats)

    def abort(self) -> None:
        if self.recorder is not None:
            self.recorder.abort()

    def _observe(self, values: dict[str, Any], *, fresh: bool) -> None:
        if self._capture is not None:
            values = values | {"images": self._capture() if fresh else self.observation.images}
        self.observation = to_observation(values, self._now)
        self._seen = self._history.with_past_frames(self.observation)

    @property
    def _now(self) -> float:
        return self.length / self._hz

    @property
    def wants_chunk(self) -> bool:
        return self._buffer.due(self._now)

    def request(self) -> Request:
        """What to ask the policy; `take` is to get its answer before the next step."""
        self._request = self._buffer.request(self._seen, self._hold, self._now)
        return self._request

    def take(self, chunk: ActionChunk | None) -> None:
        self.invalid += chunk is None
        self._coming = self.length + self._late, Answer(self._request, chunk, self._now, self._now)

    def _arrive(self) -> None:
        if self._coming is not None and self.length >= self._coming[0]:
            (_, answer), self._coming = self._coming, None
            if answer.chunk is not None:  # a fault of the policy is to be seen, not held
                self.policy.embodiment.check_action(answer.chunk.actions)
            self._buffer.take(answer, self._now)

    def step(self) -> Result | None:
        """Acts once; the result where that ended the episode. Without a valid chunk the arm holds still."""
        self._arrive()
        said = {} if self.recorder is None else self._said()
        wanted = self._buffer.advance(self._now)
        action = self._guarded(wanted)
        if self.recorder is not None:
            self.recorder.step(self.observation, action, **said)
        values, _, terminated, truncated, info = self.env.step(action)
        # A position stays in force; a delta, velocity or force is over when it is done.
        self._hold, self.length = np.where(self.policy.embodiment.is_position_action, action, 0.0), self.length + 1
        self._measure(action if wanted is None else wanted, action)
        done = terminated or truncated
        self._arrive()
        self._observe(values, fresh=not done and (self._every_frame or self.wants_chunk))
        return self._finish(info) if done else None

    def _said(self) -> dict[str, Any]:
        """What is recorded of the chunk in force."""
        if (chunk := self._buffer.latest(self._now)) is None:
            return {}
        rest = self._buffer.rest(self._now)
        # As many rows as the whole chunk has: an episode store has one height for all.
        rows = np.pad(rest, ((0, len(chunk.actions) - len(rest)), (0, 0)), constant_values=np.nan)
        return {"chunk": rows, "points": chunk.points}

    def _guarded(self, wanted: Float[np.ndarray, "a"] | None) -> Float[np.ndarray, "a"]:
        if self._safety_filter is None:
            return self._hold if wanted is None else wanted
        safe, hit = self._safety_filter.command(wanted)
        self._safety_filter.sent()
        self._clamped += bool(hit)
        return safe

    def _measure(self, wanted: Float[np.ndarray, "a"], sent: Float[np.ndarray, "a"]) -> None:
        self._commands.append(np.array(sent, np.float64))
        self._hits += bool((wanted <= self._low).any() or (wanted >= self._high).any())
        now = touched(self.env)
        self._collisions += len(now - self._touching)
        self._touching = now

    def _finish(self, info: dict[str, Any]) -> Result:
        if self.recorder is not None:
            self.recorder.finish(bool(info["success"]))
        commands = unwrapped(self.policy.embodiment, np.stack(self._commands))
        third = np.diff(commands, n=3, axis=0) * self._hz**3
        return Result(
            seed=self.trial.seed,
            group=self.trial.group,
            instruction=self.instruction,
            success=bool(info["success"]),
            wrong_object=bool(info["wrong_object"]),
            length=self.length,
            invalid=self.invalid,
            seconds=self.length / self._hz,
            jerk=float(np.sqrt(np.mean(third**2))) if len(third) else 0.0,
            collisions=self._collisions,
            limit_hits=self._hits,
            clamped=self._clamped,
            delay=self.trial.delay,
            execution=self.trial.execution,
        )
