"""The models of `vla bench inference`: sizes of published models, with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vla.benchmarks.train_shapes import REAL, TINY, random_backbone, words
from vla.benchmarks.train_shapes import Shape as Sizes
from vla.embodiment import Embodiment
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.build import build
from vla.models.backbones.nano import nano, train_tokenizer
from vla.models.build import with_head
from vla.models.normalization import Normalizer
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.types import Observation

TEXT = "pick up the red cube and put it into the bowl"


@dataclass(frozen=True)
class Shape:
    """A model with its robot.

    Attributes:
        name: The name in the table.
        head: The action head, as in `vla train head=`.
        cameras: The number of cameras.
        horizon: The horizon of an action chunk.
        width: The action dimension.
        tokens: Tokens per chunk of transformers' `generate` and pi0-FAST.
        sizes: The sizes of the backbone.
        backbone: The configuration of the backbone, if there are no sizes.
        lerobot: LeRobot's policies of the same sizes.
        past: Past frames of each camera.
    """

    name: str
    head: Mapping[str, Any]
    cameras: int
    horizon: int
    width: int
    tokens: int
    sizes: Sizes | None = None
    backbone: Mapping[str, Any] = field(default_factory=dict)
    lerobot: Sequence[str] = ()
    past: int = 0


def _openvla() -> dict[str, Any]:
    """SigLIP So400m at 224 pixels and Llama 2 7B (OpenVLA also has DINOv2, whose features are concatenated)."""
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    language = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    return {
        "family": "composed",
        "vision": {"model_type": "siglip_vision_model", "image_size": 224, "patch_size": 14, **vision},
        "language": {"model_type": "llama", "vocab_size": 32064, "tie_word_embeddings": False, **language},
        "image_size": 224,
        "image_token_id": 3,
        "attention": "sdpa",
    }


PI0 = {"kind": "flow", "width": 1024, "mlp_size": 4096}
"""openpi's `gemma_300m`, with the attention heads of PaliGemma."""
SHAPES = {
    shape.name: shape
    for shape in (
        # The default of `vla train` for the SO-101: 6 steps of 6 joints, decoded in parallel or one by one.
        Shape("nano", {"kind": "parallel"}, 2, 6, 6, 36),
        Shape("nano, 1 past frame", {"kind": "parallel"}, 2, 6, 6, 36, past=1),
        Shape("nano, 2 past frames", {"kind": "parallel"}, 2, 6, 6, 36, past=2),
        Shape("nano bins", {"kind": "bins"}, 2, 6, 6, 36),
        # A flow has no tokens: `generate` has as many as FAST for such a chunk, about one per step.
        Shape("smolvla", REAL[0].head, 2, 50, 6, 50, REAL[0], lerobot=("smolvla",)),
        Shape("pi0", PI0, 2, 50, 32, 50, REAL[1], lerobot=("pi0", "pi0_fast")),
        Shape("openvla", {"kind": "bins"}, 1, 1, 7, 7, backbone=_openvla()),
        # For tests.
        Shape("smolvla tiny", TINY[0].head, 2, 16, 6, 8, TINY[0], lerobot=("smolvla",)),
        Shape("pi0 tiny", {"kind": "flow", "width": 96}, 2, 16, 6, 8, TINY[1], lerobot=("pi0_fast",)),
    )
}


def make(shape: Shape, device: torch.device) -> VLA:
    """Makes the model on `device`, in float32."""
    with torch.device(device):
        torch.manual_seed(0)
        model = with_head(*_backbone(shape), [_robot(shape)], shape.head)
    return model.to(device).eval()


def _robot(shape: Shape) -> RobotSpec:
    joints = tuple(f"joint{i} [rad]" for i in range(shape.width))
    low, high = (-1.0,) * shape.width, (1.0,) * shape.width
    cameras = tuple(f"camera{i}" for i in range(shape.cameras))
    embodiment = Embodiment("bench", cameras, joints, joints, low, high, 20.0)
    spread = Normalizer(low, high)
    history = tuple(10 * moment for moment in range(shape.past, 0, -1))
    return RobotSpec(embodiment, shape.horizon, spread, spread, "none", history=history)


def _backbone(shape: Shape) -> tuple[Backbone, Processor]:
    if shape.sizes is not None:
        return random_backbone(shape.sizes, "sdpa")
    if not shape.backbone:
        return nano(train_tokenizer([TEXT]))
    made = build(shape.backbone)
    return made, Processor(words(shape.backbone["language"]["vocab_size"]), made.image_size, made.tokens_per_image)


def observation(model: VLA) -> Observation:
    """An observation with random images in the model's size, and an instruction."""
    rng, robot = np.random.default_rng(0), model.processor.robot()
    side = model.processor.image_size
    size = (side, side) if isinstance(side, int) else tuple(side)
    *past, images = (
        {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name in robot.embodiment.cameras}
        for _ in range(len(robot.history) + 1)
    )
    return Observation(images, np.zeros(robot.action_dim, np.float32), TEXT, 0.0, tuple(past))
