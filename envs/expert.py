"""Scripted experts. Each action is a function of the present state of the simulation and of nothing else.

There is no clock and no memory: what to do next is read off where the hand, the jaws and the object are. So an
expert recovers by itself after a disturbance or a lost grasp, from any start, and its actions can be learned from
images and joint positions. The hand approaches through a funnel: the further it is from its goal horizontally,
the higher it keeps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from vla.envs.arm import HAND_BODIES
from vla.envs.ik import ROLL_OFFSET, azimuth, radius
from vla.envs.objects import GoalSpec
from vla.envs.scene import TableScene
from vla.envs.so101 import SO101Env
from vla.envs.tasks import hand_contacts

OPEN, CLOSED = 0.80, -0.12
"""[rad] of the gripper joint."""
MAX_STEP, GRIPPER_STEP = 0.09, 0.25
"""[rad] that a joint moves in one action, at most."""
HOVER, LIFT_TO, CARRY_AT, RELEASE_AT = 0.055, 0.11, 0.10, 0.065
"""[m]. HOVER is above the grasp, the others are heights of the fingertips above the table."""
FUNNEL_SLOPE = 2.5
REACHED, KEPT = 0.015, 0.026
"""[m]. A grasp begins when the hand is this close to its place, and goes on while it stays this close."""
PUSH_HEIGHT, PUSH_AHEAD, PUSH_GAP = 0.017, 0.022, 0.030
FINGERS_LEFT, FINGERS_RIGHT = 0.013, 0.036
"""[m] from the middle of the closed fingertips to their outer side; the moving jaw, on the right, is bent outward."""
ROUND = ("cylinder", "cone")
HEIGHT_TOLERANCE = 0.014
FINGER_X, JAW_PIVOT, JAW_TIP, SITE_X = -0.0095, 0.0202, (-0.012, 0.078), 0.012
"""[m] along the closing direction in the gripper's frame: the fixed finger's face, the moving jaw's pivot, its tip
(across, along the finger) when closed, and the fingertip site."""


class Command(NamedTuple):
    """Where the fingertips should be [m], in which direction the jaws close [rad], and the gripper [rad]."""

    position: Float[np.ndarray, "3"]
    closing_yaw: float
    gripper: float


class Expert:
    """Acts in an SO101Env from privileged state. `act()` gives joint targets (6,) [rad] for its present state."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        unwrapped = env.unwrapped
        assert isinstance(unwrapped, SO101Env)
        self._env = unwrapped

    def reset(self) -> None:
        """Nothing to forget: the expert has no memory."""

    def act(self) -> Float[np.ndarray, "6"]:
        """The next absolute joint targets [rad], a limited step from the present joints."""
        env = self._env
        command = PLANS[env.task.name](env.scene, env.target, env.target_goal)
        arm, _ = env.ik.solve(command.position, comfortable_pitch(command.position), command.closing_yaw)
        joints = env.scene.data.qpos[:6]
        step = arm - joints[:5]
        # One scale for all five joints keeps the path straight in joint space.
        step *= min(1.0, MAX_STEP / max(float(np.abs(step).max()), 1e-9))
        gripper = np.clip(command.gripper - joints[5], -GRIPPER_STEP, GRIPPER_STEP)
        low, high = np.array(env.embodiment.action_low), np.array(env.embodiment.action_high)
        return np.clip(joints + np.append(step, gripper), low, high)


def comfortable_pitch(position: Float[np.ndarray, "3"]) -> float:
    """How steeply [rad] the fingers point down at a place: less so far out and high up, where the arm is stretched."""
    return float(1.22 - 1.6 * max(radius(position) - 0.24, 0.0) - 1.5 * max(position[2] - 0.09, 0.0))


def plan_pick(scene: TableScene, target: int, goal: GoalSpec | None) -> Command:
    """Grasp the object and lift it."""
    if grasped(scene, target):
        return Command(np.array([*_tip(scene)[:2], LIFT_TO]), _present_yaw(scene), CLOSED)
    return _reach_and_close(scene, target)


def plan_place(scene: TableScene, target: int, goal: GoalSpec | None) -> Command:
    """Grasp the object, carry it over the bowl and let go."""
    assert goal is not None
    place, tip = scene.object_position(target), _tip(scene)
    away = float(np.hypot(place[0] - goal.x, place[1] - goal.y))
    if away < 0.02 and tip[2] < RELEASE_AT + 0.012 or _in_bowl_released(scene, target, away):
        return Command(np.array([*tip[:2], max(tip[2], RELEASE_AT)]), _radial_yaw(tip), OPEN)
    if not grasped(scene, target):
        return _reach_and_close(scene, target)
    if tip[2] < CARRY_AT - 0.03 and away > 0.05:
        return Command(np.array([*tip[:2], CARRY_AT]), _present_yaw(scene), CLOSED)
    height = RELEASE_AT + float(np.clip((away - REACHED) * FUNNEL_SLOPE, 0, CARRY_AT - RELEASE_AT))
    # The object, not the fingertips, belongs over the bowl.
    position = np.array([goal.x + tip[0] - place[0], goal.y + tip[1] - place[1], height])
    return Command(position, _radial_yaw(position), CLOSED)


