"""A policy made to fit a robot: as it is, or by inverse kinematics where its actions are tool poses."""

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
from vla.policies.policy import Policy, takes_fewer_cameras
from vla.policies.remote import RemotePolicy
from vla.robots.limits import limits_of

KINEMATICS = ("model", "tool", "joints", "units", "components")


def load_for_robots(name: str, kinematics: Mapping[str, Any]) -> Callable[[gymnasium.Env[Any, Any]], Policy]:
    """`load_policy`, each environment's policy made to fit it by `adapt`; what is shared stays so."""
    load = load_policy(name)
    made: dict[tuple[int, str], tuple[Policy, Policy]] = {}

    def serve(env: gymnasium.Env[Any, Any]) -> Policy:
        policy, body = load(env), env.unwrapped.embodiment  # type: ignore[attr-defined]
        key = id(policy), body.name
        if key not in made:
            limits = limits_of(env)
            made[key] = policy, adapt(policy, body, None if limits is None else limits.velocity, kinematics)
        return made[key][1]

    return serve


def adapt(policy: Policy, body: Embodiment, velocity: Sequence[float] | None, kinematics: Mapping[str, Any]) -> Policy:
    """`policy` for the robot `body`, whose actions may change by `velocity` a second (None: as they will).

    One that outputs tool poses for a robot that takes joint targets is wrapped (`vla.policies.end_effector`). The model
    of the arm is that of the policy's data, or as in `kinematics` (options of `KINEMATICS`, None where not given).

    Raises InputError when the two are not of one embodiment otherwise, for an unknown key, and for options that a
    policy of this robot's joints has no use for.
    """
    given = {key: value for key, value in kinematics.items() if value is not None}
    if not given:
        policy = in_units_of(policy, body)
    if unknown := given.keys() - set(KINEMATICS):
        raise InputError(f"kinematics.{min(unknown)}: the options are {', '.join(KINEMATICS)}")
    there = policy.embodiment
    if there.action == body.action or (there.kinematics is None and not given):
        if given:
            raise InputError(f"kinematics.{min(given)}: this policy's actions are the robot's own: leave it out")
        try:
            if isinstance(policy, RemotePolicy):
                policy.drive(body)
            else:
                there.check(body)
        except InputError as error:
            raise InputError(f"{error}{_remedy(policy, body)}") from error
        data_of(policy).check_units(body)
        return policy
    from vla.policies.end_effector import by_inverse_kinematics

    components = read_components("kinematics.components", given.get("components", {}))
    return by_inverse_kinematics(policy, body, _kinematics(there, body, given), velocity, components)


def _remedy(policy: Policy, body: Embodiment) -> str:
    """The options that make the two fit, of a mismatch of cameras or rate."""
    there = policy.embodiment
    if not there.cameras_fit(body, takes_fewer_cameras(policy)):
        if there.cameras_fit(body, fewer=True):
            return f"; {REMEDY}"
        names = ", ".join(there.cameras)
        return f"; name the robot's cameras as the policy does: {names} (of a real arm robot.cameras={{NAME: …}})"
    if there.control_hz != body.control_hz:
        return f"; give the robot the policy's rate: of a real arm robot.control_hz={there.control_hz:g}"
    return ""


def _kinematics(there: Embodiment, body: Embodiment, given: Mapping[str, Any]) -> ToolKinematics:
    about = there.kinematics
    if about is None:
        about = _of_unknown(there, given)
    if not given.keys() - {"components"}:
        return about
    frames = [tool.frame for tool in about.tools]
    model, mjcf = about.model, about.mjcf
    if "model" in given:
        from vla.envs.robot_models import load_robot_model

        tools = given.get("tool", frames)
        frames = [tools] if isinstance(tools, str) else list(tools)
        if len(frames) != len(about.tools):
            raise InputError(f"kinematics.tool names {len(frames)} tools, the policy has {len(about.tools)}")
        model, mjcf = given["model"], extract_chain(load_robot_model(given["model"]), frames)
    elif "tool" in given:
        raise InputError("kinematics.tool needs kinematics.model: the file that it is in")
    joints = match_joints(body, chain_joints(mjcf), given.get("joints"), given.get("units"))
    named = tuple(replace(tool, frame=frame) for tool, frame in zip(about.tools, frames, strict=True))
    return ToolKinematics(model, mjcf, named, joints)


def _of_unknown(there: Embodiment, given: Mapping[str, Any]) -> ToolKinematics:
    """The tools of a policy whose data do not name any: those of `given`, each with a rotation of the action and the x,
    y and z in front of it."""
    if not {"model", "tool"} <= given.keys():
        raise InputError(
            f"the policy's actions are {', '.join(there.action)}, and its data do not say of which tool they are the "
            "pose: name kinematics.model and kinematics.tool"
        )
    frames = [given["tool"]] if isinstance(given["tool"], str) else list(given["tool"])
    if len(frames) != len(there.rotations):
        raise InputError(f"kinematics.tool names {len(frames)} tools, the policy's action has {len(there.rotations)}")
    tools = []
    for frame, rotation in zip(frames, there.rotations, strict=True):
        position = there.action[max(rotation.action[0] - 3, 0) : rotation.action[0]]
        if [bare(name)[-1:] for name in position] != ["x", "y", "z"]:
            raise InputError(f"the position of {frame} is not in front of its rotation: {', '.join(there.action)}")
        tools.append(Tool(frame, position, tuple(there.action[i] for i in rotation.action)))
    return ToolKinematics("", "", tuple(tools), ())


def adapted_line(policy: Policy) -> str | None:
    """What to print of a policy that is not the robot's own; None of one that is."""
    about = getattr(policy, "kinematics", None)
    if not isinstance(about, ToolKinematics):
        return None
    joints = ", ".join(joint.component for joint in about.joints)
    poses = "; ".join(f"{tool.frame}: {', '.join((*tool.position, *tool.rotation))}" for tool in about.tools)
    return f"the policy outputs poses ({poses}): joints ({joints}) by inverse kinematics of {about.model}"
