"""Ground truth of images: object centres and visibility, from the simulator's segmentation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Int

from vla.common.scene_objects import Scene, SceneObject
from vla.envs.objects import SHAPES
from vla.envs.scene import TableScene

CLEAR_PIXELS, CLEAR_FRACTION = 12, 0.30
"""A visible object has at least this many pixels (in a 96 x 96 image) and this fraction of its outline."""
HIDDEN_PIXELS, HIDDEN_FRACTION = 3, 0.04
"""An object below one of these is hidden; between the limits its visibility is ambiguous."""

FINGER_REACH = 0.035
"""The fingers are visible if CLEAR_PIXELS pixels of the hand are within this distance of their tips [m]."""


def scene_truth(env: gym.Env[Any, Any]) -> Scene:
    """The ground truth of the environment's present scene, with positions in the robot's base frame."""
    return table_truth(env.unwrapped.scene)  # type: ignore[attr-defined]


def table_truth(scene: TableScene) -> Scene:
    """The ground truth of a scene, whose kinematics and cameras must be up to date."""
    centers: list[dict[str, tuple[float, float]]] = [{} for _ in scene.objects]
    gripper: dict[str, tuple[float, float]] = {}
    ambiguous: dict[str, frozenset[str]] = {}
    for camera in scene.cameras:
        labels = scene.segment(camera)
        for index, spec in enumerate(scene.objects):
            mask = labels == scene.object_geom(index)
            outline = project(scene, camera, _corners(scene, index))
            center = project(scene, camera, scene.object_position(index)[None])[0]
            visible = _visibility(mask, outline)
            if visible is None:
                ambiguous[camera] = ambiguous.get(camera, frozenset()) | {spec.name}
            elif visible:
                centers[index][camera] = _point_on(mask, center)
        tip = project(scene, camera, scene.data.site_xpos[scene.tip][None])[0]
        if _shows_fingers(scene, camera, labels, tip):
            gripper[camera] = (float(tip[0]), float(tip[1]))
    objects = tuple(
        SceneObject(spec.color, spec.shape, _triple(scene.object_position(i)), centers[i])
        for i, spec in enumerate(scene.objects)
    )
    return Scene(objects, gripper, ambiguous)


def _shows_fingers(scene: TableScene, camera: str, labels: Int[np.ndarray, "h w"], tip: Float[np.ndarray, "2"]) -> bool:
    """Whether the fingertips are in the image and enough of the hand is visible around them."""
    if not (np.isfinite(tip).all() and (tip >= 0).all() and (tip < 1).all()):
        return False
    right = scene.data.cam_xmat[scene.model.camera(camera).id].reshape(3, 3)[:, 0]
    beside = project(scene, camera, (scene.data.site_xpos[scene.tip] + FINGER_REACH * right)[None])[0]
    height, width = labels.shape
    column, row, reach = int(tip[0] * width), int(tip[1] * height), int((beside[0] - tip[0]) * width)
    window = labels[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
    return bool(np.isin(window, scene.hand_geoms).sum() >= CLEAR_PIXELS * labels.size / 96**2)


def project(scene: TableScene, camera: str, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
    """Image coordinates of points [m] as fractions (x right, y down); nan for a point behind the camera."""
    index = scene.model.camera(camera).id
    local = (points - scene.data.cam_xpos[index]) @ scene.data.cam_xmat[index].reshape(3, 3)
    depth = np.where(local[:, 2] < -1e-3, -local[:, 2], np.nan)
    scale = 2 * np.tan(np.deg2rad(scene.model.cam_fovy[index]) / 2) * depth
    return np.stack([0.5 + local[:, 0] / scale, 0.5 - local[:, 1] / scale], axis=1)


def points(scene: TableScene, positions: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "p 2"]:
    """Projects positions [m] to each camera's image, camera by camera, as fractions of width and height.

    Positions outside the image are outside [0, 1); those behind the camera are at -1.
    """
    return np.nan_to_num(np.concatenate([project(scene, camera, positions) for camera in scene.cameras]), nan=-1.0)


def _visibility(mask: np.ndarray, outline: Float[np.ndarray, "n 2"]) -> bool | None:
    """True: visible, False: hidden, None: ambiguous."""
    unit = mask.size / 96**2
    pixels = int(mask.sum())
    if pixels < HIDDEN_PIXELS * unit:
        return False
    if not np.isfinite(outline).all():  # partly behind the camera
        return None
    fraction = pixels / max(_hull_area(outline) * mask.size, 1.0)
    if pixels >= CLEAR_PIXELS * unit and fraction >= CLEAR_FRACTION:
        return True
    return False if fraction < HIDDEN_FRACTION else None


def _point_on(mask: np.ndarray, center: Float[np.ndarray, "2"]) -> tuple[float, float]:
    """The projected centre if it is on the object's mask, else the mask's pixel nearest to its mean."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    x, y = center * (width, height)
    if 0 <= x < width and 0 <= y < height and mask[int(y), int(x)]:
        return float(center[0]), float(center[1])
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return (float(columns[nearest]) + 0.5) / width, (float(rows[nearest]) + 0.5) / height


def _outline_points() -> dict[str, Float[np.ndarray, "n 3"]]:
    """Points whose convex hull is the shape, in units of its half extents."""
    signs = np.array([-1.0, 1.0])
    box = np.stack(np.meshgrid(signs, signs, signs), axis=-1).reshape(-1, 3)
    angle = np.arange(12) * np.pi / 6
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    disc = [np.column_stack([circle, np.full(12, z)]) for z in signs]
    latitude = np.deg2rad([-60, -30, 0, 30, 60])
    rings = [np.column_stack([circle * np.cos(b), np.full(12, np.sin(b))]) for b in latitude]
    poles = np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    return {
        "cube": box,
        "brick": box,
        "bar": box,
        "cylinder": np.concatenate(disc),
        "cone": np.concatenate([disc[0], poles[1:]]),
        "ball": np.concatenate([*rings, poles]),
    }


_OUTLINES = _outline_points()
assert set(SHAPES) <= set(_OUTLINES)


def _corners(scene: TableScene, index: int) -> Float[np.ndarray, "n 3"]:
    spec = scene.objects[index]
    rotation = scene.data.xmat[scene.object_bodies[index]].reshape(3, 3)
    return (_OUTLINES[spec.shape] * spec.half_extents) @ rotation.T + scene.object_position(index)


def _hull_area(points: Float[np.ndarray, "n 2"]) -> float:
    """The area of the convex hull from support points in 16 directions, within 3 % for these shapes."""
    angle = np.arange(16) * np.pi / 8
    support: Int[np.ndarray, "16"] = np.argmax(points @ np.stack([np.cos(angle), np.sin(angle)]), axis=0)
    x, y = points[support].T
    return float(0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def _triple(values: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
