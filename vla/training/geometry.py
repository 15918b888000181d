"""Geometric augmentation: each robot row's images as if its cameras had moved a little, with the points that follow.

The homography of an image is decided when its row is built, before points become tokens; pixels are warped later, on
the device. It maps fractions of the camera's own width and height, and so holds for any resolution and aspect ratio:
the black bars around an image of another shape than the model's input stay where they are.

Where a warped image shows what lay beyond the camera's frame, its edge is repeated. Black would outline the frame,
from which a model reads off the very shift it is to be robust to; mirroring would show objects twice.

Questions keep their geometry: their answers hold coordinates, sides and counts.
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
    """Draws a map from fractions of width and height (x right, y down) in the image to those in the augmented one.

    `aspect` is width / height: rotations are by angles of the scene, not of fractions.
    """
    drawn = rng.uniform(-1, 1, 9)
    scale = 1 + augmentation.scale * drawn[2]
    angle = np.deg2rad(augmentation.rotation) * drawn[3]
    cut = augmentation.crop * (drawn[6] + 1) / 2
    crop = np.diag([1 / (1 - cut), 1 / (1 - cut), 1]) @ _translation(*(-cut * (drawn[7:] + 1) / 2))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shape, back = np.diag([aspect, 1, 1]), np.diag([1 / aspect, 1, 1])
    tilt = np.eye(3)
    tilt[2, :2] = augmentation.perspective * drawn[4:6]
    shift = _translation(*(0.5 + augmentation.shift * drawn[:2]))
    return shift @ tilt @ back @ turn @ shape @ np.diag([scale, scale, 1]) @ _translation(-0.5, -0.5) @ crop


def move_points(points: Float[np.ndarray, "p 2"], matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "p 2"]:
    """Points as fractions of width and height where the image is warped by `matrix`.

    What leaves the image, or was not in it, is at -1: what lies beyond the frame is not shown by warping. NaN (unknown)
    stays NaN.
    """
    seen = ((points >= 0) & (points < 1)).all(1, keepdims=True)
    moved = np.concatenate([points, np.ones_like(points[:, :1])], 1) @ matrix.T
    moved = moved[:, :2] / np.where(seen, moved[:, 2:], 1)
    stays = seen & ((moved >= 0) & (moved < 1)).all(1, keepdims=True)
    return np.where(np.isnan(points).any(1, keepdims=True), np.nan, np.where(stays, moved, -1.0))


def move(
    examples: Sequence[Example], processor: Processor, augmentation: Augmentation, keys: Sequence[tuple[int, ...]]
) -> tuple[list[Example], list[Float[Tensor, "_k 3 3"]]]:
    """The examples with their points moved, and the homographies of each one's images; none for a question.

    A row draws from its own of `keys` and from the camera's name: alike for all frames of a camera, independent of the
    other cameras, of their order and of the rest of the batch.
    """
    moved, warps = list(examples), [torch.zeros(0, 3, 3)] * len(examples)
    for row, (example, key) in enumerate(zip(examples, keys, strict=True)):
        if isinstance(example.target, str) or example.turns:
            continue
        robot = processor.robot(example.embodiment)
        if _points_by_camera(robot):
            matrices = {c: _drawn(c, image.shape, augmentation, key) for c, image in example.images.items()}
            moved[row] = replace(example, points=_moved(example.points, list(matrices.values())))
            maps = [matrices[camera] for camera, _ in row_frames(robot, example.images, example.past)]
            warps[row] = torch.from_numpy(np.array(maps, np.float32).reshape(-1, 3, 3))  # there may be no camera
    return moved, warps


def _drawn(
    camera: str, shape: tuple[int, ...], augmentation: Augmentation, key: tuple[int, ...]
) -> Float[np.ndarray, "3 3"]:
    if not augmentation.moves(camera):
        return np.eye(3)
    rng = np.random.default_rng([*key, zlib.crc32(camera.encode())])
    return homography(augmentation, shape[1] / shape[0], rng)


def _moved(
    points: Float[np.ndarray, "p 2"] | None, matrices: Sequence[Float[np.ndarray, "3 3"]]
) -> Float[np.ndarray, "p 2"] | None:
    """The points of all images, one image after the other. Those of too few images are left to the processor."""
    if points is None or not matrices or len(points) % len(matrices):
        return points
    by_image = points.reshape(len(matrices), -1, 2)
    return np.concatenate([move_points(own, m) for own, m in zip(by_image, matrices, strict=True)])


def warp(
    pixels: Float[Tensor, "b k c h w"], matrices: Float[Tensor, "b k 3 3"], content: Int[Tensor, "b k 4"]
) -> Float[Tensor, "b k c h w"]:
    """Warps the part of each image that is its `content` (left, top, width, height [pixels]); the bars around it stay.

    Bilinear, edges repeated.
    """
    from kornia.geometry.transform import warp_perspective

    out = pixels.clone()
    unmoved = torch.eye(3, device=matrices.device)
    chosen = (matrices != unmoved).flatten(2).any(2)
    # Images of one camera have one shape: there are few.
    for left, top, width, height in torch.unique(content[chosen], dim=0).tolist():
        rows, images = torch.nonzero(chosen & (content == content.new_tensor([left, top, width, height])).all(2)).T
        part = slice(top, top + height), slice(left, left + width)
        # Fractions to the indices of pixels: the centre of the first lies half a pixel inside.
        index = matrices.new_tensor([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]])
        by_index = index @ matrices[rows, images] @ torch.linalg.inv(index)
        shown = pixels[rows, images, :, *part]
        out[rows, images, :, *part] = warp_perspective(shown, by_index, (height, width), padding_mode="border")
    return out


def _points_by_camera(robot: RobotSpec) -> bool:
    """Whether it is known which points are in the images of which camera: those of all cameras are alike."""
    return robot.points % max(1, len(robot.embodiment.cameras)) == 0


def check(augmentation: Augmentation, processor: Processor) -> None:
    """Raises InputError where a camera that is named is none of a robot's, or has points of which that is unknown."""
    known = {camera for robot in processor.robots for camera in robot.embodiment.cameras}
    if processor.robots and (unknown := sorted(set(augmentation.cameras or ()) - known)):
        raise InputError(f"plan.augment.cameras has {', '.join(unknown)}; the robots have {', '.join(sorted(known))}")
    for robot in processor.robots if augmentation.geometric and augmentation.cameras else ():
        if not _points_by_camera(robot):
            raise InputError(
                f"{robot.name} has {robot.points} points for {len(robot.embodiment.cameras)} cameras: which is of "
                "which camera is unknown, so set plan.augment.cameras=[]"
            )


def report(augmentation: Augmentation, processor: Processor) -> Iterator[str]:
    """A line for each robot: whose geometry is varied, and whose is not and why."""
    for robot in processor.robots if augmentation.geometric else ():
        if not _points_by_camera(robot):
            unknown = f"which of its {robot.points} points is of which camera is unknown"
            yield f"geometric augmentation of {robot.name}: no camera; {unknown}"
            continue
        moved = [c for c in robot.embodiment.cameras if augmentation.moves(c)]
        still = [c for c in robot.embodiment.cameras if not augmentation.moves(c)]
        why = f'"{WRIST}" in the name' if augmentation.cameras is None else "not in plan.augment.cameras"
        kept = f"; unchanged: {', '.join(still)} ({why})" if still else ""
        line = f"geometric augmentation of {robot.name}: {', '.join(moved) or 'no camera'}{kept}"
        yield f"{line}; rows with questions keep their geometry" if moved else line


def _translation(x: float, y: float) -> Float[np.ndarray, "3 3"]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
