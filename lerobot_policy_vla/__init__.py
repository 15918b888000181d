"""LeRobot plugin: checkpoints of vla as policies, and its simulated SO-101 as an environment.

LeRobot imports it at the start of a command; heavy modules are imported when a checkpoint is loaded.
"""

from lerobot_policy_vla.configuration_vla import VlaConfig
from lerobot_policy_vla.environment_vla import VlaEnvConfig

__all__ = ["VlaConfig", "VlaEnvConfig"]
