"""What LeRobot reads of a checkpoint's config.json. Cameras, widths and units are in its processor.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig


@PreTrainedConfig.register_subclass("vla")
@dataclass
class VlaConfig(PreTrainedConfig):
    """`backbone` and `smoothing` are the model's own."""

    backbone: dict[str, Any] = field(default_factory=dict)
    smoothing: float = 2.0
    robot: str = ""
    """Which robot, for a checkpoint that drives several."""
    n_action_steps: int = 3
    """Actions of a chunk that are carried out before the policy is asked again."""

    def __post_init__(self) -> None:
        self.device = "cpu"  # where the model decodes
        super().__post_init__()

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> Any:
        raise NotImplementedError("LeRobot does not train this policy: use `vla train`")

    def get_scheduler_preset(self) -> Any:
        return None

    def validate_features(self) -> None:
        """The features are those of the checkpoint, set when it is loaded."""
