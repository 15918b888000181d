"""Detects which action components form one rotation, from their values and, for Euler angles, from their names.

A rotation vector (axis-angle) of about half a turn jumps by 2 pi to its opposite if the angle crosses pi, or if the
underlying quaternion changes its sign (robosuite's vectors are up to 2 pi long). Interpreted as three angles that wrap,
such a step is large; interpreted as a rotation, it is as small as the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vla.common.rotations import decode
from vla.embodiment import Embodiment
from vla.errors import InputError

ANGLES = ("roll", "pitch", "yaw")
CLEARLY = 0.9
"""Maximum ratio of the summed steps across jumps to those of the alternative interpretation."""
JUMP = 1.5 * math.pi
"""Minimum length of a jump [rad]."""
SLACK = 1.001

Rotations = list[tuple[str, tuple[int, ...]]]


def detect_rotations(body: Embodiment, actions: Sequence[Float[np.ndarray, "_t a"]]) -> Rotations:
    """The rotations among the position actions without grippers: representations and the indices of the components.

    Raises InputError if the component order of a unit quaternion is unknown.
    """
    values = np.concatenate(actions)
    rotations: Rotations = []
    free = (body.is_position_action & ~body.is_gripper).tolist()

    def take(name: str, at: tuple[int, ...]) -> None:
        rotations.append((name, at))
        for i in at:
            free[i] = False

    for width, find in ((6, _six), (4, _quaternion)):
        for at in _windows(free, width):
            if all(free[i] for i in at) and (name := find([body.action[i] for i in at], values[:, at])):
                take(name, at)
    vectors = {at: _across_jumps([body.action[i] for i in at], [a[:, at] for a in actions]) for at in _windows(free, 3)}
    for at in sorted(vectors, key=vectors.__getitem__):
        if vectors[at] < CLEARLY and all(free[i] for i in at):
            take("axis_angle", at)
    for at in _windows(free, 3):
        if all(free[i] for i in at) and (name := _euler([body.action[i] for i in at], values[:, at])):
            take(name, at)
    return rotations


def _windows(free: Sequence[bool], width: int) -> list[tuple[int, ...]]:
    starts = range(len(free) - width + 1)
    return [tuple(range(start, start + width)) for start in starts if all(free[start : start + width])]


def _across_jumps(names: Sequence[str], values: Sequence[Float[np.ndarray, "_t 3"]]) -> float:
    """The summed steps across jumps of rotation vectors, relative to those of the alternative interpretation.

    The alternative is Euler angles if the names fit, or else three independent angles that wrap. Infinite if there are
    no jumps or a vector is longer than a full turn.
    """
    if max(np.linalg.norm(rows, axis=1).max(initial=0) for rows in values) > SLACK * 2 * math.pi:
        return math.inf
    steps = np.concatenate([np.stack([rows[:-1], rows[1:]]) for rows in values], axis=1)
    before, after = steps[:, np.linalg.norm(steps[1] - steps[0], axis=1) > JUMP]
    if not len(before):
        return math.inf
    turned = _turned(before, after, "axis_angle")
    if _are_angles(names):
        return turned / max(_turned(before, after, "euler_xyz"), 1e-9)
    wrapped = np.linalg.norm((after - before + math.pi) % (2 * math.pi) - math.pi, axis=1).sum()
    return turned / max(float(wrapped), 1e-9)


def _turned(before: Float[np.ndarray, "n 3"], after: Float[np.ndarray, "n 3"], representation: str) -> float:
    return float((decode(after, representation) * decode(before, representation).inv()).magnitude().sum())


def _six(names: Sequence[str], values: Float[np.ndarray, "n 6"]) -> str:
    first, second = values[:, :3], values[:, 3:]
    units = [np.abs(np.linalg.norm(column, axis=1) - 1).max() for column in (first, second)]
    return "rotation_6d" if max(*units, np.abs((first * second).sum(1)).max()) < 1e-3 else ""


def _quaternion(names: Sequence[str], values: Float[np.ndarray, "n 4"]) -> str:
    if np.abs(np.linalg.norm(values, axis=1) - 1).max() > 1e-3 or (np.ptp(values, axis=0) < 1e-6).sum() > 2:
        return ""
    last = [name.lower().split("[")[0].strip()[-1:] for name in names]
    for representation, letters in (("quaternion_xyzw", "xyzw"), ("quaternion_wxyz", "wxyz")):
        if "".join(last) == letters:
            return representation
    quoted = ", ".join(f'"{name}"' for name in names)
    raise InputError(
        f"{', '.join(names)} are a unit quaternion of unknown component order: set "
        f"'rotations={{quaternion_xyzw: [{quoted}]}}' or quaternion_wxyz, or rotations={{}} for plain numbers"
    )


def _are_angles(names: Sequence[str]) -> bool:
    return all(word in name.lower() for word, name in zip(ANGLES, names, strict=True))


def _euler(names: Sequence[str], values: Float[np.ndarray, "n 3"]) -> str:
    if not _are_angles(names):
        return ""
    reach = float(np.abs(values).max())
    return "euler_xyz" if reach <= 2 * math.pi * SLACK else "euler_xyz_deg" if reach <= 360.0 else ""
