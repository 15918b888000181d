"""Adapts a policy to a robot with the same components in other units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.kinematics.joint_map import UNITS, bare, unit_of
from vla.policies.data_summary import DataSummary, Range, data_of
from vla.policies.policy import BatchPolicy, Policy, takes_fewer_cameras
from vla.policies.wrapped import BatchWrappedPolicy, WrappedPolicy
from vla.types import ActionChunk, Observation, RTCPrefix

Factors = Float[np.ndarray, "c"]


def unit_factors(source: Sequence[str], target: Sequence[str]) -> Factors | None:
    """The factors that convert values of the components `source` to the units of the components `target`.

    Returns:
        One factor per component; None if the components differ or a unit is unknown.
    """
    if len(source) != len(target) or [bare(name) for name in source] != [bare(name) for name in target]:
        return None
    factors = []
    for source_name, target_name in zip(source, target, strict=True):
        source_unit, target_unit = UNITS.get(unit_of(source_name) or ""), UNITS.get(unit_of(target_name) or "")
        if source_name != target_name and (source_unit is None or target_unit is None):
            return None
        factors.append(1.0 if source_unit is None or target_unit is None else source_unit / target_unit)
    return np.array(factors)


@dataclass(frozen=True)
class Conversion:
    """Conversion of components from the policy's units to the robot's: `scale * value + offset`, with scale above 0."""

    scale: Factors
    offset: Factors | float = 0.0

    def to_robot(self, values: Float[np.ndarray, "*t c"]) -> Float[np.ndarray, "*t c"]:
        """The values in the robot's units."""
        return np.asarray(values, np.float64) * self.scale + self.offset

    def to_policy(self, values: Float[np.ndarray, "*t c"]) -> Float[np.ndarray, "*t c"]:
        """The values in the policy's units."""
        return (np.asarray(values, np.float64) - self.offset) / self.scale


class ConvertedPolicy(WrappedPolicy):
    """Drives `body` by `policy` with converted units.

    Args:
        policy: The policy.
        body: The robot's embodiment.
        state: Conversion of the state.
        action: Conversion of the actions.
    """

    def __init__(self, policy: Policy, body: Embodiment, state: Conversion, action: Conversion) -> None:
        self.policy, self.embodiment, self.state, self.action = policy, body, state, action
        data = data_of(policy)
        start = data.start and data.start.converted(state.to_robot)
        self.data = DataSummary(_converted(data.state, state), _converted(data.action, action), start)

    @property
    def fewer_cameras(self) -> bool:
        """See `FewerCamerasPolicy`."""
        return takes_fewer_cameras(self.policy)

    def _observation(self, observation: Observation) -> Observation:
        return replace(observation, state=self.state.to_policy(observation.state))

    def _prefix(self, prefix: RTCPrefix, observation: Observation) -> RTCPrefix:
        return prefix.map(self.action.to_policy)

    def _chunk(self, chunk: ActionChunk, observation: Observation, prefix: RTCPrefix | None) -> ActionChunk:
        return replace(chunk, actions=self.action.to_robot(chunk.actions))


class BatchConvertedPolicy(BatchWrappedPolicy, ConvertedPolicy):
    """`ConvertedPolicy` for a policy that predicts batches."""


def _converted(ends: Range | None, conversion: Conversion) -> Range | None:
    if ends is None:
        return None
    low, high = (tuple(conversion.to_robot(np.array(end)).tolist()) for end in ends)
    return low, high


def in_units_of(policy: Policy, body: Embodiment) -> Policy:
    """The policy, converted to the robot's units if they are known and differ; else unchanged."""
    trained = policy.embodiment
    if (trained.state, trained.action) == (body.state, body.action):
        return policy
    state, action = unit_factors(trained.state, body.state), unit_factors(trained.action, body.action)
    if state is None or action is None or trained.rotations or body.rotations:
        return policy
    renamed = replace(
        trained,
        state=body.state,
        action=body.action,
        action_low=tuple((np.array(trained.action_low) * action).tolist()),
        action_high=tuple((np.array(trained.action_high) * action).tolist()),
        action_state=body.action_state,
        action_turn=tuple((np.array(trained.action_turn) * action).tolist()),
        grippers=body.grippers,
    )
    renamed.check(body, takes_fewer_cameras(policy))
    kind = BatchConvertedPolicy if isinstance(policy, BatchPolicy) else ConvertedPolicy
    return kind(policy, body, Conversion(state), Conversion(action))
