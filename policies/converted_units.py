"""Adapts a policy to a robot with the same components in other units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.kinematics.joint_map import UNITS, bare, unit_of
from vla.policies.data_summary import DataSummary, Range, data_of
from vla.policies.policy import BatchPolicy, Policy, guides, takes_fewer_cameras
from vla.policies.wrapped import WrappedPolicy
from vla.types import ActionChunk, Observation

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

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        """See `Policy.predict`."""
        prefix = None if prefix is None else prefix / self._action
        return self._to_robot(self.policy.predict(self._to_policy(observation), prefix=prefix))

    def _to_policy(self, observation: Observation) -> Observation:
        return replace(observation, state=np.asarray(observation.state, np.float64) / self._state)

    def _to_robot(self, chunk: ActionChunk | None) -> ActionChunk | None:
        return None if chunk is None else replace(chunk, actions=np.asarray(chunk.actions, np.float64) * self._action)


class BatchConvertedPolicy(ConvertedPolicy):
    """`ConvertedPolicy` for a policy that predicts batches."""

    policy: BatchPolicy  # type: ignore[assignment]

    @property
    def guides(self) -> bool:
        """See `GuidedPolicy`."""
        return guides(self.policy)

    def predict_batch(
        self,
        observations: Sequence[Observation],
        *,
        prefix: Float[np.ndarray, "b k a"] | None = None,
        previous_chunk_leftover: Float[np.ndarray, "b m a"] | None = None,
        vjp: bool = False,
    ) -> list[ActionChunk | None]:
        """See `BatchPolicy` and `GuidedPolicy`."""
        guidance: dict[str, Any] = (
            {}
            if previous_chunk_leftover is None
            else {"previous_chunk_leftover": previous_chunk_leftover / self._action, "vjp": vjp}
        )
        prefix = None if prefix is None else prefix / self._action
        chunks = self.policy.predict_batch([self._to_policy(one) for one in observations], prefix=prefix, **guidance)
        return [self._to_robot(chunk) for chunk in chunks]


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
