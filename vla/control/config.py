"""Settings of the control loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla.control.action_queue import check_settings
from vla.errors import InputError

End = Literal["hold", "home", "disable_torque"]


@dataclass(frozen=True)
class LoopConfig:
    """`execution`, `n_action_steps` and `max_observation_age_s` [s] as in ActionQueue. Raises InputError for values that are none."""

    hz: float = 50.0
    """Ticks a second: a multiple of the policy's rate."""
    execution: str = "rtc"
    n_action_steps: int = 3
    max_observation_age_s: float = 3.0
    inference_timeout_s: float = 2.0
    """[s] that the policy may take to answer, after its first answer; then the run ends."""
    first_inference_timeout_s: float = 60.0
    """[s] that it may take for its first answer, the arm holding meanwhile."""
    invalid: int | None = 10
    """Answers without a usable chunk, one after the other, that end the run; None: none does."""
    faults: int = 3
    """Ticks one after the other in which a transient fault outlasts the retries; then the run ends."""
    camera_timeout: float | None = 1.0
    """[s] for which a camera may fail before the run ends; None: the arm holds for as long as it does."""
    stall: float = 0.1
    """How far a joint may be from its command, as a fraction of its range. Grippers may: they hold things."""
    stall_seconds: float = 0.5
    """[s] for which it may be."""
    move_to_start: bool = True
    """Whether an arm outside the demonstrations' start is moved there before the policy acts; else that is reported."""
    slow: float = 0.25
    """The share of the velocity limits at which the arm moves to its start and home."""
    end: str = "hold"
    """What follows the standstill at the end: one of `End`. "home" is for runs that end as planned; others hold."""

    def __post_init__(self) -> None:
        check_settings(self.execution, self.n_action_steps)
        if self.end == "relax":
            # The name of earlier versions.
            object.__setattr__(self, "end", "disable_torque")
        if self.end not in End.__args__:  # type: ignore[attr-defined]
            raise InputError(f"loop.end={self.end}: choose {', '.join(End.__args__)}")  # type: ignore[attr-defined]
        if not 0 < self.slow <= 1:
            raise InputError(f"loop.slow={self.slow:g} is a share of the velocity limits: above 0, at most 1")
        for name in ("invalid", "camera_timeout"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"loop.{name}={value:g} must be above 0, or null")


def rate_for(policy_hz: float) -> float:
    """About fifty ticks a second: a multiple of the policy's rate."""
    return policy_hz * max(1, round(LoopConfig.hz / policy_hz))


def steps_of(policy_hz: float, loop_hz: float) -> int:
    """Ticks in a step of the policy. Raises InputError where that is no whole number."""
    ratio = loop_hz / policy_hz
    if ratio < 1 or abs(ratio - round(ratio)) > 1e-6:
        raise InputError(f"hz must be a multiple of the policy's {policy_hz:g} a second, not {loop_hz:g}")
    return round(ratio)
