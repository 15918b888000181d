"""LeRobot's batches as the observations and training rows of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vla.errors import InputError
from vla.policies.converted_units import BatchConvertedPolicy
from vla.types import Example, Observation

OBSERVATION, IMAGES, STATE, ACTION = "observation.", "observation.images.", "observation.state", "action"


def observations_of(batch: Mapping[str, Any], cameras: Sequence[str], fewer_cameras: bool) -> list[Observation]:
    """The observation of each row of a batch.

    Raises:
        InputError: the state or a camera is missing, except some of the cameras with `fewer_cameras`.
    """
    keys = {camera: _image_key(batch, camera) for camera in cameras}
    present = {camera: key for camera, key in keys.items() if key in batch} if fewer_cameras else {}
    present = present or keys
    if missing := [key for key in (STATE, *present.values()) if key not in batch]:
        raise InputError(f"{', '.join(missing)} is missing from LeRobot's observation: name it with --rename_map")
    states = batch[STATE].cpu().double().numpy()
    task = batch.get("task") or ""
    tasks = [task] * len(states) if isinstance(task, str) else task
    images = {camera: as_bytes(batch[key]) for camera, key in present.items()}
    return [
        Observation({camera: rows[i] for camera, rows in images.items()}, state, tasks[i], 0.0)
        for i, state in enumerate(states)
    ]


def examples_of(
    batch: Mapping[str, Any], cameras: Sequence[str], robot: str, units: BatchConvertedPolicy | None
) -> list[Example]:
    """The training rows of a batch: an observation and the action chunk from it on.

    Args:
        batch: LeRobot's batch.
        cameras: The cameras of the policy.
        robot: Name of the robot in the model.
        units: Converts LeRobot's values to the policy's; None: they are the policy's.

    Raises:
        InputError: the batch has no chunk of actions, or lacks the state or a camera.
    """
    if ACTION not in batch or batch[ACTION] is None or batch[ACTION].ndim != 3:
        raise InputError("the batch has no chunks of actions: LeRobot takes their length from --policy.horizon")
    actions = batch[ACTION].cpu().double().numpy()
    padded = batch.get("action_is_pad")
    inside = np.ones(actions.shape[:2], bool) if padded is None else ~padded.cpu().numpy().astype(bool)
    rows = zip(observations_of(batch, cameras, False), actions, inside, strict=True)
    return [
        Example(
            images=observation.images,
            prompt=observation.instruction,
            target=chunk if units is None else units.action.to_policy(chunk),
            state=observation.state if units is None else units.state.to_policy(observation.state),
            mask=mask,
            source="robot",
            embodiment=robot,
        )
        for observation, chunk, mask in rows
    ]


def as_bytes(images: Tensor) -> np.ndarray:
    """Converts floats (b, 3, h, w) in [0, 1] to bytes (b, h, w, 3)."""
    if images.is_floating_point():
        images = (images * 255).round().clamp(0, 255).byte()
    return images.cpu().movedim(1, -1).contiguous().numpy()


def _image_key(batch: Mapping[str, Any], camera: str) -> str:
    """The camera's key: observation.images.NAME, or observation.NAME in a dataset that has no such prefix."""
    plain = OBSERVATION + camera
    return plain if plain in batch and IMAGES + camera not in batch else IMAGES + camera
