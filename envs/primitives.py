"""Motion primitives of the scripted experts: reach, grasp, carry, release, put down, press, pull.

Each primitive is a function of the present state of the simulation only, without clock or memory. An expert therefore
recovers from disturbances and lost grasps, from any initial state, and its actions can be learned from images and joint
positions. The hand approaches through a funnel: its minimum height increases with the horizontal distance to the goal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vla.envs.ik import ROLL_OFFSET, azimuth
from vla.envs.objects import BOWL_RADIUS, GoalSpec
from vla.envs.scene import Arm, TableScene

OPEN, AJAR, CLOSED = 0.80, 0.42, -0.12
"""Positions of the gripper joint [rad]."""
HOVER, LIFT_TO, CARRY_AT, RELEASE_AT = 0.055, 0.11, 0.10, 0.065
"""HOVER is a height above the grasp, the others are heights of the fingertips above the table [m]."""
FUNNEL_SLOPE = 2.5
REACHED, HOLD_RADIUS = 0.015, 0.026
"""A grasp starts within the first distance of the hand from the grasp position, and continues within the second [m]."""
ROUND = ("cylinder", "cone")
HEIGHT_TOLERANCE = 0.014
FINGER_X, JAW_PIVOT, JAW_TIP, SITE_X = -0.0095, 0.0202, (-0.012, 0.078), 0.012
"""Positions along the closing direction in the gripper's frame [m]: the fixed finger's face, the moving jaw's pivot and
closed tip (across, along the finger), and the fingertip site."""
WITHIN, LET_GO, DROP = 0.016, 0.6, 0.005
"""Default tolerance of a goal position [m]; the object is released within the fraction LET_GO of it, DROP [m] above."""
WITHDRAW = 0.035
"""Height above a released object below which the hand rises vertically [m]."""


class Command(NamedTuple):
    """A target of the hand: position of the fingertips [m], closing direction [rad], gripper joint [rad]."""

    position: Float[np.ndarray, "3"]
    closing_yaw: float
    gripper: float


class Move(NamedTuple):
    """Object `item` is to be moved to `position`, up to the tolerance `within` [m], or dropped there into `bowl`."""

    item: int
    position: Float[np.ndarray, "3"]
    bowl: GoalSpec | None = None
    within: float = WITHIN


def contacts(scene: TableScene, geom: int, arm: Arm | None = None) -> int:
    """The number of links of the hand (fixed finger, moving jaw) in contact with a geom."""
    pairs = scene.data.contact.geom[: scene.data.ncon]
    touching = pairs[(pairs == geom).any(axis=1)].flatten()
    return len(set(scene.model.geom_bodyid[touching].tolist()) & set((arm or scene.arms[0]).hand))


def held(scene: TableScene, index: int) -> bool:
    """Whether the hand touches object `index`."""
    return contacts(scene, scene.object_geom(index)) > 0


def grasped(scene: TableScene, index: int) -> bool:
    """Whether both jaws touch the object."""
    return contacts(scene, scene.object_geom(index)) == 2


def in_bowl(scene: TableScene, index: int, bowl: GoalSpec) -> bool:
    """Whether the object is in the bowl and released."""
    x, y, z = scene.object_position(index)
    inside = np.hypot(x - bowl.x, y - bowl.y) < BOWL_RADIUS * 0.9 and z < 0.05
    return bool(inside) and not held(scene, index)


def settled(scene: TableScene, move: Move) -> bool:
    """Whether the object is at the goal of the move and released."""
    if move.bowl is not None:
        return in_bowl(scene, move.item, move.bowl)
    offset = scene.object_position(move.item) - move.position
    return bool(np.hypot(*offset[:2]) < move.within and abs(offset[2]) < 0.006) and not held(scene, move.item)


def carry_out(scene: TableScene, moves: list[Move]) -> Command:
    """The command for the first unfinished move, or for the last one if all are finished."""
    tip = tip_of(scene)
    for move in moves:
        if settled(scene, move):
            offset = tip - scene.object_position(move.item)
            if move.bowl is None and np.hypot(*offset[:2]) < 0.03 and offset[2] < WITHDRAW:
                return Command(tip + (0, 0, 0.03), present_yaw(scene), AJAR)
    move = next((move for move in moves if not settled(scene, move)), moves[-1])
    return put_down(scene, move) if move.bowl is None else drop_in(scene, move.item, move.position)


def lift(scene: TableScene, target: int) -> Command:
    """Grasp the object and lift it."""
    if grasped(scene, target):
        return Command(np.array([*tip_of(scene)[:2], LIFT_TO]), present_yaw(scene), CLOSED)
    return reach_and_close(scene, target)


def drop_in(scene: TableScene, target: int, goal: Float[np.ndarray, "_"]) -> Command:
    """Grasp the object, carry it above a goal [m] in a bowl and release it."""
    item, tip = scene.object_position(target), tip_of(scene)
    distance = float(np.hypot(item[0] - goal[0], item[1] - goal[1]))
    released = distance < 0.045 and not grasped(scene, target)
    if distance < 0.02 and tip[2] < RELEASE_AT + 0.012 or released:
        return Command(np.array([*tip[:2], max(tip[2], RELEASE_AT)]), radial_yaw(tip), OPEN)
    if not grasped(scene, target):
        return reach_and_close(scene, target)
    if tip[2] < CARRY_AT - 0.03 and distance > 0.05:
        return Command(np.array([*tip[:2], CARRY_AT]), present_yaw(scene), CLOSED)
    height = RELEASE_AT + float(np.clip((distance - REACHED) * FUNNEL_SLOPE, 0, CARRY_AT - RELEASE_AT))
    # The object, not the fingertips, is moved above the goal.
    position = np.array([goal[0] + tip[0] - item[0], goal[1] + tip[1] - item[1], height])
    return Command(position, radial_yaw(position), CLOSED)


def put_down(scene: TableScene, move: Move) -> Command:
    """Grasp the object, carry it to its goal, put it down and release it."""
    item, tip = scene.object_position(move.item), tip_of(scene)
    offset = move.position - item
    distance, above = float(np.hypot(*offset[:2])), float(-offset[2])
    close = LET_GO * move.within
    if distance < move.within and above < DROP + 0.007 and (distance < close or scene.data.qpos[5] > 0.3):
        return Command(tip, present_yaw(scene), AJAR)
    if not grasped(scene, move.item):
        return reach_and_close(scene, move.item)
    if item[2] < move.position[2] + CARRY_AT - 0.05 and distance > 0.05:
        return Command(np.array([*tip[:2], move.position[2] + CARRY_AT]), present_yaw(scene), CLOSED)
    rise = 0.002 + float(np.clip((distance - close) * FUNNEL_SLOPE, 0, CARRY_AT - 0.03))
    position = tip + offset + (0, 0, rise)
    return Command(position, radial_yaw(position), CLOSED)


def reach_and_close(scene: TableScene, target: int) -> Command:
    """Approach the object from above with open jaws, and close them."""
    position = scene.object_position(target)
    height = float(np.clip(position[2], 0.012, 0.02)) if position[2] < 0.04 else float(position[2])
    return close_on(scene, scene.arms[0], np.array([*position[:2], height]), grasp_yaw(scene, target))


def close_on(
    scene: TableScene, arm: Arm, position: Float[np.ndarray, "3"], yaw: float, wide: float = OPEN, *, wait: bool = False
) -> Command:
    """Move the centre between the jaws to a position [m], then close them.

    Args:
        scene: The scene.
        arm: The arm.
        position: The grasp position [m].
        yaw: The closing direction [rad].
        wide: The opening of the gripper during the approach [rad].
        wait: Whether the jaws stay open.
    """
    tip, gripper = tip_of(scene, arm), float(scene.data.qpos[arm.joints][5])
    grasp = grasp_at(scene, arm, position, yaw)
    distance = float(np.hypot(*(grasp - tip)[:2]))
    tolerance = HOLD_RADIUS if gripper < wide - 0.15 else REACHED
    if distance < tolerance and tip[2] - position[2] < HEIGHT_TOLERANCE:
        return Command(grasp, yaw, wide if wait else CLOSED)
    goto = grasp + np.array([0, 0, funnel(distance)])
    if tip[2] < goto[2] - 0.03:  # rise before crossing the table
        goto[:2] = tip[:2]
    return Command(goto, yaw, wide)


def grasp_at(scene: TableScene, arm: Arm, position: Float[np.ndarray, "3"], yaw: float) -> Float[np.ndarray, "3"]:
    """The position of the fingertips [m] at which a position is midway between the jaws."""
    middle = _jaw_middle(float(scene.data.qpos[arm.joints][5]))
    return np.array([*(position[:2] - direction(yaw) * (middle - SITE_X)), position[2]])


def jaws_around(scene: TableScene, arm: Arm, position: Float[np.ndarray, "3"], yaw: float) -> bool:
    """Whether the jaws are approximately around a position [m]."""
    offset = tip_of(scene, arm) - grasp_at(scene, arm, position, yaw)
    return bool(np.hypot(*offset[:2]) < 1.5 * HOLD_RADIUS and offset[2] < 2 * HEIGHT_TOLERANCE)


def grasp_yaw(scene: TableScene, target: int) -> float:
    """The closing direction across the object [rad] that is nearest to the one across the arm's reach."""
    position = scene.object_position(target)
    across, shape = radial_yaw(position), scene.objects[target].shape
    rotation = scene.data.xmat[scene.object_bodies[target]].reshape(3, 3)
    lies_down = abs(rotation[2, 2]) < 0.7
    if shape == "ball" or (shape in ROUND and not lies_down):
        return across
    if shape in ROUND:
        side, period = np.array([-rotation[1, 2], rotation[0, 2]]), np.pi
    else:
        # The most horizontal axis, except a brick's long one.
        axes = (1, 2) if shape == "brick" else (0, 1, 2)
        side = rotation[:2, min(axes, key=lambda axis: abs(float(rotation[2, axis])))]
        period = np.pi if shape == "brick" else np.pi / 2
    turn = np.arctan2(side[1], side[0]) - across
    return float(across + (turn + period / 2) % period - period / 2)


