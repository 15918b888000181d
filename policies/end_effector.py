"""Adapts a policy whose actions are tool poses to a robot that takes joint targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from vla.common.kinematic_chain import ToolKinematics
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.kinematics.arm import ArmKinematics
from vla.kinematics.joint_map import Named, bare
from vla.kinematics.tool_pose import ToolPose
from vla.policies.policy import Policy, takes_fewer_cameras
from vla.policies.wrapped import BatchWrappedPolicy, WrappedPolicy
from vla.types import ActionChunk, Observation, RTCPrefix

PACE = 0.95
"""Fraction of the velocity limit that joints may use. The rest is a margin for the safety filter, which also limits
acceleration, to catch up."""

LAG = 0.1
"""Time [s] by which measured joints lag behind their targets. If it is longer than the period, the first target of a
chunk may lead the measured joints by this time; otherwise the chunk would pull the arm back."""


class EndEffectorPolicy(WrappedPolicy):
    """Drives `body` by the tool poses of `policy`.

    Forward kinematics converts the measured joints to the tool pose of the policy's state. Inverse kinematics converts
    the poses of a chunk to joint targets, each from the previous one. Other components (a gripper) are passed on by
    name. The action queue, interpolation and safety filter then work in joint space.

    Args:
        policy: The policy.
        body: The robot's embodiment.
        kinematics: The kinematics of the tools.
        velocity: Velocity limit (a,) between two targets, in the robot's units per second. None: no limit.
        components: The robot's component for a component of the policy, with {scale, offset}: the robot's value is
            `offset + scale * value`. By default, names must match.

    Raises:
        InputError: if states or actions cannot be matched, or cameras or control rates differ.
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
        self._tools = trained = policy.embodiment
        self._arm = ArmKinematics(body, kinematics)
        self._poses = [ToolPose.of(trained, tool) for tool in kinematics.tools]
        _check_cameras_and_rate(trained, body, takes_fewer_cameras(policy))
        max_velocity = np.full(len(body.action), np.inf) if velocity is None else np.array(velocity, float)
        period = 1 / body.control_hz
        self._step, self._first = (
            PACE * max_velocity[self._arm.at] * seconds for seconds in (period, max(period, LAG))
        )
        self._passed, self._observed = _Passthrough.of(trained, body, self._poses, components or {})
        if missing := set(range(len(body.action))) - {*self._arm.at, *self._passed.robot}:
            raise InputError(f"{trained.name} has no action for {body.name}'s {body.action[min(missing)]}")

    def _observation(self, observation: Observation) -> Observation:
        state = np.asarray(observation.state, np.float64)
        converted = np.zeros((1, len(self._tools.state)))
        converted[:, self._observed.policy] = self._observed.to_policy(state[None])
        poses = self._arm.measured(state[None])
        for i, pose in enumerate(self._poses):
            pose.write_state(converted, poses[:, i])
        return replace(observation, state=converted[0])

    def _prefix(self, prefix: RTCPrefix, observation: Observation) -> RTCPrefix:
        state, committed = np.asarray(observation.state, np.float64), prefix.committed
        leftover = prefix.leftover
        if leftover is not None:
            leftover = self._to_tools(leftover, state, committed[-1] if len(committed) else None)
        return replace(prefix, committed=self._to_tools(committed, state), leftover=leftover)

    def _to_tools(
        self,
        actions: Float[np.ndarray, "k a"],
        state: Float[np.ndarray, "s"],
        before: Float[np.ndarray, "a"] | None = None,
    ) -> Float[np.ndarray, "k b"]:
        """Converts joint targets to the policy's actions; deltas are relative to the target `before`, or the state."""
        converted = np.zeros((len(actions), len(self._tools.action)))
        converted[:, self._passed.policy] = self._passed.to_policy(actions)
        poses = self._arm.commanded(actions)
        start = self._arm.measured(state[None]) if before is None else self._arm.commanded(before[None])
        for i, pose in enumerate(self._poses):
            pose.write_actions(converted, poses[:, i], start[0, i])
        return converted

    def _chunk(self, chunk: ActionChunk, observation: Observation, prefix: RTCPrefix | None) -> ActionChunk:
        predicted, state = np.asarray(chunk.actions, np.float64), np.asarray(observation.state, np.float64)
        self._tools.check_action(predicted)
        measured = self._arm.measured(state[None])[0]
        poses = np.stack([pose.read_actions(predicted, measured[i]) for i, pose in enumerate(self._poses)], axis=1)
        actions = np.empty((len(predicted), len(self.embodiment.action)))
        actions[:, self._passed.robot] = self._passed.to_robot(predicted)
        first, start, first_step = 0, self._arm.present(state), self._first
        if prefix is not None and len(prefix.committed):
            first, start, first_step = len(prefix.committed), prefix.committed[-1, self._arm.at], self._step
            actions[:first] = prefix.committed
        actions[first:, self._arm.at] = self._arm.follow(poses[first:], start, self._step, first_step)
        return replace(chunk, actions=actions)


