"""Adapts a policy to a robot: unchanged, with converted units, or by inverse kinematics for tool-pose actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium

from vla.common.kinematic_chain import Tool, ToolKinematics, chain_joints, extract_chain
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.kinematics.joint_map import bare, match_joints, read_components
from vla.models.robot_views import REMEDY
from vla.policies.converted_units import in_units_of
from vla.policies.data_summary import data_of
from vla.policies.load import load_policy
from vla.policies.policy import BatchPolicy, Policy, takes_fewer_cameras
from vla.policies.remote import RemotePolicy
from vla.robots.limits import limits_of

KINEMATICS = ("model", "tool", "joints", "units", "components")


def load_for_robots(name: str, kinematics: Mapping[str, Any]) -> Callable[[gymnasium.Env[Any, Any]], Policy]:
    """Like `load_policy`, with the policy of each environment adapted to it. Shared policies stay shared."""
    load = load_policy(name)
    adapted: dict[tuple[int, str], tuple[Policy, Policy]] = {}

    def serve(env: gymnasium.Env[Any, Any]) -> Policy:
        policy, body = load(env), env.unwrapped.embodiment  # type: ignore[attr-defined]
        key = id(policy), body.name
        if key not in adapted:
            limits = limits_of(env)
            adapted[key] = policy, adapt(policy, body, None if limits is None else limits.velocity, kinematics)
        return adapted[key][1]

    return serve


def adapt(policy: Policy, body: Embodiment, velocity: Sequence[float] | None, kinematics: Mapping[str, Any]) -> Policy:
    """Adapts `policy` to the robot `body`.

    A policy that outputs tool poses is wrapped for a robot that takes joint targets (`vla.policies.end_effector`).

    Args:
        policy: The policy to adapt.
        body: The robot's embodiment.
        velocity: Velocity limit of each action, in its unit per second. None: no limit.
        kinematics: Options of `KINEMATICS` that override the arm model of the policy's data; None values are ignored.

    Raises:
        InputError: for embodiments that do not match, for an unknown option, and for options that a policy with joint
            actions does not use.
    """
    options = {key: value for key, value in kinematics.items() if value is not None}
    if not options:
        policy = in_units_of(policy, body)
    if unknown := options.keys() - set(KINEMATICS):
        raise InputError(f"kinematics.{min(unknown)}: the options are {', '.join(KINEMATICS)}")
    trained = policy.embodiment
    if trained.action == body.action or (trained.kinematics is None and not options):
        if options:
            raise InputError(
                f"kinematics.{min(options)}: the policy outputs this robot's actions already: leave it out"
            )
        try:
            if isinstance(policy, RemotePolicy):
                policy.drive(body)
            else:
                trained.check(body)
        except InputError as error:
            raise InputError(f"{error}{_remedy(policy, body)}") from error
        data_of(policy).check_units(body)
        return policy
    from vla.policies.end_effector import BatchEndEffectorPolicy, EndEffectorPolicy

    components = read_components("kinematics.components", options.get("components", {}))
    kind = BatchEndEffectorPolicy if isinstance(policy, BatchPolicy) else EndEffectorPolicy
    return kind(policy, body, _kinematics(trained, body, options), velocity, components)


def _remedy(policy: Policy, body: Embodiment) -> str:
    """The options that resolve a mismatch of cameras or control rate."""
    trained = policy.embodiment
    if not trained.cameras_fit(body, takes_fewer_cameras(policy)):
        if trained.cameras_fit(body, fewer=True):
            return f"; {REMEDY}"
        names = ", ".join(trained.cameras)
        return f"; name the robot's cameras as the policy does: {names} (of a real arm robot.cameras={{NAME: …}})"
    if trained.control_hz != body.control_hz:
        return f"; set the robot to the policy's rate: of a real arm robot.control_hz={trained.control_hz:g}"
    return ""


def _kinematics(trained: Embodiment, body: Embodiment, options: Mapping[str, Any]) -> ToolKinematics:
    kinematics = trained.kinematics
    if kinematics is None:
        kinematics = _from_options(trained, options)
    if not options.keys() - {"components"}:
        return kinematics
    frames = [tool.frame for tool in kinematics.tools]
    model, mjcf = kinematics.model, kinematics.mjcf
    if "model" in options:
        from vla.envs.robot_models import load_robot_model

        tools = options.get("tool", frames)
        frames = [tools] if isinstance(tools, str) else list(tools)
        if len(frames) != len(kinematics.tools):
            raise InputError(f"kinematics.tool names {len(frames)} tools, the policy has {len(kinematics.tools)}")
        model, mjcf = options["model"], extract_chain(load_robot_model(options["model"]), frames)
    elif "tool" in options:
        raise InputError("kinematics.tool needs kinematics.model: the file that defines the tool")
    joints = match_joints(body, chain_joints(mjcf), options.get("joints"), options.get("units"))
    named = tuple(replace(tool, frame=frame) for tool, frame in zip(kinematics.tools, frames, strict=True))
    return ToolKinematics(model, mjcf, named, joints)


def _from_options(trained: Embodiment, options: Mapping[str, Any]) -> ToolKinematics:
    """The tools named in `options`, for data that name none: one per rotation of the action, after its x, y and z."""
    if not {"model", "tool"} <= options.keys():
        raise InputError(
            f"the policy's actions are {', '.join(trained.action)}, and its data do not name the tool of this pose: "
            "set kinematics.model and kinematics.tool"
        )
    frames = [options["tool"]] if isinstance(options["tool"], str) else list(options["tool"])
    if len(frames) != len(trained.rotations):
        raise InputError(f"kinematics.tool names {len(frames)} tools, the policy's action has {len(trained.rotations)}")
    tools = []
    for frame, rotation in zip(frames, trained.rotations, strict=True):
        position = trained.action[max(rotation.action[0] - 3, 0) : rotation.action[0]]
        if [bare(name)[-1:] for name in position] != ["x", "y", "z"]:
            raise InputError(f"the position of {frame} is not in front of its rotation: {', '.join(trained.action)}")
        tools.append(Tool(frame, position, tuple(trained.action[i] for i in rotation.action)))
    return ToolKinematics("", "", tuple(tools), ())


def adapted_line(policy: Policy) -> str | None:
    """A line that describes the inverse kinematics of an adapted policy; None for a policy without it."""
    kinematics = getattr(policy, "kinematics", None)
    if not isinstance(kinematics, ToolKinematics):
        return None
    joints = ", ".join(joint.component for joint in kinematics.joints)
    poses = "; ".join(f"{tool.frame}: {', '.join((*tool.position, *tool.rotation))}" for tool in kinematics.tools)
    return f"the policy outputs poses ({poses}): joints ({joints}) by inverse kinematics of {kinematics.model}"
