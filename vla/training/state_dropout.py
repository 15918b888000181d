"""Training rows that are not told the state of their robot, so that a policy looks at the scene too."""

from __future__ import annotations

from dataclasses import replace

import torch

from vla.models.batch import Batch

STREAM = 0x5DEECE66D
"""What parts these draws from the others that a row's seed gives."""


def without_states(batch: Batch, share: float) -> Batch:
    """The batch with the states of about `share` of its rows at the middle of their range (0): which, each row's seed
    says, whatever batch it is in; where a row has none, torch's own generator."""
    if share == 0:
        return batch
    drawn = torch.tensor(
        [
            float(torch.rand((), generator=torch.Generator().manual_seed(seed ^ STREAM) if seed >= 0 else None))
            for seed in batch.seed.tolist()
        ]
    )
    kept = (drawn >= share).to(batch.state.device, batch.state.dtype)
    return replace(batch, state=batch.state * kept[:, None])
