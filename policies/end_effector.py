"""A policy whose actions are tool poses, as a policy of a robot that takes joint targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.common.kinematic_chain import ToolKinematics
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.kinematics.arm import ArmKinematics
from vla.kinematics.joint_map import Named, bare
from vla.kinematics.tool_pose import ToolPose
from vla.policies.policy import BatchPolicy, Policy, guides, takes_fewer_cameras
from vla.policies.wrapped import WrappedPolicy
from vla.types import ActionChunk, Observation

PACE = 0.95
"""Of the fastest that a joint may move: the rest lets the safety filter, which limits accelerations too, catch up."""

LAG = 0.1
"""[s] by which measured joints are behind their targets: of a robot with a shorter period, a chunk that begins at them
may begin so far ahead, for it would pull the arm back otherwise."""


class EndEffectorPolicy(WrappedPolicy):
    """Drives `body` by the tool poses of `policy`.

    The tool's pose in the observed state follows from the measured joints by forward kinematics, the chunk's joint
    targets from its poses by inverse kinematics, each from the one before. Its other components (a gripper) are passed
    on, to those of their names or by `components`: {its component: (the body's, {scale, offset})}, the body's being
    `offset + scale * value`. No joint is to be faster than `velocity` (a,) between two targets, in the body's units a
    second; None for no such limit. All that follows (queue, interpolation, safety filter) is in
    joints.

    Raises InputError where state or actions of the two cannot be matched, or their cameras or rates differ.
    """

    def __init__(
        self,
        policy: Policy,
        body: Embodiment,
        kinematics: ToolKinematics,
        velocity: Sequence[float] | None = None,
        components: Mapping[str, Named] | None = None,
    ) -> None:
        self.policy, self.embodiment, self.kinematics = policy, body, kinematics
        self._tools = there = policy.embodiment
        self._arm = ArmKinematics(body, kinematics)
        self._poses = [ToolPose.of(there, tool) for tool in kinematics.tools]
        _check_cameras_and_rate(there, body, takes_fewer_cameras(policy))
        fastest = np.full(len(body.action), np.inf) if velocity is None else np.array(velocity, float)
        period = 1 / body.control_hz
        self._step, self._first = (PACE * fastest[self._arm.at] * seconds for seconds in (period, max(period, LAG)))
        self._passed, self._observed = _Passed.of(there, body, self._poses, components or {})
        if lacking := set(range(len(body.action))) - {*self._arm.at, *self._passed.theirs}:
            raise InputError(f"{there.name} has no action for {body.name}'s {body.action[min(lacking)]}")

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        """See `Policy.predict`: prefix and chunk are joint targets."""
        given = None if prefix is None else self._to_tools(prefix, observation.state)
        chunk = self.policy.predict(self._with_tools(observation), prefix=given)
        return self._in_joints(chunk, observation, prefix)

    def _with_tools(self, observation: Observation) -> Observation:
        """The observation with the state that the policy knows."""
        state = np.asarray(observation.state, np.float64)
        known = np.zeros((1, len(self._tools.state)))
        known[:, self._observed.ours] = self._observed.back(state[None])
        now = self._arm.measured(state[None])
        for i, pose in enumerate(self._poses):
            pose.write_state(known, now[:, i])
        return replace(observation, state=known[0])

    def _to_tools(
        self,
        actions: Float[np.ndarray, "k a"],
        state: Float[np.ndarray, "s"],
        before: Float[np.ndarray, "a"] | None = None,
    ) -> Float[np.ndarray, "k b"]:
        """Joint targets as the policy's actions; steps are counted from the target `before`, or the state."""
        posed = np.zeros((len(actions), len(self._tools.action)))
        posed[:, self._passed.ours] = self._passed.back(actions)
        poses = self._arm.commanded(actions)
        start = self._arm.measured(state[None]) if before is None else self._arm.commanded(before[None])
        for i, pose in enumerate(self._poses):
            pose.write_actions(posed, poses[:, i], start[0, i])
        return posed

    def _in_joints(
        self, chunk: ActionChunk | None, observation: Observation, prefix: Float[np.ndarray, "k a"] | None
    ) -> ActionChunk | None:
        if chunk is None:
            return None
        posed, state = np.asarray(chunk.actions, np.float64), np.asarray(observation.state, np.float64)
        self._tools.check_action(posed)
        now = self._arm.measured(state[None])[0]
        poses = np.stack([pose.read_actions(posed, now[i]) for i, pose in enumerate(self._poses)], axis=1)
        actions = np.empty((len(posed), len(self.embodiment.action)))
        actions[:, self._passed.theirs] = self._passed.on(posed)
        first, start, reach = 0, self._arm.present(state), self._first
        if prefix is not None and len(prefix):
            first, start, reach = len(prefix), prefix[-1, self._arm.at], self._step
            actions[:first] = prefix
        actions[first:, self._arm.at] = self._arm.follow(poses[first:], start, self._step, reach)
        return replace(chunk, actions=actions)


class BatchEndEffectorPolicy(EndEffectorPolicy):
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
        states = [np.asarray(observation.state, np.float64) for observation in observations]
        guide: dict[str, Any] = {}
        if previous_chunk_leftover is not None:
            last = [None if prefix is None else prefix[i, -1] for i in range(len(states))]
            rest = [self._to_tools(previous_chunk_leftover[i], state, last[i]) for i, state in enumerate(states)]
            guide = {"previous_chunk_leftover": np.stack(rest), "vjp": vjp}
        given = None
        if prefix is not None:
            given = np.stack([self._to_tools(rows, state) for rows, state in zip(prefix, states, strict=True)])
        seen = [self._with_tools(observation) for observation in observations]
        chunks = self.policy.predict_batch(seen, prefix=given, **guide)
        return [
            self._in_joints(chunk, observation, None if prefix is None else prefix[i])
            for i, (chunk, observation) in enumerate(zip(chunks, observations, strict=True))
        ]


def by_inverse_kinematics(
    policy: Policy,
    body: Embodiment,
    kinematics: ToolKinematics,
    velocity: Sequence[float] | None = None,
    components: Mapping[str, Named] | None = None,
) -> EndEffectorPolicy:
    """`EndEffectorPolicy`, or its kind that takes batches where `policy` does."""
    kind = BatchEndEffectorPolicy if isinstance(policy, BatchPolicy) else EndEffectorPolicy
    return kind(policy, body, kinematics, velocity, components)


@dataclass(frozen=True)
class _Passed:
    """Components of the policy (`ours`) that are some of the robot's (`theirs`): `offset + scale` times ours."""

    ours: list[int]
    theirs: list[int]
    scale: Float[np.ndarray, "n"]
    offset: Float[np.ndarray, "n"]

    @classmethod
    def of(
        cls, policy: Embodiment, body: Embodiment, poses: Sequence[ToolPose], named: Mapping[str, Named]
    ) -> tuple[_Passed, _Passed]:
        """Those of the action, and those of the state. Raises InputError for one that the robot does not have."""
        bares = [bare(name) for name in policy.action]
        # Without its unit, which has brackets, a name is easier to write.
        named = {
            policy.action[bares.index(name)] if bares.count(name) == 1 else name: other for name, other in named.items()
        }
        if unknown := sorted(set(named) - set(policy.action)):
            raise InputError(f"components: the policy has no action {unknown[0]}: {', '.join(policy.action)}")
        measured: dict[str, Named] = {}
        for name, (theirs, numbers) in named.items():
            if theirs not in body.action:
                raise InputError(f"components: {body.name} has no action {theirs}: {', '.join(body.action)}")
            ours, at = policy.action_state[policy.action.index(name)], body.action_state[body.action.index(theirs)]
            if ours is not None and at is not None:
                measured[ours] = at, numbers
        commanded = {i for pose in poses for i in pose.action}
        seen = {i for pose in poses for i in pose.state}
        actions = cls._by_name("action", policy.action, body.action, commanded, named, body.name)
        for one, other in zip(actions.ours, actions.theirs, strict=True):
            if policy.action_mode[one] != body.action_mode[other]:
                modes = f"{policy.action_mode[one]}, {body.action[other]} of {body.name} is {body.action_mode[other]}"
                raise InputError(f"the policy's {policy.action[one]} is {modes}")
        return actions, cls._by_name("state", policy.state, body.state, seen, measured, body.name)

    @classmethod
    def _by_name(
        cls, kind: str, ours: Sequence[str], theirs: Sequence[str], pose: set[int], named: Mapping[str, Named], of: str
    ) -> _Passed:
        at, there, numbers = [], [], []
        for i, name in enumerate(ours):
            if i in pose:
                continue
            other, given = named.get(name, (name, {}))
            if other not in theirs:
                raise InputError(
                    f"{of} has no {kind} {name!r}, which the policy has: there are {', '.join(theirs)}; name what it "
                    "is there in kinematics.components, or train on a store of vla data derive keep_joints=false"
                )
            at.append(i)
            there.append(list(theirs).index(other))
            numbers.append((given.get("scale", 1.0), given.get("offset", 0.0)))
        scale, offset = np.array(numbers).reshape(-1, 2).T
        return cls(at, there, scale, offset)

    def on(self, values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n k"]:
        """Of the policy's components the robot's."""
        return values[:, self.ours] * self.scale + self.offset

    def back(self, values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n k"]:
        """Of the robot's components the policy's."""
        return (values[:, self.theirs] - self.offset) / self.scale


def _check_cameras_and_rate(there: Embodiment, body: Embodiment, fewer_cameras: bool) -> None:
    if not there.cameras_fit(body, fewer_cameras):
        raise InputError(
            f"the policy's cameras are {', '.join(there.cameras)}, those of {body.name} are {', '.join(body.cameras)}"
        )
    if there.control_hz != body.control_hz:
        raise InputError(f"the policy acts {there.control_hz:g} times a second, {body.name} {body.control_hz:g} times")
