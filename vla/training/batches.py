"""The rows of a step as micro-batches. What is drawn for a row depends on the seed, the step and the row alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from vla.common.images import sides
from vla.common.stored_image import StoredViews
from vla.datasets.mixture import Mixture
from vla.models.batch import Batch, Frames, allocate_frames
from vla.models.processor import Processor
from vla.training.camera_dropout import without_cameras
from vla.training.distributed import DistributedContext
from vla.training.geometry import move
from vla.training.train_config import TrainConfig
from vla.types import Example

SPARE = ""
"""The source of a row that has no weight in the loss."""


def micro_batches(
    processor: Processor,
    mixture: Mixture,
    plan: TrainConfig,
    step: int,
    world: DistributedContext,
    frames: Frames = allocate_frames,
) -> list[Batch]:
    """The rows of this rank, in `plan.accumulate` micro-batches; with several, rows of like length stand together, so
    that less is padded. With one, its images lie in what `frames` gives."""
    examples = mixture.batch(step, plan.batch_size, world.rank, world.size)
    rows = list(range(world.rank, plan.batch_size, world.size))
    if world.size > 1:
        examples.append(spare(processor))
        rows.append(plan.batch_size)
    keys = [(plan.seed, step, row) for row in rows]
    examples = [without_cameras(e, plan.camera_dropout, key) for e, key in zip(examples, keys, strict=True)]
    examples, warps = move(examples, processor, plan.augmentation, keys)
    batch = processor.batch(examples, [np.random.default_rng(key) for key in keys], frames)
    for row, matrices in zip(batch.warp, warps, strict=True):
        row[: len(matrices)] = matrices
    length = batch.attention_mask.sum(1)[: plan.rows(world.size) * plan.accumulate]
    if plan.accumulate == 1:
        own = slice(len(length) + (world.size > 1 and _lacks(batch, torch.arange(len(length)))))
        return [trimmed(batch.map_tensors(lambda tensor: tensor[own], batch.source[own]))]
    groups = list(torch.argsort(length, stable=True).split(plan.rows(world.size)))
    if world.size > 1:
        groups = [torch.cat([g, torch.tensor([len(length)])]) if _lacks(batch, g) else g for g in groups]
    return [trimmed(batch.rows(group)) for group in groups]


def spare(processor: Processor) -> Example:
    """A row with images, and with actions where there is a robot, of no weight in the loss.

    Ranks gather a module's weights together, and so must all run the same modules: a micro-batch that has no image, or
    no robot where the model drives one, gets this row."""
    if not processor.robots:
        return Example({"black": _black(processor)}, "", "", source=SPARE)
    robot = processor.robots[0]
    state = robot.state.denormalize(np.zeros((1, len(robot.embodiment.state))))[0]
    actions = robot.denormalize_actions(np.zeros((robot.horizon, robot.action_dim)), state)
    images = dict.fromkeys(robot.embodiment.cameras, _black(processor))
    past: tuple[StoredViews, ...] = tuple({} for _ in robot.history)
    return Example(images, "", actions, state, source=SPARE, embodiment=robot.name, past=past)


def _black(processor: Processor) -> UInt8[np.ndarray, "h w 3"]:
    return np.zeros((*sides(processor.image_size), 3), np.uint8)


def _lacks(batch: Batch, rows: Int[Tensor, "n"]) -> bool:
    drives = bool((batch.robot >= 0).any())
    return not batch.image_mask[rows].any() or (drives and not (batch.robot[rows] >= 0).any())


def trimmed(batch: Batch) -> Batch:
    """Without the columns, and the images, that no row has."""
    length, images = int(batch.attention_mask.sum(1).max()), max(1, int(batch.image_mask.sum(1).max()))
    tokens = {n: getattr(batch, n)[:, :length] for n in ("input_ids", "attention_mask", "labels", "segments")}
    views = {n: getattr(batch, n)[:, :images] for n in ("images", "image_mask", "content", "tiling", "warp")}
    return replace(batch, **views, **tokens)
