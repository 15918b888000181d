"""Geometric augmentation: small random homographies of robot images, applied to their image points as well.

The homography of an image is sampled when its row is built, before points become tokens; pixels are warped later, on
the device. It maps fractions of the image's width and height, independent of resolution and aspect ratio. Letterbox
bars do not move.

Outside the camera's frame, the image edge is repeated. Black would reveal the shift to the model, and mirroring would
duplicate objects.

Questions are not augmented geometrically: their answers contain coordinates, sides and counts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.errors import InputError
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.robot_views import row_frames
from vla.training.augmentation import WRIST, Augmentation
from vla.types import Example


def homography(augmentation: Augmentation, aspect: float, rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Samples a homography between fractions of width and height (x right, y down), from image to augmented image.

    Args:
        augmentation: The augmentation strengths.
        aspect: Width / height, so that rotations are rotations of the scene.
        rng: The random generator.
    """
    samples = rng.uniform(-1, 1, 9)
    scale = 1 + augmentation.scale * samples[2]
    angle = np.deg2rad(augmentation.rotation) * samples[3]
    cut = augmentation.crop * (samples[6] + 1) / 2
    crop = np.diag([1 / (1 - cut), 1 / (1 - cut), 1]) @ _translation(*(-cut * (samples[7:] + 1) / 2))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shape, back = np.diag([aspect, 1, 1]), np.diag([1 / aspect, 1, 1])
    tilt = np.eye(3)
    tilt[2, :2] = augmentation.perspective * samples[4:6]
    shift = _translation(*(0.5 + augmentation.shift * samples[:2]))
    return shift @ tilt @ back @ turn @ shape @ np.diag([scale, scale, 1]) @ _translation(-0.5, -0.5) @ crop


def move_points(points: Float[np.ndarray, "p 2"], matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "p 2"]:
    """Transforms image points (fractions of width and height) by `matrix`.

    Points outside the image, before or after, are set to -1. NaN (unknown) remains NaN.
    """
    visible = ((points >= 0) & (points < 1)).all(1, keepdims=True)
    moved = np.concatenate([points, np.ones_like(points[:, :1])], 1) @ matrix.T
    moved = moved[:, :2] / np.where(visible, moved[:, 2:], 1)
    remains = visible & ((moved >= 0) & (moved < 1)).all(1, keepdims=True)
    return np.where(np.isnan(points).any(1, keepdims=True), np.nan, np.where(remains, moved, -1.0))


def move(
    examples: Sequence[Example], processor: Processor, augmentation: Augmentation, keys: Sequence[tuple[int, ...]]
) -> tuple[list[Example], list[Float[Tensor, "_k 3 3"]]]:
    """Samples the homographies of each example's images and transforms its points; questions get none.

    The random numbers depend only on the row's key and the camera's name: they are equal for all frames of a camera.
    """
    moved, warps = list(examples), [torch.zeros(0, 3, 3)] * len(examples)
    for row, (example, key) in enumerate(zip(examples, keys, strict=True)):
        if isinstance(example.target, str) or example.turns:
            continue
        robot = processor.robot(example.embodiment)
        if _points_by_camera(robot):
            matrices = {c: _sample(c, image.shape, augmentation, key) for c, image in example.images.items()}
            moved[row] = replace(example, points=_moved(example.points, list(matrices.values())))
            maps = [matrices[camera] for camera, _ in row_frames(robot, example.images, example.past)]
            warps[row] = torch.from_numpy(np.array(maps, np.float32).reshape(-1, 3, 3))  # there may be no camera
    return moved, warps


def _sample(
    camera: str, shape: tuple[int, ...], augmentation: Augmentation, key: tuple[int, ...]
) -> Float[np.ndarray, "3 3"]:
    if not augmentation.moves(camera):
        return np.eye(3)
    rng = np.random.default_rng([*key, zlib.crc32(camera.encode())])
    return homography(augmentation, shape[1] / shape[0], rng)


def _moved(
    points: Float[np.ndarray, "p 2"] | None, matrices: Sequence[Float[np.ndarray, "3 3"]]
) -> Float[np.ndarray, "p 2"] | None:
    """Transforms the points of all images, in image order. If the counts do not match, the processor reports it."""
    if points is None or not matrices or len(points) % len(matrices):
        return points
    by_image = points.reshape(len(matrices), -1, 2)
    return np.concatenate([move_points(group, m) for group, m in zip(by_image, matrices, strict=True)])


def warp(
    pixels: Float[Tensor, "b k c h w"], matrices: Float[Tensor, "b k 3 3"], content: Int[Tensor, "b k 4"]
) -> Float[Tensor, "b k c h w"]:
    """Warps the `content` region of each image (left, top, width, height [pixels]), bilinear with repeated edges."""
    from kornia.geometry.transform import warp_perspective

    out = pixels.clone()
    unmoved = torch.eye(3, device=matrices.device)
    selected = (matrices != unmoved).flatten(2).any(2)
    # Images of one camera have one shape, so there are few distinct regions.
    for left, top, width, height in torch.unique(content[selected], dim=0).tolist():
        rows, images = torch.nonzero(selected & (content == content.new_tensor([left, top, width, height])).all(2)).T
        part = slice(top, top + height), slice(left, left + width)
        # Fractions to pixel indices: the centre of the first pixel is half a pixel inside.
        index = matrices.new_tensor([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]])
        by_index = index @ matrices[rows, images] @ torch.linalg.inv(index)
        shown = pixels[rows, images, :, *part]
        out[rows, images, :, *part] = warp_perspective(shown, by_index, (height, width), padding_mode="border")
    return out


def _points_by_camera(robot: RobotSpec) -> bool:
    """Whether points can be assigned to cameras: all cameras have the same number of points."""
    return robot.points % max(1, len(robot.embodiment.cameras)) == 0


def check(augmentation: Augmentation, processor: Processor) -> None:
    """Raises InputError if a selected camera does not exist, or points cannot be assigned to cameras."""
    known = {camera for robot in processor.robots for camera in robot.embodiment.cameras}
    if processor.robots and (unknown := sorted(set(augmentation.cameras or ()) - known)):
        raise InputError(f"plan.augment.cameras has {', '.join(unknown)}; the robots have {', '.join(sorted(known))}")
    for robot in processor.robots if augmentation.geometric and augmentation.cameras else ():
        if not _points_by_camera(robot):
            raise InputError(
                f"{robot.name} has {robot.points} points for {len(robot.embodiment.cameras)} cameras: they cannot be "
                "assigned to cameras, so set plan.augment.cameras=[]"
            )


def report(augmentation: Augmentation, processor: Processor) -> Iterator[str]:
    """Yields one line per robot on its geometric augmentation."""
    for robot in processor.robots if augmentation.geometric else ():
        if not _points_by_camera(robot):
            reason = f"its {robot.points} points cannot be assigned to cameras"
            yield f"geometric augmentation of {robot.name}: no camera; {reason}"
            continue
        moved = [c for c in robot.embodiment.cameras if augmentation.moves(c)]
        still = [c for c in robot.embodiment.cameras if not augmentation.moves(c)]
        reason = f'"{WRIST}" in the name' if augmentation.cameras is None else "not in plan.augment.cameras"
        unchanged = f"; unchanged: {', '.join(still)} ({reason})" if still else ""
        line = f"geometric augmentation of {robot.name}: {', '.join(moved) or 'no camera'}{unchanged}"
        yield f"{line}; rows with questions keep their geometry" if moved else line


def _translation(x: float, y: float) -> Float[np.ndarray, "3 3"]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
