"""The options of `vla eval`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.control.action_queue import EXECUTIONS
from vla.envs.axes import check_axis_names
from vla.envs.instructions import check_phrasing
from vla.envs.make import check_task
from vla.errors import InputError

MEASURED = "measured"
RENDER = ("on_inference", "all")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The options of an evaluation; configs/eval.yaml describes each."""

    policy: str
    task: str | None
    seeds: str | int
    phrasing: str
    axes: Sequence[str]
    axes_report: Sequence[str]
    swap: bool
    delay: Sequence[float | str]
    execution: Sequence[str]
    out: str
    randomize: bool
    parallel: int
    workers: int
    n_action_steps: int
    safety_filter: bool
    render: str
    stop: float | None
    vqa: str | None
    questions: int
    merge: Sequence[str]
    kinematics: Mapping[str, Any]

    def check(self, task: str) -> None:
        """Raises InputError as `check_values`, and for axes that this task does not have."""
        self.check_values()
        check_task(task, (*self.axes, *self.axes_report), swap=self.swap)

    def check_values(self) -> None:
        """Raises InputError for a value that is invalid, also of several options together."""
        parse_seeds(self.seeds)
        check_phrasing(self.phrasing)
        check_axis_names([*self.axes, *self.axes_report])
        if self.render not in RENDER:
            raise InputError(f"render is one of {', '.join(RENDER)}, not {self.render!r}")
        if set(self.execution) - set(EXECUTIONS) or not self.execution:
            raise InputError(f"execution is a list of {', '.join(EXECUTIONS)}, not {self.execution}")
        if not self.delay or not all(map(_is_delay, self.delay)):
            raise InputError(f"delay is a list of seconds, or of {MEASURED}, not {self.delay}")
        if min(self.parallel, self.workers, self.n_action_steps, self.questions) < 1:
            raise InputError("parallel, workers, n_action_steps and questions must be at least 1")
        several = self.swap or self.axes_report or len(self.delay) * len(self.execution) > 1
        if self.stop is not None and (several or not isinstance(self.stop, float) or not 0 < self.stop < 1):
            raise InputError("stop is a rate between 0 and 1, for one group: remove swap, axes_report and delays")
        for other in self.merge:
            if not (Path(str(other)) / "settings.json").exists():
                raise InputError(f"merge takes folders of vla eval: {other} holds no evaluation")

    @property
    def scenes(self) -> dict[str, Any]:
        """The options that determine the scenes of a seed."""
        return {"randomize": self.randomize, "phrasing": self.phrasing, "axes": list(self.axes)}


def parse_seeds(text: str | int) -> range:
    """Parses FIRST:END: "1000:1060" is 1000 … 1059. Raises InputError for other text and for an empty range."""
    match = re.fullmatch(r"(\d+):(\d+)", str(text).strip())
    seeds = range(int(match[1]), int(match[2])) if match else range(0)
    if not seeds:
        raise InputError(f"seeds must be FIRST:END with END greater than FIRST, such as 1000:1060, not {text!r}")
    return seeds


def _is_delay(delay: Any) -> bool:
    number = isinstance(delay, int | float) and not isinstance(delay, bool)
    return delay == MEASURED or (number and 0 <= delay < math.inf)