def plan_push(scene: TableScene, target: int, goal: GoalSpec | None) -> Command:
    """Go behind the object with closed jaws and push it into the zone."""
    assert goal is not None
    place = scene.object_position(target)[:2]
    aim = np.array([np.clip(place[0], goal.x - 0.05, goal.x + 0.05), goal.y])
    ahead = aim - place
    distance = float(np.linalg.norm(ahead))
    ahead = ahead / max(distance, 1e-6)
    tip = _tip(scene)
    # The jaws close along the push, so that a finger's flat side meets the object.
    rightward = bool(ahead @ _direction(_radial_yaw(place)) > 0)
    closing = ahead if rightward else -ahead
    to_fingers = (FINGER_X - SITE_X) * closing
    fingers = tip[:2] + to_fingers
    reach = _half_width(scene, target, ahead) + (FINGERS_RIGHT if rightward else FINGERS_LEFT)
    relative = fingers - place
    along, sideways = float(relative @ ahead), np.array([-ahead[1], ahead[0]])
    aside = float(relative @ sideways)
    behind = -(reach + PUSH_GAP) < along < -0.4 * reach
    if behind and abs(aside) < KEPT and tip[2] < PUSH_HEIGHT + 0.010:
        goto, height = fingers + ahead * min(PUSH_AHEAD, distance + 0.01) - sideways * aside, PUSH_HEIGHT
    else:
        goto = place - ahead * (reach + PUSH_GAP * 0.6)
        height = PUSH_HEIGHT + _funnel(float(np.linalg.norm(goto - fingers)))
        if tip[2] < height - 0.03:  # rise before crossing the table
            goto = fingers
    return Command(np.array([*(goto - to_fingers), height]), float(np.arctan2(closing[1], closing[0])), CLOSED)


def grasped(scene: TableScene, target: int) -> bool:
    """Whether both jaws touch the object."""
    return len(hand_contacts(scene, target)) == len(HAND_BODIES)


def grasp_yaw(scene: TableScene, target: int) -> float:
    """The closing direction [rad] that lies across the object, nearest to the one across the arm's reach."""
    place = scene.object_position(target)
    across, shape = _radial_yaw(place), scene.objects[target].shape
    rotation = scene.data.xmat[scene.object_bodies[target]].reshape(3, 3)
    lies_down = abs(rotation[2, 2]) < 0.7
    if shape == "ball" or (shape in ROUND and not lies_down):
        return across
    if shape in ROUND:
        side, period = np.array([-rotation[1, 2], rotation[0, 2]]), np.pi
    else:
        # The flattest axis that is not a brick's long one.
        axes = (1, 2) if shape == "brick" else (0, 1, 2)
        side = rotation[:2, min(axes, key=lambda axis: abs(float(rotation[2, axis])))]
        period = np.pi if shape == "brick" else np.pi / 2
    turn = np.arctan2(side[1], side[0]) - across
    return float(across + (turn + period / 2) % period - period / 2)


def _reach_and_close(scene: TableScene, target: int) -> Command:
    place, yaw = scene.object_position(target), grasp_yaw(scene, target)
    tip, gripper = _tip(scene), float(scene.data.qpos[5])
    height = float(np.clip(place[2], 0.012, 0.02)) if place[2] < 0.04 else float(place[2])
    # The object belongs midway between the jaws, wherever those stand.
    grasp = np.array([*(place[:2] - _direction(yaw) * (_jaw_middle(gripper) - SITE_X)), height])
    away = float(np.hypot(*(grasp - tip)[:2]))
    tolerance = KEPT if gripper < OPEN - 0.15 else REACHED
    if away < tolerance and tip[2] - height < HEIGHT_TOLERANCE:
        return Command(grasp, yaw, CLOSED)
    goto = grasp + np.array([0, 0, _funnel(away)])
    if tip[2] < goto[2] - 0.03:  # rise before crossing the table
        goto[:2] = tip[:2]
    return Command(goto, yaw, OPEN)


def _in_bowl_released(scene: TableScene, target: int, away: float) -> bool:
    return away < 0.045 and not grasped(scene, target)


def _jaw_middle(gripper: float) -> float:
    """Midway between the jaws [m] along the closing direction, at a gripper angle [rad]."""
    across, along = JAW_TIP
    moving = JAW_PIVOT + across * np.cos(gripper) + along * np.sin(gripper)
    return float((FINGER_X + moving) / 2)


def _direction(yaw: float) -> Float[np.ndarray, "2"]:
    return np.array([np.cos(yaw), np.sin(yaw)])


def _radial_yaw(position: Float[np.ndarray, "_"]) -> float:
    """The closing direction [rad] across the arm's reach: the moving jaw on the right."""
    return azimuth(position) - np.pi / 2


def _present_yaw(scene: TableScene) -> float:
    """The closing direction [rad] in which the hand stands."""
    return float(scene.data.qpos[4] - scene.data.qpos[0] - ROLL_OFFSET)


def _funnel(away: float) -> float:
    return float(np.clip((away - REACHED) * FUNNEL_SLOPE, 0, HOVER))


def _half_width(scene: TableScene, target: int, ahead: Float[np.ndarray, "2"]) -> float:
    """From the object's centre to its surface [m] in a horizontal direction."""
    half, shape = scene.objects[target].half_extents, scene.objects[target].shape
    rotation = scene.data.xmat[scene.object_bodies[target]].reshape(3, 3)
    local = np.abs(rotation[:2].T @ ahead)
    if shape == "ball":
        return float(half[0])
    if shape in ROUND:
        return float(half[0] * np.hypot(local[0], local[1]) + half[2] * local[2])
    return float(half @ local)


def _tip(scene: TableScene) -> Float[np.ndarray, "3"]:
    return scene.data.site_xpos[scene.tip].copy()


PLANS = {"pick": plan_pick, "place": plan_place, "push": plan_push}
