"""A trial (one episode) of an evaluation, and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

AVERAGED = "ensemble"
"""The only execution mode that differs from the others without a delay."""
Key = tuple[str, str, float, int]


@dataclass(frozen=True)
class Trial:
    """One episode to run.

    Attributes:
        seed: The seed of the scene.
        options: The reset options of the environment.
        group: The group in the report.
        env: Keyword arguments of the environment.
        delay: The inference delay [s].
        execution: The execution mode (`vla.control.action_queue`).
    """

    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    env: Mapping[str, Any] = field(default_factory=dict)
    delay: float = 0.0
    execution: str = "naive"

    @property
    def key(self) -> Key:
        """Identifies the trial in its evaluation."""
        return self.group, self.execution, self.delay, self.seed


@dataclass(frozen=True)
class Result:
    """The result of a trial. `length` is in steps; `invalid` counts action chunks that could not be decoded."""

    seed: int
    group: str
    instruction: str
    success: bool
    wrong_object: bool
    length: int
    invalid: int
    seconds: float = 0.0
    """Simulated time until success or the time limit."""
    jerk: float = 0.0
    """Root mean square of the third difference of the commanded positions, divided by the period cubed [rad/s^3]."""
    collisions: int = 0
    """New contacts of the arm with the table or other objects (`vla.evaluation.rollouts.contacts`)."""
    limit_hits: int = 0
    """Steps at which the policy requested a command at or outside a limit of its component."""
    clamped: int = 0
    """Steps at which the safety filter changed the command."""
    delay: float = 0.0
    execution: str = "naive"
    crash: str = ""
    """The traceback if the environment or the policy raised; `success` is then not valid."""

    @property
    def key(self) -> Key:
        """The key of the trial."""
        return self.group, self.execution, self.delay, self.seed

    @property
    def kind(self) -> str:
        """A label with the group, the execution mode and the delay."""
        group = {"swap": "swapped"}.get(self.group, self.group)
        if self.delay:
            return f"{group}, {self.execution} {self.delay:g} s delay"
        return f"{group}, {AVERAGED}" if self.execution == AVERAGED else group


def crashed(trial: Trial, traceback: str) -> Result:
    """The result of a trial that raised an exception with this traceback."""
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
    """The trials of an evaluation, without duplicates.

    The group "named" has each seed with each execution and delay. Without a delay, executions other than `AVERAGED` are
    equal, and only the first is run.

    Args:
        seeds: The seeds.
        swap: Adds the group "swap", whose instructions name another object, at the first execution and delay.
        axes: The axes of all environments.
        alone: Axes that each add a group, whose environments have that axis as well.
        delays: Inference delays [s].
        executions: Execution modes.
    """
    distinct_at_0 = (AVERAGED, next((e for e in executions if e != AVERAGED), AVERAGED))
    cells = list(dict.fromkeys((e, d) for e in executions for d in delays if d > 0 or e in distinct_at_0))
    trials = [Trial(seed, {}, "named", delay=d, execution=e) for e, d in cells for seed in seeds]
    first: dict[str, Any] = {"execution": cells[0][0], "delay": cells[0][1]}
    if swap:
        trials += [Trial(seed, {"swap": True}, "swap", **first) for seed in seeds]
    groups = dict.fromkeys(alone)
    return trials + [Trial(seed, {}, axis, {"axes": (*axes, axis)}, **first) for axis in groups for seed in seeds]
