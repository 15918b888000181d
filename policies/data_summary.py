"""What a policy's training data say of the robot: what a deployment is compared with before anything moves."""

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
"""The least and the greatest value of each component, in its unit."""
DEGREES = 180 / np.pi
TOO_WIDE, TOO_NARROW = 3.0, 0.03
"""Data that span so many times a robot's range are in other units; so are those of which every joint spans less than
this share of it, if as many radians fit into a range of degrees."""


@dataclass(frozen=True)
class DataSummary:
    """Ranges of states and actions, and where episodes begin; None where it is not known."""

    state: Range | None = None
    action: Range | None = None
    start: StartRegion | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSummary:
        """What `to_dict` gave."""
        state, action = (None if values.get(name) is None else _range(values[name]) for name in ("state", "action"))
        start = values.get("start")
        return cls(state, action, None if start is None else StartRegion.from_dict(start))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "state": None if self.state is None else [list(end) for end in self.state],
            "action": None if self.action is None else [list(end) for end in self.action],
            "start": None if self.start is None else self.start.to_dict(),
        }

    def check_units(self, body: Embodiment) -> None:
        """Raises InputError where the data's actions cannot be in the units of the robot's."""
        if self.action is None:
            return
        low, high, least, most = map(np.array, (*self.action, body.action_low, body.action_high))
        bound = body.is_position_action & np.isinf(body.action_period) & (most > least)
        if not bound.any():
            return
        share = np.where(bound, (high - low) / np.where(bound, most - least, 1.0), 1.0)
        apart = bound & ((low > most) | (high < least) | (share > TOO_WIDE))
        joints = bound & ~body.is_gripper
        in_degrees = (DEGREES * low >= least) & (DEGREES * high <= most)
        if joints.sum() > 1 and (share < TOO_NARROW)[joints].all() and in_degrees[joints].all():
            apart |= joints
        if apart.any():
            at = int(np.argmax(apart))
            raise InputError(
                f"the policy's data have {body.action[at]} from {low[at]:.4g} to {high[at]:.4g}, the robot goes from "
                f"{least[at]:.4g} to {most[at]:.4g}: they are in different units; of a SO-101 choose with "
                "robot.units=radians or lerobot (degrees and percent), of another robot with its scale and offset"
            )


def _range(ends: Sequence[Sequence[float]]) -> Range:
    low, high = (tuple(map(float, end)) for end in ends)
    return low, high


@runtime_checkable
class SummarizedPolicy(Protocol):
    """A policy that knows of its data."""

    @property
    def data(self) -> DataSummary: ...


def data_of(policy: Policy) -> DataSummary:
    """`SummarizedPolicy.data`; an empty summary where the policy has none."""
    return policy.data if isinstance(policy, SummarizedPolicy) else DataSummary()
