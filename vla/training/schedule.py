"""The learning rate over a run."""

from __future__ import annotations

import math

from vla.training.train_config import TrainConfig


def learning_rate(plan: TrainConfig, step: int) -> float:
    """Linear to `plan.lr` over `plan.warmup` steps; then as `plan.schedule` says, which ends at `plan.floor` of it:

    | cosine | half a cosine                                                                          |
    | linear | a line                                                                                 |
    | constant | as it is, to the end                                                                 |
    | wsd    | as it is, then a line over the last `plan.decay` of the steps (MiniCPM: Hu et al. 2024, |
    |        | arXiv 2404.06395, sec. 4)                                                              |
    """
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    progress = min(1.0, (step - plan.warmup) / max(1, plan.steps - plan.warmup))
    if plan.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    elif plan.schedule == "linear":
        left = 1 - progress
    elif plan.schedule == "wsd":
        left = min(1.0, max(0.0, (plan.steps - step) / (plan.decay * plan.steps)))
    else:
        return plan.lr
    return plan.lr * (plan.floor + (1 - plan.floor) * left)
