"""The configuration that LeRobot reads from config.json and the command line, with its training presets.

Cameras, components and units of a checkpoint are in its processor.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs.policies import PreTrainedConfig

from lerobot_policy_vla.presets import VlaOptimizerConfig, VlaSchedulerConfig
from vla.errors import InputError

UNITS = ("dataset", "degrees", "percent")
TYPICAL_HZ = 30.0
"""Rate at which the default horizon of an action head [s] is converted to steps: LeRobot asks for the number of steps
before it tells the policy the rate of the dataset."""


@PreTrainedConfig.register_subclass("vla")
@dataclass
class VlaConfig(PreTrainedConfig):
    """Configuration of the policy. `backbone` and `smoothing` are settings of the model."""

    backbone: dict[str, Any] | str = "nano"
    """As in `vla train`: nano, scratch, a checkpoint folder, a family or a hub id; in a checkpoint its architecture."""
    smoothing: float = 2.0
    robot: str = ""
    """Name of the robot, for a checkpoint with several."""
    n_action_steps: int = 3
    """Execution horizon: actions of a chunk that are executed before the next inference."""
    units: str = ""
    """Units of LeRobot's values: degrees (and percent of the gripper's range), percent (-100 to 100 of each joint's
    range), or dataset: as in the training data. Empty: as dataset, but a policy in radians drives no robot."""
    ranges: dict[str, list[float]] = field(default_factory=dict)
    """Range of a component in the policy's unit, which is 0 to 100 or -100 to 100 percent; default: the joint's."""

    # Training
    head: dict[str, Any] | str = "parallel"
    """Action head, or its kind and options."""
    horizon: int | None = None
    """Steps of an action chunk; None: that of the policy in `backbone`, else `vla train`'s default at 30 Hz."""
    state_encoding: str | None = None
    """numbers or text; None: that of the policy in `backbone`, else numbers."""
    actions: str | None = None
    """Action mode: absolute, delta or velocity; None: inferred from the data."""
    predict: str | None = None
    normalization: str | None = None
    delay: float | None = None
    """Longest inference delay [s] that the policy is trained for by action prefixes; see `vla train`."""
    optimizer: str | None = None
    """muon or adamw; None: the backbone's default, as for the next two."""
    optimizer_lr: float | None = None
    optimizer_weight_decay: float | None = None
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 50

    def __post_init__(self) -> None:
        if self.device is None:
            from vla.common.device import accelerator

            self.device: str | None = accelerator().type
        super().__post_init__()
        if self.units not in ("", *UNITS):
            raise InputError(f"--policy.units={self.units}: choose {', '.join(UNITS)}")

    @property
    def observation_delta_indices(self) -> None:
        """None: the present observation only."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The steps of a chunk."""
        from vla.models.build import checkpoint_folder
        from vla.models.hub import checkpoint_of, fetch
        from vla.training.horizon import horizon_steps

        checkpoint: Path | None
        if self.pretrained_path:
            checkpoint = checkpoint_of(fetch(self.pretrained_path, self.pretrained_revision))
        else:
            checkpoint = checkpoint_folder(self.backbone)
        return list(range(horizon_steps(self.horizon, [TYPICAL_HZ], self.head_kind, checkpoint)))

    @property
    def reward_delta_indices(self) -> None:
        """None: there are no rewards."""
        return None

    @property
    def normalization_mapping(self) -> dict[str, Any]:
        """Empty: the model normalizes, and LeRobot's normalizers change nothing."""
        return {}

    @property
    def head_kind(self) -> str:
        """Name of the action head."""
        return self.head if isinstance(self.head, str) else str(self.head.get("kind"))

    def get_optimizer_preset(self) -> VlaOptimizerConfig:
        """The optimizer of `vla train`."""
        return VlaOptimizerConfig(
            self.optimizer_lr, self.optimizer_weight_decay, self.optimizer_grad_clip_norm, self.optimizer
        )

    def get_scheduler_preset(self) -> VlaSchedulerConfig:
        """The learning-rate schedule of `vla train`."""
        return VlaSchedulerConfig(self.scheduler_warmup_steps)

    def validate_features(self) -> None:
        """Does nothing: the features come from the checkpoint or the dataset when the policy is made."""
