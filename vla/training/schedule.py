"""Learning rate schedules."""

from __future__ import annotations

import math

from vla.training.train_config import TrainConfig


def learning_rate(plan: TrainConfig, step: int) -> float:
    """The learning rate at a step: linear warm-up to `plan.lr` over `plan.warmup` steps, then `plan.schedule`.

    The schedule ends at `plan.floor` times `plan.lr`:

    | cosine   | half a cosine                                                                         |
    | linear   | linear decay                                                                          |
    | constant | no decay, `plan.floor` is not used                                                    |
    | wsd      | constant, then linear decay over the last fraction `plan.decay` of the steps (MiniCPM: |
    |          | Hu et al. 2024, arXiv 2404.06395, sec. 4)                                             |
    """
    if step < plan.warmup:
        return plan.lr * (step + 1) / plan.warmup
    progress = min(1.0, (step - plan.warmup) / max(1, plan.steps - plan.warmup))
    if plan.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    elif plan.schedule == "linear":
        factor = 1 - progress
    elif plan.schedule == "wsd":
        factor = min(1.0, max(0.0, (plan.steps - step) / (plan.decay * plan.steps)))
    else:
        return plan.lr
    return plan.lr * (plan.floor + (1 - plan.floor) * factor)
