"""Summary of a policy's training data, which a deployment is compared with before the robot moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla.common.start_region import StartRegion
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.policies.policy import Policy

Range = tuple[tuple[float, ...], tuple[float, ...]]
"""Smallest and largest value of each component, in its unit."""
DEGREES = 180 / np.pi
TOO_WIDE, TOO_NARROW = 3.0, 0.03
"""Detection of wrong units: data that span more than the first multiple of the robot's range, or whose joints all span
less than the second fraction of it, if the same values in radians fit into a range in degrees."""


@dataclass(frozen=True)
class DataSummary:
    """Ranges of states and actions, and the start region of episodes; None if unknown."""

    state: Range | None = None
    action: Range | None = None
    start: StartRegion | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSummary:
        """Reads the values of `to_dict`."""
        state, action = (None if values.get(name) is None else _range(values[name]) for name in ("state", "action"))
        start = values.get("start")
        return cls(state, action, None if start is None else StartRegion.from_dict(start))

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return {
            "state": None if self.state is None else [list(end) for end in self.state],
            "action": None if self.action is None else [list(end) for end in self.action],
            "start": None if self.start is None else self.start.to_dict(),
        }

    def check_units(self, body: Embodiment) -> None:
        """Checks that the actions of the data can be in the robot's units.

        Raises:
            InputError: if they cannot.
        """
        if self.action is None:
            return
        low, high, robot_low, robot_high = map(np.array, (*self.action, body.action_low, body.action_high))
        bounded = body.is_position_action & np.isinf(body.action_period) & (robot_high > robot_low)
        if not bounded.any():
            return
        share = np.where(bounded, (high - low) / np.where(bounded, robot_high - robot_low, 1.0), 1.0)
        mismatch = bounded & ((low > robot_high) | (high < robot_low) | (share > TOO_WIDE))
        joints = bounded & ~body.is_gripper
        in_degrees = (DEGREES * low >= robot_low) & (DEGREES * high <= robot_high)
        if joints.sum() > 1 and (share < TOO_NARROW)[joints].all() and in_degrees[joints].all():
            mismatch |= joints
        if mismatch.any():
            at = int(np.argmax(mismatch))
            raise InputError(
                f"the policy's data have {body.action[at]} from {low[at]:.4g} to {high[at]:.4g}, the robot's range is "
                f"{robot_low[at]:.4g} to {robot_high[at]:.4g}: the units differ; for a SO-101 set robot.units=radians "
                "or lerobot (degrees and percent), for another robot its scale and offset"
            )


def _range(ends: Sequence[Sequence[float]]) -> Range:
    low, high = (tuple(map(float, end)) for end in ends)
    return low, high


@runtime_checkable
class SummarizedPolicy(Protocol):
    """A policy with a summary of its training data."""

    @property
    def data(self) -> DataSummary:
        """The summary."""
        ...


def data_of(policy: Policy) -> DataSummary:
    """The summary of the policy's data; empty if it has none."""
    return policy.data if isinstance(policy, SummarizedPolicy) else DataSummary()
