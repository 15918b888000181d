"""Checkpoints of vla as policies of LeRobot, and its simulated SO-101 as an environment of LeRobot.

LeRobot imports this when a command starts; what is heavy is imported when a checkpoint is loaded.
"""

from lerobot_policy_vla.configuration_vla import VlaConfig
from lerobot_policy_vla.environment_vla import VlaEnvConfig

__all__ = ["VlaConfig", "VlaEnvConfig"]
