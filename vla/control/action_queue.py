"""The action queue between a policy with inference delay and the robot, used on robots and in `vla eval`.

Steps are policy steps, counted as they are executed: a stalled loop delays steps and skips none. A period in which the
arm held because no action was available is not a step, unless an action prefix contained it.

| execution | during inference                        | where execution of a new chunk starts                          |
|-----------|-----------------------------------------|----------------------------------------------------------------|
| naive     | the arm holds                           | at its first action                                            |
| chunked   | the previous chunk continues            | at the current step; actions for steps that passed are skipped |
| rtc       | as chunked                              | as chunked; the chunk begins with the action prefix            |
| guided    | as chunked                              | as rtc; later actions are guided towards the previous chunk    |
| ensemble  | all chunks that reach the step continue | as chunked; actions are averaged, the oldest weighs most       |

rtc: real-time chunking (Black et al. 2025, arXiv 2506.07339) with the committed actions as a forced action prefix.
guided: the soft mask of the same paper, for flow heads (`vla.models.action_heads.rtc_guidance`), with the identity as
Jacobian; `guided-vjp` uses the vector-Jacobian product. ensemble: temporal ensembling (ACT, Zhao et al. 2023, arXiv
2304.13705, sec. IV-B) with weights exp(-0.01 i), where i = 0 is the oldest chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vla.control.inference import PREFIXED, Answer, Request
from vla.embodiment import Embodiment
from vla.errors import InputError, unknown
from vla.kinematics.action_space import average
from vla.types import ActionChunk, GuidanceMode, Observation, RTCPrefix

EXECUTIONS = ("naive", "chunked", "rtc", "guided", "guided-vjp", "ensemble")
GUIDANCE_MODES: Mapping[str, GuidanceMode] = {"guided": "identity", "guided-vjp": "vjp"}
"""Guidance mode by execution."""
RECENT = 8
"""Number of recent inference delays whose maximum is expected next; an old, slow one does not count for ever."""
DECAY = 0.01
"""Exponential decay of the ensemble weights per chunk."""


@dataclass(frozen=True)
class _Chunk:
    actions: Float[np.ndarray, "h a"]
    start: int
    captured: float
    predicted: ActionChunk

    def rest(self, step: int) -> Float[np.ndarray, "k a"]:
        """The actions from `step` on."""
        return self.actions[max(step - self.start, 0) :]


def check_settings(execution: str, n_action_steps: int) -> None:
    """Checks the execution mode and the execution horizon.

    Raises:
        InputError: for an unknown execution, or an execution horizon below 1.
    """
    if execution not in EXECUTIONS:
        raise unknown("execution", execution, EXECUTIONS)
    if n_action_steps < 1:
        raise InputError(f"n_action_steps must be at least 1, not {n_action_steps}")


class ActionQueue:
    """Queue of the actions still to be executed.

    `due` reports whether to request a chunk, `request` builds the request, `take` accepts the answer, and `advance`
    returns the action of the next period. A request is due `n_action_steps` steps after the last one, or as soon as
    the policy is free.

    Args:
        body: The robot's embodiment.
        execution: One of EXECUTIONS.
        n_action_steps: Execution horizon: steps between two requests.
        max_observation_age_s: Age of its observation [s] at which a chunk expires.
        delay: Inference delay [periods], if it is known. None: the longest of the last RECENT delays.

    Raises:
        InputError: for an unknown execution, or an execution horizon below 1.
    """

    def __init__(
        self,
        body: Embodiment,
        execution: str,
        n_action_steps: int,
        max_observation_age_s: float,
        delay: int | None = None,
    ) -> None:
        check_settings(execution, n_action_steps)
        self._body, self._execution, self._n_action_steps, self._max_observation_age = (
            body,
            execution,
            n_action_steps,
            max_observation_age_s,
        )
        self._chunks: list[_Chunk] = []
        self._fixed_delay, self._delays = delay, deque[int](maxlen=RECENT)
        self._request_step = self._chunk_step = -n_action_steps
        self._prefix_end = self._periods = self._request_period = 0
        self._waiting = False
        self._horizon = self._received = 0
        self.step = 0
        """Number of steps that have begun."""
        self._stale = 0

    def due(self, now: float) -> bool:
        """Whether a new chunk is to be requested now, provided that the policy is free."""
        if self._waiting:
            return False
        naive = self._execution == "naive"
        left = self.left(now)
        since = self.step - (self._chunk_step if naive else self._request_step)
        # Early enough for the next chunk to arrive before this one ends. That is impossible for a chunk shorter than
        # two delays: requesting halfway, or at the end if it is no longer than one delay, executes most actions.
        early = min(self._delay, self._horizon // 2) if self._delay < self._horizon else 0
        return since >= self._n_action_steps or left <= (0 if naive else early)

    @property
    def _delay(self) -> int:
        return self._fixed_delay if self._fixed_delay is not None else max(self._delays, default=0)

    def request(self, observation: Observation, held: Float[np.ndarray, "a"], now: float) -> Request:
        """The inference request at the start of a step.

        Args:
            observation: The current observation.
            held: The position at which the arm holds when actions run out.
            now: The current time [s].
        """
        prefix = self._prefix(held, now)
        self._request_step, self._request_period, self._waiting = self.step, self._periods, True
        self._prefix_end = self.step + (0 if prefix is None else len(prefix.committed))
        if self._execution == "naive":
            self._chunks = []
        return Request(observation, prefix, self.step)

    def _prefix(self, held: Float[np.ndarray, "a"], now: float) -> RTCPrefix | None:
        """The actions executed during the expected inference delay, and for guidance those after them."""
        count = min(self._delay, self._horizon - 1)
        if self._execution not in PREFIXED or count < 1:
            return None
        rest, leftover = np.split(self.rest(now), [count])
        last = np.where(self._body.is_position_action, rest[-1] if len(rest) else held, 0.0)
        committed = np.concatenate([rest, np.repeat(last[None], count - len(rest), axis=0)])
        if self._execution not in GUIDANCE_MODES or not len(leftover):
            return RTCPrefix(committed)
        return RTCPrefix(committed, leftover, GUIDANCE_MODES[self._execution])

    def take(self, answer: Answer, now: float) -> str:
        """Accepts the answer to the last request.

        Returns:
            Why the answer is not usable; empty for a usable chunk.
        """
        self._waiting = False
        passed = self.step - answer.request.start
        if self._received:  # the delay of the first answer includes one-time initialization
            self._delays.append(self._periods - self._request_period)
        if answer.chunk is None:
            return answer.reason or "no valid chunk"
        try:
            self._body.check_action(answer.chunk.actions)
        except InputError as error:
            return str(error)
        captured, actions = answer.request.observation.time, np.asarray(answer.chunk.actions, float)
        chunk = _Chunk(actions, answer.request.start, captured, answer.chunk)
        self._horizon = len(chunk.actions)
        self._received += self._horizon
        self._stale += min(passed, len(chunk.actions))
        if not len(chunk.rest(self.step)) or self._expired(chunk, now):
            return "too late"
        self._chunks = [*(self._chunks if self._execution == "ensemble" else ()), chunk]
        self._chunk_step = self.step
        return ""

    def left(self, now: float) -> int:
        """Number of actions in the queue from the next step on."""
        return max((len(chunk.rest(self.step)) for chunk in self._live(now)), default=0)

    def rest(self, now: float) -> Float[np.ndarray, "k a"]:
        """The actions in the queue from the next step on; may be empty."""
        if not (live := self._live(now)):
            return np.empty((0, len(self._body.action)))
        if len(live) == 1:
            return live[0].rest(self.step)
        length = max(len(chunk.rest(self.step)) for chunk in live)
        return np.stack([self._at(self.step + ahead) for ahead in range(length)])

    def advance(self, now: float) -> Float[np.ndarray, "a"] | None:
        """The action of the period that begins now; None if the queue has no valid action."""
        action = self._at(self.step) if self._live(now) else None
        self._periods += 1
        self.step += action is not None or self.step < self._prefix_end
        return action

    def latest(self, now: float) -> ActionChunk | None:
        """The newest chunk in execution, as the policy predicted it."""
        return live[-1].predicted if (live := self._live(now)) else None

    @property
    def stale_fraction(self) -> float:
        """Fraction of all received actions that arrived after their step and were not executed."""
        return self._stale / self._received if self._received else 0.0

    def _live(self, now: float) -> list[_Chunk]:
        """The chunks with valid actions left; drops the others."""
        self._chunks = [c for c in self._chunks if len(c.rest(self.step)) and not self._expired(c, now)]
        return self._chunks

    def _at(self, step: int) -> Float[np.ndarray, "a"]:
        actions = [rest[0] for chunk in self._chunks if len(rest := chunk.rest(step))]
        if len(actions) == 1:
            return actions[0]
        return average(self._body, np.stack(actions), np.exp(-DECAY * np.arange(len(actions))))

    def _expired(self, chunk: _Chunk, now: float) -> bool:
        return now - chunk.captured > self._max_observation_age
