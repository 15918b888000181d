"""One episode of an evaluation, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

AVERAGED = "ensemble"
"""The execution that is another also without a delay; the others then are one."""
Key = tuple[str, str, float, int]


@dataclass(frozen=True)
class Trial:
    """One episode to run: the scene's seed and reset options, and which group of the report it belongs to.

    `env` are keyword arguments of its environment. The policy takes `delay` [s] to answer, and `execution` says what
    the robot does meanwhile (`vla.control.action_queue`).
    """

    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    env: Mapping[str, Any] = field(default_factory=dict)
    delay: float = 0.0
    execution: str = "naive"

    @property
    def key(self) -> Key:
        """What tells it from the other trials of an evaluation."""
        return self.group, self.execution, self.delay, self.seed


@dataclass(frozen=True)
class Result:
    """How a trial ended. `length` in steps; `invalid` counts chunks that did not decode and were held."""

    seed: int
    group: str
    instruction: str
    success: bool
    wrong_object: bool
    length: int
    invalid: int
    seconds: float = 0.0
    """Of simulated time, until success or the limit."""
    jerk: float = 0.0
    """Root mean square of the third difference of the commanded positions, over the control period cubed [rad/s^3]."""
    collisions: int = 0
    """How often the arm came to touch what it has no business with (`vla.evaluation.rollouts.contacts`)."""
    limit_hits: int = 0
    """Steps at which the policy wanted a command at or beyond a limit of its component."""
    clamped: int = 0
    """Steps at which the safety_filter changed the command."""
    delay: float = 0.0
    execution: str = "naive"
    crash: str = ""
    """The traceback, where the environment or the policy raised: then this is no outcome, whatever `success` says."""

    @property
    def key(self) -> Key:
        """That of its trial."""
        return self.group, self.execution, self.delay, self.seed

    @property
    def kind(self) -> str:
        """Its group in words, and how late the policy was."""
        group = {"swap": "swapped"}.get(self.group, self.group)
        if self.delay:
            return f"{group}, {self.execution} {self.delay:g} s late"
        return f"{group}, {AVERAGED}" if self.execution == AVERAGED else group


def crashed(trial: Trial, traceback: str) -> Result:
    return Result(trial.seed, trial.group, "", False, False, 0, 0, delay=trial.delay, execution=trial.execution,
                  crash=traceback)  # fmt: skip


def trials_for(
    seeds: Sequence[int],
    swap: bool,
    *,
    axes: Sequence[str] = (),
    alone: Sequence[str] = (),
    delays: Sequence[float] = (0.0,),
    executions: Sequence[str] = ("naive",),
) -> list[Trial]:
    """The trials of an evaluation: group "named" on each seed, once for each execution and delay.

    Beside it, without the other delays: group "swap" with another object named, and a group for each axis of `alone`,
    whose environments have that axis and `axes`. Without a delay the executions but `AVERAGED` are one, and only the
    first is run. What is named twice is run once.
    """
    alone_at_0 = (AVERAGED, next((e for e in executions if e != AVERAGED), AVERAGED))
    cells = list(dict.fromkeys((e, d) for e in executions for d in delays if d > 0 or e in alone_at_0))
    trials = [Trial(seed, {}, "named", delay=d, execution=e) for e, d in cells for seed in seeds]
    first: dict[str, Any] = {"execution": cells[0][0], "delay": cells[0][1]}
    if swap:
        trials += [Trial(seed, {"swap": True}, "swap", **first) for seed in seeds]
    groups = dict.fromkeys(alone)
    return trials + [Trial(seed, {}, axis, {"axes": (*axes, axis)}, **first) for axis in groups for seed in seeds]
