"""One environment under a policy that may take its time.

Simulated time goes on for the d = ceil(delay / period) steps that the policy thinks, and then:

| execution | while the policy thinks                  | its chunk begins                                  |
|-----------|------------------------------------------|---------------------------------------------------|
| naive     | the last command is held                 | at its first action, d steps late                  |
| chunked   | the old chunk goes on, then is held      | at the action of the present step: d are skipped   |
| rtc       | the same                                 | there too, after d actions that it was given: the  |
|           |                                          | committed ones, as `predict(prefix=...)`           |
| guided,   | the same                                 | the same; those after are drawn to the old chunk's |
| guided-vjp|                                          | (a flow's: `vla.actions.guidance`)                 |

rtc and guided are real-time chunking (Black et al. 2025, arXiv 2506.07339), as far as the policy honours a prefix.
Without a delay all are one. The policy is asked `execute` steps after it was asked last, or as soon as it is free
again.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float

from vla.control.guard import Guard
from vla.control.limits import limits_of
from vla.envs.so101 import to_observation
from vla.evaluation.contacts import touched
from vla.evaluation.trial import Result, Trial
from vla.policies.protocol import Policy
from vla.recording.protocol import Recorder
from vla.types import ActionChunk, Observation


class Slot:
    """One environment with its policy, its chunk in force and its recorder.

    An environment that does not draw by itself is asked to `capture` its images when the policy is asked, or at every
    step with `every_frame`; at other steps the recorder gets those of the last capture. With `guard` an environment
    that has limits (`limits_of`) gets what `Guard` makes of the actions, as a robot does.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        policy: Policy,
        recorder: Recorder | None = None,
        execute: int = 8,
        every_frame: bool = False,
        guard: bool = True,
    ) -> None:
        self.env, self.policy, self.recorder, self.execute = env, policy, recorder, execute
        inner = env.unwrapped
        self._capture = None if getattr(inner, "draws", True) else inner.capture  # type: ignore[attr-defined]
        self._every_frame = every_frame
        body = policy.embodiment
        self._stays = np.isin(body.action, body.state)  # what is a step, not a place, is over when it is done
        self._hz, self._low, self._high = body.control_hz, np.array(body.action_low), np.array(body.action_high)
        limits = limits_of(env) if guard else None
        self._guard = None if limits is None else Guard(body, limits, 1 / body.control_hz)

    observation: Observation
    trial: Trial

    def start(self, trial: Trial) -> None:
        self.trial = trial
        values, info = self.env.reset(seed=trial.seed, options=dict(trial.options))
        self.instruction: str = info["instruction"]
        # Slack against a delay of three periods that is a hair more than that.
        self._late = math.ceil(trial.delay * self._hz - 1e-6)
        self._ahead = trial.execution != "naive"
        self.length = self.invalid = self._asked = self._begun = 0
        self._hits = self._clamped = self._collisions = 0
        self.chunk: ActionChunk | None = None
        self._coming: ActionChunk | None = None
        self._waiting = False
        self._touching = touched(self.env)
        self._commands: list[Float[np.ndarray, "a"]] = []
        self._observe(values, fresh=True)
        self._hold = np.asarray(self.policy.embodiment.anchor(self.observation.state), np.float64)
        if self._guard is not None:
            self._guard.start(self._hold)
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
        self.observation = to_observation(values, self.length / self._hz)

    @property
    def wants_chunk(self) -> bool:
        if self._waiting:
            return False
        if self.chunk is None or self._spent:
            return True
        since = self._asked if self._ahead else self._begun
        return self.length - since >= max(self.execute, self._late if self._ahead else 0)

    @property
    def prefix(self) -> Float[np.ndarray, "k a"] | None:
        """The actions that are carried out before the chunk asked for now can begin."""
        if self.trial.execution in ("naive", "chunked") or not self._late:
            return None
        rest = self._rest()[: self._late]
        held = np.where(self._stays, rest[-1], 0.0)
        return np.concatenate([rest, np.repeat(held[None], self._late - len(rest), axis=0)])

    @property
    def guide(self) -> dict[str, Any]:
        """The old chunk's actions after the prefix, where the new one is to be guided by them and there are any."""
        if "guided" not in self.trial.execution or not self._late or not len(beyond := self._rest()[self._late :]):
            return {}
        return {"beyond": beyond, "vjp": self.trial.execution == "guided-vjp"}

    def take(self, chunk: ActionChunk | None) -> None:
        """What the policy says to the present observation."""
        self._coming, self._asked, self._waiting = chunk, self.length, True
        self.invalid += chunk is None
        self._arrive()

    def _arrive(self) -> None:
        if self._waiting and self.length >= self._asked + self._late:
            self.chunk, self._waiting = self._coming, False
            self._begun = self._asked if self._ahead else self.length
        elif not self._ahead and self._waiting:
            self.chunk = None

    def _rest(self) -> Float[np.ndarray, "k a"]:
        """The actions still to come; the last command where there is none."""
        if self.chunk is None or self._spent:
            return self._hold[None]
        return self.chunk.actions[self.length - self._begun :]

    @property
    def _spent(self) -> bool:
        return self.chunk is not None and self.length - self._begun >= len(self.chunk.actions)

    def step(self) -> Result | None:
        """Acts once; the result where that ended the episode. Without a valid chunk the arm holds still."""
        self._arrive()
        rest = self._rest()
        action = self._guarded(rest[0])
        if self.recorder is not None:
            said: dict[str, Any] = {}
            if self.chunk is not None and not self._spent:
                # As many rows as the whole chunk has: an episode store has one height for all.
                rows = np.pad(rest, ((0, len(self.chunk.actions) - len(rest)), (0, 0)), constant_values=np.nan)
                said = {"chunk": rows, "points": self.chunk.points}
            self.recorder.step(self.observation, action, **said)
        values, _, terminated, truncated, info = self.env.step(action)
        self._hold, self.length = np.where(self._stays, action, 0.0), self.length + 1
        self._measure(rest[0], action)
        done = terminated or truncated
        self._arrive()
        self._observe(values, fresh=not done and (self._every_frame or self.wants_chunk))
        return self._finish(info) if done else None

    def _guarded(self, action: Float[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
        if self._guard is None:
            return action
        self.policy.embodiment.check_action(action)  # a fault of the policy is to be seen, not held
        safe, hit = self._guard.command(action)
        self._guard.sent()
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
        third = np.diff(np.stack(self._commands), n=3, axis=0) * self._hz**3
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
