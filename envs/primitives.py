"""What the experts are made of: reach and grasp, carry and let go, put down, press, pull.

Each primitive is a function of the present state of the simulation and of nothing else: there is no clock and no
memory. So an expert recovers by itself after a disturbance or a lost grasp, from any start, and its actions can be
learned from images and joint positions. The hand approaches through a funnel: the further it is from its goal
horizontally, the higher it keeps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vla.envs.ik import ROLL_OFFSET, azimuth
from vla.envs.objects import BOWL_RADIUS, GoalSpec
from vla.envs.scene import Arm, TableScene

OPEN, AJAR, CLOSED = 0.80, 0.42, -0.12
"""[rad] of the gripper joint."""
HOVER, LIFT_TO, CARRY_AT, RELEASE_AT = 0.055, 0.11, 0.10, 0.065
"""[m]. HOVER is above the grasp, the others are heights of the fingertips above the table."""
FUNNEL_SLOPE = 2.5
REACHED, KEPT = 0.015, 0.026
"""[m]. A grasp begins when the hand is this close to its place, and goes on while it stays this close."""
ROUND = ("cylinder", "cone")
HEIGHT_TOLERANCE = 0.014
FINGER_X, JAW_PIVOT, JAW_TIP, SITE_X = -0.0095, 0.0202, (-0.012, 0.078), 0.012
"""[m] along the closing direction in the gripper's frame: the fixed finger's face, the moving jaw's pivot, its tip
(across, along the finger) when closed, and the fingertip site."""
WITHIN, LET_GO, DROP = 0.016, 0.6, 0.005
"""An object counts as put where it belongs WITHIN so far [m]; it is let go within LET_GO of that and DROP above [m]."""
WITHDRAW = 0.035
"""[m] above an object that was put down, below which the hand rises straight up."""


class Command(NamedTuple):
    """Where the fingertips should be [m], in which direction the jaws close [rad], and the gripper [rad]."""

    position: Float[np.ndarray, "3"]
    closing_yaw: float
    gripper: float


class Move(NamedTuple):
    """Object `item` belongs with its centre `within` so much of `place` [m], or is dropped there into `bowl`."""

    item: int
    place: Float[np.ndarray, "3"]
    bowl: GoalSpec | None = None
    within: float = WITHIN


def contacts(scene: TableScene, geom: int, arm: Arm | None = None) -> int:
    """How many parts of the hand (the fixed finger's, the moving jaw's) touch a geom."""
    pairs = scene.data.contact.geom[: scene.data.ncon]
    touching = pairs[(pairs == geom).any(axis=1)].flatten()
    return len(set(scene.model.geom_bodyid[touching].tolist()) & set((arm or scene.arms[0]).hand))


def held(scene: TableScene, index: int) -> bool:
    """Whether any part of the hand touches object `index`."""
    return contacts(scene, scene.object_geom(index)) > 0


def grasped(scene: TableScene, index: int) -> bool:
    """Whether both jaws touch the object."""
    return contacts(scene, scene.object_geom(index)) == 2


def in_bowl(scene: TableScene, index: int, bowl: GoalSpec) -> bool:
    """Whether the object lies in the bowl, and the hand has let it go."""
    x, y, z = scene.object_position(index)
    inside = np.hypot(x - bowl.x, y - bowl.y) < BOWL_RADIUS * 0.9 and z < 0.05
    return bool(inside) and not held(scene, index)


def settled(scene: TableScene, move: Move) -> bool:
    """Whether the object is where the move puts it, and the hand has let it go."""
    if move.bowl is not None:
        return in_bowl(scene, move.item, move.bowl)
    off = scene.object_position(move.item) - move.place
    return bool(np.hypot(*off[:2]) < move.within and abs(off[2]) < 0.006) and not held(scene, move.item)


def carry_out(scene: TableScene, moves: list[Move]) -> Command:
    """The first of the moves that has not been made, the last one once all are."""
    tip = tip_of(scene)
    for move in moves:
        if settled(scene, move):
            off = tip - scene.object_position(move.item)
            if move.bowl is None and np.hypot(*off[:2]) < 0.03 and off[2] < WITHDRAW:
                return Command(tip + (0, 0, 0.03), present_yaw(scene), AJAR)
    move = next((move for move in moves if not settled(scene, move)), moves[-1])
    return put_down(scene, move) if move.bowl is None else drop_in(scene, move.item, move.place)


def lift(scene: TableScene, target: int) -> Command:
    """Grasp the object and lift it."""
    if grasped(scene, target):
        return Command(np.array([*tip_of(scene)[:2], LIFT_TO]), present_yaw(scene), CLOSED)
    return reach_and_close(scene, target)


def drop_in(scene: TableScene, target: int, over: Float[np.ndarray, "_"]) -> Command:
    """Grasp the object, carry it over a place [m] in a bowl and let go."""
    place, tip = scene.object_position(target), tip_of(scene)
    away = float(np.hypot(place[0] - over[0], place[1] - over[1]))
    released = away < 0.045 and not grasped(scene, target)
    if away < 0.02 and tip[2] < RELEASE_AT + 0.012 or released:
        return Command(np.array([*tip[:2], max(tip[2], RELEASE_AT)]), radial_yaw(tip), OPEN)
    if not grasped(scene, target):
        return reach_and_close(scene, target)
    if tip[2] < CARRY_AT - 0.03 and away > 0.05:
        return Command(np.array([*tip[:2], CARRY_AT]), present_yaw(scene), CLOSED)
    height = RELEASE_AT + float(np.clip((away - REACHED) * FUNNEL_SLOPE, 0, CARRY_AT - RELEASE_AT))
    # The object, not the fingertips, belongs over the bowl.
    position = np.array([over[0] + tip[0] - place[0], over[1] + tip[1] - place[1], height])
    return Command(position, radial_yaw(position), CLOSED)


def put_down(scene: TableScene, move: Move) -> Command:
    """Grasp the object, carry it to its place, set it down and let go."""
    at, tip = scene.object_position(move.item), tip_of(scene)
    off = move.place - at
    away, above = float(np.hypot(*off[:2])), float(-off[2])
    close = LET_GO * move.within
    if away < move.within and above < DROP + 0.007 and (away < close or scene.data.qpos[5] > 0.3):
        return Command(tip, present_yaw(scene), AJAR)
    if not grasped(scene, move.item):
        return reach_and_close(scene, move.item)
    if at[2] < move.place[2] + CARRY_AT - 0.05 and away > 0.05:
        return Command(np.array([*tip[:2], move.place[2] + CARRY_AT]), present_yaw(scene), CLOSED)
    rise = 0.002 + float(np.clip((away - close) * FUNNEL_SLOPE, 0, CARRY_AT - 0.03))
    position = tip + off + (0, 0, rise)
    return Command(position, radial_yaw(position), CLOSED)


def reach_and_close(scene: TableScene, target: int) -> Command:
    """Go to the object from above with open jaws, and close them on it."""
    place = scene.object_position(target)
    height = float(np.clip(place[2], 0.012, 0.02)) if place[2] < 0.04 else float(place[2])
    return close_on(scene, scene.arms[0], np.array([*place[:2], height]), grasp_yaw(scene, target))


def close_on(
    scene: TableScene, arm: Arm, place: Float[np.ndarray, "3"], yaw: float, wide: float = OPEN, *, wait: bool = False
) -> Command:
    """Bring the middle between the jaws, open by `wide` [rad], to a place [m], and unless told to wait close them."""
    tip, gripper = tip_of(scene, arm), float(scene.data.qpos[arm.joints][5])
    grasp = grasp_at(scene, arm, place, yaw)
    away = float(np.hypot(*(grasp - tip)[:2]))
    tolerance = KEPT if gripper < wide - 0.15 else REACHED
    if away < tolerance and tip[2] - place[2] < HEIGHT_TOLERANCE:
        return Command(grasp, yaw, wide if wait else CLOSED)
    goto = grasp + np.array([0, 0, funnel(away)])
    if tip[2] < goto[2] - 0.03:  # rise before crossing the table
        goto[:2] = tip[:2]
    return Command(goto, yaw, wide)


def grasp_at(scene: TableScene, arm: Arm, place: Float[np.ndarray, "3"], yaw: float) -> Float[np.ndarray, "3"]:
    """Where the fingertips are [m] when a place is midway between the jaws, wherever those stand."""
    middle = _jaw_middle(float(scene.data.qpos[arm.joints][5]))
    return np.array([*(place[:2] - direction(yaw) * (middle - SITE_X)), place[2]])


def around(scene: TableScene, arm: Arm, place: Float[np.ndarray, "3"], yaw: float) -> bool:
    """Whether the jaws stand about where they can close on a place [m]."""
    off = tip_of(scene, arm) - grasp_at(scene, arm, place, yaw)
    return bool(np.hypot(*off[:2]) < 1.5 * KEPT and off[2] < 2 * HEIGHT_TOLERANCE)


def grasp_yaw(scene: TableScene, target: int) -> float:
    """The closing direction [rad] that lies across the object, nearest to the one across the arm's reach."""
    place = scene.object_position(target)
    across, shape = radial_yaw(place), scene.objects[target].shape
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


