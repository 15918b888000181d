"""The micro-batches of a step. Random numbers of a row depend only on the seed, the step and the row's index."""

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
"""The source of filler rows, whose loss weight is 0."""


def micro_batches(
    processor: Processor,
    mixture: Mixture,
    plan: TrainConfig,
    step: int,
    world: DistributedContext,
    frames: Frames = allocate_frames,
) -> list[Batch]:
    """Builds the micro-batches of this rank for a step.

    With several micro-batches, rows are grouped by length to reduce padding. With one, its images are stored in the
    memory that `frames` returns.
    """
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
        used = slice(len(length) + (world.size > 1 and _lacks(batch, torch.arange(len(length)))))
        return [trimmed(batch.map_tensors(lambda tensor: tensor[used], batch.source[used]))]
    groups = list(torch.argsort(length, stable=True).split(plan.rows(world.size)))
    if world.size > 1:
        groups = [torch.cat([g, torch.tensor([len(length)])]) if _lacks(batch, g) else g for g in groups]
    return [trimmed(batch.rows(group)) for group in groups]


def spare(processor: Processor) -> Example:
    """A filler row with loss weight 0, with images, and with actions if the model has a robot.

    Ranks gather the weights of a module together, so all must run the same modules. This row is added to a micro-batch
    without images, or without robot rows if other micro-batches have some.
    """
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
    """Removes token columns and image slots that no row uses."""
    # The last token is attended to, others before it may not be (EVO1).
    length = int(batch.attention_mask.any(0).nonzero().max()) + 1
    images = max(1, int(batch.image_mask.sum(1).max()))
    tokens = {n: getattr(batch, n)[:, :length] for n in ("input_ids", "attention_mask", "labels", "segments")}
    views = {n: getattr(batch, n)[:, :images] for n in ("images", "image_mask", "content", "tiling", "warp")}
    return replace(batch, **views, **tokens)
