"""The actions still to be carried out, chunk after chunk, of a policy that takes its time: on robots and in `vla eval`.

Steps are those of the policy, counted as they are carried out: a loop that stalls delays them, and skips none. A period
in which the arm held for want of an action is no step, unless the policy was told of it (in a prefix).

| execution | while the policy thinks       | a new chunk begins                                                     |
|-----------|-------------------------------|------------------------------------------------------------------------|
| naive     | holds                         | at its first action                                                    |
| chunked   | the old chunk goes on         | at the present step: as many are skipped as were carried out meanwhile |
| rtc       | the same                      | there too, after the actions that it was given to begin with           |
| guided    | the same                      | the same; what comes after those is drawn to the old chunk's           |
| ensemble  | all chunks that reach so far  | there too; their actions are averaged, the oldest weighing most        |

rtc: real-time chunking (Black et al. 2025, arXiv 2506.07339), the committed actions a forced prefix. guided: the same
paper's soft mask, for flows (`vla.models.action_heads.rtc_guidance`), with the identity for a Jacobian or,
`guided-vjp`, the product with it. ensemble: temporal ensembling (ACT, Zhao et al. 2023, arXiv 2304.13705, sec. IV-B):
weights exp(-0.01 i), i = 0
the oldest.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vla.control.inference import PREFIXED, Answer, Request
from vla.embodiment import Embodiment
from vla.errors import InputError, unknown
from vla.kinematics.action_space import average
from vla.types import ActionChunk, Observation

EXECUTIONS = ("naive", "chunked", "rtc", "guided", "guided-vjp", "ensemble")
RECENT = 8
"""Delays of which the longest is expected next: a lifetime's would keep the first, slow one for ever."""
DECAY = 0.01


@dataclass(frozen=True)
class _Chunk:
    actions: Float[np.ndarray, "h a"]
    start: int
    captured: float
    said: ActionChunk

    def rest(self, step: int) -> Float[np.ndarray, "k a"]:
        return self.actions[max(step - self.start, 0) :]


def check_settings(execution: str, n_action_steps: int) -> None:
    """Raises InputError for an unknown execution, and for fewer actions between two questions than one."""
    if execution not in EXECUTIONS:
        raise unknown("execution", execution, EXECUTIONS)
    if n_action_steps < 1:
        raise InputError(f"n_action_steps must be at least 1, not {n_action_steps}")


class ActionQueue:
    """`due` says when to ask, `request` what; `take` takes the answer, `advance` gives the action of the next period.

    The policy is asked `n_action_steps` steps after it was asked last, or as soon as it is free. A chunk lives until `max_observation_age_s` [s]
    after its observation was captured. `delay` are the periods that the policy is known to take; None: it will take as
    long as the slowest of its last answers. Raises InputError for an unknown execution.
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
        self._known, self._delays = delay, deque[int](maxlen=RECENT)
        self._asked = self._began = -n_action_steps
        self._promised = self._periods = self._since = 0
        self._waiting = False
        self._horizon = self._received = 0
        self.step = 0
        """How many steps have been begun."""
        self._stale = 0

    def due(self, now: float) -> bool:
        """Whether the policy is to be asked now, if it is free."""
        if self._waiting:
            return False
        naive = self._execution == "naive"
        left = self.left(now)
        since = self.step - (self._began if naive else self._asked)
        # Early enough for the next chunk to be there when this one ends. Chunks that two delays do not fit into cannot
        # be: then most is carried out of those that are asked for halfway, or, no longer than a delay, at the end.
        early = min(self._delay, self._horizon // 2) if self._delay < self._horizon else 0
        return since >= self._n_action_steps or left <= (0 if naive else early)

    @property
    def _delay(self) -> int:
        return self._known if self._known is not None else max(self._delays, default=0)

    def request(self, observation: Observation, held: Float[np.ndarray, "a"], now: float) -> Request:
        """What to ask at the start of a step; the arm, where it runs out of actions, stays at `held`."""
        prefix = self._prefix(held, now)
        previous_chunk_leftover = None
        if prefix is not None and "guided" in self._execution and len(rest := self.rest(now)[len(prefix) :]):
            previous_chunk_leftover = rest
        self._asked, self._since, self._waiting = self.step, self._periods, True
        self._promised = self.step + (0 if prefix is None else len(prefix))
        if self._execution == "naive":
            self._chunks = []
        return Request(observation, prefix, self.step, previous_chunk_leftover, self._execution == "guided-vjp")

    def _prefix(self, held: Float[np.ndarray, "a"], now: float) -> Float[np.ndarray, "k a"] | None:
        """What is carried out during the delay to be expected."""
        count = min(self._delay, self._horizon - 1)
        if self._execution not in PREFIXED or count < 1:
            return None
        rest = self.rest(now)[:count]
        last = np.where(self._body.is_position_action, rest[-1] if len(rest) else held, 0.0)
        return np.concatenate([rest, np.repeat(last[None], count - len(rest), axis=0)])

    def take(self, answer: Answer, now: float) -> str:
        """Why the answer is no chunk to act by; empty where it is one."""
        self._waiting = False
        passed = self.step - answer.request.start
        if self._received:  # the first answer waited for what is made ready once
            self._delays.append(self._periods - self._since)
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
        if not len(chunk.rest(self.step)) or self._dead(chunk, now):
            return "too late"
        self._chunks = [*(self._chunks if self._execution == "ensemble" else ()), chunk]
        self._began = self.step
        return ""

    def left(self, now: float) -> int:
        """How many actions there are from the next step on."""
        return max((len(chunk.rest(self.step)) for chunk in self._live(now)), default=0)

    def rest(self, now: float) -> Float[np.ndarray, "k a"]:
        """The actions from the next step on, as far as there are any."""
        if not (live := self._live(now)):
            return np.empty((0, len(self._body.action)))
        if len(live) == 1:
            return live[0].rest(self.step)
        length = max(len(chunk.rest(self.step)) for chunk in live)
        return np.stack([self._at(self.step + ahead) for ahead in range(length)])

    def advance(self, now: float) -> Float[np.ndarray, "a"] | None:
        """The action of the period that begins now; None where there is none left that may be carried out."""
        action = self._at(self.step) if self._live(now) else None
        self._periods += 1
        self.step += action is not None or self.step < self._promised
        return action

    def latest(self, now: float) -> ActionChunk | None:
        """The newest chunk in force, as the policy said it."""
        return live[-1].said if (live := self._live(now)) else None

    @property
    def stale_fraction(self) -> float:
        """Of all actions, those whose step had passed when they came, and which so were never carried out."""
        return self._stale / self._received if self._received else 0.0

    def _live(self, now: float) -> list[_Chunk]:
        """The chunks that have actions left; the others are forgotten."""
        self._chunks = [c for c in self._chunks if len(c.rest(self.step)) and not self._dead(c, now)]
        return self._chunks

    def _at(self, step: int) -> Float[np.ndarray, "a"]:
        said = [rest[0] for chunk in self._chunks if len(rest := chunk.rest(step))]
        if len(said) == 1:
            return said[0]
        return average(self._body, np.stack(said), np.exp(-DECAY * np.arange(len(said))))

    def _dead(self, chunk: _Chunk, now: float) -> bool:
        return now - chunk.captured > self._max_observation_age
