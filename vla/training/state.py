"""The state of a training run: the model with all that its steps read and change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla.models.vla import VLA
from vla.training.distributed import DistributedContext
from vla.training.optimizer import Ema, Optimizers
from vla.training.schedule import learning_rate
from vla.training.train_config import TrainConfig


@dataclass
class Progress:
    """The progress of a run."""

    step: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    """The number of tokens with a loss so far, by source."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings of the run (`vla.training.resumption`)."""


@dataclass
class TrainState:
    """The state of a run on this rank.

    Attributes:
        model: The model, with frozen parts, on its device and sharded.
        plan: The training configuration.
        run: The folder of the run.
        sources: The names of the sources of the rows.
        world: The ranks of the run.
        progress: The progress, which checkpoints contain.
        ema: The moving average of the trained weights.
        optimizer: The optimizers of the trained weights.
    """

    model: VLA
    plan: TrainConfig
    run: Path
    sources: Sequence[str]
    world: DistributedContext
    progress: Progress
    ema: Ema = field(init=False)
    optimizer: Optimizers = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        self.ema = Ema(self.model, plan.ema)
        self.optimizer = Optimizers(self.model, plan.weight_decay, plan.lr_multipliers, plan.optimizer)

    @property
    def is_complete(self) -> bool:
        return self.progress.step >= self.plan.steps

    @property
    def is_evaluated(self) -> bool:
        """Whether the model has been evaluated at this step."""
        evaluations = self.progress.evaluations
        return bool(evaluations) and evaluations[-1]["step"] == self.progress.step

    def update(self) -> None:
        """Ends a step: applies the gradients at the rate of the step, and updates the average."""
        step = self.progress.step
        self.optimizer.step(learning_rate(self.plan, step))
        self.ema.update(self.model, step)
        self.progress.step += 1
