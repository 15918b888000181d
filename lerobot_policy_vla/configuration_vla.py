"""The configuration that LeRobot reads from config.json. Cameras, widths and units are in processor.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig


@PreTrainedConfig.register_subclass("vla")
@dataclass
class VlaConfig(PreTrainedConfig):
    """Configuration of the policy. `backbone` and `smoothing` are settings of the model."""

    backbone: dict[str, Any] = field(default_factory=dict)
    smoothing: float = 2.0
    robot: str = ""
    """Name of the robot, for a checkpoint with several."""
    n_action_steps: int = 3
    """Execution horizon: actions of a chunk that are executed before the next inference."""

    def __post_init__(self) -> None:
        self.device = "cpu"  # the model decodes on the CPU
        super().__post_init__()

    @property
    def observation_delta_indices(self) -> None:
        """None: LeRobot does not train this policy."""
        return None

    @property
    def action_delta_indices(self) -> None:
        """None: LeRobot does not train this policy."""
        return None

    @property
    def reward_delta_indices(self) -> None:
        """None: LeRobot does not train this policy."""
        return None

    def get_optimizer_preset(self) -> Any:
        """Raises NotImplementedError: LeRobot does not train this policy."""
        raise NotImplementedError("LeRobot does not train this policy: use `vla train`")

    def get_scheduler_preset(self) -> Any:
        """None: LeRobot does not train this policy."""
        return None

    def validate_features(self) -> None:
        """Does nothing: the features come from the checkpoint when it is loaded."""
