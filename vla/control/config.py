"""Settings of the control loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla.control.action_queue import check_settings
from vla.errors import InputError

End = Literal["hold", "home", "disable_torque"]


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the control loop. `execution`, `n_action_steps` and `max_observation_age_s` [s] are ActionQueue's.

    Raises:
        InputError: for invalid values.
    """

    hz: float = 50.0
    """Control frequency [Hz]: a multiple of the policy's rate."""
    execution: str = "rtc"
    n_action_steps: int = 3
    max_observation_age_s: float = 3.0
    inference_timeout_s: float = 2.0
    """Timeout of an inference after the first one [s]; then the run ends."""
    first_inference_timeout_s: float = 60.0
    """Timeout of the first inference [s]; the arm holds until it completes."""
    invalid: int | None = 10
    """Number of consecutive answers without a usable chunk that ends the run. None: no limit."""
    faults: int = 3
    """Number of consecutive ticks with a transient fault, retries included, after which the run ends."""
    camera_timeout: float | None = 1.0
    """Time [s] for which a camera may fail before the run ends. None: no limit, the arm holds."""
    stall: float = 0.1
    """Largest following error of a joint, as a fraction of its range. Not applied to grippers: they hold objects."""
    stall_seconds: float = 0.5
    """Time [s] for which the following error may be larger before the run ends."""
    move_to_start: bool = True
    """Whether an arm outside the demonstrations' start region is moved there first; else this is only reported."""
    slow: float = 0.25
    """Fraction of the velocity limits used to move to the start region and home."""
    end: str = "hold"
    """Action after the arm has stopped: one of `End`. "home" applies to runs that end as planned; others hold."""

    def __post_init__(self) -> None:
        check_settings(self.execution, self.n_action_steps)
        if self.end == "relax":
            # Name in earlier versions.
            object.__setattr__(self, "end", "disable_torque")
        if self.end not in End.__args__:  # type: ignore[attr-defined]
            raise InputError(f"loop.end={self.end}: choose {', '.join(End.__args__)}")  # type: ignore[attr-defined]
        if not 0 < self.slow <= 1:
            raise InputError(f"loop.slow={self.slow:g} is a share of the velocity limits: above 0, at most 1")
        for name in ("invalid", "camera_timeout"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"loop.{name}={value:g} must be above 0, or null")


def rate_for(policy_hz: float) -> float:
    """The multiple of the policy's rate that is nearest to 50 Hz."""
    return policy_hz * max(1, round(LoopConfig.hz / policy_hz))


def steps_of(policy_hz: float, loop_hz: float) -> int:
    """Number of ticks per policy step.

    Raises:
        InputError: if the loop's rate is not a multiple of the policy's.
    """
    ratio = loop_hz / policy_hz
    if ratio < 1 or abs(ratio - round(ratio)) > 1e-6:
        raise InputError(f"hz must be a multiple of the policy's {policy_hz:g} a second, not {loop_hz:g}")
    return round(ratio)