def _jaw_middle(gripper: float) -> float:
    """Midway between the jaws [m] along the closing direction, at a gripper angle [rad]."""
    across, along = JAW_TIP
    moving = JAW_PIVOT + across * np.cos(gripper) + along * np.sin(gripper)
    return float((FINGER_X + moving) / 2)


def to_fingers(closing: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    """From the fingertip site to the middle of the closed fingers [m], the jaws closing in a direction."""
    return (FINGER_X - SITE_X) * closing


def direction(yaw: float) -> Float[np.ndarray, "2"]:
    return np.array([np.cos(yaw), np.sin(yaw)])


def radial_yaw(position: Float[np.ndarray, "_"]) -> float:
    """The closing direction [rad] across the arm's reach: the moving jaw on the right."""
    return azimuth(position) - np.pi / 2


def present_yaw(scene: TableScene, arm: Arm | None = None) -> float:
    """The closing direction [rad] in which the hand stands."""
    joints = scene.data.qpos[(arm or scene.arms[0]).joints]
    return float(joints[4] - joints[0] - ROLL_OFFSET)


def funnel(away: float) -> float:
    """How high above its goal [m] a hand keeps that is `away` from it [m]."""
    return float(np.clip((away - REACHED) * FUNNEL_SLOPE, 0, HOVER))


def tip_of(scene: TableScene, arm: Arm | None = None) -> Float[np.ndarray, "3"]:
    """Where the fingertips are [m]."""
    return scene.data.site_xpos[(arm or scene.arms[0]).tip].copy()