def _jaw_middle(gripper: float) -> float:
    """The centre between the jaws along the closing direction [m], for a gripper angle [rad]."""
    across, along = JAW_TIP
    moving = JAW_PIVOT + across * np.cos(gripper) + along * np.sin(gripper)
    return float((FINGER_X + moving) / 2)


def to_fingers(closing: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    """The offset from the fingertip site to the centre of the closed fingers [m], for a closing direction."""
    return (FINGER_X - SITE_X) * closing


def direction(yaw: float) -> Float[np.ndarray, "2"]:
    """The horizontal unit vector at an angle [rad] from the x axis."""
    return np.array([np.cos(yaw), np.sin(yaw)])


def radial_yaw(position: Float[np.ndarray, "_"]) -> float:
    """The closing direction across the arm's reach [rad], with the moving jaw on the right."""
    return azimuth(position) - np.pi / 2


def present_yaw(scene: TableScene, arm: Arm | None = None) -> float:
    """The present closing direction of the hand [rad]."""
    joints = scene.data.qpos[(arm or scene.arms[0]).joints]
    return float(joints[4] - joints[0] - ROLL_OFFSET)


def funnel(distance: float) -> float:
    """The minimum height of the hand above its goal at a horizontal distance [m]."""
    return float(np.clip((distance - REACHED) * FUNNEL_SLOPE, 0, HOVER))


def tip_of(scene: TableScene, arm: Arm | None = None) -> Float[np.ndarray, "3"]:
    """The position of the fingertips [m]."""
    return scene.data.site_xpos[(arm or scene.arms[0]).tip].copy()
