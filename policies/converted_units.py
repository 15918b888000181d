"""Adapts a policy to a robot with the same components in other units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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


class ConvertedPolicy(WrappedPolicy):
    """Drives `body` by `policy` with converted units.

    Args:
        policy: The policy.
        body: The robot's embodiment.
        state: Factors from the policy's state to the robot's.
        action: Factors from the policy's actions to the robot's.
    """

    def __init__(self, policy: Policy, body: Embodiment, state: Factors, action: Factors) -> None:
        self.policy, self.embodiment, self._state, self._action = policy, body, state, action
        data = data_of(policy)
        start = data.start and data.start.scaled(state)
        self.data = DataSummary(_scaled(data.state, state), _scaled(data.action, action), start)

    @property
    def fewer_cameras(self) -> bool:
        """See `FewerCamerasPolicy`."""
        return takes_fewer_cameras(self.policy)

    def _observation(self, observation: Observation) -> Observation:
        return replace(observation, state=np.asarray(observation.state, np.float64) / self._state)

    def _prefix(self, prefix: RTCPrefix, observation: Observation) -> RTCPrefix:
        return prefix.map(lambda actions: actions / self._action)

    def _chunk(self, chunk: ActionChunk, observation: Observation, prefix: RTCPrefix | None) -> ActionChunk:
        return replace(chunk, actions=np.asarray(chunk.actions, np.float64) * self._action)


class BatchConvertedPolicy(BatchWrappedPolicy, ConvertedPolicy):
    """`ConvertedPolicy` for a policy that predicts batches."""


def _scaled(ends: Range | None, factors: Factors) -> Range | None:
    if ends is None:
        return None
    low, high = (tuple((np.array(end) * factors).tolist()) for end in ends)
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
    return kind(policy, body, state, action)
