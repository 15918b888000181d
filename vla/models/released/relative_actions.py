"""Actions of released policies relative to the state: component i of the action to component i of the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla.embodiment import Embodiment
from vla.errors import InputError

RELATIVE_STEP, ABSOLUTE_STEP = "relative_actions_processor", "absolute_actions_processor"
"""The steps of LeRobot's pipelines that subtract the state and add it again."""


def relative_of(config: Mapping[str, Any], step: Mapping[str, Any], width: int) -> tuple[bool, ...]:
    """Which components LeRobot predicts relative to the state.

    Args:
        config: the policy's configuration.
        step: the settings of its step `RELATIVE_STEP`; empty for a policy without it.
        width: number of components.
    """
    if not step.get("enabled", config.get("use_relative_actions")):
        return (False,) * width
    names = step.get("action_names") or config.get("action_feature_names") or ()
    excluded = step.get("exclude_joints", config.get("relative_exclude_joints")) or ()
    return relative_by_name(names, excluded, width)


def relative_by_name(names: Sequence[str], excluded: Sequence[str], width: int) -> tuple[bool, ...]:
    """All components but those of which a part of the name is in `excluded`, in any case; unnamed ones are relative."""
    parts = [part.lower() for part in excluded if part]
    known = [not any(part in name.lower() for part in parts) for name in names[:width]]
    return (*known, *(True,) * (width - len(known)))


def relative_by_count(counts: Sequence[int], width: int) -> tuple[bool, ...]:
    """By numbers of consecutive components (openpi), negative for those that are not relative, as the others."""
    known = [count > 0 for count in counts for _ in range(abs(count))]
    return (*known, *(False,) * (width - len(known)))[:width]


def check_relative(policy: str, body: Embodiment, relative: Sequence[bool]) -> None:
    """Raises InputError where a component cannot be what the policy's is: its state component plus a difference."""
    rotated = {i for rotation in body.rotations for i in rotation.action}
    for i, (name, measured) in enumerate(zip(body.action, body.measured_by, strict=True)):
        if not relative[i]:
            continue
        if i in rotated or np.isfinite(body.action_period[i]):
            raise InputError(f"{policy} predicts {name} of {body.name} relative to the state, but it wraps")
        if measured != i or not body.is_position_action[i]:
            raise InputError(
                f"{policy} predicts component {i} of the action relative to component {i} of the state, which does not "
                f"measure {name} of {body.name}"
            )
