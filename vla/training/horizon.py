"""The horizon of an action chunk and the length of action prefixes, in steps or in seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from vla.errors import InputError

SECONDS = {"parallel": 0.6, "bins": 0.6, "text": 0.6, "fast": 1.0, "l1": 1.0, "flow": 1.0, "cross-flow": 1.0}
"""Default horizon [s]: 1 s as in pi0, pi0-FAST and OpenVLA-OFT's ALOHA; less for heads with one token per number."""
DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+) ?(s|ms)")


def duration(text: str) -> float | None:
    """Seconds of "1.5 s" or "500 ms"; None for another text."""
    found = DURATION.fullmatch(text.strip())
    return None if found is None else float(found[1]) / (1000 if found[2] == "ms" else 1)


def horizon_steps(
    horizon: int | float | str | None, rates: Sequence[float], head: str, checkpoint: Path | None = None
) -> int:
    """Converts a horizon to steps.

    Args:
        horizon: In steps (6, "6") or in seconds ("1.0 s"). None: that of `checkpoint`, else the default of the head
            (`SECONDS`).
        rates: The control rates of the data [Hz].
        head: The name of the action head.
        checkpoint: The checkpoint that training starts from.

    Raises:
        InputError: the horizon is invalid or less than a step, or the rates give different numbers of steps.
    """
    if horizon is None and checkpoint is not None and (known := _known(checkpoint)) is not None:
        return known
    if isinstance(horizon, str) and horizon.strip().isdigit():
        horizon = int(horizon)
    if isinstance(horizon, int) and not isinstance(horizon, bool):
        if horizon < 1:
            raise InputError(f"horizon must be at least 1, not {horizon}")
        return horizon
    stated = duration(horizon) if isinstance(horizon, str) else None
    seconds = SECONDS.get(head, 1.0) if horizon is None else stated
    if seconds is None:
        raise InputError(f"horizon is a number of steps (6) or a time ('1.0 s', '500 ms'), not {horizon!r}")
    steps = sorted({round(seconds * rate) for rate in rates})
    if not steps:  # no robot
        return 1
    if len(steps) > 1:
        raise InputError(
            f"{seconds:g} s are {' and '.join(map(str, steps))} steps at the rates of these robots, and one model has "
            f"one horizon for all: set it in steps, horizon={steps[0]}"
        )
    if horizon is not None and steps[0] < 1:
        raise InputError(f"a chunk of {seconds:g} s has no action at {min(rates):g} Hz: set a longer horizon")
    return max(1, steps[0])


def prefix_steps(delay: float | str | None, rate: float, horizon: int) -> int | None:
    """The longest action prefix in training: the actions executed during an inference delay of `delay` at `rate` [Hz].

    Args:
        delay: In seconds, or as text ("200 ms"); None: no prefix.
        rate: The control rate [Hz].
        horizon: The horizon of an action chunk [steps].

    Raises:
        InputError: the delay is invalid, or not shorter than the horizon.
    """
    if delay is None:
        return None
    is_number = isinstance(delay, (int, float)) and not isinstance(delay, bool)
    seconds = duration(delay) if isinstance(delay, str) else float(delay) if is_number else None
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        raise InputError(f"delay is a time in seconds (0.2, '200 ms'), not {delay!r}")
    steps = math.ceil(seconds * rate - 1e-6)
    if steps >= horizon:
        raise InputError(
            f"a delay of {seconds:g} s is {steps} steps at {rate:g} Hz, and a chunk has {horizon}: set a longer horizon"
        )
    return steps


def _known(checkpoint: Path) -> int | None:
    from vla.models.processor import Processor  # imports torch, which a check of options does without

    robots = Processor.load(checkpoint).robots
    return robots[0].horizon if robots else None
