"""The optimizer and the learning-rate schedule of `vla train`, for LeRobot's training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lerobot.optim import LRSchedulerConfig, OptimizerConfig

from vla.errors import InputError

if TYPE_CHECKING:
    from vla.training.optimizer import Optimizers


@OptimizerConfig.register_subclass("vla")
@dataclass
class VlaOptimizerConfig(OptimizerConfig):
    """Muon and AdamW with the learning rates of the backbone's parts; None: the backbone's default."""

    lr: float | None = None
    weight_decay: float | None = None
    grad_clip_norm: float = 1.0
    optimizer: str | None = None

    def build(self, params: Any) -> torch.optim.Optimizer:
        """Builds the optimizer for what `VlaPolicy.get_optim_params` returns. Raises InputError for anything else."""
        from vla.training.backbone_defaults import backbone_defaults
        from vla.training.optimizer import Optimizers

        if not isinstance(params, dict) or "model" not in params:
            raise InputError("--optimizer.type=vla is the preset of --policy.type=vla: choose another, or leave it out")
        defaults = backbone_defaults(params["model"].backbone, scratch=params["scratch"])
        kind: Any = self.optimizer or defaults["optimizer"]
        if kind not in ("muon", "adamw"):
            raise InputError(f"--policy.optimizer={kind}: choose muon or adamw")
        decay = defaults["weight_decay"] if self.weight_decay is None else self.weight_decay
        optimizers = Optimizers(params["model"], decay, defaults["lr_multipliers"], kind)
        return OneOptimizer(optimizers, defaults["lr"] if self.lr is None else self.lr)


@LRSchedulerConfig.register_subclass("vla")
@dataclass
class VlaSchedulerConfig(LRSchedulerConfig):
    """Linear warm-up and half a cosine down to the share `floor` of the peak."""

    num_warmup_steps: int = 50
    floor: float = 0.05

    def build(self, optimizer: torch.optim.Optimizer, num_training_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
        """The schedule for this number of steps."""
        from vla.training.schedule import learning_rate
        from vla.training.train_config import TrainConfig

        plan = TrainConfig(steps=num_training_steps, lr=1.0, warmup=self.num_warmup_steps, floor=self.floor)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(plan, step))


class OneOptimizer(torch.optim.Optimizer):
    """`Optimizers` as one optimizer of torch, which owns all parameter groups and moments."""

    def __init__(self, optimizers: Optimizers, lr: float) -> None:
        groups = [group for part in optimizers.parts for group in part.param_groups]
        super().__init__([{**group, "lr": lr * group["lr_scale"]} for group in groups], {})
        self._optimizers = optimizers

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes a step at the rates that a scheduler has set."""
        start = 0
        for part in self._optimizers.parts:
            # Loading a state replaces groups and moments.
            stop = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:stop], self.state
            start = stop
        first = self.param_groups[0]
        self._optimizers.step(first["lr"] / first["lr_scale"])
