"""A tiny model for the simulated SO-101, with random weights."""

from __future__ import annotations

from vla.envs.make import make_env
from vla.models.normalization import Normalizer
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA


def so101_model(plain: VLA) -> VLA:
    """The weights of `make_model(robot=False)`, driving another robot."""
    env = make_env("pick")
    body = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    spec = RobotSpec(
        embodiment=body,
        horizon=4,
        state=Normalizer(body.action_low, body.action_high),
        action=Normalizer((-0.2,) * 6, (0.2,) * 6),
        statistics_hash="none",
    )
    old = plain.processor
    processor = Processor(old.tokenizer, old.image_size, old.tokens_per_image, (spec,))
    return VLA(plain.backbone, processor).eval()
