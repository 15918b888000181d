"""Conversion between the representations of rotations that datasets and robots use.

The 6D representation consists of the first two columns of the rotation matrix, concatenated (Zhou et al. 2019, arXiv
1812.07035, sec. 4). It is continuous, and any two linearly independent vectors define a rotation.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vla.errors import InputError

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation as Spatial

TINY = 1e-9
ROTATIONS = {"quaternion_xyzw": 4, "quaternion_wxyz": 4, "axis_angle": 3, "rotation_6d": 6}
"""Number of components of each representation, except Euler angles. Those are named `euler_` and three axes as in
scipy: lower case for extrinsic, upper case for intrinsic rotations; in radians, or in degrees with `_deg`."""
EULER = re.compile("euler_([xyz]{3}|[XYZ]{3})(_deg)?")


def components_of(representation: str) -> int:
    """The number of components of a representation. Raises InputError if it is unknown."""
    if EULER.fullmatch(representation):
        return 3
    if representation not in ROTATIONS:
        raise InputError(f"{representation!r} is no rotation: choose {', '.join(ROTATIONS)} or euler_xyz, euler_ZYX, …")
    return ROTATIONS[representation]


def decode(values: Float[np.ndarray, "*t n"], representation: str) -> Spatial:
    """Decodes rotations into a flat sequence."""
    from scipy.spatial.transform import Rotation as Spatial

    flat: Float[np.ndarray, "_t _n"] = np.asarray(values, np.float64).reshape(-1, components_of(representation))
    if representation.startswith("euler_"):
        axes, degrees = _euler(representation)
        return Spatial.from_euler(axes, flat, degrees=degrees)
    if representation == "axis_angle":
        return Spatial.from_rotvec(flat)
    if representation == "rotation_6d":
        return Spatial.from_matrix(_orthonormal(flat))
    if representation == "quaternion_wxyz":
        flat = np.roll(flat, -1, axis=1)
    # Some datasets use zero quaternions as padding: treated as the identity.
    is_zero = np.linalg.norm(flat, axis=1, keepdims=True) <= TINY
    return Spatial.from_quat(np.where(is_zero, [[0.0, 0.0, 0.0, 1.0]], flat))


def encode(rotations: Spatial, representation: str) -> Float[np.ndarray, "t n"]:
    """Encodes each rotation as a row; quaternions have a non-negative scalar part."""
    if representation.startswith("euler_"):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gimbal lock: any solution is valid
            axes, degrees = _euler(representation)
            return rotations.as_euler(axes, degrees=degrees)
    if representation == "axis_angle":
        return rotations.as_rotvec()
    if representation == "rotation_6d":
        return rotations.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
    quaternions = rotations.as_quat(canonical=True)
    return np.roll(quaternions, 1, axis=1) if representation == "quaternion_wxyz" else quaternions


def convert(values: Float[np.ndarray, "*t n"], source: str, target: str) -> Float[np.ndarray, "*t m"]:
    """The same rotations in another representation."""
    if source == target:
        return np.asarray(values, np.float64)
    out = encode(decode(values, source), target)
    return out.reshape(*values.shape[:-1], out.shape[-1])


def _euler(representation: str) -> tuple[str, bool]:
    """The axes as scipy names them, and whether the angles are in degrees."""
    return representation.removeprefix("euler_").removesuffix("_deg"), representation.endswith("_deg")


def _orthonormal(values: Float[np.ndarray, "t 6"]) -> Float[np.ndarray, "t 3 3"]:
    """Matrices by Gram-Schmidt; zero or parallel vectors are replaced by the most orthogonal axis."""
    first, second = values[:, :3], values[:, 3:]
    x = _unit(first, np.broadcast_to([1.0, 0.0, 0.0], first.shape))
    fallback = np.eye(3)[np.abs(x).argmin(axis=1)]
    y = second - (x * second).sum(1, keepdims=True) * x
    orthogonal = fallback - (x * fallback).sum(1, keepdims=True) * x
    y = np.where(np.linalg.norm(y, axis=1, keepdims=True) > TINY, y, orthogonal)
    y = _unit(y, fallback)
    return np.stack([x, y, np.cross(x, y)], axis=2)


def _unit(vectors: Float[np.ndarray, "t 3"], otherwise: Float[np.ndarray, "t 3"]) -> Float[np.ndarray, "t 3"]:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norm > TINY, vectors / np.maximum(norm, TINY), otherwise)
