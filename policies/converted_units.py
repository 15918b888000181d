"""A policy as one of a robot that has the same components in other units."""

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


def unit_factors(there: Sequence[str], here: Sequence[str]) -> Factors | None:
    """What one unit of each component is in that of the other robot's; None where these are not the same components, or
    a unit is not known."""
    if len(there) != len(here) or [bare(name) for name in there] != [bare(name) for name in here]:
        return None
    factors = []
    for one, other in zip(there, here, strict=True):
        ours, theirs = UNITS.get(unit_of(one) or ""), UNITS.get(unit_of(other) or "")
        if one != other and (ours is None or theirs is None):
            return None
        factors.append(1.0 if ours is None or theirs is None else ours / theirs)
    return np.array(factors)


class ConvertedPolicy(WrappedPolicy):
    """Drives `body` by `policy`, whose values are multiplied by `state` and `action`, and observations divided."""

    def __init__(self, policy: Policy, body: Embodiment, state: Factors, action: Factors) -> None:
        self.policy, self.embodiment, self._state, self._action = policy, body, state, action
        known = data_of(policy)
        start = known.start and known.start.scaled(state)
        self.data = DataSummary(_scaled(known.state, state), _scaled(known.action, action), start)

    @property
    def fewer_cameras(self) -> bool:
        """The policy's (`FewerCamerasPolicy`)."""
        return takes_fewer_cameras(self.policy)

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        """See `Policy.predict`."""
        given = None if prefix is None else prefix / self._action
        return self._converted(self.policy.predict(self._seen(observation), prefix=given))

    def _seen(self, observation: Observation) -> Observation:
        return replace(observation, state=np.asarray(observation.state, np.float64) / self._state)

    def _converted(self, chunk: ActionChunk | None) -> ActionChunk | None:
        return None if chunk is None else replace(chunk, actions=np.asarray(chunk.actions, np.float64) * self._action)


class BatchConvertedPolicy(ConvertedPolicy):
    """The same of a policy that serves many robots at once."""

    policy: BatchPolicy  # type: ignore[assignment]

    @property
    def guides(self) -> bool:
        """Whether its chunks can be guided."""
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
        guide: dict[str, Any] = (
            {}
            if previous_chunk_leftover is None
            else {"previous_chunk_leftover": previous_chunk_leftover / self._action, "vjp": vjp}
        )
        given = None if prefix is None else prefix / self._action
        chunks = self.policy.predict_batch([self._seen(one) for one in observations], prefix=given, **guide)
        return [self._converted(chunk) for chunk in chunks]


def _scaled(ends: Range | None, factors: Factors) -> Range | None:
    if ends is None:
        return None
    low, high = (tuple((np.array(end) * factors).tolist()) for end in ends)
    return low, high


def in_units_of(policy: Policy, body: Embodiment) -> Policy:
    """`policy` as it is, or converted to the units of the robot where both are known."""
    there = policy.embodiment
    if (there.state, there.action) == (body.state, body.action):
        return policy
    state, action = unit_factors(there.state, body.state), unit_factors(there.action, body.action)
    if state is None or action is None or there.rotations or body.rotations:
        return policy
    renamed = replace(
        there,
        state=body.state,
        action=body.action,
        action_low=tuple((np.array(there.action_low) * action).tolist()),
        action_high=tuple((np.array(there.action_high) * action).tolist()),
        action_state=body.action_state,
        action_turn=tuple((np.array(there.action_turn) * action).tolist()),
        grippers=body.grippers,
    )
    renamed.check(body, takes_fewer_cameras(policy))
    kind = BatchConvertedPolicy if isinstance(policy, BatchPolicy) else ConvertedPolicy
    return kind(policy, body, state, action)