class BatchEndEffectorPolicy(BatchWrappedPolicy, EndEffectorPolicy):
    """`EndEffectorPolicy` for a policy that predicts batches."""


@dataclass(frozen=True)
class _Passthrough:
    """Indices of matching components of policy and robot; the robot's value is `offset + scale * value`."""

    policy: list[int]
    robot: list[int]
    scale: Float[np.ndarray, "n"]
    offset: Float[np.ndarray, "n"]

    @classmethod
    def of(
        cls, policy: Embodiment, body: Embodiment, poses: Sequence[ToolPose], named: Mapping[str, Named]
    ) -> tuple[_Passthrough, _Passthrough]:
        """The components of the action and of the state. Raises InputError for one that the robot does not have."""
        bare_names = [bare(name) for name in policy.action]
        # Names may be written without their unit.
        named = {
            policy.action[bare_names.index(name)] if bare_names.count(name) == 1 else name: other
            for name, other in named.items()
        }
        if unknown := sorted(set(named) - set(policy.action)):
            raise InputError(f"components: the policy has no action {unknown[0]}: {', '.join(policy.action)}")
        measured: dict[str, Named] = {}
        for name, (robot_name, numbers) in named.items():
            if robot_name not in body.action:
                raise InputError(f"components: {body.name} has no action {robot_name}: {', '.join(body.action)}")
            policy_state = policy.action_state[policy.action.index(name)]
            robot_state = body.action_state[body.action.index(robot_name)]
            if policy_state is not None and robot_state is not None:
                measured[policy_state] = robot_state, numbers
        in_action = {i for pose in poses for i in pose.action}
        in_state = {i for pose in poses for i in pose.state}
        actions = cls._by_name("action", policy.action, body.action, in_action, named, body.name)
        for i, j in zip(actions.policy, actions.robot, strict=True):
            if policy.action_mode[i] != body.action_mode[j]:
                modes = f"{policy.action_mode[i]}, {body.action[j]} of {body.name} is {body.action_mode[j]}"
                raise InputError(f"the policy's {policy.action[i]} is {modes}")
        return actions, cls._by_name("state", policy.state, body.state, in_state, measured, body.name)

    @classmethod
    def _by_name(
        cls,
        kind: str,
        policy_names: Sequence[str],
        robot_names: Sequence[str],
        pose: set[int],
        named: Mapping[str, Named],
        robot: str,
    ) -> _Passthrough:
        policy_indices, robot_indices, numbers = [], [], []
        for i, name in enumerate(policy_names):
            if i in pose:
                continue
            robot_name, conversion = named.get(name, (name, {}))
            if robot_name not in robot_names:
                raise InputError(
                    f"{robot} has no {kind} {name!r}, which the policy has: it has {', '.join(robot_names)}; map the "
                    "name in kinematics.components, or train on a store of vla data derive keep_joints=false"
                )
            policy_indices.append(i)
            robot_indices.append(list(robot_names).index(robot_name))
            numbers.append((conversion.get("scale", 1.0), conversion.get("offset", 0.0)))
        scale, offset = np.array(numbers).reshape(-1, 2).T
        return cls(policy_indices, robot_indices, scale, offset)

    def to_robot(self, values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n k"]:
        """Converts the policy's components to the robot's."""
        return values[:, self.policy] * self.scale + self.offset

    def to_policy(self, values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n k"]:
        """Converts the robot's components to the policy's."""
        return (values[:, self.robot] - self.offset) / self.scale


def _check_cameras_and_rate(trained: Embodiment, body: Embodiment, fewer_cameras: bool) -> None:
    if not trained.cameras_fit(body, fewer_cameras):
        raise InputError(
            f"the policy's cameras are {', '.join(trained.cameras)}, those of {body.name} are {', '.join(body.cameras)}"
        )
    if trained.control_hz != body.control_hz:
        raise InputError(f"the policy acts at {trained.control_hz:g} Hz, {body.name} at {body.control_hz:g} Hz")
