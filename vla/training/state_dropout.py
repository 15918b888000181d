"""State dropout: training rows without the robot's state, so that a policy relies on images too."""

from __future__ import annotations

from dataclasses import replace

import torch

from vla.models.batch import Batch

STREAM = 0x5DEECE66D
"""Separates these random numbers from others of a row's seed."""


def without_states(batch: Batch, share: float) -> Batch:
    """Sets the state of each row to the middle of its range (0) with probability `share`.

    The random number comes from the row's seed, independent of the batch; without a seed, from torch's generator.
    """
    if share == 0:
        return batch
    samples = torch.tensor(
        [
            float(torch.rand((), generator=torch.Generator().manual_seed(seed ^ STREAM) if seed >= 0 else None))
            for seed in batch.seed.tolist()
        ]
    )
    mask = (samples >= share).to(batch.state.device, batch.state.dtype)
    return replace(batch, state=batch.state * mask[:, None])
